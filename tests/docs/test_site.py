"""The pages are built as a site without a warning; a broken link is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT

BUILD = ("-m", "mkdocs", "build", "--strict")
PAGES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "RESULTS.md", "mkdocs.yml")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The pages of this one, and its code."""
    for name in ("docs", "weights", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in PAGES:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "raypurify").symlink_to(ROOT / "raypurify")
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [sys.executable, *BUILD], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_site_is_built_and_a_broken_link_fails(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode == 0, done.stderr[-3000:]
    site = checkout / "site"
    assert 'href="evaluate.html"' in (site / "index.html").read_text()
    assert "accuracy_under" in (site / "reference.html").read_text()
    assert ":func:" not in (site / "reference.html").read_text()
    with open(checkout / "docs" / "clean.md", "a", encoding="utf-8") as page:
        page.write("\n[nowhere](no-such-page.md)\n")
    done = build(checkout)
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr
