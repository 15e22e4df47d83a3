"""The frozen plan of a cleaning: which inputs there are, the units they are cleaned in, and the names of their outputs.

::

    OUTPUT/plan/generation-000/part-00000.parquet      schema.PLAN; the rows of a unit follow one another in one part
    OUTPUT/plan/generation-000/_SUCCESS                written last: counts, as JSON
    OUTPUT/plan/generation-001/part-00000.parquet      what an update found new or changed
    OUTPUT/plan/generation-001/replaced-00000.parquet  rows of former generations that it takes the place of

A generation without its mark is not there: it is made anew from the start. One with its mark is never changed, and its
input never listed again. The same listing gives the same rows.

Neither the listing nor the plan is ever held in memory: of each input, 8 bytes are, or 32 where all names collide. A
draft of the plan goes to a temporary file (in ``TMPDIR``), of about 300 bytes an input.

Two inputs that would become one output (``a.jpg``, ``a.png``) keep their full names (``a.jpg.png``, ``a.png.png``);
where these are taken too, a hash of the key goes into the name. On a local disk that does not tell upper from lower
case, names that differ in that only are one name; object stores and Linux tell them apart, so they are kept there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import Any

from raypurify import storage
from raypurify.cleaning.base import Entry
from raypurify.cleaning.digests import Digests
from raypurify.cleaning.drafts import Draft, Item, Sizes, drafted
from raypurify.cleaning.generations import REPLACED, Counts, Generation, Parts, counted, whole
from raypurify.cleaning.inputs import Listed
from raypurify.cleaning.names import folded
from raypurify.cleaning.naming import Names
from raypurify.cleaning.streams import Spool, ordered
from raypurify.storage.published import unescaped

Marked = list[tuple[Generation, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What an update found."""

    generation: int | None
    """The generation that it planned; None where nothing is new or changed."""
    new: int
    """Files, as are the others."""
    changed: int
    unknown: int = 0
    """Inputs of former generations of which no store or server tells whether they changed: they are planned anew."""
    gone: int
    """Inputs of former generations that are no longer there; their outputs stay."""
    counts: Counts
    """What it planned."""


def freeze(
    output: str,
    entries: Iterable[Listed],
    *,
    extension: str,
    limit: int | None = None,
    skipped: Mapping[str, int] | None = None,
    sizes: Sizes | None = None,
) -> Counts:
    """Plan what is listed; where a whole plan is there already, nothing is drawn from ``entries``.

    Args:
        output: where the run writes.
        entries: in ascending order of their keys, each once: :func:`raypurify.cleaning.inputs.listed`.
        extension: of cleaned images, without a dot.
        limit: plan the first so many image files, runs of rows and tars only.
        skipped: kept as it is when ``entries`` has ended: see :func:`skipped_files`.
        sizes: how the plan is cut.

    Returns:
        What the first generation holds.

    Raises:
        ValueError: ``entries`` are not in order, or there are none.
    """
    found = whole(output)
    if found:
        return Counts(**found[0][1]["counts"])
    sizes = sizes or Sizes()
    generation = Generation(output, 0)
    generation.remove()
    names = Names(extension, Digests(), folds=_folds(output))
    items = drafted(((entry, []) for entry in _checked(entries)), sizes)
    with Spool() as spool:
        spool.extend(names.passed(islice((draft for item in items for draft in item.drafts), limit)))
        if spool.is_empty():
            raise ValueError("there is nothing to plan: the listing of the input is empty")
        about = {"skipped": dict(skipped or {}), "replaced": asdict(Counts()), "replaced_parts": 0}
        return generation.write(names.named(spool), sizes, about)


def update(output: str, entries: Iterable[Listed], *, extension: str, sizes: Sizes | None = None) -> Changes:
    """Plan, in a new generation, what is new or has another size or version than when it was planned last, or may have.

    Changed inputs keep the names of their outputs, new ones get names that no output has had.

    Args:
        output: of a run.
        entries: the whole listing of today, as for :func:`freeze`.
        extension: as it was.
        sizes: how the plan is cut.

    Raises:
        ValueError: there is no plan to update, or ``entries`` are not in order.
    """
    former = _whole(output)
    sizes = sizes or Sizes()
    generation = Generation(output, len(former))
    generation.remove()
    folds = _folds(output)
    names = Names(extension, _outputs(former, folds), folds=folds)
    tally = {"new": 0, "changed": 0, "unknown": 0, "gone": 0}
    replaced = _Replaced(generation, sizes)
    items = drafted(_changes(_checked(entries), _latest(former, sizes), tally), sizes)
    with Spool() as spool:
        spool.extend(names.passed(replaced.passed(items)))
        replaced.parts.close()
        if spool.is_empty():
            return Changes(generation=None, **tally, counts=Counts())
        about = {**tally, "replaced": asdict(replaced.counts), "replaced_parts": replaced.parts.count}
        counts = generation.write(names.named(spool), sizes, about)
    return Changes(generation=generation.number, **tally, counts=counts)


