"""The small table that the demo prints."""

import pyarrow as pa

from raypurify.jobs.demo import accuracies


def test_a_row_is_a_purifier_and_a_column_an_attack() -> None:
    cells = [
        ("white-box", "none", "identity", 1.0),
        ("white-box", "pgd", "identity", 0.0),
        ("white-box", "none", "cru_net", 0.9),
        ("white-box", "pgd", "cru_net", 0.8),
        ("adaptive", "pgd", "cru_net", 0.1),
    ]
    names = ("setting", "attack", "purifier", "accuracy_purified")
    summary = pa.Table.from_pylist([dict(zip(names, cell, strict=True)) for cell in cells])
    assert accuracies(summary).to_pylist() == [
        {"purifier": "none", "none": 1.0, "pgd": 0.0, "adaptive pgd": None},
        {"purifier": "cru_net", "none": 0.9, "pgd": 0.8, "adaptive pgd": 0.1},
    ]
