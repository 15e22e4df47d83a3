"""Attacked datasets: what is made of one batch of images, as rows with the pixels. Plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from raypurify import metrics, models, plugins
from raypurify.attacks import Attack, is_random, victim_of
from raypurify.data import AS_STORED, View
from raypurify.evaluation import results
from raypurify.evaluation.attacking import AttackPrecision, attack_batch, begins_in, restored
from raypurify.images import encode_png, to_uint8_nhwc
from raypurify.runs import fields, schema, stages
from raypurify.seeds import seed_of


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


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The models of an attacked dataset, which can be sent to any worker."""

    classifier: models.Model
    purifier: models.Model | None

    @classmethod
    def load(cls, config: GenerationConfig) -> Networks:
        """Find the models that the config names.

        Raises:
            ValueError, FileNotFoundError: see :func:`raypurify.models.load`.
        """
        purifier = None if config.purifier is None else models.load("purifier", config.purifier)
        return cls(classifier=models.load("classifier", config.classifier), purifier=purifier)

    @property
    def all(self) -> tuple[models.Model, ...]:
        """Each of them."""
        return (self.classifier,) if self.purifier is None else (self.classifier, self.purifier)


def identity_of(config: GenerationConfig, dataset: str, networks: Networks, batch: int) -> dict[str, Any]:
    """What an attacked dataset follows from: the identity of its run.

    Args:
        config: what is attacked, and how.
        dataset: the dataset's hash.
        networks: those that the config names.
        batch: images that are attacked at once, which counts where the attack couples them.
    """
    spec = plugins.Spec.parse(config.attack)
    attack = plugins.build("raypurify.attacks", spec)
    identity = {**asdict(config), "attack": str(plugins.resolved(spec, attack)), "dataset": dataset}
    del identity["view"], identity["attack_precision"]
    identity |= config.view.given
    if begins_in(attack, config.attack_precision, networks.purifier) == "bfloat16":
        identity["attack_precision"] = "bfloat16"
    if networks.purifier is None or not is_random(networks.purifier.build()):
        del identity["eot"]
    identity |= {"names": "SPLIT-UNIT", **{f"{model.kind}_sha256": model.identity for model in networks.all}}
    code = plugins.source_hash(spec, [type(attack)])
    if code:
        identity["attack_sha256"] = code
    if getattr(attack, "couples_batch", False):
        identity["batch"] = batch
    return identity


class Generator:
    """Attacks batches on a device."""

    def __init__(self, config: GenerationConfig, networks: Networks, device: str) -> None:
        self.config, self.device = config, device
        self.attack: Attack = plugins.build("raypurify.attacks", plugins.Spec.parse(config.attack))
        self.precision = begins_in(self.attack, config.attack_precision, networks.purifier)
        self.attack_text = str(plugins.resolved(plugins.Spec.parse(config.attack), self.attack))
        self.classifier = models.placed(networks.classifier.build(), device)
        self.purifier = models.placed(networks.purifier.build(), device) if networks.purifier else None
        self.purifier_name = networks.purifier.name if networks.purifier else ""

    def __call__(self, x: Tensor, y: Tensor, ids: Sequence[str]) -> pa.Table:
        """Attack a batch.

        Args:
            x: (N, C, H, W) float32 in [0, 1], on the device.
            y: (N,) int64, the labels.
            ids: the images' ids, from which their seeds come.

        Returns:
            Rows of ``schema.IMAGES``.
        """
        with torch.no_grad(), models.autocast(self.device, self.config.precision):
            seeds = [seed_of(self.config.seed, self.attack_text, name, 0, 0) for name in ids]
            with stages.spending("attack"):
                attacked = attack_batch(
                    self.attack, self._victim(), x, y, seeds=seeds, device=self.device, precision=self.precision
                )
            pixels = to_uint8_nhwc(attacked.x_adv)
            rounded = torch.from_numpy(pixels).to(x.device).permute(0, 3, 1, 2).float().div(255)
            images = {"clean": x, "adversarial": attacked.x_adv, "rounded": rounded}
            predictions = {f"pred_{kind}": self._predict(values, ids).cpu() for kind, values in images.items()}
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

    def _victim(self) -> nn.Module:
        seed = seed_of(self.config.seed, self.attack_text)
        return victim_of(self.classifier, self.purifier, stand_in=nn.Identity(), draws=self.config.eot, seed=seed)

    def _predict(self, x: Tensor, ids: Sequence[str]) -> Tensor:
        if self.purifier is not None:
            with stages.spending("purify"):
                seeds = [seed_of(self.config.seed, "purify", name) for name in ids]
                x = restored(self.purifier, self.purifier_name, x, seeds)
        with stages.spending("classify"):
            return self.classifier(x).argmax(dim=1)


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
