"""The paper's Tables 2-7, from data to page: attack, train, calibrate, evaluate, compare.

Each stage is runs of the other jobs, in folders of their own below the output. So the same command goes on where it was
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raypurify import models, storage
from raypurify.evaluation.calibration import COLUMNS, SIMILARITIES, distance_at, radius_at, within
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.evaluation.results import read_scores
from raypurify.jobs import tables
from raypurify.jobs.attack import training_pairs
from raypurify.jobs.engine import engine_of
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import Crew
from raypurify.jobs.train import train
from raypurify.report import formats, paper
from raypurify.runs import log
from raypurify.runs.log import LogFlags
from raypurify.training.config import TrainingConfig

Dataset = Literal["mnist", "cifar10"]
MINIMAL_ATTACKS = ("deepfool", "stadv", "rotation_translation,grid_search=False,random_steps=25")
"""Attacks of training sets that search for a small change; each image of rotation_translation tries few transforms."""
SEARCH_ATTACK = "carlini_wagner,search_steps=3,steps=60"
"""The slowest attack, of a training set, with fewer steps than its default has."""


@dataclass(frozen=True, kw_only=True)
class PaperDataset:
    """What the paper does with one dataset."""

    classifiers: tuple[str, ...]
    radii: tuple[str, ...]
    """Of the attacks that CRU-Net is trained against, in the L-infinity norm."""
    augmentation: Literal["none", "flip_crop"]
    fixed: float
    """The radius that was chosen beforehand."""
    tried: tuple[float, ...]
    """Radii at which accuracy without a defense is measured, to calibrate an attack."""
    between: tuple[float, ...]
    """Radii between those that CRU-Net is trained against, and one of 1.5 times the largest."""
    steps: int
    """Of PGD."""
    trivial: tuple[str, ...]
    """Purifiers that learn nothing, to stand beside CRU-Net."""


PAPER_DATASETS = {
    "mnist": PaperDataset(
        classifiers=("a_net", "b_net"),
        radii=("0.1", "0.2", "0.3"),
        augmentation="none",
        fixed=0.3,
        tried=(0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3),
        between=(0.15, 0.25, 0.45),
        steps=40,
        trivial=("threshold", "median_filter", "mean_filter"),
    ),
    "cifar10": PaperDataset(
        classifiers=("d_net", "m_net"),
        radii=("1/255", "2/255", "4/255", "8/255"),
        augmentation="flip_crop",
        fixed=8 / 255,
        tried=tuple(levels / 255 for levels in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8)),
        between=tuple(levels / 255 for levels in (3, 6, 12)),
        steps=20,
        trivial=("jpeg", "median_filter", "mean_filter"),
    ),
}
HELD_OUT = 1000
"""Images that the trainings of the classifiers held out."""
RUNS = (
    *("in-balls", "minimal", "search", "adaptive", "between"),
    *("calibration", "calibration-minimal", "calibration-search"),
)
"""Evaluations of each classifier, by the folders that they are in."""
SEARCHING = ("deepfool", "stadv", "rotation_translation", "carlini_wagner")
"""The paper's attacks that have no ball, and both readings of its spatial one."""


