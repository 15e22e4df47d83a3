"""What happens to one batch: attack, purify, classify, score. Plain torch: what the Ray pipeline is held against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from raypurify import fields, metrics, models, plugins, schema
from raypurify.adaptive import Composite, is_differentiable, is_random
from raypurify.attacks import Attack, run_attack
from raypurify.masking import MaskingCheck
from raypurify.purifiers import purify
from raypurify.seeds import seed_of
from raypurify.training import Precision, autocast

Setting = Literal["white-box", "black-box", "transfer", "adaptive"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The grid: every attack on every classifier, restored by every purifier, in every setting."""

    data: str
    """digits, mnist, cifar10, or the URL of a dataset."""
    split: Literal["train", "test"] = "test"
    """Of data without a split of their own, a sixth of the rows, by a hash of their ids, is the test split."""
    limit: int | None = None
    """So many images only: the first; of Parquet files without a split of their own, of each class its share."""
    classifiers: tuple[str, ...]
    """Checkpoints, or my_package.module:callable."""
    purifiers: tuple[str, ...] = ("identity",)
    """Checkpoints, or NAME[,KEY=VALUE...], or my_package.module:callable."""
    attacks: tuple[str, ...] = ("fgsm,epsilon=0.3", "r_fgsm,epsilon=0.3", "pgd,epsilon=0.3,steps=40")
    """NAME[,KEY=VALUE...], or torchattacks.NAME[,KEY=VALUE...], or my_package.module:callable; "none" leaves the images
    as they are."""
    epsilons: tuple[float, ...] = ()
    """Radii for the security curve: every attack that has a radius is made at each of these instead of at its own."""
    settings: tuple[Setting, ...] = ("white-box",)
    """white-box: the attacker knows the classifier, and the purifier is trained for it (or for none). black-box: the
    same attacker, and the purifier is trained for another classifier. transfer: the attacker knows a surrogate
    classifier only. adaptive: the attacker knows classifier and purifier."""
    surrogates: tuple[str, ...] = ()
    """Classifiers that the transfer setting attacks; each of the classifiers, for the others, if none are given."""
    adaptive_attacks: tuple[str, ...] = ()
    """Attacks of the adaptive setting; all the attacks if none are given."""
    adaptive_purifiers: tuple[str, ...] = ()
    """Purifiers of the adaptive setting, each also among the purifiers; all of them if none are given."""
    bpda: str = "identity"
    """Whose gradient the adaptive attacker takes in the place of a purifier's that has none: another purifier's, or
    "none": that purifier's own, as an attacker would who knows no better. It has a gradient and does not draw."""
    eot: int = 10
    """Draws of a random purifier that the adaptive attacker averages over."""
    masking_images: int = 200
    """About so many images of each adaptive cell are checked for masked gradients, which takes five more attacks."""
    precision: Precision = "float32"
    """Of the networks' arithmetic; float32 without TF32. Final figures are float32."""
    seed: int = 0

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
        if self.eot < 1 or self.masking_images < 0:
            raise ValueError(
                f"eot must be at least 1, masking_images at least 0; got {self.eot}, {self.masking_images}"
            )


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
    resolved: plugins.Spec
    """The attack with all its parameters: what its seeds come from, however it was written."""
    victim: int
    """The classifier that is attacked, by its number."""
    through: int | None
    """The purifier that an adaptive attacker attacks through, by its number; None for an attacker who knows none."""
    cells: tuple[Cell, ...]
    couples_batch: bool
    """Whether an attacked image depends on the batch that it came in."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The models of an evaluation, and what is done with them."""

    config: EvaluationConfig
    classifiers: tuple[models.Model, ...]
    """Those that are evaluated, then the surrogates that are only attacked."""
    purifiers: tuple[models.Model, ...]
    stand_in: models.Model | None
    """The purifier whose gradient BPDA takes."""
    groups: tuple[Group, ...]
    masking_share: float
    """Share of the images that are checked for masked gradients."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for group in self.groups for cell in group.cells)


def build_grid(config: EvaluationConfig, dataset: str, rows: int, batch: int | None = None) -> Grid:
    """Resolve the names and lay out the cells.

    Args:
        config: what is evaluated.
        dataset: the dataset's name.
        rows: how many images it has.
        batch: images that are attacked at once: a parameter of the attacks whose results depend on it.

    Raises:
        ValueError, FileNotFoundError: unknown names, missing weights, or settings that leave no cell.
    """
    classifiers = tuple(models.load("classifier", text) for text in config.classifiers)
    surrogates = [models.load("classifier", text) for text in config.surrogates]
    known = {model.identity for model in classifiers}
    everyone = (*classifiers, *(model for model in surrogates if model.identity not in known))
    purifiers = tuple(models.load("purifier", text) for text in config.purifiers)
    _check_names(everyone)
    _check_names(purifiers)
    layout = _Layout(
        config=config,
        dataset=dataset,
        classifiers=everyone,
        evaluated=len(classifiers),
        attackable=frozenset(model.identity for model in surrogates or classifiers),
        purifiers=purifiers,
        stand_in=_stand_in(config),
        masking_share=min(1.0, config.masking_images / max(rows, 1)),
        batch=batch,
    )
    groups = layout.groups()
    if not groups:
        raise ValueError(
            f"no cell: settings {config.settings} leave nothing to evaluate (black-box needs a purifier that was "
            "trained for another classifier, transfer a surrogate or a second classifier)"
        )
    hashes = [cell.hash for group in groups for cell in group.cells]
    if len(set(hashes)) < len(hashes):
        raise ValueError(f"the attacks {config.attacks} or {config.adaptive_attacks} name one twice; name each once")
    return Grid(
        config=config,
        classifiers=everyone,
        purifiers=purifiers,
        stand_in=layout.stand_in,
        groups=groups,
        masking_share=layout.masking_share,
    )


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


def _check_names(loaded: Sequence[models.Model]) -> None:
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
            if not self.config.epsilons or _attack(spec).epsilon is None:
                specs.append(spec)
                continue
            name = "eps" if spec.name.startswith("torchattacks.") else "epsilon"
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
        return [index for index, purifier in enumerate(self.purifiers) if purifier.trained_for in (None, sha256)]

    def _adaptive(self, victim: int) -> list[int]:
        chosen = self.config.adaptive_purifiers or self.config.purifiers
        return [index for index in self._own(victim) if self.config.purifiers[index] in chosen]

    def _group(
        self, spec: plugins.Spec, victim: int, through: int | None, pairs: Sequence[tuple[str, int, int]]
    ) -> Group:
        attack, attacked = _attack(spec), self.classifiers[victim]
        resolved = plugins.resolved(spec, attack)
        params = dict(resolved.params)
        couples_batch = bool(getattr(attack, "couples_batch", False))
        if couples_batch:
            params["batch"] = self.batch
        seen: list[Any] = [attacked.identity, plugins.source_hash(spec, [type(attack)])]
        name = attacked.name
        if through is not None:
            name = f"{self.purifiers[through].name}+{name}"
            adaptation = self._adaptation(through)
            params |= adaptation
            seen += [self.purifiers[through].identity, self.masking_share]
            if "bpda" in adaptation and self.stand_in is not None:
                seen.append(self.stand_in.identity)
        cells = []
        for setting, classifier, purifier in pairs:
            row = {
                "dataset": self.dataset,
                "setting": setting,
                "attack": spec.name,
                "norm": attack.norm,
                "eps": attack.epsilon,
                "params": json.dumps(params, sort_keys=True),
                "victim": name,
                "classifier": self.classifiers[classifier].name,
                "purifier": self.purifiers[purifier].name,
            }
            evaluated = [self.classifiers[classifier].identity, self.purifiers[purifier].identity]
            identity = [row, str(resolved), seen, evaluated, self.config.precision, self.config.seed]
            text = json.dumps(plugins.normalised(identity))
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            cells.append(Cell(row={"cell": digest, **row}, classifier=classifier, purifier=purifier))
        return Group(
            attack=spec,
            resolved=resolved,
            victim=victim,
            through=through,
            cells=tuple(cells),
            couples_batch=couples_batch,
        )

    def _adaptation(self, through: int) -> dict[str, Any]:
        """What an adaptive attacker adds to an attack's parameters, where the purifier asks for it."""
        purifier = self.purifiers[through].build()
        added: dict[str, Any] = {}
        if not is_differentiable(purifier):
            added["bpda"] = self.stand_in.name if self.stand_in else "none"
        if is_random(purifier):
            added["eot"] = self.config.eot
        return added


