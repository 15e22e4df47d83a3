"""What is trained, on what, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raypurify import plugins
from raypurify.data import AS_STORED, View
from raypurify.models import Precision, fast_precision
from raypurify.runs import fields
from raypurify.training.batches import Augmentation

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
"""The source of a purifier's pairs, in ``raypurify.training.pairs``, that is taken where none is named."""
ANSWER_WEIGHTS = (
    *("label_weight", "stability_weight", "consistency_weight"),
    *("kl_weight", "feature_weight", "logit_weight"),
)
"""Weights of losses in what the classifier behind a purifier answers."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What is trained, on what, and how: the identity of a training run."""

    data: str
    """The images: digits, mnist, cifar10, the URL of a dataset, or my_package.module:callable[,KEY=VALUE...]."""
    model: str
    """Classifier or purifier to train: NAME[,KEY=VALUE...], or my_package.module:callable."""
    classifier: str | None = None
    """Checkpoint of the classifier that a purifier is trained for. With None a classifier is trained."""
    more_classifiers: tuple[str, ...] = ()
    """Checkpoints of further classifiers that a purifier is trained for. Each image is attacked before one of all, and
    held against the answers of that one. Its seed picks which."""
    initial: str | None = None
    """Checkpoint whose weights the training starts from. By default they are random; a new CRU-Net is the identity."""
    train_against: str = ATTACKS
    """Where adversarial images come from: attacks (on the classifier that a purifier is trained for), adaptive (the
    attacks, through the network that is trained, as it is at that step), attacked,url=URL (images that raypurify attack
    made of some of the data), noise[,sigma=0.25] (Gaussian; no attack), or my_package.module:callable[,KEY=VALUE...].
    With attacks, a classifier is trained on clean images; with each of the others, on these."""
    attacks: tuple[str, ...] = DIGIT_ATTACKS
    """Attacks that make the adversarial images: NAME[,KEY=VALUE...] each. They have equal shares, so an attack that is
    named twice has twice the share."""
    clean_share: float = CLEAN_SHARE
    """Share of the images that are left clean, in [0, 1], of those that are trained on adversarial ones."""
    pixel_weight: float = 1.0
    """Weight of a purifier's own loss, which holds its output against the clean images."""
    label_weight: float = 0.0
    """Weight of the cross-entropy of the true labels, by the classifier behind a purifier. Training against adaptive
    attacks needs it."""
    stability_weight: float = 0.0
    """Weight of the cross-entropy of what the classifier says of the clean image, for denoisers (Salman et al. 2020).
    It needs no labels."""
    consistency_weight: float = 0.0
    """Weight of the loss of Jeong and Shin (2020), for certificates: noise (or what else an attack draws at random) is
    drawn twice for each image, and both answers are held against their mean, as a Kullback-Leibler divergence. Both
    draws count in the other losses. It needs no labels."""
    kl_weight: float = 0.0
    """Weight of the loss of TRADES (Zhang et al. 2019): how far the classifier's answer to the adversarial image is
    from that to the clean one, both purified where there is a purifier, as the Kullback-Leibler divergence."""
    feature_weight: float = 0.0
    """Weight of a loss in the classifier's features, as JATP's (Zhou et al. 2021): the mean squared difference of what
    enters its last linear layer, of a purified image and of the clean one."""
    logit_weight: float = 0.0
    """Weight of the loss of HGD (Liao et al. 2018): the mean absolute difference of the classifier's logits, of a
    purified image and of the clean one. It needs no labels."""
    augmentation: Augmentation = "none"
    """How each image is changed at random. affine turns, scales and shifts, for digits; flip_crop mirrors and shifts,
    for photographs."""
    epochs: int = 6
    """How often the training goes through the data. With a higher number a finished run goes on, with its optimizer's
    state, in one more cycle of the learning rate."""
    batch: int = 128
    """How many images a step takes, on all workers together."""
    rate: float = 1e-3
    """Peak learning rate of AdamW. The rate makes one cycle, and the first tenth of the steps warms up."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Longer gradients are shortened to this norm."""
    ema: float = 0.0
    """Decay, in a step, of an exponential moving average of the weights, such as 0.999. With a number above 0, the
    average is what is scored and published."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type that networks compute in; weights and sums are always float32. auto takes what the workers' hardware is
    fast in: bfloat16 on GPUs since Ampere and on CPUs with AVX512_BF16, else float32. The choice is recorded, and a
    run that was begun keeps it."""
    validation: int = 1000
    """How many images of the training split are held out and scored after each epoch: of each class its share."""
    patience: int | None = None
    """Stop when the score of the held-out images has not risen for this number of epochs. The learning rate falls as
    for all epochs."""
    limit: int | None = None
    """Train on this number of images only, spread over the dataset: of each class its share."""
    view: View = AS_STORED
    seed: int = 0
    """Seed of the order of the images, their random changes, the attacks on them, and the initial weights."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        # They are in the run's identity as text.
        object.__setattr__(self, "attacks", tuple(map(plugins.decimal, self.attacks)))
        object.__setattr__(self, "train_against", plugins.decimal(self.train_against))
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share must be in [0, 1]; got {self.clean_share!r}")
        for name in ("epochs", "batch", "rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)!r}")
        weights = {name: getattr(self, name) for name in ("pixel_weight", *ANSWER_WEIGHTS)}
        if min(weights.values()) < 0 or not any(weights.values()):
            told = ", ".join(f"{name} = {value!r}" for name, value in weights.items())
            raise ValueError(f"the weights of losses must be at least 0, and one of them above; got {told}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1; got {self.ema!r}")
        if self.validation < 0 or self.weight_decay < 0:
            raise ValueError(
                f"validation and weight_decay must be at least 0: {self.validation!r}, {self.weight_decay!r}"
            )
        for name in ("limit", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        if self.patience is not None and not self.validation:
            raise ValueError(f"patience = {self.patience} needs held-out images to score; give a --validation above 0")
        if self.trains_on_pairs and not self.attacks:
            raise ValueError("attacks must name at least one attack to train against")
        self._check_classifiers_flags()

    @property
    def trains_on_pairs(self) -> bool:
        """Whether adversarial images are made: always for a purifier; for a classifier, where their source is named."""
        return self.classifier is not None or self.train_against != ATTACKS

    @property
    def classifiers(self) -> tuple[str, ...]:
        """All classifiers that a purifier is trained for; none where a classifier is trained."""
        return () if self.classifier is None else (self.classifier, *self.more_classifiers)

    @property
    def weighs_answers(self) -> bool:
        """Whether a purifier's loss asks the classifier behind it."""
        return any(getattr(self, name) for name in ANSWER_WEIGHTS)

    def _check_classifiers_flags(self) -> None:
        if self.classifier is not None:
            return
        usual: dict[str, tuple[object, ...]] = {"pixel_weight": (1.0,), "more_classifiers": ((),)}
        usual |= {name: (0.0,) for name in ANSWER_WEIGHTS if name != "kl_weight"}
        if not self.trains_on_pairs:
            usual |= {"attacks": (DIGIT_ATTACKS, PHOTOGRAPH_ATTACKS), "clean_share": (CLEAN_SHARE,)}
            usual |= {"kl_weight": (0.0,)}
        trained = "against adversarial ones" if self.trains_on_pairs else "on clean images"
        for name, values in usual.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} would change nothing: with classifier = None a classifier is "
                    f"trained, {trained}. Leave {name} out, or name the classifier that a purifier is trained for"
                )


def precision_of(config: TrainingConfig, device: str) -> Precision:
    """The precision of a training on ``device``."""
    return fast_precision(device) if config.precision == "auto" else config.precision
