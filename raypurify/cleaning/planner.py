"""Makes plans: freezes the listing of an input, and updates what was frozen. The same listing gives the same plan.

Neither the listing nor the plan is ever held in memory: of each input, 8 bytes are, or 32 where all names collide. What
is to be planned goes to a temporary file first (in ``TMPDIR``), of about 300 bytes an input.

On a local disk that does not tell upper from lower case, names that differ in that only are one name; object stores and
Linux tell them apart, so they are kept there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby, islice, pairwise
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from raypurify import storage
from raypurify.cleaning.entries import Entry
from raypurify.cleaning.names import Output, UniqueNames, folded
from raypurify.cleaning.plan import Counts, Generation, PartWriter, generations, read_part, require_generations
from raypurify.data.columns import image_column
from raypurify.data.files import parquet_footer
from raypurify.runs import schema
from raypurify.storage.bounded import SORTED_ROWS, Digests, Spool, concurrently, ordered

FOOTERS_AT_ONCE = 16
READINGS = 8
"""How often a row group is read, as long as ``TOGETHER`` allows: to reach a row, what is before it has to be read."""
TOGETHER = 16
"""Ranges of a unit, at most: what is done again when it is cut off, and what its accounts hold in memory."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a plan is cut."""

    unit_entries: int = 500
    """Image files of a unit, and rows of a Parquet file's range, at most."""
    unit_bytes: int = 16 << 20
    """Encoded bytes of a unit, at most, but for one file or row that has more."""
    part_rows: int = 1 << 14
    """About how many rows a part has; it ends with a unit."""
    sorted_rows: int = SORTED_ROWS
    """How many rows are sorted in memory at a time."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What an update found."""

    new: int
    """How many files are new. The other counts are of files, too."""
    changed: int
    unknown: int = 0
    """Inputs of former generations of which no store or server tells whether they changed: they are planned anew."""
    gone: int
    """Inputs of former generations that are no longer there; their outputs stay."""


class RowRange(NamedTuple):
    """Rows of a Parquet file that become one output."""

    first: int
    rows: int
    joins: bool = False
    """Whether the range is cleaned in the unit of the range before it, so that their row group is gone through once
    for both."""


ONE_OUTPUT = [RowRange(0, 1)]
"""What an image and a tar are cut into, and so is a file that is no Parquet of images, is gone or cannot be read: its
reader says why, in one reject."""


class Unplaced(NamedTuple):
    """What an input is cut into: an entry that has no unit yet, and perhaps no name for its output."""

    entry: Entry
    suffix: str
    """What tells the outputs of one file apart, for their names."""
    joins: bool
    """Whether it belongs in the unit of the one before it: see :class:`RowRange`."""


def freeze(
    output: str,
    files: Iterable[Entry],
    *,
    extension: str,
    limit: int | None = None,
    skipped: Mapping[str, int] | None = None,
    sizes: Sizes | None = None,
) -> Counts:
    """Plan what is listed; where a finished plan is there already, nothing is drawn from ``files``.

    Args:
        files: in ascending order of their keys, each once: :func:`raypurify.cleaning.inputs.listed`.
        extension: of cleaned images, without a dot.
        limit: plan the first so many image files, ranges of rows and tars only.
        skipped: files that were no inputs, by extension; kept as it is when ``files`` has ended.

    Returns:
        What the first generation holds.

    Raises:
        ValueError: ``files`` are not in order, or there are none.
    """
    read_part.cache_clear()  # another run of this process may have had a plan in the same place
    if finished := generations(output):
        return Counts(**finished[0].mark["counts"])
    changed: Iterator[tuple[Entry, list[Entry]]] = ((file, []) for file in _checked(files))
    # What is skipped is counted while the files are drawn.
    about = {"skipped": {} if skipped is None else skipped}
    counts = _plan(output, [], changed, about, extension, sizes or Sizes(), limit)
    if counts is None:
        raise ValueError("there is nothing to plan: the listing of the input is empty")
    return counts


def update(output: str, files: Iterable[Entry], *, extension: str, sizes: Sizes | None = None) -> Changes:
    """Plan, in a new generation, what is new or has another size or version than when it was planned last, or may have.

    Changed inputs keep the names of their outputs, new ones get names that no output has had.

    ``files`` is the whole listing of today; for the other arguments see :func:`freeze`.

    Raises:
        ValueError: there is no plan to update, or ``files`` are not in order.
    """
    read_part.cache_clear()
    former, sizes = require_generations(output), sizes or Sizes()
    tally = {"new": 0, "changed": 0, "unknown": 0, "gone": 0}
    changed = _changed(_checked(files), _latest(former, sizes), tally)
    _plan(output, former, changed, tally, extension, sizes)
    return Changes(**tally)


