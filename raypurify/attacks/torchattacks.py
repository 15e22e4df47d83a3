"""The attacks of the library torchattacks (Kim 2020), by name: ``torchattacks.APGD,eps=0.3,steps=20``.

Each takes the library's own parameters under their own names and defaults, on pixels in [0, 1]. These attacks draw from
the global random generators, and some stop when the whole batch is done: unlike the other attacks', **a result depends
on the batch that the image came in**. The generators are seeded for the call from the seeds of all its images and then
put back, so that the same batch gives the same result.

What the library leaves open is settled here:

- Only an attack that minimises a distance can fail by its own account: an image that the victim, asked again, still
  takes for its label (or not for its target) comes back unmodified. Attacks in a ball return what they found.
- A step ``alpha`` that is not given grows with ``eps``, in the proportion of the library's defaults.
- An image that an attack turned into NaN, as those do that divide by a gradient of 0, comes back unmodified.
- Where the library counts 10 classes, it is told how many the victim has, if these are fewer.
- TIFGSM, PIFGSM and PIFGSMPP have kernels for three channels: a grey image is given two more that the victim ignores,
  which leaves the first as an attack on one channel would.
- ``AutoAttack`` is the library's: its APGD and FAB take 10 steps each, where Croce and Hein (2020) take 100.

``steps`` and ``queries`` of the result are means over the batch, rounded up: images that went backward through the
victim, and images that went forward or backward.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked, counted, frozen, numbers, radius_of
from raypurify.attacks._gradients import predicted, project, vanishes
from raypurify.seeds import seed_of

REFUSED = {
    "MultiAttack": "it is made of other attack objects; give its attacks one by one",
    "LGV": "it trains the victim on a data loader; only the victim and a batch are at hand",
}
"""Members of the library that a name and parameters can't describe, and why."""

_OURS = ("self", "model", "seed")  # parameters that are not the user's
_CHOICES = {"norm": ("linf", "l2"), "noise_type": ("guassian", "uniform")}  # spelt as the library spells it
_RADII = ("eps", "max_epsilon")
_L2 = ("PGDL2", "PGDRSL2")
_THREE_CHANNELS = ("TIFGSM", "PIFGSM", "PIFGSMPP")
_SQUARE_IMAGES = ("DIFGSM", "TIFGSM", "Pixle")
_TOLERANCE = 1e-6  # of the pixels' range: 8-bit images that were scaled and back are off by less


def is_installed() -> bool:
    """Whether the library is there: it is an extra of this package."""
    return importlib.util.find_spec("torchattacks") is not None


def names() -> list[str]:
    """The attacks that can be built, as torchattacks spells and orders them.

    Raises:
        ImportError: the library is not installed.
    """
    return [name for name in _library().__all__ if name not in REFUSED]


@functools.cache
def build_named(name: str) -> Callable[..., TorchAttack]:
    """The builder of one attack: a function of the attack's parameters.

    Raises:
        ValueError: no such attack, or one of ``REFUSED``.
    """
    if name in REFUSED:
        raise ValueError(f"torchattacks.{name} can't be given by name: {REFUSED[name]}")
    if name not in names():
        raise ValueError(f"torchattacks has no attack {name!r}; it has {', '.join(names())}")
    config = _config(name)

    def build(**params: Any) -> TorchAttack:
        return config(**_scaled(config, params))

    # What asks a function for its parameters, its text or its source gets those of the library's attack.
    told = {"__signature__": inspect.signature(config), "__wrapped__": getattr(_library(), name)}
    vars(build).update(told)
    build.__doc__ = getattr(_library(), name).__doc__
    return build


