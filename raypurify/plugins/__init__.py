"""Attacks, purifiers and classifiers by name: a plugin is a file, and the file's name is its name.

``pgd`` in the package ``raypurify.attacks`` is the attribute ``build`` of ``raypurify/attacks/pgd.py``. A dotted path
``my_package.models:make`` names a callable of the user's own. Nothing is registered, so a name means the same in a
fresh worker process as on the driver.

A file in ``FAMILIES`` stands for many plugins: ``torchattacks.PGD`` is what ``build_named("PGD")`` of
``raypurify/attacks/torchattacks.py`` returns.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from raypurify.plugins.values import converted, number

FAMILIES = ("torchattacks",)
"""Plugin files that offer ``build_named(name)``, a builder for each of many names, instead of ``build``."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A plugin's name and its parameters, as a user writes them: ``pgd,epsilon=0.3,steps=40``."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read ``NAME[,KEY=VALUE...]``. A value is JSON where it parses as such (``layers=[4,6]``), or a fraction
        (``8/255``), else a string.

        Raises:
            ValueError: a part that is not ``KEY=VALUE``, an empty name, or a fraction of nothing (``8/0``).
        """
        name, *pairs = _SEPARATOR.split(text)
        params = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not key.strip():
                raise ValueError(f"expected NAME[,KEY=VALUE...], got {text!r}: {pair!r} is not KEY=VALUE")
            params[key.strip()] = _value(value)
        if not name.strip():
            raise ValueError(f"expected NAME[,KEY=VALUE...], got {text!r}: the name is empty")
        return cls(name=name.strip(), params=params)

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{key}={written(value)}" for key, value in self.params.items())])


def spec_of(built: Any) -> Spec:
    """The spec that builds an equal object: a plugin's name or a dotted path, and what differs from its defaults.

    Args:
        built: an instance of a dataclass.

    Raises:
        ValueError: of a class that other processes cannot import by its name.
    """
    kind = type(built)
    families = (base.__module__.rpartition(".")[2] for base in kind.__mro__)
    package, _, file = kind.__module__.rpartition(".")
    family = next((name for name in families if name in FAMILIES), None)
    if family is None and (kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__):
        raise ValueError(
            f"{kind.__qualname__} is defined in {kind.__module__}, where other processes cannot import it: put it at "
            "the top of a module of your own"
        )
    given = {
        item.name: getattr(built, item.name)
        for item in dataclasses.fields(built)
        if item.init and not (item.default is not dataclasses.MISSING and getattr(built, item.name) == item.default)
    }
    if family is not None:
        return Spec(name=f"{family}.{kind.__name__}", params=given)
    is_ours = package.startswith(f"{__package__.partition('.')[0]}.")
    return Spec(name=file if is_ours else f"{kind.__module__}:{kind.__name__}", params=given)


def resolved(spec: Spec, built: Any) -> Spec:
    """``spec`` with every parameter of the dataclass that it built: specs that mean the same get one text.

    Parameters are in order of their names; equal numbers are one number (``1.0`` is ``1``).
    """
    has_fields = dataclasses.is_dataclass(built) and not isinstance(built, type)
    params = dataclasses.asdict(built) if has_fields else spec.params
    return Spec(name=spec.name, params=normalised(params))


def normalised(value: Any) -> Any:
    """A JSON value in which mappings are sorted and whole floats are integers, so that equal values have one text."""
    if isinstance(value, Mapping):
        return {key: normalised(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [normalised(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def decimal(text: str) -> str:
    """A spec as it is written, but that a fraction stands there as a decimal: what means the same then reads alike."""
    return _FRACTION_GIVEN.sub(lambda found: repr(number(found[0])), text)


def shown(value: float) -> str:
    """A number as people read it: ``0.3``; in 255ths where it is a whole number of them and no short decimal."""
    if math.isclose(value, round(value, 3), rel_tol=1e-9):
        return f"{value:g}"
    levels = round(value * 255) if math.isfinite(value) else 0
    return f"{levels}/255" if levels and math.isclose(value * 255, levels, rel_tol=1e-5) else f"{value:.4g}"


def readable(text: str) -> str:
    """A spec for people: the other way round than :func:`decimal`, where a number is a whole number of 255ths."""

    def in_255ths(found: re.Match[str]) -> str:
        value = shown(float(found[0]))
        return value if "/" in value else found[0]

    return _DECIMAL_GIVEN.sub(in_255ths, text)


_SEPARATOR = re.compile(r",(?![^\[]*\])")  # a comma that is not inside brackets
_FRACTION = re.compile(r"\s*-?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*")
_DECIMAL_GIVEN = re.compile(r"(?<==)-?\d+\.\d+(?=[,+]|$)")  # behind a purifier's name, + stands in a victim's
_FRACTION_GIVEN = re.compile(rf"(?<==){_FRACTION.pattern}(?=,|$)")


def written(value: Any) -> str:
    """A parameter's value as :meth:`Spec.parse` reads it."""
    plain = isinstance(value, str) and _value(value) == value
    return value if plain else json.dumps(value, separators=(",", ":"))


