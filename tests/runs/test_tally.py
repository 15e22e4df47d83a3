"""What an attempt did is added up, and its timeline stays short."""

import pytest

from raypurify.runs.tally import POINTS, Tally


def test_the_timeline_stays_short() -> None:
    tally = Tally({"requests": 0, "retries": 0})
    begun = tally.started
    for number in range(5000):
        row = {"in": 2, "out": 2, "rejected": 0, "requests": 1, "retries": 0}
        tally.add({**row, "started": begun + number, "ended": begun + number + 1})
    shown = tally.shown()
    assert shown["in"] == 10_000
    assert shown["images_per_second"] == pytest.approx(2)
    assert POINTS <= len(shown["timeline"]) <= 2 * POINTS
    assert shown["timeline"][0] == (0.0, 0)
    assert shown["timeline"][-1] == (5000.0, 10_000)
