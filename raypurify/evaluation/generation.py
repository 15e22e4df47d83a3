"""Attacked datasets: an evaluation of one cell whose attacked images are kept, as rows with the pixels. Plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raypurify import metrics, models, plugins
from raypurify.attacks import is_random
from raypurify.data import AS_STORED, View
from raypurify.evaluation import results
from raypurify.evaluation.attacking import AttackPrecision
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, Grid, build_grid, built_attack
from raypurify.images import encode_png, to_uint8_nhwc
from raypurify.runs import fields, schema


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What is attacked, and how: the identity of an attacked dataset."""

    input: str
    """Images with labels: digits, mnist, cifar10, a dataset's URL, or my_package.module:callable[,KEY=VALUE...]."""
    split: Literal["train", "test"] = "test"
    """Which split of the data to use. Data without splits are split by a hash of the ids: a sixth is the test split."""
    limit: int | None = None
    """Take this number of images only: the first ones, or, of Parquet without splits, of each class its share."""
    view: View = AS_STORED
    attack: str
    """The attack: NAME[,KEY=VALUE...], or torchattacks.NAME[,KEY=VALUE...], or my_package.module:callable."""
    classifier: str
    """The classifier that is attacked: a checkpoint, or my_package.module:callable."""
    purifier: str | None = None
    """A purifier that the attacker knows and attacks through. Where it has no gradient, BPDA takes the identity's."""
    eot: int = 10
    """The attacker averages over this number of draws of a random purifier."""
    precision: models.Precision = "float32"
    """The type that the networks compute in. float32 goes without TF32."""
    attack_precision: AttackPrecision = "float32"
    """The type that attacks compute in. bfloat16: an attack in a ball goes on in float32 with the images that are still
    right, so that it is never weaker; DeepFool and Carlini-Wagner take gradients in bfloat16; the others compute in
    float32. auto: bfloat16 where the hardware is fast in it. Whether an image is right is always told in the type of
    --precision."""
    png: bool = False
    """Also write each attacked image as png/SPLIT/LABEL/ID.png."""
    seed: int = 0
    """Seed of everything that an attack or a purifier draws at random."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        if self.eot < 1:
            raise ValueError(f"eot must be at least 1; got {self.eot}")


def grid_of(
    config: GenerationConfig, dataset: str, rows: int, batch: int, classifier: models.Model | None = None
) -> Grid:
    """The evaluation whose attacked images are kept: a grid of one cell.

    Args:
        config: what is attacked, and how.
        dataset: the dataset's name.
        rows: how many images it has.
        batch: images that are attacked at once.
        classifier: the config's; None: it is loaded.

    Raises:
        ValueError, FileNotFoundError: see :func:`raypurify.evaluation.grid.build_grid`.
    """
    known = () if config.purifier is None else (config.purifier,)
    evaluation = EvaluationConfig(
        data=config.input,
        classifiers=(config.classifier,),
        purifiers=known or ("identity",),
        adaptive_purifiers=known,
        attacks=(config.attack,),
        settings=("adaptive",) if known else ("white-box",),
        bpda="identity",
        eot=config.eot,
        masking_images=0,
        precision=config.precision,
        attack_precision=config.attack_precision,
        seed=config.seed,
    )
    return build_grid(evaluation, dataset, rows, batch, None if classifier is None else [classifier])


def models_of(config: GenerationConfig, grid: Grid) -> tuple[models.Model, ...]:
    """The models that the config names."""
    return grid.classifiers if config.purifier is None else (*grid.classifiers, *grid.purifiers)


def identity_of(config: GenerationConfig, dataset: str, grid: Grid) -> dict[str, Any]:
    """What an attacked dataset follows from: the identity of its run.

    Args:
        config: what is attacked, and how.
        dataset: the dataset's hash.
        grid: that of the config.
    """
    (group,), named = grid.groups, models_of(config, grid)
    identity = {**asdict(config), "attack": str(group.resolved), "dataset": dataset}
    del identity["view"], identity["attack_precision"]
    identity |= config.view.given
    if group.precision == "bfloat16":
        identity["attack_precision"] = "bfloat16"
    if config.purifier is None or not is_random(grid.purifiers[0].build()):
        del identity["eot"]
    identity |= {"names": "SPLIT-UNIT", **{f"{model.kind}_sha256": model.identity for model in named}}
    code = plugins.source_hash(group.attack, [type(built_attack(group.attack))])
    if code:
        identity["attack_sha256"] = code
    if grid.coupled:
        identity["batch"] = grid.coupled
    return identity


class AttackedImages:
    """Makes the images that an evaluation scores, and keeps them."""

    def __init__(self, grid: Grid, device: str) -> None:
        """``grid`` is :func:`grid_of`'s."""
        self.evaluator = Evaluator(grid, device)
        for networks in (self.evaluator.classifiers, self.evaluator.purifiers):
            networks[0]  # Built now: what fails here is no image's fault.

    def __call__(self, x: Tensor, y: Tensor, ids: Sequence[str]) -> pa.Table:
        """Attack a batch.

        Args:
            x: (N, C, H, W) float32 in [0, 1], on the device.
            y: (N,) int64, the labels.
            ids: the images' ids, from which their seeds come.

        Returns:
            Rows of ``schema.IMAGES``.
        """
        evaluator = self.evaluator
        with torch.no_grad(), models.autocast(evaluator.device, evaluator.grid.config.precision):
            attacked = evaluator.attack(0, x, y, ids)
            pixels = to_uint8_nhwc(attacked.x_adv)
            rounded = torch.from_numpy(pixels).to(x.device).permute(0, 3, 1, 2).float().div(255)
            images = {"clean": x, "adversarial": attacked.x_adv, "rounded": rounded}
            predictions = {
                f"pred_{kind}": evaluator.classify(0, evaluator.restore(0, values, ids)).cpu()
                for kind, values in images.items()
            }
        columns = {
            "id": list(ids),
            "label": y.cpu(),
            "image": [encode_png(image) for image in pixels],
            "clean": [encode_png(image) for image in to_uint8_nhwc(x)],
            **predictions,
            "linf": metrics.linf(attacked.x_adv, x).cpu(),
            "l2": metrics.l2(attacked.x_adv, x).cpu(),
            "steps": attacked.steps.cpu(),
            "queries": attacked.queries.cpu(),
        }
        arrays = [columns[field.name] for field in schema.IMAGES]
        return pa.table(
            [value.numpy() if isinstance(value, Tensor) else value for value in arrays], names=schema.IMAGES.names
        ).cast(schema.IMAGES)


def success(table: pa.Table, kind: str) -> float | None:
    """Share of the images classified right at first that are wrong when attacked; None where none was right.

    Args:
        table: rows with ``label``, ``pred_clean`` and ``pred_KIND``.
        kind: "adversarial", the attack's own float32 pixels, or "rounded", as they are written, in 8 bits.
    """
    right = table.filter(pc.equal(table["pred_clean"], table["label"]))
    share: float | None = pc.mean(pc.not_equal(right[f"pred_{kind}"], right["label"])).as_py()
    return share


def rounding_effect(table: pa.Table) -> dict[str, float | None]:
    """What an attack reached before and after its images were rounded to 8 bits.

    ``l2_median`` is :func:`~raypurify.evaluation.results.median_distance` before the rounding; None where it is
    infinite: half of the images or more withstood.
    """
    figures: dict[str, float | None] = {f"success_{kind}": success(table, kind) for kind in ("adversarial", "rounded")}
    median = results.median_distance(results.distances_to_success(table, "pred_clean", "pred_adversarial"))
    linf_max = float(table["linf"].to_numpy().max(initial=0))
    return {**figures, "linf_max": linf_max, "l2_median": median if math.isfinite(median) else None}
