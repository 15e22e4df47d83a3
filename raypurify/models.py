"""Trained models: the folders that hold them, what loads them for an actor on another machine, and how they compute."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from raypurify import plugins, storage
from raypurify.storage import checkpoints

Kind = Literal["classifier", "purifier"]
Precision = Literal["float32", "bfloat16"]
"""What a network computes in; its weights are float32 in either case."""
PACKAGES: Mapping[Kind, str] = {"classifier": "raypurify.classifiers", "purifier": "raypurify.purifiers"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that can be sent to any worker: the plugin's name, its parameters and its weights."""

    kind: Kind
    name: str
    """What tables and the report call it: a checkpoint's folder (its run's, where that is ``model``), or the plugin as
    the user wrote it."""
    spec: plugins.Spec
    state: Mapping[str, Tensor] | None
    """Weights on the CPU; None for a plugin that has none, or that brings its own."""
    sha256: str
    """Hash of the weights and the parameters: a purifier names by it the classifier that it is trained for."""
    code: str = ""
    """Hash of the source code of a network that is the user's own."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's ``config.json``."""
    network: nn.Module | None = None
    """One that the user has made, on the CPU, where no name can build it."""

    def build(self) -> nn.Module:
        """The network in eval, its parameters frozen.

        Raises:
            ValueError: weights that do not fit the network.
        """
        network = untrained(self.kind, self.spec) if self.network is None else copy.deepcopy(self.network)
        if self.state is not None:
            try:
                network.load_state_dict(dict(self.state))
            except RuntimeError as error:
                raise ValueError(f"{self.name}: the weights do not fit {self.spec}: {error}") from error
        return network.eval().requires_grad_(False)

    @property
    def identity(self) -> str:
        """Hash of all that the model's results follow from: ``sha256``, with ``code`` where it has any."""
        return hashlib.sha256(f"{self.sha256} {self.code}".encode()).hexdigest() if self.code else self.sha256

    @property
    def trained_for(self) -> tuple[str, ...]:
        """Hashes of the classifiers that a purifier was trained for; empty: for any."""
        victim = self.config.get("trained_for")
        return tuple(one["sha256"] for one in (victim, *victim.get("more", ()))) if victim else ()


def untrained(kind: Kind, spec: plugins.Spec) -> nn.Module:
    """The network that a plugin builds, with the weights that it begins with.

    Raises:
        ValueError: an unknown plugin, or a callable that returns something else.
    """
    normalisation = _normalisation(spec) if kind == "classifier" else {}
    own = plugins.Spec(name=spec.name, params={k: v for k, v in spec.params.items() if k not in normalisation})
    network = plugins.build(PACKAGES[kind], own)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{spec}: expected a callable that returns a torch.nn.Module, got {network!r}")
    # Found by its name, as plugins are: this module knows no network.
    normalized = importlib.import_module(PACKAGES["classifier"]).Normalized
    return cast(nn.Module, normalized(network, **normalisation)) if normalisation else network


def _normalisation(spec: plugins.Spec) -> dict[str, tuple[float, ...]]:
    """``mean`` and ``std`` of a spec, where they are for this project: beside a dotted path that does not take them.

    Raises:
        ValueError: one without the other, or no numbers.
    """
    if ":" not in spec.name or not {"mean", "std"} & set(spec.params):
        return {}
    if {"mean", "std"} & set(inspect.signature(plugins.find(PACKAGES["classifier"], spec.name)).parameters):
        return {}
    found = {}
    for name in ("mean", "std"):
        value = spec.params.get(name)
        several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if not several or not all(isinstance(one, int | float) for one in several):
            raise ValueError(
                f"{spec}: {name}: expected numbers, one a channel, beside the other of mean and std, got {value!r}; "
                "give mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225], as the network was trained"
            )
        found[name] = tuple(map(float, several))
    return found


