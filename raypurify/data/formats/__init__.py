"""Formats of datasets: one file a format, with the words under which :mod:`raypurify.data.names` looks for it.

A format's file names

- ``RANK``: formats of a lower one are looked for first, where a place holds several;
- ``EXPECTED``: what it takes, in words;
- ``find(place, split) -> Found | None``: the shards of a split at a ``files.Place``, with ``format=__name__``, from
  headers and listings; None: the place holds no such data. DataError: it does, damaged or without the split;
- ``read(shard, rows) -> Rows``: some rows of the file, (N,) int64, counted from ``shard.first``;
- ``labels(shard, rows) -> (N,) int64``: their labels, without the images where that can be.

A file outside the project names, in place of the first three, a callable ``callable(split, **params) -> Found``, and is
given as ``my_package.module:callable[,KEY=VALUE...]``. ``Found.contents`` says what tells these data from others.

Where ``Found.image_shape`` is None, it also names ``headers(shard, rows) -> list[tuple[str, Shape | None]]``: of
each of some rows its id, and its image's shape as far as the header tells it. Every format's images are shown as the
shard's ``view`` says. One of large images does so itself, by :func:`base.decoded`, and holds one at a time as stored.

Where reading row after row would fetch things twice, it also names ``read_parts(shard, parts) -> Iterator[Rows]``: each
of several lists of rows; where the data bring ids of their own, ``own_ids(shard)``: these, or None; and, for a training
against images that were attacked beforehand, ``ids(shard, rows) -> list[str]``: those of some rows, without the images.
"""
