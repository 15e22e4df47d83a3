"""Training in plain torch: the configuration, batches, precision, and checks. Nothing here knows of workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.runs import fields

Precision = Literal["float32", "bfloat16"]
Augmentation = Literal["none", "affine", "flip_crop"]

DIGIT_ATTACKS = (
    "fgsm,epsilon=0.3",
    "r_fgsm,epsilon=0.3",
    "pgd,epsilon=0.3,steps=5",
    "pgd,epsilon=0.3,steps=12,step_size=0.04",
)
"""The mixture that a purifier of digits is trained against."""
PHOTOGRAPH_ATTACKS = (
    "fgsm,epsilon=0.031373",
    "r_fgsm,epsilon=0.031373",
    "pgd,epsilon=0.031373,steps=5",
    "pgd,epsilon=0.031373,steps=10",
)
"""The mixture for photographs: ε is 8/255."""
CLEAN_SHARE = 0.15
ATTACKS = "attacks"
"""Of ``raypurify.pairs``, the source of a purifier's pairs that is taken where none is named."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What is trained, on what, and how: the identity of a training run."""

    data: str
    """digits, mnist, cifar10, the URL of a dataset, or my_package.module:callable[,KEY=VALUE...]."""
    model: str
    """Classifier or purifier to train: NAME[,KEY=VALUE...], or my_package.module:callable."""
    classifier: str | None = None
    """Checkpoint of the classifier that a purifier is trained for; none when a classifier is trained."""
    initial: str | None = None
    """Checkpoint whose weights the training starts from; random ones (for CRU-Net, the identity) if none is given."""
    train_against: str = ATTACKS
    """Where a purifier's adversarial images come from: attacks (on the classifier), adaptive (the attacks, through the
    purifier as it is), noise[,sigma=0.25] (Gaussian; no attack), or my_package.module:callable[,KEY=VALUE...]."""
    attacks: tuple[str, ...] = DIGIT_ATTACKS
    """Attacks that make a purifier's adversarial images: NAME[,KEY=VALUE...] each, in equal shares, so that one named
    twice has twice the share."""
    clean_share: float = CLEAN_SHARE
    """Share of a purifier's images that are left clean, in [0, 1]."""
    augmentation: Augmentation = "none"
    """Random change of each image: "affine" (turn, scale, shift: digits), "flip_crop" (mirror, shift: photographs)."""
    epochs: int = 6
    batch: int = 128
    """Images in a step, of all workers together."""
    rate: float = 1e-3
    """Peak learning rate of AdamW; one cycle, with the first tenth to warm up."""
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of networks' arithmetic while training; weights and sums are float32 in either case. "auto" is what the workers'
    hardware is fast in, and is recorded: bfloat16 on GPUs since Ampere and CPUs with AVX512_BF16, else float32. A run
    that was begun keeps its precision."""
    validation: int = 1000
    """Images of the training split that are held out, of each class its share, and scored after each epoch."""
    limit: int | None = None
    """Train on so many images only, spread over the dataset: of each class its share."""
    seed: int = 0

    def __post_init__(self) -> None:
        fields.check_choices(self)
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share must be in [0, 1]; got {self.clean_share!r}")
        for name in ("epochs", "batch", "rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)!r}")
        if self.validation < 0 or self.weight_decay < 0:
            raise ValueError(
                f"validation and weight_decay must be at least 0: {self.validation!r}, {self.weight_decay!r}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1; got {self.limit!r}")
        if self.classifier is not None and not self.attacks:
            raise ValueError("attacks must name at least one attack to train a purifier against")
        self._check_classifiers_flags()

    def _check_classifiers_flags(self) -> None:
        if self.classifier is not None:
            return
        usual = {"attacks": (DIGIT_ATTACKS, PHOTOGRAPH_ATTACKS), "clean_share": (CLEAN_SHARE,)}
        usual["train_against"] = (ATTACKS,)
        for name, values in usual.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} would change nothing: with classifier = None a classifier is "
                    f"trained, on clean images. Leave {name} out, or name the classifier that a purifier is trained for"
                )


class DivergedError(RuntimeError):
    """A training whose loss or weights are no longer finite."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64; seeds: one for each image, of this run and epoch."""

    x: Tensor
    y: Tensor
    seeds: Sequence[int]