def load(kind: Kind, text: str) -> Model:
    """Load the model that a user names.

    Args:
        kind: what it has to be.
        text: a checkpoint's URL (anything with a ``/``), with ``,plugin=my_package.module:callable`` where the network
            is the user's own; or a plugin, ``NAME[,KEY=VALUE...]``, as :class:`raypurify.plugins.Spec` reads it.

    Raises:
        ValueError: an unknown plugin, a checkpoint of another kind, a built-in network without weights, one of the
            user's that has other weights each time.
        FileNotFoundError: no checkpoint there.
    """
    if text in _given:
        return replace(_given[text], kind=kind)
    spec = plugins.Spec.parse(text)
    if "/" in spec.name:
        return _from_checkpoint(kind, replace(spec, name=shipped(spec.name)))
    try:
        plugins.find(PACKAGES[kind], spec.name)
    except ValueError as error:
        if ":" in spec.name or not storage.exists(storage.join(spec.name, "config.json")):
            raise
        raise ValueError(f"{error}. The checkpoint in this folder is given as ./{spec.name}") from error
    model = Model(kind=kind, name=str(spec), spec=spec, state=None, sha256=_hash(spec, ""))
    network = model.build()
    if ":" in spec.name:
        return _own(model, network)
    if getattr(network, "pretrained", False):
        # Workers get it by value: none of them asks a hub for the weights.
        sha256 = _hash(spec, _weights_hash(network))
        return replace(model, sha256=sha256, network=network, config=_recipe(network, model.name))
    if any(True for _ in network.parameters()):
        raise ValueError(
            f"{kind} {spec.name!r} has to be trained first: give a checkpoint's folder, such as runs/{spec.name}/model"
        )
    return model


def shipped(url: str) -> str:
    """The checkpoint ``weights/...`` that the package carries, if there is none at that path; else ``url``.

    ``./weights/...`` names it too.
    """
    name = url.removeprefix("./")
    own = Path(__file__).parent / name
    there = storage.exists(storage.join(url, "config.json"))
    return str(own) if name.startswith("weights/") and not there and (own / "config.json").is_file() else url


def load_network(text: str, kind: Kind | None = None) -> nn.Module:
    """The network that a flag such as ``--classifiers`` names, on the CPU, in eval, its parameters frozen.

    Args:
        text: see :func:`load`.
        kind: what it has to be; None: what the checkpoint holds, or whichever has the name.

    Raises:
        ValueError, FileNotFoundError: see :func:`load`.
    """
    with torch.random.fork_rng(devices=[]):  # a network that is built draws weights first
        return load(kind or _kind_of(text), text).build()


def _kind_of(text: str) -> Kind:
    name = plugins.Spec.parse(text).name
    if "/" in name:
        told = checkpoints.load(shipped(name))[0].get("kind")
        return "purifier" if told == "purifier" else "classifier"
    known = {kind: plugins.known(package) for kind, package in PACKAGES.items()}
    if ":" not in name and name not in [*known["classifier"], *known["purifier"]]:
        raise ValueError(
            f"unknown name {name!r}: known are the purifiers {', '.join(known['purifier'])} and the classifiers "
            f"{', '.join(known['classifier'])}; a checkpoint is given as its folder, such as ./{name}"
        )
    return "purifier" if name in known["purifier"] else "classifier"


ADDRESS = r" at 0x[0-9a-f]+"
"""The place in memory, as the text of an object has it."""
_given: dict[str, Model] = {}
"""Networks that the user has made, by the names that :func:`give_name` gave them."""