def _scaled(config: type[TorchAttack], params: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with a step that follows from the radius where only the radius is given.

    The library's steps are made for its own radius: kept at a larger one, they would not reach the ball's edge.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config)}
    radius = params.get("eps")
    if "alpha" not in defaults or "alpha" in params or not isinstance(radius, Real) or isinstance(radius, bool):
        return params
    return {**params, "alpha": defaults["alpha"] * radius / defaults["eps"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchAttack:
    """An attack of torchattacks; the fields of the subclass that stands for it are its parameters."""

    couples_batch: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def radius(self) -> str | None:
        """What the library calls the radius of the ball; None for an attack without one."""
        return next((name for name in _RADII if hasattr(self, name)), None)

    @property
    def norm(self) -> str | None:
        """ "linf", "l2", or None without a ball; a parameter where the attack has a choice."""
        return None if radius_of(self) is None else "l2" if self.name in _L2 else "linf"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(f"torchattacks.{self.name}", field, value))
        largest = 1 if self.norm == "linf" else math.inf
        radius = radius_of(self)
        if radius is not None and not 0 <= radius <= largest:
            raise ValueError(
                f"torchattacks.{self.name}: the {self.norm} radius must be in [0, {largest}], on pixels in [0, 1]; "
                f"got {radius!r}"
            )
        try:
            self._library_attack(_Counter(nn.Identity(), torch.device("cpu"), 1), seed=0, classes=4)
        except Exception as error:
            raise ValueError(f"torchattacks.{self.name} refuses {self}: {error!r}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.name, dataclasses.asdict(self))

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; the result depends on the batch.

        The victim's modes and parameters, and the global random generators, are left as they were found.

        Raises:
            ValueError: images, labels or a victim that the attack can't take, or a target where it has no use for one.
        """
        x_clean = _checked_images(x, y, target, seeds)
        if self.name in _SQUARE_IMAGES and x.shape[2] != x.shape[3]:
            raise ValueError(f"torchattacks.{self.name} takes square images only; got {tuple(x.shape)}")
        counter = _Counter(victim, x.device, len(x))
        with frozen(victim), _seeded(seed_of(*seeds)), torch.enable_grad():
            x_adv = self._attacked(counter, x_clean, y, target, seed_of(*seeds))
            x_adv = self._settled(counter, x_adv.detach().float(), x_clean, y, target)
        queries = counter.forwards + counter.backwards
        return counted(
            x_adv,
            steps=math.ceil(counter.backwards / len(x)),
            queries=math.ceil(queries / len(x)),
            # The losses of those that minimise a distance are flat, by intent, where an image is wrong already.
            zero_gradient=None if self.norm is None else counter.zero_gradient,
        )

    def _attacked(self, counter: _Counter, x: Tensor, y: Tensor, target: Tensor | None, seed: int) -> Tensor:
        """What the library makes of a batch."""
        classes = self._classes(counter, x, target)
        attack = self._library_attack(counter, seed, classes)
        if self.name == "JSMA" and target is None:
            target = (y + 1) % classes  # as the library does for 10 classes
        labels = y if target is None else target
        if target is not None:
            if self.name == "FAB" or "targeted" not in attack.supported_mode:
                raise ValueError(f"torchattacks.{self.name} can't be sent to a target; leave the target out")
            attack.set_mode_targeted_by_label(quiet=True)
            if self.name == "UPGD":  # its dlr loss compares the target with the label, so it wants both
                attack.set_mode_targeted_by_function(lambda images, labels: target, quiet=True)
                labels = y
        grey = self.name in _THREE_CHANNELS and x.shape[1] == 1
        if grey:
            counter.channels, x = 1, x.expand(-1, 3, -1, -1)
        size = 1 if getattr(self, "update_each_iteration", False) else len(x)  # Pixle's, which takes one image then
        parts = [attack(*part) for part in zip(x.split(size), labels.split(size), strict=True)]
        counter.channels = None
        x_adv: Tensor = torch.cat(parts)
        return x_adv[:, :1] if grey else x_adv

    def _settled(self, counter: _Counter, x_adv: Tensor, x: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """The library's images in the box and in the ball, without those that are not numbers or that failed."""
        x_adv = numbers(x_adv, x).clamp(0, 1)
        radius = radius_of(self)
        if self.norm == "linf" and radius is not None:
            return project(x_adv, x, radius)
        if self.norm == "l2" and radius is not None:
            change = x_adv - x
            lengths = change.flatten(1).norm(dim=1).clamp(min=1e-12)
            return (x + change * (radius / lengths).clamp(max=1)[:, None, None, None]).clamp(0, 1)
        if self.name == "GN":
            return x_adv  # noise has no aim to miss
        labels = predicted(counter, x_adv)
        failed = labels == y if target is None else labels != target
        return torch.where(failed[:, None, None, None], x, x_adv)

    def _classes(self, counter: _Counter, x: Tensor, target: Tensor | None) -> int:
        """How many classes the victim knows, asked only for attacks that need to know.

        Raises:
            ValueError: fewer than the attack's loss compares, or than the user gave.
        """
        given, least = getattr(self, "n_classes", None), self._least_classes(target)
        if least == 2 and self.name not in ("FAB", "JSMA"):
            return least
        with torch.no_grad():
            classes: int = counter(x[:1]).shape[1]
        wanted = max(least, given or 0)
        if classes < wanted:
            remedy = "give a smaller n_classes" if least < wanted else "take another attack"
            raise ValueError(f"torchattacks.{self.name} compares {wanted} classes; the victim has {classes}: {remedy}")
        return classes

    def _least_classes(self, target: Tensor | None) -> int:
        """How many logits the attack's loss takes: the difference of logits ratio divides by a gap of the first few."""
        if self.name == "APGDT" or getattr(self, "version", None) in ("standard", "plus"):
            return 4
        if self.name == "AutoAttack" or getattr(self, "loss", None) == "dlr":
            return 3 if target is None else 4
        return 2

    def _library_attack(self, model: nn.Module, seed: int, classes: int) -> Any:
        constructor = getattr(_library(), self.name)
        params = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if "norm" in params:
            params["norm"] = params["norm"].capitalize()
        if "n_classes" in params:
            default = inspect.signature(constructor).parameters["n_classes"].default
            params["n_classes"] = params["n_classes"] or min(default, classes)
        if "seed" in inspect.signature(constructor).parameters:
            params["seed"] = seed
        return constructor(model, **params)


class _Counter(nn.Module):
    """The victim as the library sees it: float32 logits, a device even without parameters, and a count of images.

    The library reshapes gradients by ``view``, so they come in row-major order, whatever the victim's memory format.
    """

    def __init__(self, victim: nn.Module, device: torch.device, images: int) -> None:
        super().__init__()
        self.device_mark = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.victim = victim
        self.channels: int | None = None  # how many the victim sees of an image, None for all
        self.images, self.forwards, self.backwards = images, 0, 0
        self.zero_gradient: Tensor | None = None  # of the first gradient of the whole batch
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, : self.channels]
        if seen.requires_grad:
            seen.register_hook(self._gradient)
        logits: Tensor = self.victim(seen).float()
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _gradient(self, gradient: Tensor) -> Tensor:
        if self.zero_gradient is None and len(gradient) == self.images:
            self.zero_gradient = vanishes(gradient)
        return gradient.contiguous()

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python seeded, for a time."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU that is not in use
            if devices:
                torch.cuda.manual_seed_all(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def _library() -> ModuleType:
    """The library, which takes seconds to import: scipy comes with it.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    if not is_installed():
        raise ImportError("torchattacks is not installed: pip install 'raypurify[torchattacks]'")
    return importlib.import_module("torchattacks")


@functools.cache
def _config(name: str) -> type[TorchAttack]:
    """A dataclass of an attack's parameters, read off its constructor."""
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(getattr(_library(), name)).parameters.values():
        default = {"norm": "linf", "n_classes": None}.get(parameter.name, parameter.default)
        if parameter.name not in _OURS:
            fields.append((parameter.name, Any, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(name, fields, bases=(TorchAttack,), frozen=True, kw_only=True)


def _restored(name: str, params: dict[str, Any]) -> TorchAttack:
    return build_named(name)(**params)


def _checked(owner: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """A parameter's value, of the kind of its default.

    Raises:
        ValueError: of another kind, or not among the choices.
    """
    if field.name in _CHOICES:
        value = value.lower() if isinstance(value, str) else value
        wanted, right = f"one of {_CHOICES[field.name]}", value in _CHOICES[field.name]
    elif field.name == "n_classes":
        wanted, right = "2 or more, or null for the victim's", value is None or (type(value) is int and value >= 2)
    elif isinstance(field.default, (bool, str)):
        wanted, right = f"a {type(field.default).__name__}", isinstance(value, type(field.default))
    elif isinstance(field.default, Real):
        right = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        wanted = "a number"
    else:
        value, wanted, right = tuple(value) if isinstance(value, list) else value, "", True
    if not right:
        raise ValueError(f"{owner}: {field.name} must be {wanted}; got {value!r}")
    return value


def _checked_images(x: Tensor, y: Tensor, target: Tensor | None, seeds: Sequence[int]) -> Tensor:
    """The images, clamped where they leave [0, 1] by rounding.

    Raises:
        ValueError: another shape, dtype or range than :class:`raypurify.attacks.Attack` states.
    """
    if x.ndim != 4 or len(x) == 0 or x.dtype != torch.float32:
        raise ValueError(f"x must be (N, C, H, W) float32 with N >= 1; got {tuple(x.shape)} {x.dtype}")
    low, high = x.min().item(), x.max().item()
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ValueError(f"x must be pixels in [0, 1]; got values in [{low:g}, {high:g}]: scale or clip them first")
    for name, labels in (("y", y), ("target", target)):
        if labels is not None and (labels.shape != x.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(f"{name} must be ({len(x)},) int64; got {tuple(labels.shape)} {labels.dtype}")
    if len(seeds) != len(x):
        raise ValueError(f"seeds must be one for each of {len(x)} images; got {len(seeds)}")
    return x.detach().clamp(0, 1).contiguous()
