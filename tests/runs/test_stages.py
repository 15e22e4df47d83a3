"""Seconds are counted for the stage that they were spent in, once."""

import time
from collections.abc import Iterator

import pytest

from raypurify.runs import stages


def test_a_stage_inside_another_counts_for_itself_alone() -> None:
    before, began = stages.seconds(), time.perf_counter()
    with stages.spending("attack"):
        time.sleep(0.02)
        with stages.spending("classify"):
            time.sleep(0.04)
        time.sleep(0.02)
    whole, spent = time.perf_counter() - began, stages.since(before)
    assert spent["seconds_classify"] >= 0.04
    assert spent["seconds_attack"] >= 0.04
    assert spent["seconds_attack"] + spent["seconds_classify"] == pytest.approx(whole, abs=1e-3)
    assert spent["seconds_read"] == spent["seconds_write"] == 0


def test_an_iterators_own_seconds_count_and_not_what_is_done_between() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    before, began = stages.seconds(), time.perf_counter()
    between = 0.0
    for _ in stages.each("read", slow()):
        start = time.perf_counter()
        time.sleep(0.02)
        between += time.perf_counter() - start
    spent = stages.since(before)["seconds_read"]
    assert 0.03 <= spent <= time.perf_counter() - began - between + 1e-3


def test_what_fails_counts_too_and_ends_its_stage() -> None:
    before = stages.seconds()
    with pytest.raises(ValueError, match="x"), stages.spending("write"):
        raise ValueError("x")
    time.sleep(0.02)
    assert stages.since(before)["seconds_write"] < 0.02
