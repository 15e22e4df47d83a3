"""Tables and progress on the terminal."""

import time

import pyarrow as pa
import pytest

from raypurify.runs.progress import Progress, print_table


def test_radii_are_printed_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"eps": 8 / 255, "purifier": f"gaussian_noise,sigma={16 / 255}", "accuracy": 8 / 255},
        {"eps": 0.3, "purifier": "identity", "accuracy": 1.0},
        {"eps": None, "purifier": "gaussian_noise,sigma=0.1", "accuracy": 0.5},
    ]
    print_table(pa.Table.from_pylist(rows))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in cells if row] == [
        ["8/255", "gaussian_noise,sigma=16/255", "0.0314"],
        ["0.3", "identity", "1.0000"],
        ["None", "gaussian_noise,sigma=0.1", "0.5000"],
    ]


def test_a_slow_rate_is_not_told_as_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("certifying", total=4, unit="images") as progress:
        progress.advance(1, began=time.time() - 25)
        progress.advance(2)
    assert "3/4 images, 0.12 images/s, 8 s left" in capsys.readouterr().err