def _attack(spec: plugins.Spec) -> Attack:
    attack: Attack = plugins.build("raypurify.attacks", spec)
    return attack


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
        self.stand_in = models.placed(grid.stand_in.build(), device) if grid.stand_in else None
        self.attacks = [_attack(group.attack) for group in grid.groups]

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
        victim = self._victim(group, str(group.resolved))
        seeds = [seed_of(self.grid.config.seed, str(group.resolved), name, 0, 0) for name in clean.ids]
        attacked = run_attack(attack, victim, clean.x, clean.y, seeds=seeds)
        x_adv = attacked.x_adv
        shared = {
            "id": list(clean.ids),
            "label": clean.y,
            "linf": metrics.linf(x_adv, clean.x),
            "l2": metrics.l2(x_adv, clean.x),
            "steps": attacked.steps,
            "queries": attacked.queries,
            **_similarity("adversarial", x_adv, clean.x),
            "zero_gradient": attacked.zero_gradient,
            **(self._masking(group, attack, clean) if group.through is not None else {}),
        }
        for cell in cells:
            classifier = self.classifiers[cell.classifier]
            x_pure = self.purify(cell.purifier, x_adv, clean.ids)
            columns = {
                **shared,
                "pred_clean": clean.predictions(cell.classifier),
                "pred_adversarial": classifier(x_adv).argmax(dim=1),
                "pred_purified": classifier(x_pure).argmax(dim=1),
                "pred_clean_purified": clean.purified_predictions(cell.classifier, cell.purifier),
                **_similarity("purified", x_pure, clean.x),
                **clean.purified_similarity(cell.purifier),
            }
            yield Scored(cell=cell, scores=_table(columns, len(clean.ids)), x_adv=x_adv, x_pure=x_pure)

    def purify(self, purifier: int, x: Tensor, ids: Sequence[str]) -> Tensor:
        """The images restored by a purifier (by its number); one that is random draws by the images' ids."""
        seeds = [seed_of(self.grid.config.seed, "purify", name) for name in ids]
        return purify(self.purifiers[purifier], x, seeds)

    def _victim(self, group: Group, draws: str, *, straight_through: bool = False) -> nn.Module:
        """What a group's attacker attacks; what a random purifier draws for him follows from ``draws``."""
        classifier = self.classifiers[group.victim]
        if group.through is None:
            return classifier
        purifier = self.purifiers[group.through]
        return Composite(
            classifier,
            purifier,
            surrogate=None if is_differentiable(purifier) else self.stand_in,
            straight_through=straight_through,
            draws=self.grid.config.eot,
            seed=seed_of(self.grid.config.seed, draws),
        )

    def _masking(self, group: Group, attack: Attack, clean: _Clean) -> dict[str, pa.Array | None]:
        """The columns of the check for masked gradients: null for images that are not checked."""
        chosen = clean.chosen_for_masking()
        if not chosen:
            return {"zero_gradient": None} if self.grid.masking_share else {}
        epsilon = attack.epsilon if attack.norm == "linf" and attack.epsilon else MaskingCheck.epsilon
        key = (group.victim, group.through, epsilon)
        if key not in clean.masking:
            purifier = self.purifiers[cast(int, group.through)]
            clipped = hasattr(purifier, "unclipped") and is_differentiable(purifier)
            clean.masking[key] = MaskingCheck(epsilon=epsilon)(
                self._victim(group, "masking"),
                self._victim(group, "masking", straight_through=True) if clipped else None,
                clean.x[chosen],
                clean.y[chosen],
                seeds=[seed_of(self.grid.config.seed, "masking", clean.ids[index]) for index in chosen],
            )
        return {name: _scattered(value, chosen, len(clean.ids)) for name, value in clean.masking[key].items()}


