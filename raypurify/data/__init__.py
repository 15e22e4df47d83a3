"""Image datasets by name, URL or dotted path, read at random by runs of rows, with no image held that nobody asked for.

``sources`` opens and narrows them, ``names`` says what a name stands for, ``reading`` reads rows, ``formats`` has one
file a format, ``columns`` the images in tables, ``view`` says how images are shown, ``base`` has the types, ``files``
the files at any URL. Others import from here, and from ``columns``, ``base``, ``files`` and ``formats.parquet``.
"""

from raypurify.data.base import BATCH_PIXELS, NO_LABEL, DataError, Found, Origin, Rows, Shard, Source, batch_size
from raypurify.data.reading import (
    check_ids,
    headers_of,
    ids_of,
    labels_of,
    names_of,
    read_parts,
    read_rows,
    shape_of,
    take_rows,
)
from raypurify.data.sources import in_colour, narrowed, open_source, shown, spread
from raypurify.data.view import AS_STORED, Shape, View
