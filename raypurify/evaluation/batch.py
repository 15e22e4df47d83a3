"""What happens to one batch: attack, purify, classify, score. Plain torch: what the Ray pipeline is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from raypurify import models
from raypurify.attacks import Attack, radius_of, run_attack
from raypurify.evaluation.grid import Cell, Grid, Group, built_attack, built_metrics
from raypurify.evaluation.masking import MaskingCheck
from raypurify.metrics import METRICS, measured
from raypurify.purifiers import detect, is_differentiable, purify, victim_of
from raypurify.runs import schema, stages
from raypurify.seeds import seed_of


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One batch in one cell: its rows of the scores, and its pixels, (N, C, H, W) float32."""

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
        self.attacks = [built_attack(group.attack) for group in grid.groups]
        self.metrics = (*METRICS, *built_metrics(grid.config))
        self.schema = schema.scores(self.metrics[len(METRICS) :])

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
        with torch.no_grad(), models.autocast(self.device, self.grid.config.precision):
            clean = _Clean(self, x, y, ids)
            for group, attack in zip(self.grid.groups, self.attacks, strict=True):
                wanted = [cell for cell in group.cells if cells is None or cell.hash in cells]
                if wanted:
                    yield from self._group(group, attack, clean, wanted)

    def _group(self, group: Group, attack: Attack, clean: _Clean, cells: Sequence[Cell]) -> Iterator[Scored]:
        victim = self._victim(group, str(group.resolved))
        seeds = [seed_of(self.grid.config.seed, str(group.resolved), name, 0, 0) for name in clean.ids]
        with stages.spending("attack"):
            attacked = run_attack(attack, victim, clean.x, clean.y, seeds=seeds)
        x_adv = attacked.x_adv
        shared = {
            "id": list(clean.ids),
            "label": clean.y,
            "steps": attacked.steps,
            "queries": attacked.queries,
            **self.measured("adversarial", x_adv, clean.x),
            "zero_gradient": attacked.zero_gradient,
            **(self._masking(group, attack, clean) if group.known_purifier is not None else {}),
        }
        for cell in cells:
            x_pure = self.purify(cell.purifier, x_adv, clean.ids)
            columns = {
                **shared,
                "pred_clean": clean.predictions(cell.classifier),
                "pred_adversarial": self.classify(cell.classifier, x_adv),
                "pred_purified": self.classify(cell.classifier, x_pure),
                "pred_clean_purified": clean.purified_predictions(cell.classifier, cell.purifier),
                "detected": self.detect(cell.purifier, x_adv, clean.ids),
                "detected_clean": clean.detected(cell.purifier),
                **self.measured("purified", x_pure, clean.x),
                **clean.purified_similarity(cell.purifier),
            }
            yield Scored(cell=cell, scores=self._table(columns, len(clean.ids)), x_adv=x_adv, x_pure=x_pure)

    def purify(self, purifier: int, x: Tensor, ids: Sequence[str]) -> Tensor:
        """The images restored by a purifier (by its number); one that is random draws by the images' ids."""
        with stages.spending("purify"):
            return purify(self.purifiers[purifier], x, self._seeds(ids))

    def classify(self, classifier: int, x: Tensor) -> Tensor:
        """The classes that a classifier (by its number) tells of images: (N,) int64."""
        with stages.spending("classify"):
            classes: Tensor = self.classifiers[classifier](x).argmax(dim=1)
            return classes

    def measured(self, kind: str, x: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """See :func:`raypurify.metrics.measured`."""
        with stages.spending("measure"):
            return measured(self.metrics, kind, x, clean)

    def detect(self, purifier: int, x: Tensor, ids: Sequence[str]) -> Tensor | None:
        """Which images a purifier (by its number) takes for attacked: (N,) bool; None if it detects nothing."""
        with stages.spending("purify"):
            return detect(self.purifiers[purifier], x, self._seeds(ids))

    def _seeds(self, ids: Sequence[str]) -> list[int]:
        return [seed_of(self.grid.config.seed, "purify", name) for name in ids]

    def _victim(self, group: Group, draws: str, *, straight_through: bool = False) -> nn.Module:
        """What a group's attacker attacks; what a random purifier draws for him follows from ``draws``."""
        return victim_of(
            self.classifiers[group.victim],
            None if group.known_purifier is None else self.purifiers[group.known_purifier],
            stand_in=self.stand_in,
            draws=self.grid.config.eot,
            seed=seed_of(self.grid.config.seed, draws),
            straight_through=straight_through,
        )

    def _masking(self, group: Group, attack: Attack, clean: _Clean) -> dict[str, pa.Array | None]:
        """The columns of the check for masked gradients: null for images that are not checked."""
        chosen = clean.chosen_for_masking()
        if not chosen:
            return {"zero_gradient": None} if self.grid.masking_share else {}
        epsilon = (radius_of(attack) if attack.norm == "linf" else None) or MaskingCheck.epsilon
        key = (group.victim, group.known_purifier, epsilon)
        if key not in clean.masking:
            purifier = self.purifiers[cast(int, group.known_purifier)]
            clipped = hasattr(purifier, "unclipped") and is_differentiable(purifier)
            with stages.spending("attack"):
                clean.masking[key] = MaskingCheck(epsilon=epsilon)(
                    self._victim(group, "masking"),
                    self._victim(group, "masking", straight_through=True) if clipped else None,
                    clean.x[chosen],
                    clean.y[chosen],
                    seeds=[seed_of(self.grid.config.seed, "masking", clean.ids[index]) for index in chosen],
                )
        return {name: _scattered(value, chosen, len(clean.ids)) for name, value in clean.masking[key].items()}

    def _table(self, columns: Mapping[str, Any], n: int) -> pa.Table:
        """Columns as the schema of the scores: those that are not given are null, as is a NaN."""
        arrays = []
        for field in self.schema:
            value = columns.get(field.name)
            value = pa.nulls(n, field.type) if value is None else value
            if isinstance(value, Tensor):
                value = pa.array(value.cpu().numpy(), from_pandas=True)
            arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
        return pa.table(arrays, names=self.schema.names).cast(self.schema)


class _Clean:
    """A batch, and what all cells share of it: computed once, when first asked for."""

    def __init__(self, evaluator: Evaluator, x: Tensor, y: Tensor, ids: Sequence[str]) -> None:
        self.evaluator, self.x, self.y, self.ids = evaluator, x, y, ids
        self._predictions: dict[int, Tensor] = {}
        self._purified: dict[int, Tensor] = {}
        self._purified_predictions: dict[tuple[int, int], Tensor] = {}
        self._purified_similarity: dict[int, dict[str, Tensor]] = {}
        self._detected: dict[int, Tensor | None] = {}
        self.masking: dict[tuple[int, int | None, float], dict[str, Tensor]] = {}

    def chosen_for_masking(self) -> list[int]:
        """Numbers of the images that are checked for masked gradients: a share of the dataset, by their ids."""
        config, share = self.evaluator.grid.config, self.evaluator.grid.masking_share
        draws = [seed_of(config.seed, "chosen for masking", name) / 2**63 for name in self.ids]
        return [index for index, draw in enumerate(draws) if draw < share]

    def predictions(self, classifier: int) -> Tensor:
        if classifier not in self._predictions:
            self._predictions[classifier] = self.evaluator.classify(classifier, self.x)
        return self._predictions[classifier]

    def purified(self, purifier: int) -> Tensor:
        if purifier not in self._purified:
            self._purified[purifier] = self.evaluator.purify(purifier, self.x, self.ids)
        return self._purified[purifier]

    def purified_predictions(self, classifier: int, purifier: int) -> Tensor:
        key = (classifier, purifier)
        if key not in self._purified_predictions:
            self._purified_predictions[key] = self.evaluator.classify(classifier, self.purified(purifier))
        return self._purified_predictions[key]

    def purified_similarity(self, purifier: int) -> dict[str, Tensor]:
        if purifier not in self._purified_similarity:
            compared = self.purified(purifier), self.x
            self._purified_similarity[purifier] = self.evaluator.measured("clean_purified", *compared)
        return self._purified_similarity[purifier]

    def detected(self, purifier: int) -> Tensor | None:
        if purifier not in self._detected:
            self._detected[purifier] = self.evaluator.detect(purifier, self.x, self.ids)
        return self._detected[purifier]


def _scattered(value: Tensor, rows: Sequence[int], n: int) -> pa.Array:
    """The values of some rows, null in the others: (n,)."""
    found = dict(zip(rows, value.tolist(), strict=True))
    return pa.array([found.get(row) for row in range(n)])
