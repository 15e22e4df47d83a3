"""Attacks on MNIST's A-net: speed, distance and success beside Foolbox, ART and torchattacks (extra ``bench``).

Speeds are of the first images, in turns; accuracies and distances of the first thousand. The L2 median is over images
that are right at first, an attack that failed counts as infinite. Carlini-Wagner also on CIFAR-10's D-net; FGSM and PGD
also where A-net's logits are larger, and through the CRU-Net before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from _harness import arguments, median_rate, report, result, seconds_in_turns
from torch import Tensor, nn

import raypurify
from raypurify import models
from raypurify.attacks.auto_attack import AutoAttack
from raypurify.attacks.carlini_wagner import CarliniWagner
from raypurify.attacks.deepfool import DeepFool
from raypurify.attacks.fgsm import FGSM
from raypurify.attacks.pgd import PGD
from raypurify.attacks.stadv import StAdv
from raypurify.evaluation.attacking import attack_batch, settled

EPSILON = 0.3
AUTO_EPSILON = 0.06
"""Where about half of the images withstand AutoAttack on A-net."""
CW_STEPS = {"full": (5, 200), "quick": (2, 20)}
SCALES = (1, 3, 10)
"""Factors of A-net's logits, which change no decision."""
SCALED = {"FGSM": 0.2, "PGD, 20 steps": 0.1}
"""Radii at which some images of A-net withstand these."""
PARTS = ("signs", "scaled", "deepfool", "carlini_wagner", "mixed", "adaptive", "colour", "spatial", "auto_attack")
PAPER_SPATIAL = 0.0512
"""Accuracy of A-net under the CRU-Net paper's spatial attack (its Table 2), no defense."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The classifier, and the images that it is attacked on."""

    classifier: nn.Module
    x: Tensor
    y: Tensor

    def first(self, n: int) -> Subject:
        return Subject(classifier=self.classifier, x=self.x[:n], y=self.y[:n])

    def ours(self, attack: Any) -> Tensor:
        x_adv: Tensor = attack(self.classifier, self.x, self.y, seeds=range(len(self.x))).x_adv
        return x_adv

    def foolboxs(self, attack: Any, epsilon: float | None = None) -> Tensor:
        model = foolbox.PyTorchModel(self.classifier, bounds=(0, 1), device="cpu")
        x_adv: Tensor = attack(model, self.x, self.y, epsilons=epsilon)[1]
        return x_adv

    def torchattackss(self, attack: Any) -> Tensor:
        x_adv: Tensor = attack(self.x, self.y)
        return x_adv

    def wrong(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.classifier(x).argmax(dim=1) != self.y

    def accuracy(self, x: Tensor) -> float:
        return 1 - self.wrong(x).float().mean().item()

    def median_l2(self, x_adv: Tensor) -> float:
        with torch.no_grad():
            right = self.classifier(self.x).argmax(dim=1) == self.y
            failed = self.classifier(x_adv).argmax(dim=1) == self.y
        l2 = (x_adv - self.x).flatten(1).norm(dim=1).masked_fill(failed, torch.inf)
        return l2[right].median().item()


class Scaled(nn.Module):
    """The classifier with its logits multiplied."""

    def __init__(self, classifier: nn.Module, scale: float) -> None:
        super().__init__()
        self.classifier, self.scale = classifier, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.classifier(x)
        return logits


def subject(n: int, dataset: str = "mnist", classifier: str = "weights/mnist/a_net") -> Subject:
    """A classifier, and the first ``n`` images of a dataset's test set."""
    x, y = raypurify.load_images(dataset, limit=n)
    network = models.placed(raypurify.load(classifier), "cpu")
    return Subject(classifier=network, x=x.contiguous(), y=y)


def minimal(
    name: str,
    whole: Subject,
    few: Subject,
    ours: Any,
    theirs: Any,
    torchattacks_own: Any,
    turns: int,
) -> list[dict[str, Any]]:
    """Speeds on ``few`` images, distances on ``whole``: an attack that looks for the nearest image."""
    made: dict[str, Tensor] = {}

    def kept(who: str, attack: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            made[who] = attack()

        return run

    runs = {
        "ours": kept("ours", lambda: few.ours(ours)),
        "foolbox": kept("foolbox", lambda: few.foolboxs(theirs)),
        "torchattacks": kept("torchattacks", lambda: few.torchattackss(torchattacks_own)),
    }
    seconds = seconds_in_turns(runs, turns)
    rates = {who: median_rate(len(few.x), spent) for who, spent in seconds.items()}
    x_adv, x_theirs = whole.ours(ours), whole.foolboxs(theirs)
    found: dict[str, Any] = {
        "accuracy": whole.accuracy(x_adv),
        "accuracy_foolbox": whole.accuracy(x_theirs),
        "accuracy_torchattacks": few.accuracy(made["torchattacks"]),
    }
    mine, other = whole.median_l2(x_adv), whole.median_l2(x_theirs)
    n = len(few.x)
    return [
        result(f"{name}, speed", "images/s", rates["ours"], rates["foolbox"], "Foolbox", n),
        result(f"{name}, speed", "images/s", rates["ours"], rates["torchattacks"], "torchattacks", n),
        result(f"{name}, median L2", "L2", mine, other, "Foolbox", len(whole.x), higher_is_better=False, **found),
    ]


def in_colour(name: str, colour: Subject, ours: Any, theirs: Any) -> dict[str, Any]:
    """Carlini-Wagner on D-net: distances, and the speed of one run."""
    started = time.perf_counter()
    x_adv = colour.ours(ours)
    middle = time.perf_counter()
    x_theirs = colour.foolboxs(theirs)
    n = len(colour.x)
    measured: dict[str, Any] = {
        "accuracy": colour.accuracy(x_adv),
        "accuracy_foolbox": colour.accuracy(x_theirs),
        "images_per_second": n / (middle - started),
        "images_per_second_foolbox": n / (time.perf_counter() - middle),
    }
    distances = colour.median_l2(x_adv), colour.median_l2(x_theirs)
    title = f"Carlini-Wagner L2 on CIFAR-10's D-net, {name}, median L2"
    return result(title, "L2", *distances, "Foolbox", n, higher_is_better=False, **measured)


def signs(few: Subject, turns: int) -> list[dict[str, Any]]:
    """FGSM and PGD from the same start: the largest difference of a pixel, and the speed."""
    steps = 40
    rivals: dict[str, tuple[Any, Callable[[], Tensor], Callable[[], Tensor]]] = {
        "FGSM": (
            FGSM(epsilon=EPSILON),
            lambda: few.foolboxs(foolbox.attacks.LinfFastGradientAttack(random_start=False), EPSILON),
            lambda: few.torchattackss(torchattacks.FGSM(few.classifier, eps=EPSILON)),
        ),
        "PGD, 40 steps": (
            PGD(epsilon=EPSILON, steps=steps, step_size=0.01, random_start=False),
            lambda: few.foolboxs(foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=steps, random_start=False), EPSILON),
            lambda: few.torchattackss(
                torchattacks.PGD(few.classifier, eps=EPSILON, alpha=0.01, steps=steps, random_start=False)
            ),
        ),
    }
    rows = []
    for name, (attack, by_foolbox, by_torchattacks) in rivals.items():
        mine = few.ours(attack)
        runs: dict[str, Callable[[], object]] = {
            "ours": lambda attack=attack: few.ours(attack),  # type: ignore[misc]
            "Foolbox": by_foolbox,
            "torchattacks": by_torchattacks,
        }
        rates = {who: median_rate(len(few.x), spent) for who, spent in seconds_in_turns(runs, turns).items()}
        for who, theirs in (("Foolbox", by_foolbox()), ("torchattacks", by_torchattacks())):
            difference: dict[str, Any] = {"largest_difference": (mine - theirs).abs().max().item()}
            rows.append(result(f"{name}, speed", "images/s", rates["ours"], rates[who], who, len(few.x), **difference))
    return rows


def scaled(few: Subject) -> list[dict[str, Any]]:
    """FGSM and PGD where the logits are larger: images fooled, beside Foolbox's."""
    attacks: dict[str, tuple[Any, Any]] = {
        "FGSM": (FGSM(epsilon=SCALED["FGSM"]), foolbox.attacks.LinfFastGradientAttack(random_start=False)),
        "PGD, 20 steps": (
            PGD(epsilon=SCALED["PGD, 20 steps"], steps=20),
            foolbox.attacks.LinfPGD(rel_stepsize=2.5 / 20, steps=20),
        ),
    }
    rows = []
    for name, (ours, theirs) in attacks.items():
        for scale in SCALES:
            victim = replace(few, classifier=Scaled(few.classifier, scale).eval())
            other = fooled_by_foolbox(victim, theirs, SCALED[name])
            rows.append(fooled(f"{name}, logits x {scale}", victim, ours, other))
    return rows


def adaptive(few: Subject) -> list[dict[str, Any]]:
    """PGD through the CRU-Net before A-net, from one start and from five: images fooled, beside Foolbox's."""
    purifier = models.placed(raypurify.load("weights/mnist/cru_net-a_net"), "cpu")
    victim = replace(few, classifier=nn.Sequential(purifier, few.classifier).eval())
    other = fooled_by_foolbox(victim, foolbox.attacks.LinfPGD(abs_stepsize=EPSILON / 30, steps=40), EPSILON)
    return [
        fooled(f"adaptive PGD, 40 steps, starts: {restarts}", victim, PGD(restarts=restarts), other)
        for restarts in (1, 5)
    ]


def fooled(name: str, victim: Subject, attack: Any, other: float) -> dict[str, Any]:
    """The share of the images that an attack fools, beside that of Foolbox."""
    mine = 1 - victim.accuracy(victim.ours(attack))
    return result(f"{name}, fooled", "share wrong", mine, max(other, 1e-9), "Foolbox", len(victim.x))


def fooled_by_foolbox(victim: Subject, attack: Any, epsilon: float) -> float:
    """The share of the images that Foolbox's attack fools, from one start, by its last iterate."""
    torch.manual_seed(0)
    return 1 - victim.accuracy(victim.foolboxs(attack, epsilon))


def mixed(name: str, few: Subject, epsilon: float, search: int, steps: int) -> list[dict[str, Any]]:
    """Attacks in the arithmetic that this machine is fast in, beside Foolbox's: one run of each.

    Beside the speeds stand the same figures of the attack in float32.
    """
    rivals: dict[str, tuple[Any, Any, float | None]] = {
        "PGD, 40 steps": (
            PGD(epsilon=epsilon, steps=40),
            foolbox.attacks.LinfPGD(rel_stepsize=1 / 30, steps=40),
            epsilon,
        ),
        "DeepFool": (DeepFool(), foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10), None),
        f"Carlini-Wagner L2, {search} x {steps} steps": (
            CarliniWagner(search_steps=search, steps=steps),
            foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=search, steps=steps),
            None,
        ),
    }
    rows, n = [], len(few.x)
    for title, (attack, theirs, radius) in rivals.items():
        rates, made = {}, {}
        runs: dict[str, Callable[[], Tensor]] = {
            "auto": partial(in_precision, few, attack, settled("auto", "cpu")),
            "float32": partial(in_precision, few, attack, "float32"),
            "foolbox": partial(few.foolboxs, theirs, radius),
        }
        for who, attacked in runs.items():
            started = time.perf_counter()
            made[who] = attacked()
            rates[who] = n / (time.perf_counter() - started)
        told: dict[str, Any] = {"images_per_second_float32": rates["float32"]}
        told |= {f"accuracy_{who}": few.accuracy(x_adv) for who, x_adv in made.items()}
        if radius is None:
            told |= {f"median_l2_{who}": few.median_l2(x_adv) for who, x_adv in made.items()}
        rows.append(
            result(f"{title} on {name}, auto, speed", "images/s", rates["auto"], rates["foolbox"], "Foolbox", n, **told)
        )
    return rows


