"""A job's tables for other programs: as Parquet, and as CSV beside it."""

from __future__ import annotations

from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from raypurify import storage


def write(url: str, table: pa.Table) -> None:
    """Write ``URL.parquet`` and ``URL.csv``, which has a list of texts as one, with semicolons between them."""
    storage.write_table(f"{url}.parquet", table)
    text = BytesIO()
    columns = [pc.binary_join(one, "; ") if pa.types.is_list(one.type) else one for one in table.columns]
    pa.csv.write_csv(pa.table(columns, names=table.column_names), text)
    storage.write_bytes(f"{url}.csv", text.getvalue())
