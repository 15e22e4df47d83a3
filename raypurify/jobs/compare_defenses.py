"""Seven defenses on one bench: each trained, attacked and measured alike.

Each stage is runs of the other jobs, in folders of their own below the output. So the same command goes on where it was
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from raypurify import models, storage
from raypurify.evaluation import cost
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs import tables
from raypurify.jobs.attack import training_pairs
from raypurify.jobs.engine import engine_of
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import Crew
from raypurify.jobs.train import train
from raypurify.report import attempts, defenses, figures
from raypurify.runs import log
from raypurify.runs.log import LogFlags
from raypurify.training.config import TrainingConfig

Defense = Literal["at", "magnet", "defense_gan", "dragan_defense", "ddsa", "cgan_defense", "cru_net"]
ALL: tuple[Defense, ...] = ("at", "magnet", "defense_gan", "dragan_defense", "ddsa", "cgan_defense", "cru_net")
GENERATIVE = ("defense_gan", "dragan_defense")
"""Those that learn a generator, for any classifier."""
UNIVERSAL = ("magnet", *GENERATIVE)
"""Those whose training asks no classifier."""
HELD_OUT = {"digits": 250, "mnist": 1000, "cifar10": 1000}
"""Images that each training holds out, at most a sixth of those that it is on."""
FEW = 100
"""Images that the training of a generator holds out: each is searched for."""
NONE = "no defense"
DRAWS = 4
"""Draws of a random purifier that the attacker who knows it averages over at each step."""
SEARCHING = ("deepfool", "carlini_wagner", "stadv")
"""The paper's attacks that have no ball."""
ATTACKS = ("fgsm", "r_fgsm", "pgd", *SEARCHING)
"""All attacks, in the order of the table."""
SHORTER = ("deepfool", "carlini_wagner,search_steps=3,steps=60", "stadv")
"""The attacks without a ball, through a defense. Carlini-Wagner has fewer steps, since each takes several passes."""


@dataclass(frozen=True, kw_only=True)
class DefensesArguments(Crew):
    """Flags of the comparison."""

    output: str = "runs/defenses"
    """Folder for all runs, the table and the page: a path, or a URL."""
    data: Literal["mnist", "cifar10", "digits"] = "mnist"
    """The images."""
    classifiers: tuple[str, ...] = ("model_a", "model_b", "model_c", "model_d")
    """Classifiers to defend; each is trained first. By default those of Defense-GAN's bench."""
    defenses: tuple[Defense, ...] = ALL
    """Which defenses."""
    epsilon: float = 0.3
    """Radius of the attacks in a ball, of trainings and of evaluations. 8/255 suits CIFAR-10."""
    images: int | None = None
    """Trainings are on this number of images; by default on all. Attacked are the first ones, and the others are spread
    over the classes."""
    classifier_epochs: int = 10
    """Epochs of each classifier."""
    robust_epochs: int = 10
    """Epochs of each adversarially trained classifier."""
    epochs: int = 10
    """Epochs of each purifier that learns from attacked images."""
    magnet_epochs: int = 100
    """Epochs of MagNet, whose networks are small."""
    generator_epochs: int = 50
    """Epochs of each generator."""
    generator_width: int = 32
    """Maps of the generators' last hidden layer."""
    generator_latent: int = 32
    """Numbers that the generators make an image of."""
    restarts: int = 10
    """Descents of each image on a generator's range."""
    steps: int = 200
    """Steps of each."""
    limit: int = 1000
    """FGSM, R-FGSM and PGD attack this number of test images."""
    minimal_limit: int = 200
    """DeepFool, Carlini-Wagner and the spatial attack attack this number of test images."""
    adaptive_limit: int = 200
    """The attacker who knows the defense attacks this number of test images."""
    adaptive_minimal_limit: int = 50
    """The same attacker attacks this number of test images by DeepFool, Carlini-Wagner and the spatial attack."""
    generative_limit: int = 50
    """The same attacker attacks this number of test images through Defense-GAN and DRAGAN-Defense, which are slow: by
    FGSM, R-FGSM and PGD."""
    log: LogFlags = field(default_factory=LogFlags)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("classifiers", self.classifiers), ("defenses", self.defenses)):
            if not value:
                raise ValueError(f"{name} must be at least 1; got ()")
            if len(set(value)) < len(value):
                raise ValueError(f"{name} name one twice; name each once: {', '.join(value)}")
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be above 0 and at most 1; got {self.epsilon!r}")