@dataclass(frozen=True, kw_only=True)
class PaperArguments(Crew):
    """Flags of the reproduction."""

    output: str = "runs/paper"
    """Folder for all runs, the tables and the page: a path, or a URL."""
    weights: str = "weights"
    """Folder of the classifiers: DATASET/CLASSIFIER each."""
    datasets: tuple[Dataset, ...] = ("mnist", "cifar10")
    """Which of the paper's two datasets."""
    classifiers: tuple[str, ...] = ()
    """Which of the datasets' classifiers; all by default. Black-box rows take both of a dataset."""
    attacked_images: int = 20000
    """FGSM, R-FGSM and PGD attack this number of training images at each radius."""
    minimal_images: int = 5000
    """DeepFool and the spatial attacks attack this number of training images."""
    search_images: int = 5000
    """Carlini-Wagner attacks this number of training images. It is the slowest attack by far."""
    epochs: int = 20
    """How often a training goes through the attacked images."""
    batch: int = 128
    """How many attacked images a step of a training takes. A GPU takes several times as many in the same time. With
    more there are fewer steps, at the same learning rate, so that another CRU-Net comes of it."""
    seeds: int = 1
    """How many CRU-Nets are trained for each classifier, each with a seed of its own."""
    limit: int | None = None
    """FGSM, R-FGSM and PGD attack this number of test images; all of them by default."""
    minimal_limit: int = 2000
    """DeepFool and the spatial attacks attack this number of test images."""
    search_limit: int = 2000
    """Carlini-Wagner attacks this number of test images."""
    adaptive_limit: int = 500
    """PGD attacks this number of test images through each CRU-Net."""
    calibration_images: int = 1000
    """Attacks are calibrated on this number of images that a classifier's training held out: at most 1,000."""
    calibration_search_images: int = 200
    """Carlini-Wagner is calibrated on this number of images."""
    log: LogFlags = field(default_factory=LogFlags)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.datasets:
            raise ValueError("datasets must be at least 1; got ()")
        known = [name for dataset in self.datasets for name in PAPER_DATASETS[dataset].classifiers]
        if unknown := [name for name in self.classifiers if name not in known]:
            raise ValueError(f"classifiers: {', '.join(unknown)}: expected some of {', '.join(known)}")
        if self.calibration_images > HELD_OUT:
            raise ValueError(
                f"calibration_images must be at most {HELD_OUT}, which the classifiers' trainings held out; got "
                f"{self.calibration_images}"
            )

    def classifiers_of(self, dataset: Dataset) -> list[str]:
        """The classifiers of a dataset that are asked for."""
        return [
            name for name in PAPER_DATASETS[dataset].classifiers if not self.classifiers or name in self.classifiers
        ]


def main(arguments: PaperArguments) -> None:
    """Reproduce the paper's tables: attack, train, calibrate, evaluate, and set the figures beside the paper's."""
    for dataset in arguments.datasets:
        for classifier in arguments.classifiers_of(dataset):
            models.load("classifier", checkpoint(arguments, dataset, classifier))
    engine_of(arguments.trainers).check_room(arguments.trainers.needs)
    measured: list[paper.Measured] = []
    adaptive: list[paper.AdaptiveAccuracy] = []
    for dataset in arguments.datasets:
        networks: dict[str, list[str]] = {}
        for classifier in arguments.classifiers_of(dataset):
            attacked = attacked_images(arguments, dataset, classifier)
            networks[classifier] = [
                trained(arguments, dataset, classifier, attacked, seed=seed) for seed in range(arguments.seeds)
            ]
        for classifier in arguments.classifiers_of(dataset):
            case = Case(arguments=arguments, dataset=dataset, classifier=classifier, networks=networks)
            radii, distances = case.calibrated()
            measured += [*case.in_balls(radii), *case.searching(distances)]
            adaptive += case.adaptive(radii)
            case.between()
            written(arguments, measured, adaptive)


def folder(arguments: PaperArguments, *parts: str) -> str:
    """A folder below the output."""
    return storage.join(storage.absolute(arguments.output), *parts)


def checkpoint(arguments: PaperArguments, dataset: str, classifier: str) -> str:
    """The weights of a classifier."""
    return storage.join(arguments.weights, dataset, classifier)


def attacked_images(arguments: PaperArguments, dataset: Dataset, classifier: str) -> str:
    """Attack training images by all attacks of the paper; the pairs that CRU-Nets are trained on."""
    in_balls = [
        (f"{name},epsilon={radius}{more}", arguments.attacked_images)
        for radius in PAPER_DATASETS[dataset].radii
        for name, more in (("fgsm", ""), ("r_fgsm", ""), ("pgd", ",steps=7"))
    ]
    minimal = [(attack, arguments.minimal_images) for attack in MINIMAL_ATTACKS]
    configs = [
        GenerationConfig(
            input=dataset,
            split="train",
            limit=images,
            attack=text,
            classifier=checkpoint(arguments, dataset, classifier),
            attack_precision="auto",
        )
        for text, images in (*in_balls, *minimal, (SEARCH_ATTACK, arguments.search_images))
    ]
    return training_pairs(configs, arguments.pool, folder(arguments, "attacked", f"{dataset}-{classifier}"))


