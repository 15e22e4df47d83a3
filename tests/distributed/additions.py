"""What a user may bring: an attack, a metric, a purifier that detects, with an objective of its own, a source of pairs,
a section of the report, a dataset's format."""

import html
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked, counted
from raypurify.data import Found, Rows, Shard
from raypurify.metrics import Metric
from raypurify.report import Page, Section
from raypurify.training.batches import Batch
from raypurify.training.objectives import PurifierObjective, Setup
from raypurify.training.pairs import PairSetup, choices


@dataclass(frozen=True, kw_only=True)
class Darken:
    """An attack whose radius is called ``by``."""

    by: float = 0.1

    norm = "linf"
    radius = "by"

    def __call__(self, victim, x: Tensor, y: Tensor, *, seeds, target=None) -> Attacked:
        return counted((x - self.by).clamp(0, 1), steps=0, queries=0)


def brightness(scale: float = 1.0) -> Metric:
    return Metric(
        name="brightness",
        measure=lambda a, b: scale * (a - b).flatten(1).mean(dim=1),
        unit="levels",
        heading="Brightness",
    )


class Dimmer(nn.Module):
    """A purifier that learns nothing."""

    trivial = True

    def forward(self, x: Tensor) -> Tensor:
        return 0.9 * x


class Watchful(nn.Module):
    """A purifier of one convolution that takes dark images for attacked."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.convolution(x)).clamp(0, 1)

    def suspicion(self, x: Tensor) -> Tensor:
        return 0.1 - x.flatten(1).mean(dim=1)

    def detect(self, x: Tensor) -> Tensor:
        return self.suspicion(x) > 0


class Adversarial(PurifierObjective):
    """Two players: a critic, which takes two steps for each of the purifier's."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.critic = self.train_beside("critic", nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 1)), rate=1e-2)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        x_adv, x = self.pairs(batch)
        network = self.setup.network
        for _ in range(2):
            with torch.no_grad():
                purified = network(x_adv)
            critic = self.critic(purified).sigmoid().mean() - self.critic(x).sigmoid().mean()
            critic = self.optimizations["critic"].minimise(critic, step)
        purified = network(x_adv)
        loss = (purified - x).square().mean() - 0.01 * self.critic(purified).sigmoid().mean()
        return {"loss": self.optimizations["network"].minimise(loss, step), "critic": critic}


objective = Adversarial


@dataclass(frozen=True, kw_only=True)
class Faded:
    """Pairs of images and paler ones."""

    strength: float = 0.5

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        faded = torch.from_numpy(choices(batch, 1, setup.clean_share) == 0)
        return torch.where(faded[:, None, None, None], batch.x * self.strength, batch.x)


def section(page: Page) -> Section:
    names = ", ".join(sorted({row["purifier"] for row in page.rows}))
    text = f"<section id='mine'><h2>A section of mine</h2><p>On {html.escape(names)}.</p></section>"
    return Section(id="mine", title="Mine", html=text)


def drawings(split: str, rows: int = 40) -> Found:
    """Images as bright as their class; this module reads them."""
    shard = Shard(format=__name__, url="drawings", key=f"drawings-{split}", rows=rows, extra={})
    return Found(shards=(shard,), image_shape=(28, 28, 1), classes=10, contents=("drawings",))


def read(shard: Shard, rows: np.ndarray) -> Rows:
    images = np.broadcast_to((25 * labels(shard, rows)).astype(np.uint8)[:, None, None, None], (len(rows), 28, 28, 1))
    ids = [f"{shard.key}#{row}" for row in shard.first + rows]
    return Rows(ids=ids, images=images, labels=labels(shard, rows), rejects=[])


def labels(shard: Shard, rows: np.ndarray) -> np.ndarray:
    return (shard.first + rows) % 10