def give_name(network: nn.Module) -> str:
    """A name by which this process finds a network that the user has made: its class, and a hash of all that it is.

    Workers get the network by value. It is copied: what becomes of it later changes nothing.

    Raises:
        ValueError: a class whose source cannot be read, so that another could not be told from it.
    """
    classes = {type(layer) for layer in network.modules()}
    sources = sorted(f"{kind.__qualname__} {_source_of(kind)}" for kind in classes)
    settings = [[name, sorted(_settings(layer))] for name, layer in network.named_modules()]
    code = hashlib.sha256(json.dumps([repr(network), sources, settings]).encode()).hexdigest()
    weights = _weights_hash(network)
    name = f"{type(network).__name__}-{hashlib.sha256(f'{weights} {code}'.encode()).hexdigest()[:8]}"
    spec = plugins.Spec(name=name)
    _given[name] = Model(
        kind="classifier",
        name=name,
        spec=spec,
        state=None,
        sha256=_hash(spec, weights),
        code=code,
        network=copy.deepcopy(network).cpu(),
    )
    return name


def modules_given() -> set[str]:
    """The modules that define what :func:`give_name` has named, but for this package's and those that are installed."""
    layers = (layer for model in _given.values() for layer in cast(nn.Module, model.network).modules())
    names = {type(layer).__module__ for layer in layers if not _is_library(type(layer))}
    installed = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    return {name for name in names if not str(getattr(sys.modules[name], "__file__", "")).startswith(installed)}


def _is_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", __package__)


def _source_of(kind: type) -> str:
    """The source of a class and of those that it is made of; empty for one of a library."""
    try:
        return "".join(inspect.getsource(one) for one in kind.__mro__ if one is not object and not _is_library(one))
    except (OSError, TypeError):
        raise ValueError(
            f"{kind.__qualname__}: its source cannot be read, so that another network of its weights could not be "
            "told from it; define it in a file, or in a notebook's cell"
        ) from None


def _settings(layer: nn.Module) -> list[str]:
    """What a layer holds beside weights and layers, in words that are the same in each process."""
    own = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}
    texts = {name: getattr(value, "__qualname__", re.sub(ADDRESS, "", repr(value))) for name, value in own.items()}
    return [f"{name} = {text}" for name, text in texts.items()]


def _own(model: Model, network: nn.Module) -> Model:
    """A user's callable that brings its own weights: identified by them and by its code.

    Raises:
        ValueError: the weights differ each time.
    """
    weights = _weights_hash(network)
    if weights != _weights_hash(model.build()):
        raise ValueError(
            f"{model.name} has other weights each time it is called, so no two workers would have the same network: "
            "load weights in it, or call torch.manual_seed"
        )
    code = _code_of(model.spec, network)
    return replace(model, sha256=_hash(model.spec, weights), code=code, config=_recipe(network, model.name))


def _recipe(network: nn.Module, name: str) -> dict[str, Any]:
    """What a network that was not trained here says of the images that it was trained on, as a checkpoint does.

    Raises:
        ValueError: in another form; names the network.
    """
    told: dict[str, Any] = {}
    if (view := getattr(network, "view", None)) is not None:
        if not isinstance(view, Mapping) or not set(view) <= {"resize", "crop"}:
            raise ValueError(f'{name}: view: expected {{"resize": 256, "crop": 224}} or one of the two; got {view!r}')
        told["view"] = dict(view)
    if (names := getattr(network, "class_names", None)) is not None:
        if isinstance(names, str) or not all(isinstance(one, str) for one in names):
            raise ValueError(f"{name}: class_names: expected a list of a text for each class; got {names!r:.200}")
        told["class_names"] = list(names)
    return told


def known(kind: Kind) -> list[str]:
    """The names of the networks of a kind that the project carries."""
    return plugins.known(PACKAGES[kind])


def shaped_for(kind: Kind, text: str, image_shape: tuple[int, int, int], classes: int) -> plugins.Spec:
    """The network that a training builds: what the user wrote, and what its ``params_for`` says for these images.

    Raises:
        ValueError: an unknown plugin, or images that it does not take.
    """
    spec = plugins.Spec.parse(text)
    params_for = beside(kind, spec, "params_for")
    fitted = params_for(image_shape, classes) if params_for else {}
    return plugins.Spec(name=spec.name, params={**fitted, **_tuples(spec.params)})