def batch_of(images: np.ndarray, labels: np.ndarray, seeds: Sequence[int], device: str) -> Batch:
    """A batch from (N, H, W, C) uint8 images: on the device, in channels-last memory, which convolutions gain from."""
    x, y = (torch.from_numpy(np.require(values, requirements="W")).to(device) for values in (images, labels))
    x = x.permute(0, 3, 1, 2).to(memory_format=torch.channels_last).float().div_(255)
    return Batch(x=x, y=y, seeds=seeds)


def fast_precision(device: str) -> Precision:
    """What this machine computes fast on ``device``: bfloat16 where it has instructions for it, else float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not in the oldest torch that this project takes
    return "bfloat16" if native is not None and native() else "float32"


def precision_of(config: TrainingConfig, device: str) -> Precision:
    """The precision of a training on ``device``."""
    return fast_precision(device) if config.precision == "auto" else config.precision


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


def augment(x: Tensor, seeds: Sequence[int], augmentation: Augmentation) -> Tensor:
    """Change each image at random by its own seed.

    ``affine``: turned by up to 12 degrees, scaled by 0.88 to 1.12, shifted by up to 7%, sheared by up to 0.12.
    ``flip_crop``: mirrored every second time, shifted by up to an eighth of its side, the edges reflected.
    """
    if augmentation == "none":
        return x
    draws = np.stack([np.random.default_rng(seed).random(6) for seed in seeds])
    low_high = torch.from_numpy(draws).to(x) * 2 - 1
    if augmentation == "affine":
        return _affine(x, low_high)
    if augmentation == "flip_crop":
        return _flip_crop(x, low_high)
    raise ValueError(f"augmentation: expected none, affine or flip_crop; got {augmentation!r}")


def _affine(x: Tensor, draws: Tensor) -> Tensor:
    angle, scale, shear = draws[:, 0] * math.radians(12), 1 + 0.12 * draws[:, 1], 0.12 * draws[:, 2]
    matrix = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    matrix[:, 0, 0], matrix[:, 0, 1] = torch.cos(angle) * scale, -torch.sin(angle) * scale + shear
    matrix[:, 1, 0], matrix[:, 1, 1] = torch.sin(angle) * scale, torch.cos(angle) * scale
    matrix[:, :, 2] = 0.14 * draws[:, 3:5]
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _flip_crop(x: Tensor, draws: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    pad_y, pad_x = height // 8, width // 8
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    top = ((draws[:, 0] + 1) / 2 * (2 * pad_y + 1)).long().clamp(max=2 * pad_y)
    left = ((draws[:, 1] + 1) / 2 * (2 * pad_x + 1)).long().clamp(max=2 * pad_x)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(draws[:, 2:3] > 0, columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def check_finite(losses: np.ndarray, rates: Sequence[float], model: nn.Module, *, epoch: int, first_step: int) -> None:
    """Check an epoch before anything of it is kept.

    Args:
        losses: of the epoch's steps, of all workers together.
        rates: learning rates of the same steps.
        model: what the epoch left.
        epoch: its number, from 1.
        first_step: number of the epoch's first step, from 0.

    Raises:
        DivergedError: a loss, a weight or a running statistic is NaN or infinite; names the epoch, step and rate.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if not len(bad) and not broken:
        return
    index = int(bad[0]) if len(bad) else len(losses) - 1
    what = f"the loss is {losses[index]}" if len(bad) else f"{broken[0]} is not finite"
    raise DivergedError(
        f"the training diverged in epoch {epoch}: {what} at step {first_step + index}, whose learning rate is "
        f"{rates[index]:.4g}. Nothing of this epoch is kept; the checkpoint of the epoch before is. Give a lower "
        "--rate or --clip-norm, and another --output"
    )
