"""What is checked of data and networks before any work: what would fail hours later is told at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypurify import runs
from raypurify.attacks import detect, purify
from raypurify.data import (
    DataError,
    Origin,
    Shape,
    Source,
    View,
    check_ids,
    headers_of,
    in_colour,
    labels_of,
    shape_of,
    shown,
)
from raypurify.evaluation import normalisation
from raypurify.metrics import Metric
from raypurify.models import Kind, Model
from raypurify.storage.published import visible

SYNSET_AND_WORDS = re.compile(r"(n\d{8})[-_ .].*", re.DOTALL)
"""The id of a class in WordNet, and words behind it."""
SHOWN = 12
"""Classes, or labels, that a line shows at most."""
NAMED = 3
"""Images of another shape that a line names at most."""
SHOWN_NAME = 32
"""Characters that a line shows at most: the last ones of an image's name, the first ones of a class's."""


def checked(
    url: str, source: Source, networks: Sequence[Model], *, job: str, done: str
) -> tuple[Source, str, list[str]]:
    """Hold labelled data against the networks of a job.

    Args:
        url: as the user named the dataset, for a message.
        source: the dataset.
        networks: all that its images go through.
        job: likewise: ``an evaluation``, ...
        done: to the images, likewise: ``evaluated``, ...

    Returns:
        The source with its labels numbered as the classifiers number their classes, a line on it, and warnings.

    Raises:
        ValueError: no labels; images, labels or classes that do not fit, which names the model; ids that occur twice.
    """
    if not source.classes:
        raise ValueError(f"{url}: {job} needs labels, and these images have none")
    source = matched(source, [model for model in networks if model.kind == "classifier"])
    labels = labels_of(source)
    check_ids(source)
    warnings = missing_classes(source, labels, done)
    mixed = shapes_told(source, networks)
    if mixed is not None:
        line, shapes = mixed
        reasons = (_refusal(model, shape) for model in networks for shape in shapes)
        if (reason := next(filter(None, reasons), None)) is not None:
            raise DataError(f"{line}. As they are, {reason}")
        warnings.append(line)
    shape = shape_of(source)
    for model in networks:
        warnings += check_network(model, source, labels, shape)
    warnings += [*_other_views(source, networks, shape), *normalisation.warnings(networks, source)]
    return source, described(source, labels), warnings


def as_trained(source: Source, view: View, classifiers: Iterable[Model]) -> Source:
    """The source in the view that all classifiers were trained with, where no flag gives one; in colour, where most
    images are.

    The view stays as it is where they differ, or know of none, and where images are stored as that view shows them.

    Args:
        source: the dataset, as the flags show it.
        view: the flags.
        classifiers: those that its images are for.

    Raises:
        ValueError: all images are smaller than the view's crop.
    """
    shapes = [source.image_shape] if source.image_shape else [shape for _, shape in headers_of(source)]
    channels = Counter(shape[2] for shape in shapes)
    if source.image_shape is None and channels[3] > channels[1]:
        # Headers are those of a sample: there may be a grey one even where none of these is.
        source = in_colour(source)
    views = {_view_of(model) for model in classifiers}
    if view.given or view.as_stored or len(views) != 1 or (own := views.pop()) is None:
        return source
    return source if all(own.has_shown(shape) for shape in shapes) else shown(source, own)


def shapes_told(source: Source, networks: Iterable[Model]) -> tuple[str, list[Shape]] | None:
    """Of images of several shapes, by their headers, a line that says what to do, and some of the shapes.

    Args:
        source: the dataset.
        networks: what they go through. The view that one was trained with is the one to take, a classifier's first.

    Returns:
        None where the headers tell of one shape only.
    """
    headers = headers_of(source)
    counts = Counter(shape for _, shape in headers)
    if len(counts) < 2:
        return None
    usual = counts.most_common(1)[0][0]
    others = [(name, shape) for name, shape in headers if shape != usual]
    some = ", ".join(f"{_end(name)} {_size(shape)}" for name, shape in others[:NAMED])
    side = min(min(shape[:2]) for shape in counts)
    flags = _flags_for(networks) or View(resize=side, crop=side).flags
    advice = f"Give {flags}" if len({shape[2] for shape in counts}) < 2 else "Make them all grey, or all RGB"
    line = (
        f"{source.name}: {len(others)} of {len(headers)} images are not {_size(usual)}: {some}"
        f"{' and more' if len(others) > NAMED else ''}. {advice}"
    )
    return line, [usual, *dict.fromkeys(shape for _, shape in others[:NAMED])]


def _flags_for(networks: Iterable[Model]) -> str:
    """The flags that show images as a network was trained, with a view or on images of one size; of each classifier's,
    where they differ."""
    views: dict[Kind, dict[str, str]] = {"classifier": {}, "purifier": {}}
    for model in networks:
        stored = model.config.get("image_shape")
        by_size = View(resize=min(stored[:2]), crop=min(stored[:2])) if stored and model.kind == "classifier" else None
        if (view := _view_of(model) or by_size) is not None:
            views[model.kind].setdefault(view.flags, model.name)
    flags = views["classifier"] or dict([*views["purifier"].items()][:1])
    if len(flags) < 2:
        return "".join(flags)
    return " or ".join(f"{text} ({name})" for text, name in flags.items())


def _size(shape: Shape) -> str:
    height, width, channels = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _begin(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= SHOWN_NAME else f"{shown[:SHOWN_NAME]}..."


def _end(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= SHOWN_NAME else f"...{shown[-SHOWN_NAME:]}"


def _refusal(model: Model, shape: Shape) -> str | None:
    """Why a network does not take images of a shape; None where it does."""
    try:
        tried(model.build(), model.kind, model.name, shape)
    except ValueError as error:
        return str(error)
    return None


def _view_of(model: Model) -> View | None:
    """The view that a model was trained with; None for one without, or of which nobody knows."""
    return View(**view) if (view := model.config.get("view")) else None


def _other_views(source: Source, networks: Iterable[Model], shape: Shape) -> list[str]:
    """Warnings of models that were trained with another view, but for images that are stored as they showed them.

    A crop alone changes no pixel: a purifier that was trained on crops is not told of.
    """
    known = [(model, view) for model in networks if (view := _view_of(model)) is not None]
    return [
        f"{model.name} was trained with {view.flags}; here it has {source.view.flags or 'neither of these'}"
        for model, view in known
        if view != source.view
        and (source.view.given or not view.has_shown(shape))
        and not (model.kind == "purifier" and view.resize is None)
    ]


def told(about: str, warnings: Iterable[str]) -> tuple[str, ...]:
    """The lines that a job prints of its data: what they are, and warnings."""
    return about, *warned(warnings)


def warned(warnings: Iterable[str]) -> tuple[str, ...]:
    """The lines that a job prints of warnings."""
    return tuple(f"warning: {text}" for text in warnings)


def matched(source: Source, classifiers: Iterable[Model]) -> Source:
    """The source with its labels numbered as the classifiers number their classes, where both have names for them.

    A classifier's name for a class may be several, with commas between: each, in any case and with ``_`` for a space,
    is the class's. Of ``n02123045-tabby`` the id counts. Data whose classes are numbers are matched where these are
    names of the classifiers' classes. Folders that are named by numbers, none of which is a name there, have these.

    Raises:
        ValueError: a class of the data that a classifier does not know, or knows several of; classifiers that number
            theirs differently.
    """
    named = [(model.name, tuple(names)) for model in classifiers if (names := model.config.get("class_names"))]
    if not named:
        return source
    first, names = named[0]
    for other, others in named[1:]:
        if not _alike(names, others):
            raise ValueError(
                f"the classifiers number their classes differently: {first} has {_listed(names)}, {other} has "
                f"{_listed(others)}"
            )
    given = source.classes
    if isinstance(given, int):
        # Folders "0", "1", "10", "2" sort as text: the number of such a class is not its place.
        given = tuple(map(str, range(given)))
        if not set(given) <= set(names):
            return source
    if _alike(given, names):
        return source
    numbered = [int(name) for name in given if name.isdecimal() and int(name) < len(names)]
    if len(numbered) == len(given) and not set(given) & set(names):
        return _renumbered(source, given, names, numbered)
    known = [_synonyms(name) for name in names]
    asked = zip(given, map(_asked, given), strict=True)
    found = {name: [number for number, own in enumerate(known) if words <= own] for name, words in asked}
    found |= {name: [names.index(name)] for name in given if names.count(name) == 1}
    unknown = [name for name in given if not found[name]]
    if unknown:
        raise ValueError(
            f"{source.name}: its classes are {_listed(given)}; {first} was trained on "
            f"{_listed(name.partition(',')[0] for name in names)}, and does not know {_listed(unknown)}"
        )
    doubled = sorted({name for name in given if len(found[name]) > 1})
    if doubled:
        raise ValueError(
            f"{source.name}: {first} knows several classes of the same name: {_listed(doubled)}. Which one the data "
            f"mean can't be told; leave these classes out, or call them by another of their names: "
            f"{'; '.join(names[number] for number in found[doubled[0]])}"
        )
    return _renumbered(source, given, names, [found[name][0] for name in given])


def _renumbered(source: Source, given: Sequence[str], names: Sequence[str], numbers: Sequence[int]) -> Source:
    """The source whose classes ``given`` have these numbers among ``names``; numbers take the names' place in words."""
    own = {number: name for number, name in zip(numbers, given, strict=True) if not name.isdecimal()}
    classes = tuple(own.get(number, name) for number, name in enumerate(names))
    shards = tuple(replace(shard, renumbered=tuple(numbers)) for shard in source.shards)
    return replace(source, classes=classes, shards=shards)