def trained(arguments: PaperArguments, dataset: Dataset, classifier: str, attacked: str, *, seed: int) -> str:
    """Train a CRU-Net on attacked images; the folder of its weights."""
    name = f"cru_net-{classifier}" + (f"-seed{seed}" if seed else "")
    log.tell(f"training {name}")
    config = TrainingConfig(
        data=dataset,
        model="cru_net",
        classifier=checkpoint(arguments, dataset, classifier),
        train_against=attacked,
        augmentation=PAPER_DATASETS[dataset].augmentation,
        pixel_weight=100,
        logit_weight=1,
        rate=2e-3,
        epochs=arguments.epochs,
        batch=arguments.batch,
        validation=500,
        seed=seed,
    )
    return train(config, arguments.trainers, folder(arguments, "cru_net", dataset, name))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured of one classifier."""

    arguments: PaperArguments
    dataset: Dataset
    classifier: str
    networks: Mapping[str, Sequence[str]]
    """The CRU-Nets of the dataset, by the classifiers that they were trained for."""

    @property
    def about(self) -> PaperDataset:
        return PAPER_DATASETS[self.dataset]

    @property
    def purifiers(self) -> tuple[str, ...]:
        """None, those that learned nothing, and every CRU-Net."""
        return "identity", *self.about.trivial, *(url for urls in self.networks.values() for url in urls)

    def config(self, attacks: Sequence[str], **more: Any) -> EvaluationConfig:
        """An evaluation of this classifier."""
        common: dict[str, Any] = {
            "data": self.dataset,
            "purifiers": self.purifiers,
            "settings": ("white-box", "black-box"),
            "attack_precision": "auto",
        }
        checkpoints = (checkpoint(self.arguments, self.dataset, self.classifier),)
        return EvaluationConfig(classifiers=checkpoints, attacks=tuple(attacks), **{**common, **more})

    def run(self, name: str, config: EvaluationConfig) -> list[dict[str, Any]]:
        """Evaluate, in a folder of a name; the rows of the summary."""
        log.tell(f"{name}: {', '.join(config.attacks)} on {self.classifier}")
        return evaluate(config, self.arguments.pool, self.folder(name)).to_pylist()

    def folder(self, name: str) -> str:
        """Where the evaluation of a name is."""
        return folder(self.arguments, "evaluation", f"{self.dataset}-{self.classifier}", name)

    def calibrated(self) -> tuple[dict[str, float], dict[str, float | None]]:
        """The radii of attacks in balls, and how far the others go, that bring accuracy to the paper's "no defense"."""
        settings = storage.read_json(
            storage.join(checkpoint(self.arguments, self.dataset, self.classifier), "config.json")
        )
        kept = settings["training"]
        data = "raypurify.training.held_out:held_out"
        data += f",data={self.dataset},images={kept['validation']},seed={kept['seed']}"
        more: dict[str, Any] = {"data": data, "purifiers": ("identity",), "settings": ("white-box",)}
        accuracies: dict[str, dict[float, float]] = {}
        attacks = ("fgsm", "r_fgsm", f"pgd,steps={self.about.steps}")
        config = self.config(attacks, limit=self.arguments.calibration_images, epsilons=self.about.tried, **more)
        for row in self.run("calibration", config):
            accuracies.setdefault(row["attack"], {})[row["eps"]] = row["accuracy_adversarial"]
        radii = {
            attack: radius_at(paper.no_defense(self.dataset, attack, self.classifier), found)
            for attack, found in accuracies.items()
        }
        distances: dict[str, float | None] = {}
        for name, found, limit in (
            ("calibration-minimal", SEARCHING[:-1], self.arguments.calibration_images),
            ("calibration-search", SEARCHING[-1:], self.arguments.calibration_search_images),
        ):
            for row in self.run(name, self.config(found, limit=limit, **more)):
                scores = read_scores(self.folder(name), row["cell"], COLUMNS)
                target = paper.no_defense(self.dataset, row["attack"], self.classifier)
                distances[row["attack"]] = distance_at(target, scores)
        return radii, distances

    def in_balls(self, radii: Mapping[str, float]) -> list[paper.Measured]:
        """FGSM, R-FGSM and PGD, at the calibrated radii and at the fixed one."""
        fixed = dict.fromkeys(radii, self.about.fixed)
        texts = {self.attack(name, eps): None for found in (fixed, radii) for name, eps in found.items()}
        found_by: dict[paper.Parameters, Mapping[str, float]] = {"calibrated": radii, "fixed": fixed}
        rows = self.run("in-balls", self.config(list(texts), limit=self.arguments.limit))
        return [
            self.measured(row, parameters, formats.ball(row["norm"], row["eps"]), row)
            for parameters, found in found_by.items()
            for row in rows
            if found[row["attack"]] == row["eps"]
        ]

    def attack(self, name: str, eps: float) -> str:
        """An attack in a ball."""
        return f"{name},epsilon={eps!r}" + (f",steps={self.about.steps}" if name == "pgd" else "")

    def searching(self, distances: Mapping[str, float | None]) -> list[paper.Measured]:
        """The attacks without a ball, going as far as they must, and no further than the calibrated distances."""
        made = []
        for name, attacks, limit in (
            ("minimal", SEARCHING[:-1], self.arguments.minimal_limit),
            ("search", SEARCHING[-1:], self.arguments.search_limit),
        ):
            for row in self.run(name, self.config(attacks, limit=limit)):
                scores = read_scores(self.folder(name), row["cell"], (*COLUMNS, *SIMILARITIES))
                distance = distances[row["attack"]]
                told = "any distance" if distance is None else f"L2 ≤ {formats.three_digits(distance)}"
                figures = row if distance is None else within(scores, distance)
                made.append(self.measured(row, "calibrated", told, figures))
                made.append(self.measured(row, "fixed", "any distance", row))
        return made

    def measured(
        self, row: Mapping[str, Any], parameters: paper.Parameters, told: str, figures: Mapping[str, Any]
    ) -> paper.Measured:
        """A cell, by its row of a summary."""
        return paper.Measured(
            dataset=self.dataset,
            classifier=self.classifier,
            attack=row["attack"],
            attacked_by=told,
            parameters=parameters,
            eps=row["eps"],
            purifier=row["purifier"],
            trained_for=self.trained_for(row["purifier"]),
            trivial=bool(row["trivial"]),
            figures=figures,
        )

    def trained_for(self, purifier: str) -> str | None:
        """The classifier that a purifier, by its name in a summary, was trained for."""
        for classifier, urls in self.networks.items():
            if purifier in (url.rstrip("/").split("/")[-2] for url in urls):
                return classifier
        return None

    def adaptive(self, radii: Mapping[str, float]) -> list[paper.AdaptiveAccuracy]:
        """PGD through the first CRU-Net of each classifier, at every radius that a table has."""
        first = tuple(urls[0] for urls in self.networks.values())
        attacks = [self.attack("pgd", eps) for eps in sorted({self.about.fixed, *radii.values()})]
        more = {"purifiers": first, "adaptive_purifiers": first, "settings": ("adaptive",), "masking_images": 0}
        rows = self.run("adaptive", self.config(attacks, limit=self.arguments.adaptive_limit, **more))
        return [
            paper.AdaptiveAccuracy(
                dataset=self.dataset,
                classifier=self.classifier,
                trained_for=trained_for,
                eps=row["eps"],
                accuracy=row["accuracy_purified"],
                n=row["n"],
            )
            for row in rows
            if (trained_for := self.trained_for(row["purifier"])) is not None
        ]

    def between(self) -> None:
        """FGSM and PGD at radii between those of the training, and beyond them: the run's own page shows them."""
        own = ("identity", self.networks[self.classifier][0])
        attacks = ("fgsm", f"pgd,steps={self.about.steps}")
        limit = self.arguments.minimal_limit
        self.run("between", self.config(attacks, limit=limit, purifiers=own, epsilons=self.about.between))