def mixed_on_all(few: Subject, coloured: int, search: int, steps: int) -> list[dict[str, Any]]:
    """:func:`mixed` on A-net, and on D-net and M-net with so many images."""
    rows = mixed("A-net", few, EPSILON, search, steps)
    for title, network in (("D-net", "d_net"), ("M-net", "m_net")):
        victim = subject(coloured, "cifar10", f"weights/cifar10/{network}")
        rows += mixed(title, victim, 8 / 255, search, steps)
    return rows


def in_precision(few: Subject, attack: Any, precision: models.Precision) -> Tensor:
    """What an evaluation makes of the images with ``--attack-precision``."""
    with torch.no_grad(), models.autocast("cpu", "float32"):
        x_adv: Tensor = attack_batch(
            attack, few.classifier, few.x, few.y, seeds=range(len(few.x)), device="cpu", precision=precision
        ).x_adv
    return x_adv


def spatial(whole: Subject) -> dict[str, Any]:
    """stAdv: accuracy against the paper's, mean flow."""
    attack = StAdv()
    started = time.perf_counter()
    flow, attacked = attack.flow(whole.classifier, whole.x, whole.y, seeds=range(len(whole.x)))
    rate = len(whole.x) / (time.perf_counter() - started)
    moved = flow.flatten(1).abs().amax(dim=1) > 0
    lengths = flow[moved].square().sum(dim=1).sqrt()
    return result(
        "stAdv, fooled",
        "share wrong",
        1 - whole.accuracy(attacked.x_adv),
        1 - PAPER_SPATIAL,
        "the paper's spatial attack",
        len(whole.x),
        mean_flow_pixels=lengths.mean().item(),
        largest_flow_pixels=lengths.flatten(1).amax(dim=1).mean().item(),
        images_per_second=rate,
    )


