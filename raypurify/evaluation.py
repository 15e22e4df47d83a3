"""What happens to one batch: attack, purify, classify, score. Plain torch: what the Ray pipeline is held against."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from raypurify import metrics, models, plugins, schema
from raypurify.attacks import Attack
from raypurify.seeds import seed_of
from raypurify.training import Precision, autocast

Setting = Literal["white-box", "black-box", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The grid: every attack on every classifier, restored by every purifier, in every setting."""

    data: str
    """digits, mnist, cifar10, or the URL of a dataset."""
    split: Literal["train", "test"] = "test"
    limit: int | None = None
    """The first images only."""
    classifiers: tuple[str, ...]
    """Checkpoints, or my_package.module:callable."""
    purifiers: tuple[str, ...] = ("identity",)
    """Checkpoints, or NAME[,KEY=VALUE...], or my_package.module:callable."""
    attacks: tuple[str, ...] = ("fgsm,epsilon=0.3", "r_fgsm,epsilon=0.3", "pgd,epsilon=0.3,steps=40")
    """NAME[,KEY=VALUE...], or my_package.module:callable; "none" leaves the images as they are."""
    settings: tuple[Setting, ...] = ("white-box",)
    """white-box: the attacker knows the classifier, and the purifier is trained for it (or for none). black-box: the
    same attacker, and the purifier is trained for another classifier. adaptive: the attacker knows both."""
    adaptive_attacks: tuple[str, ...] = ()
    """Attacks of the adaptive setting; all the attacks if none are given."""
    adaptive_purifiers: tuple[str, ...] = ()
    """Purifiers of the adaptive setting, each also among the purifiers; all of them if none are given."""
    precision: Precision = "float32"
    """Of the networks' arithmetic. Final figures are float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("classifiers", "purifiers", "attacks", "settings"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        unknown = sorted(set(self.settings) - set(schema.SETTINGS))
        if unknown:
            raise ValueError(f"settings: unknown {unknown}; known are {', '.join(schema.SETTINGS)}")
        strangers = sorted(set(self.adaptive_purifiers) - set(self.purifiers))
        if strangers:
            raise ValueError(f"adaptive_purifiers must be among the purifiers; {strangers} are not")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid: ``schema.CELL``'s columns, and which models it uses."""

    row: Mapping[str, Any]
    classifier: int
    purifier: int

    @property
    def hash(self) -> str:
        return str(self.row["cell"])


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that share their attacked images: these are made once."""

    attack: plugins.Spec
    classifier: int
    through: int | None
    """The purifier that an adaptive attacker attacks through, by its number; None for an attacker who knows none."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The models of an evaluation, and what is done with them."""

    config: EvaluationConfig
    classifiers: tuple[models.Model, ...]
    purifiers: tuple[models.Model, ...]
    groups: tuple[Group, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for group in self.groups for cell in group.cells)


def build_grid(config: EvaluationConfig, dataset: str) -> Grid:
    """Resolve the names and lay out the cells.

    Raises:
        ValueError, FileNotFoundError: unknown names, missing weights, or settings that leave no cell.
    """
    classifiers = tuple(models.load("classifier", text) for text in config.classifiers)
    purifiers = tuple(models.load("purifier", text) for text in config.purifiers)
    _check_names(classifiers)
    _check_names(purifiers)
    groups: list[Group] = []
    for number, classifier in enumerate(classifiers):
        own = [index for index, purifier in enumerate(purifiers) if purifier.trained_for in (None, classifier.sha256)]
        others = [index for index in range(len(purifiers)) if index not in own]
        restored = {"white-box": own, "black-box": others}
        for text in config.attacks:
            pairs = [
                (setting, index) for setting, found in restored.items() for index in found if setting in config.settings
            ]
            groups += _group(config, dataset, text, number, None, pairs, classifiers, purifiers)
        if "adaptive" in config.settings:
            chosen = [
                index for index in own if config.purifiers[index] in (config.adaptive_purifiers or config.purifiers)
            ]
            for text in config.adaptive_attacks or config.attacks:
                for index in chosen:
                    pairs = [("adaptive", index)]
                    groups += _group(config, dataset, text, number, index, pairs, classifiers, purifiers)
    if not groups:
        raise ValueError(
            f"no cell: settings {config.settings} with these purifiers leave nothing to evaluate "
            "(black-box needs a purifier that was trained for another classifier)"
        )
    return Grid(config=config, classifiers=classifiers, purifiers=purifiers, groups=tuple(groups))


def _check_names(loaded: Sequence[models.Model]) -> None:
    names = [model.name for model in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two models are called {twice}: tables could not tell them apart; rename a checkpoint's folder"
        )


