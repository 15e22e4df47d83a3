"""What the site has beside the pages of docs/: the README, and other pages of the repository, with links that fit."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    **{
        name: name
        for name in (
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "RESULTS.md",
            "cluster/README.md",
            "weights/mnist/TRAINING.md",
            "weights/cifar10/TRAINING.md",
            "weights/photos/TRAINING.md",
        )
    },
}
"""Where pages of the repository are in the site."""
LINK = re.compile(r"(\]\()([^)#\s:]+\.(?:md|png))")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?")
"""A role of reStructuredText's, as Markdown leaves it."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links between pages of the repository lead to their places in the site."""
    places = {target: source for source, target in PAGES.items()}
    source = places.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        target = PAGES.get(linked, linked.removeprefix("docs/"))
        return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave the roles of docstrings out: their names stand in the same type without."""
    return ROLE.sub("<code>", html)
