"""What happens to one batch: attack, purify, classify, score. Plain torch: what the Ray pipeline is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from raypurify import models
from raypurify.attacks import (
    Attack,
    Attacked,
    abstains,
    detect,
    is_differentiable,
    radius_of,
    victim_of,
)
from raypurify.evaluation.attacking import attack_batch, restored
from raypurify.evaluation.grid import Cell, Grid, Group, built_attack, built_metrics
from raypurify.evaluation.masking import MaskingCheck
from raypurify.metrics import METRICS, measured
from raypurify.runs import schema, stages
from raypurify.seeds import seed_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One batch in one cell: its rows of the scores, and its pixels, (N, C, H, W) float32."""

    cell: Cell
    scores: pa.Table
    x_adv: Tensor
    x_pure: Tensor


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was made of a batch elsewhere: see :meth:`Evaluator.prepare`."""

    attacked: Mapping[int, tuple[Attacked, Mapping[str, pa.Array | None]]] = field(default_factory=dict)
    """By a group's number: what the attack returned, and the columns of the check for masked gradients."""
    purified: Mapping[tuple[int, int | None], tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    """By the numbers of a purifier and a group, or None for clean images: what :meth:`Evaluator.purify` returned."""

    def moved(self, device: str) -> Prepared:
        """The same on a device."""
        attacked = {
            number: (replace(made, **_moved(vars(made), device)), masking)
            for number, (made, masking) in self.attacked.items()
        }
        purified = {key: (x.to(device), None if y is None else y.to(device)) for key, (x, y) in self.purified.items()}
        return Prepared(attacked=attacked, purified=purified)


class LazyNetworks(Sequence[nn.Module]):
    """Models as networks on a device, each built when it is first asked for."""

    def __init__(self, unbuilt: Sequence[models.Model], device: str) -> None:
        self._models, self._device = unbuilt, device
        self._built: dict[int, nn.Module] = {}

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, number: int) -> nn.Module:  # type: ignore[override]  # no slices
        if number not in self._built:
            self._built[number] = models.placed(self._models[number].build(), self._device)
        return self._built[number]