def _group(
    config: EvaluationConfig,
    dataset: str,
    text: str,
    number: int,
    through: int | None,
    pairs: Sequence[tuple[str, int]],
    classifiers: Sequence[models.Model],
    purifiers: Sequence[models.Model],
) -> list[Group]:
    """The group of one attack on one victim, or none where it has no cell."""
    spec = plugins.Spec.parse(text)
    attack: Attack = plugins.build("raypurify.attacks", spec)
    classifier = classifiers[number]
    victim = classifier.name if through is None else f"{purifiers[through].name}+{classifier.name}"
    params = dataclasses.asdict(attack) if dataclasses.is_dataclass(attack) else spec.params
    cells = []
    for setting, index in pairs:
        row = {
            "dataset": dataset,
            "setting": setting,
            "attack": spec.name,
            "norm": attack.norm,
            "eps": attack.epsilon,
            "params": json.dumps(params, sort_keys=True),
            "victim": victim,
            "classifier": classifier.name,
            "purifier": purifiers[index].name,
        }
        identity = [row, classifier.sha256, purifiers[index].sha256, config.precision, config.seed]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        cells.append(Cell(row={"cell": digest, **row}, classifier=number, purifier=index))
    return [Group(attack=spec, classifier=number, through=through, cells=tuple(cells))] if cells else []


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One batch in one cell: its rows of ``schema.SCORES``, and its pixels, (N, C, H, W) float32."""

    cell: Cell
    scores: pa.Table
    x_adv: Tensor
    x_pure: Tensor


class Evaluator:
    """The networks of a grid on a device, and what they do to a batch."""

    def __init__(self, grid: Grid, device: str) -> None:
        self.grid, self.device = grid, device
        self.classifiers = [models.placed(model.build(), device) for model in grid.classifiers]
        self.purifiers = [models.placed(model.build(), device) for model in grid.purifiers]
        self.attacks = [plugins.build("raypurify.attacks", group.attack) for group in grid.groups]

    def evaluate(
        self, x: Tensor, y: Tensor, ids: Sequence[str], cells: AbstractSet[str] | None = None
    ) -> Iterator[Scored]:
        """Attack, purify, classify and score one batch in every cell of the grid.

        Args:
            x: (N, C, H, W) float32 in [0, 1], on the device.
            y: (N,) int64, the labels.
            ids: the images' ids, from which their seeds come.
            cells: hashes of the cells to do; all of them if None.
        """
        with torch.no_grad(), autocast(self.device, self.grid.config.precision):
            clean = _Clean(self, x, y, ids)
            for group, attack in zip(self.grid.groups, self.attacks, strict=True):
                wanted = [cell for cell in group.cells if cells is None or cell.hash in cells]
                if wanted:
                    yield from self._group(group, attack, clean, wanted)

    def _group(self, group: Group, attack: Attack, clean: _Clean, cells: Sequence[Cell]) -> Iterator[Scored]:
        classifier = self.classifiers[group.classifier]
        victim = classifier if group.through is None else models.Composite(classifier, self.purifiers[group.through])
        seeds = [seed_of(self.grid.config.seed, str(group.attack), name, 0, 0) for name in clean.ids]
        attacked = attack(victim, clean.x, clean.y, seeds=seeds)
        x_adv = attacked.x_adv
        shared = {
            "id": list(clean.ids),
            "label": clean.y,
            "pred_clean": clean.predictions(group.classifier),
            "pred_adversarial": classifier(x_adv).argmax(dim=1),
            "linf": metrics.linf(x_adv, clean.x),
            "l2": metrics.l2(x_adv, clean.x),
            "steps": attacked.steps,
            "queries": attacked.queries,
            **_similarity("adversarial", x_adv, clean.x),
        }
        for cell in cells:
            x_pure = self.purifiers[cell.purifier](x_adv)
            columns = {
                **shared,
                "pred_purified": classifier(x_pure).argmax(dim=1),
                "pred_clean_purified": clean.purified_predictions(group.classifier, cell.purifier),
                "detected": pa.nulls(len(clean.ids), pa.bool_()),
                **_similarity("purified", x_pure, clean.x),
                **clean.purified_similarity(cell.purifier),
            }
            yield Scored(cell=cell, scores=_table(columns), x_adv=x_adv, x_pure=x_pure)


class _Clean:
    """A batch, and what all cells share of it: computed once, when first asked for."""

    def __init__(self, evaluator: Evaluator, x: Tensor, y: Tensor, ids: Sequence[str]) -> None:
        self.evaluator, self.x, self.y, self.ids = evaluator, x, y, ids
        self._predictions: dict[int, Tensor] = {}
        self._purified: dict[int, Tensor] = {}
        self._purified_predictions: dict[tuple[int, int], Tensor] = {}
        self._purified_similarity: dict[int, dict[str, Tensor]] = {}

    def predictions(self, classifier: int) -> Tensor:
        if classifier not in self._predictions:
            self._predictions[classifier] = self.evaluator.classifiers[classifier](self.x).argmax(dim=1)
        return self._predictions[classifier]

    def purified(self, purifier: int) -> Tensor:
        if purifier not in self._purified:
            self._purified[purifier] = self.evaluator.purifiers[purifier](self.x)
        return self._purified[purifier]

    def purified_predictions(self, classifier: int, purifier: int) -> Tensor:
        key = (classifier, purifier)
        if key not in self._purified_predictions:
            logits = self.evaluator.classifiers[classifier](self.purified(purifier))
            self._purified_predictions[key] = logits.argmax(dim=1)
        return self._purified_predictions[key]

    def purified_similarity(self, purifier: int) -> dict[str, Tensor]:
        if purifier not in self._purified_similarity:
            self._purified_similarity[purifier] = _similarity("clean_purified", self.purified(purifier), self.x)
        return self._purified_similarity[purifier]


def _similarity(kind: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {f"psnr_{kind}": metrics.psnr(a, b), f"ssim_{kind}": metrics.ssim(a, b)}


def _table(columns: Mapping[str, Any]) -> pa.Table:
    """Columns as ``schema.SCORES``; a NaN similarity is null."""
    arrays = []
    for field in schema.SCORES:
        value = columns[field.name]
        if isinstance(value, Tensor):
            value = pa.array(value.cpu().numpy(), from_pandas=True)
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.table(arrays, names=schema.SCORES.names).cast(schema.SCORES)
