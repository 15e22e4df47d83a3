"""Every block of Python in the README and the pages runs, in the order of its page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT, Block, blocks, pages, script, write_files

from raypurify import storage

OUTPUTS = {
    "README.md": ["runs/py/a_net"],
    "docs/python.md": ["runs/py/a_net", "runs/py/evaluation"],
    "docs/results.md": ["runs/evaluation"],
}
"""Folders in which a page's blocks have finished a run."""
PYTHON = {
    page: found
    for page, text in pages().items()
    if (found := [block for block in blocks(page, text) if block.language == "python"])
}
WITHIN = 0.002 + 1e-6
"""Share of the images by which the figures of the two libraries may differ, to the rounding of their float32."""


def ran(folder: Path, page: str, found: list[Block], check: str = "") -> None:
    """Run blocks of a page in a folder that has the repository's weights, then import the files among them."""
    modules = [name.removesuffix(".py") for name in write_files(folder, found)]
    (folder / "weights").symlink_to(ROOT / "weights")
    name = page.replace("/", "-") + ".py"
    imports = "".join(f"import {module}\n" for module in modules)
    text = script([block for block in found if not block.file]) + imports + check
    (folder / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}\n{done.stderr}"


@pytest.mark.parametrize("page", PYTHON)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    found = [block for block in PYTHON[page] if "import foolbox" not in block.text]
    if any('"mnist"' in block.text for block in found) and not os.environ.get("RAYPURIFY_DATA"):
        pytest.skip("RAYPURIFY_DATA names no folder with MNIST")
    ran(tmp_path, page, found)
    for output in OUTPUTS.get(page, []):
        assert storage.is_success(str(tmp_path / output))


def test_foolbox_comes_to_the_same_figures_in_as_many_lines(tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    preparation, ours, theirs = PYTHON["docs/python.md"][-3:]
    assert "foolbox" in theirs.text
    assert len(ours.text.splitlines()) == len(theirs.text.splitlines())
    check = f"""
assert len(ours) == len(theirs) == 5
assert len(set(ours)) == 5, ours
assert max(abs(mine - other) for mine, other in zip(ours, theirs)) <= {WITHIN}, (ours, theirs)
"""
    ran(tmp_path, "docs/python.md", [preparation, ours, theirs], check)