def picture(few: Subject, path: str) -> None:
    """Draw stAdv's images: clean above attacked, with the classifier's labels, and the flow in pixels."""
    from matplotlib.figure import Figure

    flow, attacked = StAdv().flow(few.classifier, few.x, few.y, seeds=range(len(few.x)))
    with torch.no_grad():
        labels = few.classifier(few.x).argmax(dim=1), few.classifier(attacked.x_adv).argmax(dim=1)
    figure = Figure(figsize=(len(few.x), 3.3), layout="constrained")
    for column in range(len(few.x)):
        for row, pixels in enumerate((few.x[column, 0], attacked.x_adv[column, 0])):
            axes = figure.add_subplot(3, len(few.x), row * len(few.x) + column + 1)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{labels[row][column]}", fontsize=9)
            axes.axis("off")
        axes = figure.add_subplot(3, len(few.x), 2 * len(few.x) + column + 1)
        right, down = flow[column]
        axes.quiver(right[::2, ::2], down[::2, ::2], angles="xy", scale_units="xy", scale=0.25)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_title(f"max {flow[column].square().sum(dim=0).sqrt().max():.1f} px", fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=110)


def auto_attack(few: Subject, queries: int) -> list[dict[str, Any]]:
    """AutoAttack, ours as its authors run it: images/s of one run, and the images fooled, by predicting again."""
    rivals: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: few.ours(AutoAttack(epsilon=AUTO_EPSILON, queries=queries)),
        "ART": lambda: arts_auto_attack(few, queries),
        "torchattacks": lambda: few.torchattackss(torchattacks.AutoAttack(few.classifier, eps=AUTO_EPSILON)),
    }
    rates, fools = {}, {}
    for who, attacked in rivals.items():
        started = time.perf_counter()
        x_adv = attacked()
        rates[who] = len(few.x) / (time.perf_counter() - started)
        fools[who] = few.wrong(x_adv)
    rows = []
    for who in ("ART", "torchattacks"):
        ours, theirs = (fools[one].float().mean().item() for one in ("ours", who))
        missed: dict[str, Any] = {"missed_by_ours": int((fools[who] & ~fools["ours"]).sum())}
        rows += [
            result("AutoAttack, speed", "images/s", rates["ours"], rates[who], who, len(few.x)),
            result("AutoAttack, fooled", "share wrong", ours, max(theirs, 1e-9), who, len(few.x), **missed),
        ]
    return rows


