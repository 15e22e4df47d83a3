"""A job's tables for other programs: as Parquet, and as CSV beside it."""

from __future__ import annotations

from io import BytesIO

import pyarrow as pa
import pyarrow.csv

from raypurify import storage


def write(url: str, table: pa.Table) -> None:
    """Write ``URL.parquet`` and ``URL.csv``; columns of lists, which CSV has none of, are in the former alone."""
    storage.write_table(f"{url}.parquet", table)
    text = BytesIO()
    flat = [field.name for field in table.schema if not pa.types.is_list(field.type)]
    pa.csv.write_csv(table.select(flat), text)
    storage.write_bytes(f"{url}.csv", text.getvalue())