def _synonyms(name: str) -> set[str]:
    """The names of a class, in lower case and without ``_``."""
    return {one.strip().replace("_", " ").casefold() for one in name.split(",")}


def _asked(name: str) -> set[str]:
    """The names by which the data ask for a class."""
    return _synonyms(SYNSET_AND_WORDS.sub(r"\1", name))


def _alike(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both number the same classes alike."""
    if set(names) == set(others):
        return tuple(names) == tuple(others)
    return len(names) == len(others) and all(
        _synonyms(name) & _synonyms(other) for name, other in zip(names, others, strict=True)
    )


def check_one_shape(source: Source, networks: Iterable[Model]) -> None:
    """Check that images are of one shape, as far as their headers tell.

    Args:
        source: the dataset.
        networks: see :func:`shapes_told`.

    Raises:
        DataError: they are not.
    """
    mixed = shapes_told(source, networks)
    if mixed is not None:
        raise DataError(f"a training needs images of one shape: {mixed[0]}")


def check_trainable(source: Source, labels: NDArray[np.int64]) -> None:
    """Check that the labels are those of classes that can be learned.

    Raises:
        DataError: one class only, or numbers with wide gaps between them.
    """
    present = np.unique(labels)
    if len(present) < 2:
        only = ", ".join(_names(source, present))
        raise DataError(
            f"{source.name}: all {len(labels)} images are of one class, {only}; expected at least two. Of images in "
            "class folders, give the folder that holds the class folders"
        )
    if isinstance(source.classes, int) and present[-1] >= 2 * max(len(present), SHOWN):
        raise DataError(
            f"{source.name}: labels go up to {present[-1]}, but only {len(present)} different ones occur "
            f"({_listed(map(str, present.tolist()))}); expected 0 to {len(present) - 1}: number them without gaps"
        )


def check_network(model: Model, source: Source, labels: NDArray[np.int64], shape: tuple[int, int, int]) -> list[str]:
    """Build a model and send a black image through it.

    Returns:
        A warning where a classifier's logits are not finite.

    Raises:
        ValueError: it does not take such images, or knows fewer classes than the data have.
    """
    try:
        out = tried(model.build(), model.kind, model.name, shape)
    except ValueError as error:
        trained = model.config.get("image_shape")
        if trained is None or tuple(trained) == shape:
            raise
        by = f", by {view.flags}" if (view := _view_of(model)) else ""
        raise ValueError(f"{error}; it was trained on {tuple(trained)}{by}") from error
    if model.kind != "classifier":
        return []
    named = model.config.get("class_names")
    if named and len(named) != out.shape[1]:
        raise ValueError(f"{model.name}: class_names has {len(named)} names, and it tells {out.shape[1]} classes apart")
    check_classes(out.shape[1], model.name, source, labels)
    broken = "its logits of a black image are not finite. The prediction of an image with such logits means nothing"
    return [] if out.isfinite().all() else [f"{model.name}: {broken}"]


def check_classes(known: int, name: str, source: Source, labels: NDArray[np.int64]) -> None:
    """Hold the number of a classifier's classes against the data's.

    Raises:
        ValueError: another number than that of the data's named classes, or one that the labels exceed.
    """
    reached = int(labels.max(initial=0)) + 1
    if isinstance(source.classes, tuple) and len(source.classes) != known:
        raise ValueError(
            f"{name} knows {known} classes, and {source.name} has {len(source.classes)}: {_listed(source.classes)}"
        )
    if reached > known:
        raise ValueError(f"{name} knows {known} classes, and the labels of {source.name} go up to {reached - 1}")


def tried(network: nn.Module, kind: Kind, name: str, shape: tuple[int, int, int]) -> Tensor:
    """What a network makes of a black image of the shape (H, W, C): logits (1, classes), or an image (1, C, H, W).

    Raises:
        ValueError: names the network and the shape.
        runs.FailedError: a fault in the network's own code; names the network.
    """
    height, width, channels = shape
    x = torch.zeros(1, channels, height, width)
    training = network.training
    try:
        with torch.no_grad():
            out: Tensor = network.eval()(x) if kind == "classifier" else purify(network, x, [0])
    except RuntimeError as error:
        raise ValueError(f"{name} does not take images of (H, W, C) = {shape}: {_first_line(error)}") from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError) as error:
        raise runs.FailedError(f"{name}: {type(error).__name__}: {error}, on a black image of {shape}") from error
    finally:
        network.train(training)
    if not isinstance(out, Tensor):
        raise ValueError(f"{name}: expected a tensor, got a {type(out).__name__}")
    if kind == "classifier" and out.ndim != 2:
        raise ValueError(f"{name}: expected logits (N, classes), got the shape {tuple(out.shape)}")
    if kind == "purifier" and out.shape != x.shape:
        raise ValueError(f"{name}: expected images (N, C, H, W) = {tuple(x.shape)}, got the shape {tuple(out.shape)}")
    detected = detect(network, x, [0]) if kind == "purifier" else None
    if detected is not None and (detected.shape != (1,) or detected.dtype != torch.bool):
        raise ValueError(f"{name}: detect must return (N,) bool; got {tuple(detected.shape)} {detected.dtype}")
    return out


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def check_metrics(metrics: Iterable[Metric], shape: tuple[int, int, int]) -> None:
    """Measure a black image of the shape (H, W, C) against itself.

    Raises:
        ValueError: a metric that returns something else than one number for each image.
    """
    height, width, channels = shape
    x = torch.zeros(2, channels, height, width)
    for metric in metrics:
        values = metric.measure(x, x.clone())
        if values.shape != (2,):
            raise ValueError(f"metrics: {metric.name} must return (N,); got {tuple(values.shape)} for 2 images")


def described(source: Source, labels: NDArray[np.int64]) -> str:
    """One line on the data: images, and classes with their counts."""
    counts = np.bincount(labels, minlength=source.number_of_classes)
    present = np.flatnonzero(counts)
    images, classes = "image" if len(labels) == 1 else "images", "class" if len(present) == 1 else "classes"
    line = f"data: {source.name}, {source.split}: {len(labels):,} {images} of {len(present)} {classes}"
    if isinstance(source.classes, tuple) and len(present) <= SHOWN:
        line += ": " + ", ".join(f"{name} {counts[index]:,}" for index, name in _numbered(source, present))
    elif len(present):
        line += f", {counts[present].min():,} to {counts[present].max():,} each"
    if source.skipped:
        counts_told = ", ".join(f"{count:,} {kind}" for kind, count in Counter(source.skipped).most_common(SHOWN))
        line += f". Left alone, being no images by their names: {counts_told}"
    if source.origin.split_by == "ids":
        line += ". The data have no split of their own: a sixth, by a hash of the ids, is the test split"
    return line


def missing_classes(source: Source, labels: NDArray[np.int64], what: str) -> list[str]:
    """A warning where classes of the data have no image, but not where most have none: data of a few of the classes.

    Args:
        what: the images that ``labels`` are of, for the message: ``training``, ...
    """
    counts = np.bincount(labels, minlength=source.number_of_classes)
    absent = np.flatnonzero(counts == 0)
    if not 0 < len(absent) <= np.count_nonzero(counts):
        return []
    return [f"no {what} image of class {_listed(_names(source, absent))}"]


def trained_on(source: Source, models: Iterable[Model]) -> list[str]:
    """Warnings of models that were trained on images of the source."""
    return [
        f"{model.name} was trained on images that it is evaluated on; its figures are better than on others"
        for model in models
        if (origin := model.config.get("trained_on")) and Origin(**origin).overlaps(source.origin)
    ]


def _numbered(source: Source, classes: NDArray[np.int64]) -> list[tuple[int, str]]:
    return list(zip(classes.tolist(), _names(source, classes), strict=True))


def _names(source: Source, classes: NDArray[np.int64]) -> list[str]:
    names = source.classes
    return [str(index) if isinstance(names, int) else _begin(names[index]) for index in classes.tolist()]


def _listed(names: Iterable[str]) -> str:
    every: Sequence[str] = list(names)
    return ", ".join(map(_begin, every[:SHOWN])) + (f", ... ({len(every)} in all)" if len(every) > SHOWN else "")
