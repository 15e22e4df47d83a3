"""What the README and the pages of docs/ tell a reader to type: blocks of code, and commands."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDER = ("README", "getting-started", "evaluate", "attack", "clean", "train", "data", "plugins", "clusters", "python")
"""Pages in the order in which they are read: what one writes, the next ones may read."""
FENCE = re.compile(r"^(?P<runs><!-- run -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:raypurify|python|make|pip|ray|uv) [^`]+)`")
NAMED = re.compile(r"# (?P<name>[\w-]+\.(?:py|yaml))\n")
RUN = "<!-- run -->\n"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """The number of its first line of code in the page, from 1."""
    language: str
    text: str
    runs: bool
    """Whether a comment before it says that its commands run on the data that every installation has."""

    @property
    def file(self) -> str | None:
        """The name of the file that it is, where its first line says so."""
        named = NAMED.match(self.text)
        return named and named["name"]

    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without what is piped or written elsewhere."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words[: words.index(">")] if ">" in words else words


@functools.cache
def pages() -> dict[str, str]:
    """The text of each page, by its path from the root."""
    found = {"README.md": ROOT / "README.md", **{f"docs/{path.name}": path for path in (ROOT / "docs").glob("*.md")}}
    stems = {name: Path(name).stem for name in found}
    ordered = sorted(found, key=lambda name: ORDER.index(stems[name]) if stems[name] in ORDER else len(ORDER))
    return {name: found[name].read_text(encoding="utf-8") for name in ordered}


@functools.cache
def blocks(page: str, text: str) -> list[Block]:
    """The blocks of a page."""
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            text=match["text"],
            runs=match["runs"] is not None,
        )
        for match in FENCE.finditer(text)
    ]


def inline_commands(text: str) -> list[list[str]]:
    """The words of each command that stands in a sentence or a table."""
    return [shlex.split(command) for command in INLINE.findall(FENCE.sub("", text))]


def write_files(folder: Path, found: list[Block]) -> list[str]:
    """Write the blocks that are files; gives their names."""
    named = {block.file: block.text for block in found if block.file}
    for name, text in named.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*named]


def script(found: list[Block]) -> str:
    """Python blocks as one script, each on the lines that it has in its page, so that a traceback names these."""
    lines: list[str] = []
    for block in found:
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"
