"""A whole cleaning in this process, without Ray: the steps of ``raypurify.jobs.clean``, in its order."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

from raypurify import images, runs, storage
from raypurify.cleaning import accounts, inputs, plan, planner
from raypurify.cleaning.cleaner import Cleaner, Cleaning, CleaningConfig
from raypurify.cleaning.planner import Sizes
from raypurify.report.cleaning import write_cleaning_report


def clean(
    config: CleaningConfig,
    output: str,
    *,
    update: bool = False,
    overwrite: bool = False,
    sizes: Sizes | None = None,
    most: int | None = None,
) -> accounts.Totals | None:
    """Clean as a command would.

    Args:
        sizes: how the plan is cut.
        most: units after which the process is killed; None: never.

    Returns:
        What became of the input; None where it was killed.
    """
    extension = images.FORMATS[config.format].extension
    work = Cleaning.load(config, output)
    run = runs.open_run(output, work.identity(), overwrite=overwrite)
    is_new = not plan.generations(output)
    run.begin()
    if is_new:
        skipped: Counter[str] = Counter()
        entries = inputs.listed(config.input, output=output, skipped=skipped)
        planner.freeze(output, entries, extension=extension, sizes=sizes, skipped=skipped)
    cleaner = Cleaner(work, "cpu", batch=8, threads=1)
    left = do_units(cleaner, most)
    if update and not is_new and left != 0:
        planner.update(output, inputs.listed(config.input, output=output), extension=extension, sizes=sizes)
        left = do_units(cleaner, left)
    if left == 0:
        return None
    accounts.retire(output)
    totals = accounts.add_up(output)
    write_cleaning_report(output, totals, accounts.read_changes(output, totals))
    run.finish()
    return totals


def do_units(cleaner: Cleaner, most: int | None) -> int | None:
    """Clean the units that are not accounted for; how many more it may, 0 where one is left over, None: any number."""
    output = cleaner.work.output
    done = {storage.stem(url) for url in storage.list_files(storage.join(output, "manifest"), ".parquet")}
    todo = [unit for unit in plan.units(output) if unit.name not in done]
    for unit in islice(todo, most):
        accounts.publish(output, unit.name, cleaner(unit.read()))
    if most is not None and len(todo) > most:
        # Killed behind a unit's images, and before its accounts.
        cleaner(todo[most].read())
    return None if most is None else max(0, most - len(todo)) if len(todo) <= most else 0


def rows_of(output: str, part: str) -> list[dict[str, Any]]:
    """The rows of ``manifest/`` or ``rejects/``."""
    return [
        row
        for url in storage.list_files(storage.join(output, part), ".parquet")
        for row in storage.read_table(url).to_pylist()
    ]
