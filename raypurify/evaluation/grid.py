"""The grid of an evaluation: its configuration, and the cells that follow from it, each with its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from raypurify import models, plugins
from raypurify.attacks import (
    Attack,
    asks_classifier,
    check_votes,
    is_differentiable,
    is_random,
    radius_name,
    radius_of,
)
from raypurify.data import AS_STORED, View
from raypurify.evaluation.attacking import AttackPrecision, begins_in
from raypurify.metrics import Metric
from raypurify.runs import fields, schema

Setting = Literal["white-box", "black-box", "transfer", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The grid: every attack on every classifier, restored by every purifier, in every setting."""

    data: str
    """The images: digits, mnist, cifar10, the URL of a dataset, or my_package.module:callable[,KEY=VALUE...]."""
    split: Literal["train", "test"] = "test"
    """Which split of the data to use. Data without splits are split by a hash of the ids: a sixth is the test split."""
    limit: int | None = None
    """Take this number of images only: the first ones, or, of Parquet without splits, of each class its share."""
    view: View = AS_STORED
    classifiers: tuple[str, ...]
    """The classifiers: checkpoints, or my_package.module:callable, or networks that bring their weights, such as
    efficientnet_lite0, timm,model=NAME,pretrained=true and transformers,model=NAME."""
    purifiers: tuple[str, ...] = ("identity",)
    """The purifiers: checkpoints, or NAME[,KEY=VALUE...], or my_package.module:callable."""
    attacks: tuple[str, ...] = ("fgsm,epsilon=0.3", "r_fgsm,epsilon=0.3", "pgd,epsilon=0.3,steps=40")
    """The attacks: NAME[,KEY=VALUE...], or torchattacks.NAME[,KEY=VALUE...], or my_package.module:callable. The attack
    "none" leaves the images as they are."""
    epsilons: tuple[float, ...] = ()
    """Radii of the security curve, such as 0.3 or 8/255. Every attack that has a radius is made at each of these radii
    instead of at its own."""
    settings: tuple[Setting, ...] = ("white-box",)
    """white-box: the attacker knows the classifier, and the purifier is trained for it (or for none). black-box: the
    same attacker, and the purifier is trained for another classifier. transfer: the attacker knows a surrogate
    classifier only. adaptive: the attacker knows classifier and purifier."""
    surrogates: tuple[str, ...] = ()
    """Classifiers that the transfer setting attacks. By default each classifier is attacked for the others."""
    adaptive_attacks: tuple[str, ...] = ()
    """Attacks of the adaptive setting. By default these are all attacks."""
    adaptive_purifiers: tuple[str, ...] = ()
    """Purifiers of the adaptive setting, each also named by --purifiers, for whichever classifier they were trained. By
    default these are all purifiers that were trained for the attacked classifier, or for none."""
    bpda: str = "identity"
    """A purifier with a gradient that does not draw at random. The adaptive attacker takes its gradient for that of a
    purifier that has none. "none": the attacker takes that purifier's own, as one would who knows no better."""
    eot: int = 10
    """The adaptive attacker averages over this number of draws of a random purifier."""
    draws: int = 1
    """A random purifier is drawn this number of times on each attacked image. One draw flatters it: the summary has the
    mean of the draws, the images that are right in all of them, and the majority's vote."""
    certify_draws: int = 0
    """With a number above 0, each image goes so many times through Gaussian noise, purifier and classifier, and is told
    as detected where the vote abstains; 100 will do. An adaptive attacker does not know of the vote."""
    certify_sigma: float = 0.25
    """Standard deviation of this noise, on pixels in [0, 1]."""
    masking_images: int = 200
    """About this number of images of each adaptive cell is checked for masked gradients, by five more attacks."""
    metrics: tuple[str, ...] = ()
    """Metrics that are measured beside L∞, L2, PSNR and SSIM: my_package.module:callable[,KEY=VALUE...]. The callable
    returns a raypurify.metrics.Metric."""
    precision: models.Precision = "float32"
    """The type that the networks compute in. float32 goes without TF32; final figures are float32."""
    attack_precision: AttackPrecision = "float32"
    """The type that attacks compute in. bfloat16: an attack in a ball goes on in float32 with the images that are still
    right, so that it is never weaker; DeepFool and Carlini-Wagner take gradients in bfloat16; the others compute in
    float32. auto: bfloat16 where the hardware is fast in it. Whether an image is right is always told in the type of
    --precision."""
    seed: int = 0
    """Seed of everything that an attack or a purifier draws at random."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        for name in ("classifiers", "purifiers", "attacks", "settings"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        unknown = sorted(set(self.settings) - set(schema.SETTINGS))
        if unknown:
            raise ValueError(f"settings: unknown {unknown}; known are {', '.join(schema.SETTINGS)}")
        strangers = sorted(set(self.adaptive_purifiers) - set(self.purifiers))
        if strangers:
            raise ValueError(f"adaptive_purifiers must be among the purifiers; {strangers} are not")
        if min(self.eot, self.draws) < 1 or self.masking_images < 0:
            raise ValueError(
                f"eot and draws must be at least 1, masking_images at least 0; got {self.eot}, {self.draws}, "
                f"{self.masking_images}"
            )
        check_votes(self.certify_draws, self.certify_sigma)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid: ``schema.CELL``'s columns, and which models it uses."""

    row: Mapping[str, Any]
    classifier: int
    purifier: int
    draws: int = 1
    """How often the purifier is drawn on each attacked image."""
    asks: bool = False
    """Whether the purifier's detector asks the classifier."""

    @property
    def hash(self) -> str:
        return str(self.row["cell"])


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that share their attacked images: these are made once."""

    attack: plugins.Spec
    resolved: plugins.Spec
    """The attack with all its parameters: what its seeds come from, however it was written."""
    victim: int
    """The classifier that is attacked, by its number."""
    known_purifier: int | None
    """The purifier that an adaptive attacker attacks through, by its number; None for an attacker who knows none."""
    cells: tuple[Cell, ...]
    couples_batch: bool
    """Whether an attacked image depends on the batch that it came in."""
    precision: models.Precision
    """What the attack begins in: see :func:`raypurify.evaluation.attacking.attack_batch`."""

    @property
    def hashes(self) -> frozenset[str]:
        """The hashes of the cells."""
        return frozenset(cell.hash for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The models of an evaluation, and what is done with them."""

    config: EvaluationConfig
    classifiers: tuple[models.Model, ...]
    """The classifiers that are evaluated, then the surrogates that are only attacked."""
    purifiers: tuple[models.Model, ...]
    stand_in: models.Model | None
    """The purifier whose gradient BPDA takes."""
    groups: tuple[Group, ...]
    masking_share: float
    """Share of the images that are checked for masked gradients."""

    coupled: int
    """Images of a batch, where some depend on the whole batch that they are attacked in; else 0."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for group in self.groups for cell in group.cells)

    def dealt(self, cells: frozenset[str], parts: int) -> list[frozenset[str]]:
        """Deal cells out to at most ``parts`` parts, of about as many groups each: no group is in two of them.

        Adaptive groups of one victim lie side by side, since they share a check for masked gradients. The others,
        which are often listed from weak to strong, are dealt one by one.

        Args:
            cells: hashes of cells of this grid, at least one.
            parts: at least 1.
        """
        groups = [group for group in self.groups if not cells.isdisjoint(group.hashes)]
        adaptive = [group for group in groups if group.known_purifier is not None]
        adaptive.sort(key=lambda group: (group.victim, group.known_purifier or 0))
        others = [group for group in groups if group.known_purifier is None]
        parts = min(parts, len(groups))
        ends = [len(adaptive) * part // parts for part in range(parts + 1)]
        runs = sorted((adaptive[start:stop] for start, stop in pairwise(ends)), key=len)
        hands = [[*run, *others[part::parts]] for part, run in enumerate(runs)]
        return [cells & {name for group in hand for name in group.hashes} for hand in hands]


def build_grid(
    config: EvaluationConfig,
    dataset: str,
    rows: int,
    batch: int | None = None,
    loaded: Sequence[models.Model] | None = None,
) -> Grid:
    """Resolve the names and lay out the cells.

    Args:
        config: what is evaluated.
        dataset: the dataset's name.
        rows: how many images it has.
        batch: images that are attacked at once: a parameter of the attacks whose results depend on it.
        loaded: the config's classifiers; None: they are loaded.

    Raises:
        ValueError, FileNotFoundError: unknown names, missing weights, or settings that leave no cell.
    """
    classifiers = tuple(loaded or (models.load("classifier", text) for text in config.classifiers))
    surrogates = [models.load("classifier", text) for text in config.surrogates]
    known = {model.identity for model in classifiers}
    everyone = (*classifiers, *(model for model in surrogates if model.identity not in known))
    purifiers = tuple(models.load("purifier", text) for text in config.purifiers)
    check_names(everyone)
    check_names(purifiers)
    layout = _Layout(
        config=config,
        dataset=dataset,
        classifiers=everyone,
        evaluated=len(classifiers),
        attackable=frozenset(model.identity for model in surrogates or classifiers),
        purifiers=purifiers,
        stand_in=_stand_in(config),
        built=tuple(model.build() for model in purifiers),
        masking_share=min(1.0, config.masking_images / max(rows, 1)),
        batch=batch,
    )
    groups = layout.groups()
    _check_cells(config, groups)
    return Grid(
        config=config,
        classifiers=everyone,
        purifiers=purifiers,
        stand_in=layout.stand_in,
        groups=groups,
        masking_share=layout.masking_share,
        coupled=(batch or 0) if any(group.couples_batch for group in groups) else 0,
    )


def left_out(grid: Grid) -> list[str]:
    """Warnings of purifiers that no cell has, or, being trained for other classifiers, no adaptive one where that
    setting is asked for."""
    cells = [cell for group in grid.groups for cell in group.cells]
    used = {cell.purifier for cell in cells}
    adaptive = {cell.purifier for cell in cells if cell.row["setting"] == "adaptive"}
    warnings = []
    for index, model in enumerate(grid.purifiers):
        if not model.trained_for:
            if index not in used:
                warnings.append(
                    f"{model.name} was trained for no classifier, and is left out; --settings white-box evaluates it"
                )
            continue
        other = f"{model.name} was trained for another classifier"
        if index not in used:
            warnings.append(f"{other}, and is left out; --settings black-box evaluates it")
        elif "adaptive" in grid.config.settings and not grid.config.adaptive_purifiers and index not in adaptive:
            warnings.append(f"{other}, and has no adaptive figure; --adaptive-purifiers names it")
    return warnings


def _check_cells(config: EvaluationConfig, groups: Sequence[Group]) -> None:
    if not groups:
        raise ValueError(
            f"no cell: settings {config.settings} leave nothing to evaluate. A purifier that was trained for another "
            "classifier needs --settings black-box, or, for adaptive, --adaptive-purifiers; black-box needs such a "
            "purifier; transfer needs a surrogate or a second classifier"
        )
    hashes = [cell.hash for group in groups for cell in group.cells]
    if len(set(hashes)) < len(hashes):
        raise ValueError(f"the attacks {config.attacks} or {config.adaptive_attacks} name one twice; name each once")


def _stand_in(config: EvaluationConfig) -> models.Model | None:
    """The purifier that ``bpda`` names.

    Raises:
        ValueError: it has no gradient, or draws at random.
    """
    if config.bpda == "none":
        return None
    model = models.load("purifier", config.bpda)
    network = model.build()
    if is_random(network) or not is_differentiable(network):
        lack = "draws at random" if is_random(network) else "has no gradient itself"
        raise ValueError(
            f"bpda: {config.bpda!r} {lack}; name a purifier that has a gradient and does not draw at random, such as "
            'identity or mean_filter, or "none"'
        )
    return model


def check_names(loaded: Sequence[models.Model]) -> None:
    """Raise a ValueError where two of the models have the same name."""
    names = [model.name for model in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two models are called {twice}: tables could not tell them apart; rename a checkpoint's folder"
        )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What is known before the cells are."""

    config: EvaluationConfig
    dataset: str
    classifiers: tuple[models.Model, ...]
    evaluated: int
    attackable: frozenset[str]
    """Identities of the classifiers that the transfer setting attacks."""
    purifiers: tuple[models.Model, ...]
    stand_in: models.Model | None
    built: tuple[nn.Module, ...]
    """The purifiers, for what they say of themselves."""
    masking_share: float
    batch: int | None

    def groups(self) -> tuple[Group, ...]:
        """The grid, victim by victim: what is attacked without the purifier, then what is attacked through it."""
        groups = []
        for victim in range(len(self.classifiers)):
            for attack in self._attacks(self.config.attacks):
                groups.append(self._group(attack, victim, None, [*self._static(victim), *self._transferred(victim)]))
            if "adaptive" in self.config.settings and victim < self.evaluated:
                for attack in self._attacks(self.config.adaptive_attacks or self.config.attacks):
                    groups += [
                        self._group(attack, victim, index, [("adaptive", victim, index)])
                        for index in self._adaptive(victim)
                    ]
        return tuple(group for group in groups if group.cells)

    def _attacks(self, texts: Sequence[str]) -> list[plugins.Spec]:
        """The attacks that are named, each at every radius of the curve."""
        specs = []
        for text in texts:
            spec = plugins.Spec.parse(text)
            name = radius_name(built_attack(spec))
            if not self.config.epsilons or name is None:
                specs.append(spec)
                continue
            specs += [
                plugins.Spec(name=spec.name, params={**spec.params, name: epsilon}) for epsilon in self.config.epsilons
            ]
        return specs

    def _static(self, victim: int) -> list[tuple[str, int, int]]:
        """(setting, classifier, purifier) of the cells whose attacker knows the classifier."""
        if victim >= self.evaluated:
            return []
        own = self._own(victim)
        others = [index for index in range(len(self.purifiers)) if index not in own]
        restored = {"white-box": own, "black-box": others}
        return [
            (setting, victim, index)
            for setting, found in restored.items()
            for index in found
            if setting in self.config.settings
        ]

    def _transferred(self, victim: int) -> list[tuple[str, int, int]]:
        """(setting, classifier, purifier) of the cells whose attacker knows another classifier."""
        if "transfer" not in self.config.settings or self.classifiers[victim].identity not in self.attackable:
            return []
        return [
            ("transfer", classifier, index)
            for classifier in range(self.evaluated)
            if classifier != victim
            for index in self._own(classifier)
        ]

    def _own(self, classifier: int) -> list[int]:
        """The purifiers that were trained for a classifier, or for none."""
        sha256 = self.classifiers[classifier].sha256
        known = (purifier.trained_for for purifier in self.purifiers)
        return [index for index, hashes in enumerate(known) if not hashes or sha256 in hashes]

    def _adaptive(self, victim: int) -> list[int]:
        chosen = self.config.adaptive_purifiers
        if not chosen:
            return self._own(victim)
        return [index for index, text in enumerate(self.config.purifiers) if text in chosen]

    def _group(
        self, spec: plugins.Spec, victim: int, known_purifier: int | None, pairs: Sequence[tuple[str, int, int]]
    ) -> Group:
        attack, attacked = built_attack(spec), self.classifiers[victim]
        resolved = plugins.resolved(spec, attack)
        params = dict(resolved.params)
        knows = None if known_purifier is None else self.purifiers[known_purifier]
        precision = begins_in(attack, self.config.attack_precision, knows)
        if precision == "bfloat16":
            params["attack_precision"] = precision
        couples_batch = bool(getattr(attack, "couples_batch", False))
        if couples_batch:
            params["batch"] = self.batch
        seen: list[Any] = [attacked.identity, plugins.source_hash(spec, [type(attack)])]
        name = attacked.name
        if known_purifier is not None:
            name = f"{self.purifiers[known_purifier].name}+{name}"
            adaptation = self._adaptation(known_purifier)
            params |= adaptation
            seen += [self.purifiers[known_purifier].identity, self.masking_share]
            if "bpda" in adaptation and self.stand_in is not None:
                seen.append(self.stand_in.identity)
        cells = []
        for setting, classifier, purifier in pairs:
            row = {
                "dataset": self.dataset,
                "setting": setting,
                "attack": spec.name,
                "norm": attack.norm,
                "eps": radius_of(attack),
                "params": json.dumps(params, sort_keys=True),
                "victim": name,
                "classifier": self.classifiers[classifier].name,
                "purifier": self.purifiers[purifier].name,
            }
            cells.append(self._cell(row, radius_name(attack), [str(resolved), seen], classifier, purifier))
        return Group(
            attack=spec,
            resolved=resolved,
            victim=victim,
            known_purifier=known_purifier,
            cells=tuple(cells),
            couples_batch=couples_batch,
            precision=precision,
        )

    def _cell(
        self, row: Mapping[str, Any], radius: str | None, attack: Sequence[Any], classifier: int, purifier: int
    ) -> Cell:
        """A cell and its hash.

        Args:
            row: what describes it.
            radius: what its attack calls the radius.
            attack: all else that its attacked images follow from.
            classifier: its number; likewise ``purifier``.
        """
        built = self.built[purifier]
        draws = self.config.draws if is_random(built) else 1
        evaluated = [self.classifiers[classifier].identity, self.purifiers[purifier].identity]
        more: list[Any] = [{"draws": draws}] if draws > 1 else []
        more += [{"votes": [self.config.certify_draws, self.config.certify_sigma]}] if self.config.certify_draws else []
        identity = [row, *attack, evaluated, self.config.precision, self.config.seed, *more]
        digest = hashlib.sha256(json.dumps(plugins.normalised(identity)).encode()).hexdigest()[:16]
        facts = {"radius": radius, "trivial": bool(getattr(built, "trivial", False))}
        return Cell(
            row={"cell": digest, **row, **facts},
            classifier=classifier,
            purifier=purifier,
            draws=draws,
            asks=asks_classifier(built),
        )

    def _adaptation(self, known_purifier: int) -> dict[str, Any]:
        """What an adaptive attacker adds to an attack's parameters, where the purifier asks for it."""
        purifier = self.built[known_purifier]
        added: dict[str, Any] = {}
        if not is_differentiable(purifier):
            added["bpda"] = self.stand_in.name if self.stand_in else "none"
        if is_random(purifier):
            added["eot"] = self.config.eot
        return added


