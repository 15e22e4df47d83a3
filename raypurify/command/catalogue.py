"""The verb ``plugins``: everything that has a name, its parameters and what its file says of it. Needs no Ray."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any

import docstring_parser
import tyro
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from raypurify import plugins

PACKAGES = {
    "attacks": "raypurify.attacks",
    "purifiers": "raypurify.purifiers",
    "classifiers": "raypurify.classifiers",
    "sources of pairs": "raypurify.training.pairs",
    "loggers": "raypurify.training.loggers",
    "formats of datasets": "raypurify.data.formats",
}
"""Kinds of plugins, and the package that has a file for each."""
METRIC_KIND = "metrics"
"""The kind whose plugins are entries of a table instead of files."""
WIDTH = 120
"""How many columns a line has that is not printed on a terminal."""


@dataclass(frozen=True, kw_only=True)
class PluginsArguments:
    """Flags of the verb ``plugins``."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """The plugin that is told in full; one of your own by my_package.module:callable. By default all are listed."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of a plugin."""

    name: str
    default: Any
    """The default; ``inspect.Parameter.empty`` where the parameter has to be given."""
    doc: str

    def __str__(self) -> str:
        if self.default is inspect.Parameter.empty:
            return self.name
        is_float = isinstance(self.default, float)
        return f"{self.name}={plugins.shown(self.default) if is_float else plugins.written(self.default)}"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Something that has a name."""

    kind: str
    name: str
    docs: tuple[str, ...]
    """The docstrings of its file and of what it builds."""
    parameters: tuple[Parameter, ...] = ()
    file: str
    """The file that has its source."""


def main(arguments: PluginsArguments) -> None:
    """List attacks, purifiers, classifiers, sources of pairs, loggers, formats and metrics; or tell all of one."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)
    if arguments.name is not None:
        for plugin in named(arguments.name):
            _tell(console, plugin)
        return
    for kind in (*PACKAGES, METRIC_KIND):
        console.print(f"\n{kind}", style="bold")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        for plugin in known(kind):
            parameters = ", ".join(map(str, plugin.parameters))
            table.add_row(plugin.name, plugin.docs[0].partition("\n")[0] + (f"\n{parameters}" if parameters else ""))
        console.print(Padding.indent(table, 2))


def _tell(console: Console, plugin: Plugin) -> None:
    console.print(f"{plugin.name} ({plugin.kind})\n", style="bold")
    for doc in plugin.docs:
        console.print(f"{doc}\n")
    for parameter in plugin.parameters:
        console.print(f"  {parameter}", style="bold")
        console.print(Padding.indent(parameter.doc or "(not described)", 6))
    console.print("\n" * bool(plugin.parameters) + f"source: {plugin.file}\n", soft_wrap=True)


def named(name: str) -> list[Plugin]:
    """The plugins of a name, one of each kind that has it; of a dotted path, what it leads to.

    Raises:
        ValueError: there is none; the message has the nearest name.
    """
    if ":" in name:
        return [_built(f"of {name.partition(':')[0]}", name, plugins.find(__package__, name))]
    every = [plugin for kind in (*PACKAGES, METRIC_KIND) for plugin in known(kind)]
    found = [plugin for plugin in every if plugin.name == name]
    if not found:
        near = difflib.get_close_matches(name, [plugin.name for plugin in every], n=1)
        guess = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"there is no plugin {name!r}{guess} raypurify plugins lists them")
    return found


def known(kind: str) -> Iterator[Plugin]:
    """The plugins of a kind, in the order of their names; those of a library come last, in its order."""
    if kind == METRIC_KIND:
        for metric in importlib.import_module("raypurify.metrics").METRICS:
            yield _built(kind, metric.name, metric.measure, called=False)
        return
    package = PACKAGES[kind]
    for name in plugins.known(package):
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, "build"):
            yield _built(kind, name, module.build, module.__doc__)
        else:
            yield Plugin(kind=kind, name=name, docs=(_cleaned(module.__doc__),), file=str(module.__file__))
    for family in plugins.FAMILIES:
        if importlib.util.find_spec(f"{package}.{family}"):
            library = importlib.import_module(f"{package}.{family}")
            for member in library.names() if library.is_installed() else ():
                yield _built(kind, f"{family}.{member}", library.build_named(member))


def _built(kind: str, name: str, builder: Callable[..., Any], doc: str | None = None, *, called: bool = True) -> Plugin:
    """The plugin that ``builder`` builds, or, where it is not ``called`` with parameters of the user's, is itself."""
    docs = [_cleaned(text) for text in (doc, builder.__doc__) if text]
    return Plugin(
        kind=kind,
        name=name,
        docs=tuple(docs) or ("(not described)",),
        parameters=tuple(_parameters(builder)) if called else (),
        file=inspect.getsourcefile(inspect.unwrap(builder)) or "",
    )


def _parameters(builder: Callable[..., Any]) -> Iterator[Parameter]:
    owner = plugins.described(builder)
    docs: dict[str, str] = {}
    inherited = inspect.getmro(owner) if is_dataclass(owner) and isinstance(owner, type) else (owner,)
    for one in reversed([kind for kind in inherited if kind is not object]):
        for param in docstring_parser.parse_from_object(one).params:
            docs[param.arg_name] = " ".join(_cleaned(param.description).split()) if param.description else ""
    for parameter in inspect.signature(owner).parameters.values():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            yield Parameter(name=parameter.name, default=parameter.default, doc=docs.get(parameter.name, ""))


def _cleaned(doc: str | None) -> str:
    """A docstring for people: without the marks of code and of links to code."""
    return re.sub(r"(?::\w+:)?(`+)~?(.*?)\1", r"\2", inspect.cleandoc(doc or "(not described)"), flags=re.DOTALL)