class Evaluator:
    """The networks of a grid on a device, and what they do to a batch."""

    classifiers: Sequence[nn.Module]
    purifiers: Sequence[nn.Module]

    def __init__(self, grid: Grid, device: str) -> None:
        self.grid, self.device = grid, device
        self.classifiers, self.purifiers = LazyNetworks(grid.classifiers, device), LazyNetworks(grid.purifiers, device)
        self.stand_in = models.placed(grid.stand_in.build(), device) if grid.stand_in else None
        self.attacks = [built_attack(group.attack) for group in grid.groups]
        self.metrics = (*METRICS, *built_metrics(grid.config))
        self.schema = schema.scores(self.metrics[len(METRICS) :])

    def evaluate(
        self,
        x: Tensor,
        y: Tensor,
        ids: Sequence[str],
        cells: AbstractSet[str] | None = None,
        prepared: Prepared | None = None,
    ) -> Iterator[Scored]:
        """Attack, purify, classify and score one batch in every cell of the grid.

        Args:
            x: (N, C, H, W) float32 in [0, 1], on the device.
            y: (N,) int64, the labels.
            ids: the images' ids, from which their seeds come.
            cells: hashes of the cells to do; all of them if None.
            prepared: what is done of it already.
        """
        with torch.no_grad(), models.autocast(self.device, self.grid.config.precision):
            shared = _Shared(self, x, y, ids, prepared)
            for number, wanted in self._wanted(cells):
                yield from self._group(number, shared, wanted)

    def prepare(
        self,
        stage: str,
        x: Tensor,
        y: Tensor,
        ids: Sequence[str],
        cells: AbstractSet[str] | None = None,
        prepared: Prepared | None = None,
    ) -> Prepared:
        """Do a stage of :meth:`evaluate` alone.

        Args:
            stage: "attack": all attacks, and the checks for masked gradients; "purify": each purifier too, on attacked
                and on clean images.
            x, y, ids, cells, prepared: see :meth:`evaluate`.
        """
        with torch.no_grad(), models.autocast(self.device, self.grid.config.precision):
            shared, wanted = _Shared(self, x, y, ids, prepared), [*self._wanted(cells)]
            attacked = {number: shared.attacked(number) for number, _ in wanted}
            purified: dict[tuple[int, int | None], tuple[Tensor, Tensor | None]] = {}
            for number, own in wanted if stage == "purify" else ():
                for cell in own:
                    purified[cell.purifier, None] = shared.purified(cell.purifier)
                    purified[cell.purifier, number] = shared.restored(cell.purifier, number, attacked[number][0].x_adv)
            return Prepared(attacked=attacked, purified=purified).moved("cpu")

    def _wanted(self, cells: AbstractSet[str] | None) -> Iterator[tuple[int, list[Cell]]]:
        """Numbers of the groups that have some of these cells, and which."""
        for number, group in enumerate(self.grid.groups):
            wanted = [cell for cell in group.cells if cells is None or cell.hash in cells]
            if wanted:
                yield number, wanted

    def _group(self, number: int, shared: _Shared, cells: Sequence[Cell]) -> Iterator[Scored]:
        attacked, masking = shared.attacked(number)
        x_adv = attacked.x_adv
        of_group = {
            "id": list(shared.ids),
            "label": shared.y,
            "steps": attacked.steps,
            "queries": attacked.queries,
            **self.measured("adversarial", x_adv, shared.x),
            "zero_gradient": attacked.zero_gradient,
            **masking,
        }
        for cell in cells:
            x_pure, detected = shared.restored(cell.purifier, number, x_adv)
            detected, detected_clean = self._detections(cell, x_adv, shared, detected)
            told = self.classify(cell.classifier, x_pure)
            columns = {
                **of_group,
                "pred_clean": shared.predictions(cell.classifier),
                "pred_adversarial": self.classify(cell.classifier, x_adv),
                "pred_purified": told,
                "pred_clean_purified": shared.purified_predictions(cell.classifier, cell.purifier),
                "detected": detected,
                "detected_clean": detected_clean,
                **self.measured("purified", x_pure, shared.x),
                **shared.purified_similarity(cell.purifier),
            }
            columns |= self._of_draws(cell, x_adv, shared, told)
            yield Scored(cell=cell, scores=self._table(columns, len(shared.ids)), x_adv=x_adv, x_pure=x_pure)

    def attack(self, number: int, x: Tensor, y: Tensor, ids: Sequence[str]) -> Attacked:
        """What a group's attack makes of images; what it draws follows from their ids.

        Args:
            number: of the group.
            x, y, ids: see :meth:`evaluate`.
        """
        group = self.grid.groups[number]
        text = str(group.resolved)
        seeds = [seed_of(self.grid.config.seed, text, name, 0, 0) for name in ids]
        victim = self._victim(group, text)
        with stages.spending("attack"):
            return attack_batch(
                self.attacks[number], victim, x, y, seeds=seeds, device=self.device, precision=group.precision
            )

    def attacked(self, number: int, shared: _Shared) -> tuple[Attacked, dict[str, pa.Array | None]]:
        """What a group's attack makes of a batch, and the columns of the check for masked gradients."""
        group, attacked = self.grid.groups[number], self.attack(number, shared.x, shared.y, shared.ids)
        is_checked = group.known_purifier is not None
        return attacked, self._masking(group, self.attacks[number], shared) if is_checked else {}

    def _of_draws(self, cell: Cell, x_adv: Tensor, shared: _Shared, first: Tensor) -> dict[str, Tensor]:
        """What many draws of a random purifier on attacked images come to, where they are asked for.

        Args:
            first: (N,) predictions of the first draw.
        """
        if cell.draws == 1:
            return {}
        others = (self.restore(cell.purifier, x_adv, shared.ids, draw) for draw in range(1, cell.draws))
        told = torch.stack([first, *(self.classify(cell.classifier, x) for x in others)], dim=1)
        votes = nn.functional.one_hot(told).sum(dim=1)
        return {
            "draws": torch.full_like(first, cell.draws),
            "right_draws": (told == shared.y[:, None]).sum(dim=1),
            "pred_majority": votes.argmax(dim=1),
        }

    def restore(self, purifier: int, x: Tensor, ids: Sequence[str], draw: int = 0) -> Tensor:
        """The images restored by a purifier (by its number); one that is random draws by the images' ids, and by the
        number of the draw.
        """
        with stages.spending("purify"):
            seeds = self._seeds_to_purify(ids, draw)
            return restored(self.purifiers[purifier], self.grid.purifiers[purifier].name, x, seeds)

    def purify(self, purifier: int, x: Tensor, ids: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The images restored by a purifier, and which it takes for attacked, (N,) bool, or None if it detects
        nothing.
        """
        x_pure = self.restore(purifier, x, ids)
        with stages.spending("purify"):
            return x_pure, detect(self.purifiers[purifier], x, self._seeds_to_purify(ids))

    def _seeds_to_purify(self, ids: Sequence[str], draw: int = 0) -> list[int]:
        more = (draw,) if draw else ()
        return [seed_of(self.grid.config.seed, "purify", name, *more) for name in ids]

    def _detections(
        self, cell: Cell, x_adv: Tensor, shared: _Shared, detected: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which attacked images, and which clean ones, are taken for attacked: (N,) bool each, or None.

        Args:
            detected: what the purifier's detector says of the attacked ones by itself.
        """
        detected_clean = shared.purified(cell.purifier)[1]
        if cell.asks:
            detected, detected_clean = (self._asked(cell, images, shared.ids) for images in (x_adv, shared.x))
        if not self.grid.config.certify_draws:
            return detected, detected_clean
        abstained = self.abstains(cell.classifier, cell.purifier, x_adv, shared.ids)
        abstained_clean = shared.abstained(cell.classifier, cell.purifier)
        if detected is None or detected_clean is None:
            return abstained, abstained_clean
        return detected | abstained, detected_clean | abstained_clean

    def abstains(self, classifier: int, purifier: int, x: Tensor, ids: Sequence[str]) -> Tensor:
        """Where the vote of draws of noise, purified and classified, cannot tell: (N,) bool."""
        config = self.grid.config
        with stages.spending("classify"):
            return abstains(
                self.classifiers[classifier],
                self.purifiers[purifier],
                x,
                [seed_of(config.seed, "vote", name) for name in ids],
                draws=config.certify_draws,
                sigma=config.certify_sigma,
            )

    def _asked(self, cell: Cell, x: Tensor, ids: Sequence[str]) -> Tensor | None:
        """Which images a purifier takes for attacked that asks the classifier behind it."""
        with stages.spending("purify"):
            seeds = self._seeds_to_purify(ids)
            return detect(self.purifiers[cell.purifier], x, seeds, self.classifiers[cell.classifier])

    def classify(self, classifier: int, x: Tensor) -> Tensor:
        """The classes that a classifier (by its number) tells of images: (N,) int64."""
        with stages.spending("classify"):
            classes: Tensor = self.classifiers[classifier](x).argmax(dim=1)
            return classes

    def measured(self, kind: str, x: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """See :func:`raypurify.metrics.measured`."""
        with stages.spending("measure"):
            return measured(self.metrics, kind, x, clean)

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

    def _masking(self, group: Group, attack: Attack, shared: _Shared) -> dict[str, pa.Array | None]:
        """The columns of the check for masked gradients: null for images that are not checked."""
        chosen = shared.chosen_for_masking()
        if not chosen:
            return {"zero_gradient": None} if self.grid.masking_share else {}
        epsilon = (radius_of(attack) if attack.norm == "linf" else None) or MaskingCheck.epsilon
        key = (group.victim, group.known_purifier, epsilon)
        if key not in shared.masking:
            purifier = self.purifiers[cast(int, group.known_purifier)]
            clipped = hasattr(purifier, "unclipped") and is_differentiable(purifier)
            with stages.spending("attack"):
                shared.masking[key] = MaskingCheck(epsilon=epsilon)(
                    self._victim(group, "masking"),
                    self._victim(group, "masking", straight_through=True) if clipped else None,
                    shared.x[chosen],
                    shared.y[chosen],
                    seeds=[seed_of(self.grid.config.seed, "masking", shared.ids[index]) for index in chosen],
                )
        return {name: _scattered(value, chosen, len(shared.ids)) for name, value in shared.masking[key].items()}

    def _table(self, columns: Mapping[str, Any], n: int) -> pa.Table:
        """Columns as the schema of the scores: those that are not given are null, as is a NaN."""
        arrays = []
        for column in self.schema:
            value = columns.get(column.name)
            value = pa.nulls(n, column.type) if value is None else value
            if isinstance(value, Tensor):
                value = pa.array(value.cpu().numpy(), from_pandas=True)
            arrays.append(value if isinstance(value, pa.Array) else pa.array(value, column.type))
        return pa.table(arrays, names=self.schema.names).cast(self.schema)


class _Shared:
    """A batch, and what all cells share of it: computed once, when first asked for, or prepared."""

    def __init__(
        self, evaluator: Evaluator, x: Tensor, y: Tensor, ids: Sequence[str], prepared: Prepared | None
    ) -> None:
        self.evaluator, self.x, self.y, self.ids = evaluator, x, y, ids
        self._prepared = (prepared or Prepared()).moved(evaluator.device)
        self._made: dict[tuple[Any, ...], Any] = {}
        self.masking: dict[tuple[int, int | None, float], dict[str, Tensor]] = {}

    def chosen_for_masking(self) -> list[int]:
        """Numbers of the images that are checked for masked gradients: a share of the dataset, by their ids."""
        config, share = self.evaluator.grid.config, self.evaluator.grid.masking_share
        draws = [seed_of(config.seed, "chosen for masking", name) / 2**63 for name in self.ids]
        return [index for index, draw in enumerate(draws) if draw < share]

    def predictions(self, classifier: int) -> Tensor:
        return self._once(("predictions", classifier), lambda: self.evaluator.classify(classifier, self.x))

    def attacked(self, group: int) -> tuple[Attacked, Mapping[str, pa.Array | None]]:
        """See :meth:`Evaluator.attacked`; not kept, for the cells of one group alone share it."""
        there = self._prepared.attacked.get(group)
        return there or self.evaluator.attacked(group, self)

    def restored(self, purifier: int, group: int, x_adv: Tensor) -> tuple[Tensor, Tensor | None]:
        """The attacked images of a group behind a purifier, and which of them it detects; not kept."""
        there = self._prepared.purified.get((purifier, group))
        return there or self.evaluator.purify(purifier, x_adv, self.ids)

    def purified(self, purifier: int) -> tuple[Tensor, Tensor | None]:
        """The clean images behind a purifier, and which of them it detects."""
        there = self._prepared.purified.get((purifier, None))
        return there or self._once(("purified", purifier), lambda: self.evaluator.purify(purifier, self.x, self.ids))

    def purified_predictions(self, classifier: int, purifier: int) -> Tensor:
        key = "purified predictions", classifier, purifier
        return self._once(key, lambda: self.evaluator.classify(classifier, self.purified(purifier)[0]))

    def abstained(self, classifier: int, purifier: int) -> Tensor:
        """Where the vote on the clean images cannot tell."""
        key = "abstained", classifier, purifier
        return self._once(key, lambda: self.evaluator.abstains(classifier, purifier, self.x, self.ids))

    def purified_similarity(self, purifier: int) -> dict[str, Tensor]:
        compared = self.purified(purifier)[0], self.x
        return self._once(("similarity", purifier), lambda: self.evaluator.measured("clean_purified", *compared))

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


def _moved(values: Mapping[str, Tensor | None], device: str) -> dict[str, Any]:
    return {name: None if value is None else value.to(device) for name, value in values.items()}


def _scattered(value: Tensor, rows: Sequence[int], n: int) -> pa.Array:
    """The values of some rows, null in the others: (n,)."""
    found = dict(zip(rows, value.tolist(), strict=True))
    return pa.array([found.get(row) for row in range(n)])