def written(
    arguments: PaperArguments, measured: Sequence[paper.Measured], adaptive: Sequence[paper.AdaptiveAccuracy]
) -> None:
    """Write the tables and the page: of what was measured so far, and of what other commands on the output measured."""
    made = {"accuracy": paper.accuracy_table(measured, adaptive), "similarity": paper.similarity_table(measured)}
    for name, table in made.items():
        url = folder(arguments, "tables", f"{name}.parquet")
        if storage.exists(url):
            table = paper.merged(table, storage.read_table(url))
        made[name] = table
        tables.write(folder(arguments, "tables", name), table)
    cases = paper.cases(made["accuracy"])
    runs = {
        f"{classifier} on {dataset}: {name}": f"evaluation/{dataset}-{classifier}/{name}/report.html"
        for dataset, classifier in cases
        for name in RUNS
    }
    curves = {
        f"cru_net-{classifier}": storage.read_table(
            folder(arguments, "cru_net", dataset, f"cru_net-{classifier}", "metrics.parquet")
        )
        for dataset, classifier in cases
    }
    facts = {name: str(value) for name, value in asdict(arguments).items() if name not in ("log", "output", "weights")}
    charts = paper.charts(made["accuracy"], curves)
    for name, svg in charts.files.items():
        storage.write_bytes(folder(arguments, "figures", name), svg.encode())
    page = paper.render(made["accuracy"], made["similarity"], charts=charts, runs=runs, facts=facts)
    url = folder(arguments, "report.html")
    storage.write_bytes(url, page.encode())
    log.tell(f"report: {url}")