def generations(output: str) -> int:
    """The number of whole generations: 0 where there is no plan, or one that was cut off."""
    return len(whole(output))


def total(output: str) -> Counts:
    """What is planned: the units of all generations, and the inputs as the latest of each knows them.

    Raises:
        ValueError: there is no whole plan.
    """
    marks = [mark for _, mark in _whole(output)]
    return sum((Counts(**mark["counts"]) - Counts(**mark["replaced"]) for mark in marks), Counts())


def skipped_files(output: str) -> dict[str, int]:
    """Files that were no inputs when the plan was frozen, by extension.

    Raises:
        ValueError: there is no whole plan.
    """
    return dict(_whole(output)[0][1]["skipped"])


def superseded(output: str, generation: int) -> Iterator[tuple[Entry, bool]]:
    """Former entries whose inputs ``generation`` plans anew, in the order of their keys.

    Yields:
        The entry as it was, and whether its output is stale: nothing writes it any more, as when a Parquet file is now
        cut into fewer runs.

    Raises:
        ValueError: there is no such generation.
    """
    found = _whole(output)
    if not 0 <= generation < len(found):
        raise ValueError(f"generation must be in [0, {len(found)}); got {generation!r}")
    number, mark = found[generation]
    for table in number.replaced(mark):
        for row in table.drop_columns("unit").to_pylist():
            is_stale = row.pop("is_stale")
            yield Entry.planned(row), is_stale


class _Replaced:
    """Writes the former entries of changed files."""

    def __init__(self, generation: Generation, sizes: Sizes) -> None:
        self.parts = Parts(generation, "replaced", REPLACED, sizes.part_rows)
        self.counts = Counts()

    def passed(self, items: Iterable[Item]) -> Iterator[Draft]:
        """The new drafts of the items, on their way."""
        for _, former, drafts in items:
            if former:
                outputs = {draft.output for draft in drafts}
                self.parts.extend((*draft.row(""), draft.output not in outputs) for draft in former)
                self.counts += counted(former, units=0)
            yield from drafts


def _checked(entries: Iterable[Listed]) -> Iterator[Listed]:
    before = None
    for entry in entries:
        if before is not None and entry.key <= before:
            raise ValueError(f"the listing must be sorted, with each key once; {entry.key!r} came after {before!r}")
        before = entry.key
        yield entry


def _changes(
    entries: Iterable[Listed], latest: Iterator[list[Draft]], tally: dict[str, int]
) -> Iterator[tuple[Listed, list[Draft]]]:
    """New and changed files with their former entries; counts them, and those that are gone."""
    former = next(latest, None)
    for entry in entries:
        while former and former[0].key < entry.key:
            tally["gone"] += 1
            former = next(latest, None)
        if not former or former[0].key > entry.key:
            tally["new"] += 1
            yield entry, []
            continue
        is_known = entry.version or (entry.size < 0 and not storage.is_web(entry.url))
        if not is_known or (former[0].size, former[0].version) != (entry.size, entry.version):
            tally["changed" if is_known else "unknown"] += 1
            yield entry, former
        former = next(latest, None)
    while former:
        tally["gone"] += 1
        former = next(latest, None)


def _latest(generations: Marked, sizes: Sizes) -> Iterator[list[Draft]]:
    """The entries of each planned key in the last generation that has it, in the order of the keys."""
    for _, same in groupby(ordered(_records(generations), run=sizes.sorted_rows), key=lambda record: record[0]):
        _, records = next(groupby(same, key=lambda record: record[1]))
        yield [
            Draft(key, url, kind, size, version, first, rows, output, is_alone=False)
            for key, _, first, url, kind, size, version, rows, output in records
        ]


def _records(generations: Marked) -> Iterator[tuple[Any, ...]]:
    """Planned rows as tuples whose order is by key, last generation first, then first row."""
    for generation, mark in generations:
        for table in generation.planned(mark):
            for row in table.to_pylist():
                about = (row[name] for name in ("kind", "size", "version", "rows", "output"))
                yield (row["key"], -generation.number, row["first"], unescaped(row["url"]), *about)


def _outputs(generations: Marked, folds: bool) -> Digests:
    """The names of all outputs so far."""
    taken = Digests()
    for generation, mark in generations:
        for table in generation.planned(mark, ["output"]):
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


def _whole(output: str) -> Marked:
    found = whole(output)
    if not found:
        raise ValueError(f"{output}: there is no plan yet; freeze one first")
    return found