def main(arguments: DefensesArguments) -> None:
    """Compare seven defenses: train each, attack it alike, with an attacker who knows it too, and say what it costs."""
    known = models.known("classifier")
    if unknown := [name for name in arguments.classifiers if name not in known]:
        raise ValueError(f"classifiers: {', '.join(unknown)}: expected some of {', '.join(known)}")
    engine_of(arguments.trainers).check_room(arguments.trainers.needs)
    bench = Bench(arguments=arguments)
    rows: list[dict[str, Any]] = []
    bases = {name: bench.classifier(name) for name in arguments.classifiers}
    for name in arguments.classifiers:
        rows += bench.rows_of(name, bases)
        written(arguments, rows)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Trainings and evaluations, each in a folder of its own."""

    arguments: DefensesArguments

    def folder(self, *parts: str) -> str:
        """A folder below the output."""
        return storage.join(storage.absolute(self.arguments.output), *parts)

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks in a ball."""
        eps = f"epsilon={self.arguments.epsilon!r}"
        return f"fgsm,{eps}", f"r_fgsm,{eps}", f"pgd,{eps},steps=40"

    def train(self, name: str, model: str, **more: Any) -> str:
        """Train a network in a folder; the folder of its weights."""
        log.tell(f"training {name}")
        images = self.arguments.images
        held_out = min(HELD_OUT[self.arguments.data], HELD_OUT["mnist"] if images is None else max(1, images // 6))
        held_out = min(held_out, FEW) if name in GENERATIVE else held_out
        usual: dict[str, Any] = {"limit": images, "epochs": self.arguments.epochs, "validation": held_out}
        config = TrainingConfig(data=self.arguments.data, model=model, **{**usual, **more})
        return train(config, self.arguments.trainers, self.folder("training", name))

    def classifier(self, name: str) -> str:
        """A classifier, trained on clean images."""
        return self.train(name, name, epochs=self.arguments.classifier_epochs)

    def hardened(self, name: str) -> str:
        """A classifier, adversarially trained (the paper's Eq. 6): PGD of 10 steps, and half of the images clean."""
        attack = f"pgd,epsilon={self.arguments.epsilon!r},steps=10"
        more = {"train_against": "adaptive,ramp=0.3", "attacks": (attack,), "clean_share": 0.5}
        return self.train(f"{name}-at", name, epochs=self.arguments.robust_epochs, **more)

    def purifier(self, defense: str, classifier: str, base: str, attacked: str | None) -> str:
        """A purifier, trained for a classifier on attacked images (see :meth:`attacked`), or for any."""
        arguments = self.arguments
        name = defense if defense in UNIVERSAL else f"{defense}-{classifier}"
        generator = f",width={arguments.generator_width},latent={arguments.generator_latent}"
        generative = {"epochs": arguments.generator_epochs, "batch": 32, "rate": 5e-4, "ema": 0.999}
        pairs = {"train_against": attacked, "limit": None, "rate": 2e-3}
        recipes: dict[str, tuple[str, Mapping[str, Any]]] = {
            "magnet": ("magnet", {"epochs": arguments.magnet_epochs, "rate": 1e-2, "weight_decay": 0.0}),
            "defense_gan": ("defense_gan" + generator, generative),
            "dragan_defense": ("dragan_defense" + generator, generative),
            "ddsa": ("ddsa", pairs),
            "cgan_defense": ("cgan_defense", pairs),
            "cru_net": ("cru_net", {**pairs, "pixel_weight": 100, "logit_weight": 1}),
        }
        model, more = recipes[defense]
        return self.train(name, model, classifier=base, **more)

    def attacked(self, classifier: str) -> str:
        """Training images under attack, made once for all purifiers that are trained for a classifier."""
        eps = f"epsilon={self.arguments.epsilon!r}"
        configs = [
            GenerationConfig(
                input=self.arguments.data,
                split="train",
                limit=self.arguments.images,
                attack=attack,
                classifier=classifier,
                attack_precision="auto",
            )
            for attack in (f"fgsm,{eps}", f"r_fgsm,{eps}", f"pgd,{eps},steps=7")
        ]
        # The weights lie at training/NAME/model.
        return training_pairs(configs, self.arguments.pool, self.folder("attacked", classifier.split("/")[-2]))

    def evaluate(self, name: str, base: str, **more: Any) -> list[dict[str, Any]]:
        """Evaluate in a folder; the rows of the summary."""
        log.tell(f"evaluating {name}")
        usual: dict[str, Any] = {"attacks": self.attacks, "limit": self.arguments.limit, "attack_precision": "auto"}
        config = EvaluationConfig(data=self.arguments.data, classifiers=(base,), **{**usual, **more})
        return evaluate(config, self.arguments.pool, self.folder("evaluation", name)).to_pylist()

    def rows_of(self, classifier: str, bases: Mapping[str, str]) -> list[dict[str, Any]]:
        """All that is measured of the defenses of a classifier: rows of ``defenses.DEFENSES``."""
        chosen, base = self.arguments.defenses, bases[classifier]
        hardened = self.hardened(classifier) if {"at", "ddsa"} & set(chosen) else base
        protected = {"ddsa": hardened}
        trained = self.trained(classifier, bases, protected)
        rows: list[dict[str, Any]] = []
        victims = [(base, "")] if hardened == base else [(base, ""), (hardened, "-at")]
        for victim, suffix in victims:
            behind = {name: url for name, url in trained.items() if protected.get(name, base) == victim}
            if not behind and "at" not in chosen:
                continue
            names = {"identity": NONE if victim == base else "at"}
            names |= {self.given(name, url): name for name, url in behind.items()}
            others = tuple(url for name, url in bases.items() if name != classifier)
            rows += self._static(f"{classifier}{suffix}", classifier, victim, names, others)
            rows += self._adaptive(f"{classifier}{suffix}", classifier, victim, names)
        return sorted(rows, key=lambda row: (ATTACKS.index(row["attack"]), (NONE, *ALL).index(row["defense"])))

    def trained(self, classifier: str, bases: Mapping[str, str], protected: Mapping[str, str]) -> dict[str, str]:
        """The purifiers for a classifier, by their defenses.

        Args:
            classifier: its name.
            bases: all classifiers, by their names.
            protected: classifiers of defenses that are not for this one.
        """
        chosen = self.arguments.defenses
        asked = {**dict.fromkeys(UNIVERSAL, bases[self.arguments.classifiers[0]]), **protected}
        victims = {defense: asked.get(defense, bases[classifier]) for defense in chosen if defense != "at"}
        attacked = {
            url: self.attacked(url)
            for url in dict.fromkeys(url for defense, url in victims.items() if defense not in UNIVERSAL)
        }
        return {defense: self.purifier(defense, classifier, url, attacked.get(url)) for defense, url in victims.items()}

    def given(self, defense: str, url: str) -> str:
        """A purifier as a flag names it."""
        arguments = self.arguments
        return f"{url},restarts={arguments.restarts},steps={arguments.steps}" if defense in GENERATIVE else url

    def _static(
        self, name: str, classifier: str, victim: str, names: Mapping[str, str], others: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Under attackers who do not know the defense."""
        purifiers = tuple(names)
        searching: dict[str, Any] = {"attacks": SEARCHING, "limit": self.arguments.minimal_limit}
        transfer: dict[str, Any] = {"settings": ("white-box", "transfer"), "surrogates": others[:1]} if others else {}
        found = self.evaluate(f"{name}-balls", victim, purifiers=purifiers, **transfer)
        found += self.evaluate(f"{name}-minimal", victim, purifiers=purifiers, **searching)
        if others:
            searching |= {**transfer, "settings": ("transfer",)}
            found += self.evaluate(f"{name}-minimal-transfer", victim, purifiers=purifiers, **searching)
        return self.rows(found, classifier, names)

    def _adaptive(self, name: str, classifier: str, victim: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
        """Under attackers who go through the defense."""
        defended = {text: defense for text, defense in names.items() if defense != NONE}
        slow = tuple(text for text, defense in defended.items() if defense in GENERATIVE)
        quick = tuple(text for text in defended if text not in slow)
        given = self.arguments
        few, many = given.generative_limit, given.adaptive_limit
        one_step, pgd = self.attacks[:-1], self.attacks[-1]
        short = (f"pgd,epsilon={given.epsilon!r},steps=10",)
        found = []
        for purifiers, part, attacks, limit, checked in (
            (quick, "adaptive", (pgd,), many, many // 4),
            (quick, "adaptive-steps", one_step, many, 0),
            (quick, "adaptive-minimal", SHORTER, given.adaptive_minimal_limit, 0),
            (slow, "adaptive-generative", short, few, 0),
            (slow, "adaptive-generative-steps", one_step, few, 0),
        ):
            if purifiers:
                more = {"settings": ("adaptive",), "limit": limit, "eot": DRAWS, "masking_images": checked}
                found += self.evaluate(f"{name}-{part}", victim, purifiers=purifiers, attacks=attacks, **more)
        return self.rows(found, classifier, names)

    def rows(
        self, found: Sequence[Mapping[str, Any]], classifier: str, names: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Rows of the comparison, by those of a summary."""
        texts = {models.load("purifier", text).name: text for text in names}
        return [self.row(row, classifier, texts[row["purifier"]], names) for row in found]

    def row(self, row: Mapping[str, Any], classifier: str, text: str, names: Mapping[str, str]) -> dict[str, Any]:
        """A row of the comparison: of a purifier, as a flag names it."""
        # Of the attackers who know a detector, those without a ball do not evade it: what it finds would flatter it.
        judged = row["detection_rate"] is not None and not (row["setting"] == "adaptive" and row["eps"] is None)
        return {
            "dataset": row["dataset"],
            "classifier": classifier,
            "defense": names[text],
            "setting": row["setting"],
            "attack": row["attack"],
            "eps": row["eps"],
            "n": row["n"],
            "accuracy_clean": row["accuracy_clean"],
            "accuracy_clean_defended": row["accuracy_clean_purified"],
            "accuracy_undefended": row["accuracy_adversarial"],
            "accuracy": row["accuracy_purified"],
            "accuracy_low": row["accuracy_purified_low"],
            "accuracy_high": row["accuracy_purified_high"],
            "success_rate_eq14": row["success_rate_eq14"],
            "accuracy_with_detection": row["accuracy_with_detection"] if judged else None,
            "false_alarm_rate": row["false_alarm_rate"],
            "ssim": row["ssim_purified"],
            "psnr": row["psnr_purified"],
            "masking": row["masking"],
            **self.costs(text, names[text], classifier),
        }

    def costs(self, text: str, defense: str, classifier: str) -> dict[str, Any]:
        """What a defense costs: its purifier's speed and size, measured once, and the seconds of all runs before it."""
        seconds = sum(_seconds(url) for url in self.runs_of(defense, classifier))
        if text == "identity":
            return {"images_per_second": None, "parameters": None, "training_seconds": seconds}
        model = models.load("purifier", text)
        # It is measured in this process, which on a cluster's head may have no GPU.
        device = self.arguments.pool.device if torch.cuda.is_available() else "cpu"
        url = self.folder("costs", f"{defense}-{model.identity[:16]}-{device}.json")
        if not storage.exists(url):
            network = model.build()
            speed = cost.rate(network, tuple(model.config["image_shape"]), device)
            storage.write_json(url, {"images_per_second": speed, "parameters": cost.parameters(network)})
        return {**storage.read_json(url), "training_seconds": seconds}

    def runs_of(self, defense: str, classifier: str) -> list[str]:
        """The trainings that a defense takes, but for the classifier's own, and the attacks on their images."""
        hardened = f"{classifier}-at"
        if defense == NONE:
            return []
        if defense == "at":
            return [self.folder("training", hardened)]
        if defense in UNIVERSAL:
            return [self.folder("training", defense)]
        victim = hardened if defense == "ddsa" else classifier
        attacks = [url.rpartition("/")[0] for url in storage.list_files(self.folder("attacked", victim), "/run.json")]
        before = [self.folder("training", hardened)] if defense == "ddsa" else []
        return [*before, *attacks, self.folder("training", f"{defense}-{classifier}")]


def _seconds(output: str) -> float:
    """How long the attempts of a run took that came to an end."""
    run = storage.read_json(storage.join(output, "run.json"))
    return sum(attempts.seconds(attempt) or 0.0 for attempt in run["attempts"])


def written(arguments: DefensesArguments, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the page, of what was measured so far."""
    folder = Bench(arguments=arguments).folder
    table = defenses.table(rows)
    tables.write(folder("tables", "defenses"), table)
    charts = defenses.charts(table)
    for name, svg in charts.items():
        storage.write_bytes(folder("figures", f"{name}.svg"), figures.alone(svg).encode())
    pages = storage.list_files(folder("evaluation"), "report.html")
    runs = {(name := url.split("/")[-2]): f"evaluation/{name}/report.html" for url in pages}
    facts = {name: str(value) for name, value in asdict(arguments).items() if name not in ("log", "output")}
    url = folder("report.html")
    storage.write_bytes(url, defenses.render(table, charts=charts, runs=runs, facts=facts).encode())
    log.tell(f"report: {url}")
