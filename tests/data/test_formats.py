"""Formats: what each file offers, and one that is not of this project."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import squares

from raypurify import plugins
from raypurify.data import check_ids, formats, labels_of, narrowed, open_source, read_rows, shape_of

NAMES = plugins.known(formats.__name__)


def test_each_format_has_a_rank_of_its_own() -> None:
    modules = [importlib.import_module(f"{formats.__name__}.{name}") for name in NAMES]
    assert len({module.RANK for module in modules}) == len(modules) == 5
    assert all(isinstance(module.EXPECTED, str) and module.find and module.read and module.labels for module in modules)


def test_a_file_outside_the_project_is_a_format() -> None:
    source = open_source("squares:source", split="test", limit=7)
    assert (source.name, source.rows, source.classes) == ("squares:source", 7, ("dark", "bright"))
    assert shape_of(source) == (8, 8, 1)
    check_ids(source)
    assert labels_of(source).tolist() == [0, 1, 0, 1, 0, 1, 0]
    rows = read_rows(source.shards[0], 2, 4)
    assert rows.ids == ["squares-test#2", "squares-test#3"]
    assert np.unique(np.asarray(rows.images)).tolist() == [50, 200]
    some = narrowed(source, np.array([1, 5]))
    assert read_rows(some.shards[0], 0, 2).ids == ["squares-test#1", "squares-test#5"]


def test_parameters_and_the_code_of_a_format_are_in_its_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    source = open_source("squares:source,side=4,rows=6", split="train")
    assert (source.rows, source.image_shape) == (6, (4, 4, 1))
    same = open_source("squares:source,rows=6,side=4", split="train")
    other = open_source("squares:source,side=5,rows=6", split="train")
    assert source.fingerprint == same.fingerprint != other.fingerprint
    changed = tmp_path / "squares.py"
    changed.write_text(Path(squares.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(squares, "__file__", str(changed))
    assert open_source("squares:source,side=4,rows=6", split="train").fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("squares:nowhere", r"module 'squares' has no callable 'nowhere'"),
        ("no_such_package.shapes:source", r"there is no module 'no_such_package' to import"),
        ("squares:source,colour=1", r"squares:source,colour=1.*has no parameter \['colour'\]"),
        ("squares:nothing", r"expected a callable that returns a raypurify.data.Found, got 'train'"),
    ],
)
def test_a_dotted_path_that_is_no_format_is_refused(data: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_source(data, split="train")


def test_a_path_with_a_slash_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mnist) -> None:
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "squares:source")
    assert open_source("./squares:source", split="train").rows == 7