def built_attack(spec: plugins.Spec) -> Attack:
    attack: Attack = plugins.build("raypurify.attacks", spec)
    return attack


def attack_text(attack: Any) -> str:
    """What a flag names an attack by that was made in this process: the other way round than :func:`built_attack`.

    Raises:
        ValueError: of a class that workers cannot import.
    """
    return str(plugins.spec_of(attack))


def built_metrics(config: EvaluationConfig) -> tuple[Metric, ...]:
    """The user's metrics.

    Raises:
        ValueError: a name that is no dotted path, one that returns something else, or columns that are there already.
    """
    built = []
    for text in config.metrics:
        spec = plugins.Spec.parse(text)
        if ":" not in spec.name:
            raise ValueError(f"metrics: expected my_package.module:callable, got {text!r}")
        metric = plugins.build("raypurify.metrics", spec)
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics: {text} returned {metric!r}; expected a raypurify.metrics.Metric")
        built.append(metric)
    for table in (schema.scores(built), schema.summary(built)):
        twice = sorted({name for name in table.names if table.names.count(name) > 1})
        if twice:
            raise ValueError(f"metrics: the columns {twice} would stand twice in a table; give a metric another name")
    return tuple(built)


def identity_of(config: EvaluationConfig, dataset: str, unit: int) -> dict[str, Any]:
    """What may not differ between calls on one output; the cells may: each has a hash of its own.

    Args:
        config: what is evaluated.
        dataset: the dataset's hash.
        unit: rows of a unit.
    """
    specs = {text: plugins.Spec.parse(text) for text in config.metrics}
    metrics = {text: plugins.source_hash(spec, ()) for text, spec in specs.items()}
    return {
        "data": config.data,
        "split": config.split,
        "limit": config.limit,
        **config.view.given,
        "seed": config.seed,
        "precision": config.precision,
        "dataset": dataset,
        "unit": unit,
        **({"metrics": metrics} if metrics else {}),
    }