def row_ranges(url: str, size: int, *, rows: int, most: int) -> list[RowRange]:
    """The ranges that a Parquet file is cut into, in order, from its footer; one of no rows for a file without any.

    A range ends where a row group does, unless the group is longer than a range: such a group is cut evenly, and its
    ranges are spread over ``READINGS`` units, or more of ``TOGETHER`` ranges.

    Args:
        size: bytes of the file; -1 where that is not known.
        rows: of a range, at most.
        most: bytes of a range, at most, as the footer tells them, but at least one row.

    Raises:
        DataError: as :func:`raypurify.data.files.parquet_footer`.
    """
    metadata = parquet_footer(url, size)
    if metadata is None or image_column(metadata.schema.to_arrow_schema()) is None:
        return ONE_OUTPUT
    return _cut_groups(metadata, rows, most) or [RowRange(0, 0)]


def _cut_groups(metadata: pq.FileMetaData, rows: int, most: int) -> list[RowRange]:
    found: list[RowRange] = []
    first = open_rows = open_bytes = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if open_rows + group.num_rows > rows or open_bytes + group.total_byte_size > most:
            found += _evenly(first, open_rows, open_bytes, rows, most)
            first, open_rows, open_bytes = first + open_rows, 0, 0
        open_rows += group.num_rows
        open_bytes += group.total_byte_size
    return found + _evenly(first, open_rows, open_bytes, rows, most)