def arts_auto_attack(few: Subject, queries: int) -> Tensor:
    """The images of ART's AutoAttack, with one start of each APGD."""
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent, DeepFool, SquareAttack
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        few.classifier,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(few.x.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    common = {"eps": AUTO_EPSILON, "norm": np.inf, "batch_size": len(few.x), "verbose": False}
    descent = {**common, "eps_step": AUTO_EPSILON / 4, "max_iter": 100, "nb_random_init": 1}
    members = [
        AutoProjectedGradientDescent(estimator, loss_type="cross_entropy", **descent),
        AutoProjectedGradientDescent(estimator, loss_type="difference_logits_ratio", **descent),
        DeepFool(estimator, max_iter=100, epsilon=1e-3, nb_grads=10, batch_size=len(few.x), verbose=False),
        SquareAttack(estimator, max_iter=queries, p_init=0.8, nb_restarts=1, **common),
    ]
    attack = AutoAttack(
        estimator=estimator, attacks=members, eps=AUTO_EPSILON, eps_step=AUTO_EPSILON / 4, batch_size=len(few.x)
    )
    return torch.from_numpy(attack.generate(few.x.numpy(), few.y.numpy()))


def main() -> None:
    """Measure and print the JSON object."""
    parser = arguments(__doc__)
    parser.add_argument("--picture", help="only draw twelve images of stAdv into this PNG file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    options = parser.parse_args()
    if options.picture:
        picture(subject(12), options.picture)
        return
    images, few_images, turns = (24, 8, 1) if options.quick else (1000, 64, 3)
    search, steps = CW_STEPS["quick" if options.quick else "full"]
    whole = subject(images)
    few = whole.first(few_images)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "signs": lambda: signs(few, turns),
        "scaled": lambda: scaled(whole.first(min(images, 256))),
        "deepfool": lambda: minimal(
            "DeepFool",
            whole,
            few,
            DeepFool(),
            foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10),
            torchattacks.DeepFool(few.classifier, steps=50),
            turns,
        ),
        "carlini_wagner": lambda: minimal(
            f"Carlini-Wagner L2, {search} x {steps} steps",
            whole,
            few,
            CarliniWagner(search_steps=search, steps=steps),
            foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=search, steps=steps),
            torchattacks.CW(few.classifier, c=1, steps=search * steps, lr=0.01),
            turns,
        ),
        "mixed": lambda: mixed_on_all(few, 4 if options.quick else 32, search, steps),
        "adaptive": lambda: adaptive(whole.first(4 if options.quick else 192)),
        "colour": lambda: [
            in_colour(
                f"{search} x {steps} steps",
                subject(4 if options.quick else 32, "cifar10", "weights/cifar10/d_net"),
                CarliniWagner(search_steps=search, steps=steps),
                foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=search, steps=steps),
            )
        ],
        "spatial": lambda: [spatial(whole)],
        "auto_attack": lambda: auto_attack(few.first(32), 100 if options.quick else 5000),
    }
    results = [measured for name in options.only for measured in parts[name]()]
    report("attacks", results, ("torch", "foolbox", "adversarial-robustness-toolbox", "torchattacks"))


if __name__ == "__main__":
    main()