def _value(text: str) -> Any:
    if _FRACTION.fullmatch(text):
        return number(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def known(package: str) -> list[str]:
    """Names of the plugins that ``package`` carries in files of their own, sorted."""
    return [name for name in _files(package) if name not in FAMILIES]


def _files(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def find(package: str, name: str) -> Callable[..., Any]:
    """The builder that ``name`` stands for: a plugin of ``package``, a member of a family, or ``module:attribute``.

    Raises:
        ValueError: no such plugin, module or attribute; the message lists the known plugins.
        ImportError: the plugin's own failing import, which the message names the plugin of.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        package_name = module_name.partition(".")[0]
        if importlib.util.find_spec(package_name) is None:
            raise ValueError(f"{name!r}: there is no module {package_name!r} to import; is it on PYTHONPATH?")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            error.msg = f"{name!r} cannot be imported: {error.msg}"
            raise
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            # torchvision registers operators that a build for another torch lacks.
            raise ImportError(
                f"{name!r} cannot be imported: {error}. torchvision was built for another torch; install the two "
                "together, from one index: https://pytorch.org/get-started"
            ) from error
        if not callable(getattr(module, attribute, None)):
            raise ValueError(f"{name!r}: module {module_name!r} has no callable {attribute!r}")
        return getattr(module, attribute)
    files = _files(package)
    family, dot, member = name.partition(".")
    if dot and family in FAMILIES and family in files:
        builder: Callable[..., Any] = importlib.import_module(f"{package}.{family}").build_named(member)
        return builder
    if name not in files or name in FAMILIES:
        kind = package.rpartition(".")[2]
        choices = [f"{file}.NAME" if file in FAMILIES else file for file in files]
        near = difflib.get_close_matches(name, choices, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"unknown name {name!r} among {kind}: known are {', '.join(choices)}; "
            f"your own is given as my_package.module:callable{guess}"
        )
    return importlib.import_module(f"{package}.{name}").build


def source_hash(spec: Spec, classes: Iterable[type]) -> str:
    """Hash of the source code that a dotted path stands for; empty for a plugin of this package.

    Args:
        spec: what the user named.
        classes: of what it built. The modules that define them count, and the one that the path names; not those of
            Python, torch and this package, nor what a counted module imports.
    """
    if ":" not in spec.name:
        return ""
    names = {spec.name.partition(":")[0], *(kind.__module__ for kind in classes)}
    others = {"torch", "raypurify", *sys.stdlib_module_names}
    own = sorted(name for name in names if name.partition(".")[0] not in others)
    return hashlib.sha256(json.dumps([[name, _source_of(name)] for name in own]).encode()).hexdigest()


def _source_of(module: str) -> str:
    path = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


def build(package: str, spec: Spec) -> Any:
    """Build the plugin that ``spec`` describes.

    Raises:
        ValueError: unknown name, or parameters that the plugin does not take.
    """
    builder = find(package, spec.name)
    _check_parameters(builder, spec)
    try:
        return builder(**spec.params)
    except TypeError as error:
        raise ValueError(f"{readable(str(spec))}: {error}") from error


def described(builder: Callable[..., Any]) -> Callable[..., Any]:
    """What has a builder's parameters: itself, or the dataclass whose fields it passes on to a network."""
    passes_on = any(item.kind is item.VAR_KEYWORD for item in inspect.signature(builder).parameters.values())
    if inspect.isfunction(builder) and passes_on:
        network = get_type_hints(builder).get("return")
        hints = get_type_hints(network.__init__) if isinstance(network, type) else {}  # type: ignore[misc]
        configs = (kind for kind in hints.values() if dataclasses.is_dataclass(kind) and isinstance(kind, type))
        return next(configs, builder)
    return builder


def _check_parameters(builder: Callable[..., Any], spec: Spec) -> None:
    """Hold a spec's parameters against the builder's, as far as its signature and its hints tell.

    Raises:
        ValueError: one that the builder does not take, one that lacks, or a value of another type.
    """
    try:
        owner = described(builder)
        taken = inspect.signature(owner).parameters.values()
    except (TypeError, ValueError):  # C code tells of none
        return
    named = [item for item in taken if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)]
    names = [item.name for item in named]
    text = readable(str(spec))
    unknown = [name for name in spec.params if name not in names]
    if unknown and not any(item.kind is item.VAR_KEYWORD for item in taken):
        near = [found[0] for name in unknown if (found := difflib.get_close_matches(name, names, n=1))]
        guess = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{text}: {spec.name} has no parameter {unknown}; it takes {names or 'none'}{guess}")
    missing = [item.name for item in named if item.default is item.empty and item.name not in spec.params]
    if missing:
        raise ValueError(f"{text}: {', '.join(missing)} must be given, as {spec.name},{missing[0]}=...")
    hints = _hints(owner)
    for name, value in spec.params.items():
        if _is_of_numbers(hints.get(name)):
            try:
                converted(value, hints[name])
            except ValueError as error:
                raise ValueError(f"{text}: {name}: {error}") from None


def _hints(builder: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of a builder's parameters; empty where only a type checker resolves them."""
    try:
        return get_type_hints(builder.__init__ if isinstance(builder, type) else builder)  # type: ignore[misc]
    except (AttributeError, NameError, TypeError):
        return {}


def _is_of_numbers(kind: Any) -> bool:
    """Whether a parameter's type is a number, none, or several of them."""
    several = get_origin(kind) in (tuple, Union, UnionType)
    return kind in (int, float) or (several and set(get_args(kind)) <= {int, float, type(None), ...})
