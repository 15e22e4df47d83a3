"""A job's tables for other programs: as Parquet, and as CSV beside it."""

from __future__ import annotations

from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from raypurify import storage


def write(url: str, table: pa.Table) -> None:
    """Write ``URL.parquet`` and ``URL.csv``.

    CSV has no lists: one of texts is joined by semicolons (``nothing`` where it is empty), others are left out.
    """
    storage.write_table(f"{url}.parquet", table)
    text = BytesIO()
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.type == pa.list_(pa.string()):
            columns[name] = pc.if_else(
                pc.equal(pc.list_value_length(column), 0), "nothing", pc.binary_join(column, "; ")
            )
        elif not pa.types.is_nested(column.type):
            columns[name] = column
    pa.csv.write_csv(pa.table(columns), text)
    storage.write_bytes(f"{url}.csv", text.getvalue())