def _evenly(first: int, count: int, total: int, rows: int, most: int) -> list[RowRange]:
    """``count`` rows of ``total`` bytes in ranges as equal as can be."""
    parts = min(count, max(-(-count // rows), -(-total // most)))
    edges = [first + count * part // parts for part in range(parts + 1)] if parts else []
    together = min(-(-parts // READINGS), TOGETHER)
    return [
        RowRange(start, stop - start, joins=number % together > 0)
        for number, (start, stop) in enumerate(pairwise(edges))
    ]


def _plan(
    output: str,
    former: Sequence[Generation],
    changed: Iterable[tuple[Entry, list[Entry]]],
    about: Mapping[str, Any],
    extension: str,
    sizes: Sizes,
    limit: int | None = None,
) -> Counts | None:
    """Write the generation after ``former``: what it replaces, its units, and then its mark.

    Args:
        changed: the files to plan, each with its former entries.
        about: what the mark holds besides.

    Returns:
        What was planned; None where that is nothing, and no mark is written.
    """
    generation = Generation(output, len(former))
    # An attempt that was cut off may have left a part of it.
    storage.remove(generation.folder)
    replaced = PartWriter(generation, "replaced", schema.REPLACED, sizes.part_rows)
    parts = PartWriter(generation, "part", schema.PLAN, sizes.part_rows)
    folds = _folds(output)
    names = UniqueNames(extension, folds=folds)
    with closing(Spool()) as spool:
        _, end = spool.extend(islice(_pieces(changed, replaced, names, sizes), limit))
        replaced.close()
        if not end:
            return None
        named = _named(spool, names, taken=_outputs(former, folds))
        for number, unit in enumerate(_units(named, sizes)):
            parts.add(f"{generation.number:03d}-{number:06d}", unit)
        parts.close()
    mark = {"parts": parts.parts, "counts": asdict(parts.counts), **about}
    mark |= {"replaced": asdict(replaced.counts), "replaced_parts": replaced.parts}
    storage.write_json(storage.join(generation.folder, storage.SUCCESS), mark)
    return parts.counts


def _checked(files: Iterable[Entry]) -> Iterator[Entry]:
    before = None
    for file in files:
        if before is not None and file.key <= before:
            raise ValueError(f"the listing must be sorted, with each key once; {file.key!r} came after {before!r}")
        before = file.key
        yield file


def _pieces(
    files: Iterable[tuple[Entry, list[Entry]]], replaced: PartWriter, names: UniqueNames, sizes: Sizes
) -> Iterator[Unplaced]:
    """What files are cut into, each given with its former entries, which go to ``replaced``.

    What was there before, at the same first row, keeps its output; the outputs of the others are told to ``names``.
    """

    def ranges(item: tuple[Entry, list[Entry]]) -> list[RowRange]:
        return row_ranges(item[0].url, item[0].size, rows=sizes.unit_entries, most=sizes.unit_bytes)

    found = concurrently(ranges, files, at_once=FOOTERS_AT_ONCE, when=lambda item: item[0].kind == "parquet")
    for (file, former), cuts in found:
        known = {entry.first: entry.output for entry in former}
        pieces = []
        for first, rows, joins in cuts or ONE_OUTPUT:
            suffix = f"-{first:09d}" if cuts and len(cuts) > 1 else ""
            entry = file._replace(first=first, rows=None if file.kind == "tar" else rows, output=known.get(first, ""))
            pieces.append(Unplaced(entry, suffix, joins))
        if former:
            outputs = {piece.entry.output for piece in pieces}
            replaced.add("", former, [entry.output not in outputs for entry in former])
        for piece in pieces:
            if not piece.entry.output:
                names.add(_output(piece))
            yield piece


def _spooled(spool: Spool) -> Iterator[Unplaced]:
    return (Unplaced(Entry(*entry), suffix, joins) for entry, suffix, joins in spool.read())


def _output(piece: Unplaced) -> Output:
    return piece.entry.key, piece.entry.kind, piece.suffix


def _named(spool: Spool, names: UniqueNames, taken: Digests) -> Iterator[Unplaced]:
    """The pieces in a spool, each with a name for its output."""
    names.settle((_output(piece) for piece in _spooled(spool) if not piece.entry.output), taken)
    for piece in _spooled(spool):
        output = piece.entry.output or names.name(_output(piece))
        yield piece._replace(entry=piece.entry._replace(output=output))


def _units(pieces: Iterable[Unplaced], sizes: Sizes) -> Iterator[list[Entry]]:
    """The entries of each unit: image files together, a tar alone, a range of rows with those that join it."""
    images: list[Entry] = []
    ranges: list[Entry] = []
    size = 0
    for entry, _, joins in pieces:
        if entry.kind != "image":
            if ranges and not joins:
                yield ranges
                ranges = []
            ranges.append(entry)
            continue
        added = max(0, entry.size)
        if images and (len(images) >= sizes.unit_entries or size + added > sizes.unit_bytes):
            yield images
            images, size = [], 0
        images.append(entry)
        size += added
    yield from (unit for unit in (ranges, images) if unit)


def _changed(
    files: Iterable[Entry], latest: Iterator[list[Entry]], tally: dict[str, int]
) -> Iterator[tuple[Entry, list[Entry]]]:
    """New and changed files with their former entries; counts them, and those that are gone."""
    former = next(latest, None)
    for file in files:
        while former and former[0].key < file.key:
            tally["gone"] += 1
            former = next(latest, None)
        if not former or former[0].key > file.key:
            tally["new"] += 1
            yield file, []
            continue
        is_known = file.version or (file.size < 0 and not storage.is_web(file.url))
        if not is_known or (former[0].size, former[0].version) != (file.size, file.version):
            tally["changed" if is_known else "unknown"] += 1
            yield file, former
        former = next(latest, None)
    while former:
        tally["gone"] += 1
        former = next(latest, None)


def _latest(generations: Iterable[Generation], sizes: Sizes) -> Iterator[list[Entry]]:
    """The entries of each planned key in the last generation that has it, in the order of the keys."""
    entries = (
        (entry.key, -generation.number, entry.first, entry)
        for generation in generations
        for table in generation.planned()
        for entry in map(Entry.of_row, table.to_pylist())
    )
    for _, same in groupby(ordered(entries, in_memory=sizes.sorted_rows), key=lambda record: record[0]):
        _, latest = next(groupby(same, key=lambda record: record[1]))
        yield [Entry(*entry) for *_, entry in latest]


def _outputs(generations: Iterable[Generation], folds: bool) -> Digests:
    """The names of all outputs so far."""
    taken = Digests()
    for generation in generations:
        for table in generation.planned(["output"]):
            for name in table["output"].to_pylist():
                taken.add(folded(name) if folds else name)
    return taken.seal()


def _folds(output: str) -> bool:
    """Whether the output is on a local disk that does not tell upper from lower case."""
    if not storage.is_local(output):
        return False
    folder = storage.join(storage.absolute(output), "plan")
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".case", dir=folder) as file:
        parent, name = os.path.split(file.name)
        return os.path.exists(os.path.join(parent, name.swapcase()))