class _Clean:
    """A batch, and what all cells share of it: computed once, when first asked for."""

    def __init__(self, evaluator: Evaluator, x: Tensor, y: Tensor, ids: Sequence[str]) -> None:
        self.evaluator, self.x, self.y, self.ids = evaluator, x, y, ids
        self._predictions: dict[int, Tensor] = {}
        self._purified: dict[int, Tensor] = {}
        self._purified_predictions: dict[tuple[int, int], Tensor] = {}
        self._purified_similarity: dict[int, dict[str, Tensor]] = {}
        self.masking: dict[tuple[int, int | None, float], dict[str, Tensor]] = {}

    def chosen_for_masking(self) -> list[int]:
        """Numbers of the images that are checked for masked gradients: a share of the dataset, by their ids."""
        config, share = self.evaluator.grid.config, self.evaluator.grid.masking_share
        draws = [seed_of(config.seed, "chosen for masking", name) / 2**63 for name in self.ids]
        return [index for index, draw in enumerate(draws) if draw < share]

    def predictions(self, classifier: int) -> Tensor:
        if classifier not in self._predictions:
            self._predictions[classifier] = self.evaluator.classifiers[classifier](self.x).argmax(dim=1)
        return self._predictions[classifier]

    def purified(self, purifier: int) -> Tensor:
        if purifier not in self._purified:
            self._purified[purifier] = self.evaluator.purify(purifier, self.x, self.ids)
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


def _scattered(value: Tensor, rows: Sequence[int], n: int) -> pa.Array:
    """The values of some rows, null in the others: (n,)."""
    found = dict(zip(rows, value.tolist(), strict=True))
    return pa.array([found.get(row) for row in range(n)])


def _table(columns: Mapping[str, Any], n: int) -> pa.Table:
    """Columns as ``schema.SCORES``: those that are not given are null, as is a NaN similarity."""
    arrays = []
    for field in schema.SCORES:
        value = columns.get(field.name)
        value = pa.nulls(n, field.type) if value is None else value
        if isinstance(value, Tensor):
            value = pa.array(value.cpu().numpy(), from_pandas=True)
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.table(arrays, names=schema.SCORES.names).cast(schema.SCORES)