def beside(kind: Kind, spec: plugins.Spec, name: str) -> Any:
    """What stands under ``name`` in the file that defines a network's callable, or None.

    Raises:
        ValueError: an unknown plugin.
    """
    builder = plugins.find(PACKAGES[kind], spec.name)
    return getattr(importlib.import_module(builder.__module__), name, None)


def _from_checkpoint(kind: Kind, spec: plugins.Spec) -> Model:
    own = spec.params.get("plugin")
    config, state, weights = checkpoints.load(spec.name)
    missing = {"kind", "plugin", "params"} - set(config)
    if missing:
        raise ValueError(f"{storage.join(spec.name, 'config.json')}: expected the fields {sorted(missing)}")
    if config["kind"] != kind:
        raise ValueError(f"{spec.name}: expected a {kind}, but this checkpoint holds a {config['kind']}")
    if ":" in config["plugin"] and config["plugin"] != own:
        raise ValueError(
            f"{spec.name}: its network is code of its own, {config['plugin']!r}; to run that code, say so: "
            f"{spec.name},plugin={config['plugin']}"
        )
    params = _tuples(config["params"])
    if params.get("pretrained"):
        params["pretrained"] = False  # this checkpoint has the weights
    plugin = plugins.Spec(name=own or config["plugin"], params=params)
    given = {name: value for name, value in spec.params.items() if name != "plugin"}
    free = beside(kind, plugin, "INFERENCE") or ()
    if wrong := sorted(set(given) - set(free)):
        told = ", ".join(["plugin", *free])
        raise ValueError(
            f"{spec}: a checkpoint takes its parameters from its config.json; here {told} may be given, got {wrong[0]}"
        )
    plugin = replace(plugin, params={**params, **given})
    name = str(plugins.Spec(name=_name_of(spec.name), params=given))
    model = Model(kind=kind, name=name, spec=plugin, state=state, sha256=_hash(plugin, weights), config=config)
    return replace(model, code=_code_of(plugin, model.build())) if ":" in plugin.name else model


def _name_of(url: str) -> str:
    """The folder's name; the run's, where the folder is a run's ``model``."""
    *_, run, folder = ["", *url.rstrip("/").split("/")]
    return run if folder == "model" and run else folder


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, so that frozen configs compare and hash."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _hash(spec: plugins.Spec, weights: str) -> str:
    return hashlib.sha256(json.dumps([spec.name, spec.params, weights], sort_keys=True).encode()).hexdigest()


def _weights_hash(network: nn.Module) -> str:
    """Hash of the names, types, shapes and values of a network's state."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _code_of(spec: plugins.Spec, network: nn.Module) -> str:
    return plugins.source_hash(spec, (type(layer) for layer in network.modules()))


def placed(network: nn.Module, device: str) -> nn.Module:
    """The network on a device, in channels-last memory, which convolutions gain from."""
    moved: nn.Module = cast(Any, network).to(device, memory_format=torch.channels_last)
    return moved


def fast_precision(device: str) -> Precision:
    """What this machine computes fast on ``device``: bfloat16 where it has instructions for it, else float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not in the oldest torch that this project takes
    return "bfloat16" if native is not None and native() else "float32"


@contextmanager
def autocast(device: str, precision: Precision) -> Iterator[None]:
    """Arithmetic of ``precision`` in what runs inside."""
    with (
        full_float32(enabled=precision == "float32"),
        # A cached copy of a weight, made where no gradient is recorded, would pass for it where one is.
        torch.autocast(
            device.partition(":")[0], dtype=torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
        ),
    ):
        yield


@contextmanager
def full_float32(*, enabled: bool = True) -> Iterator[None]:
    """Products of float32 numbers in float32, in the whole process for a time.

    TF32 keeps 10 of the 23 bits of a factor's fraction, and PyTorch lets a GPU take it in convolutions by default.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if enabled:
        matmul.allow_tf32, cudnn.allow_tf32 = False, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
