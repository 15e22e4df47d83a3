"""AutoAttack in the L-infinity ball, as its authors run it (Croce and Hein 2020): four attacks, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from raypurify.attacks import Attack, Attacked
from raypurify.attacks._active import begin_draws, logits_of
from raypurify.attacks._gradients import check_epsilon
from raypurify.attacks._survivors import Survivors, check_counts
from raypurify.attacks.apgd import APGD
from raypurify.attacks.fab import FAB
from raypurify.attacks.square import Square
from raypurify.seeds import derive

VERSIONS: Mapping[str, Sequence[str]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The attacks of each version, in their order."""


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """Each attack takes what the ones before it left. Its success is decided by predicting its images again.

    The versions are the authors': "standard" of APGD on the cross-entropy, APGD towards nine classes, FAB towards nine
    classes, and Square; "rand", for a victim that draws at random (whose draws the victim averages, see ``--eot``), of
    APGD on both losses. An image that nothing fools comes back where its label was the least ahead; one that is wrong
    at first comes back unmodified. Steps and queries are those of all attacks.
    """

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    version: str = "standard"
    """Which attacks: "standard" or "rand"."""
    steps: int = 100
    """Of APGD and FAB, from each start."""
    queries: int = 5000
    """Of Square."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_counts(self, "steps", "queries")
        if self.version not in VERSIONS:
            raise ValueError(f"version must be one of {', '.join(VERSIONS)}; got {self.version!r}")

    @property
    def attacks(self) -> dict[str, Attack]:
        """The attacks of the version, by their names."""
        every: dict[str, Attack] = {
            "apgd-ce": APGD(epsilon=self.epsilon, steps=self.steps, loss="ce"),
            "apgd-dlr": APGD(epsilon=self.epsilon, steps=self.steps, loss="dlr"),
            "apgd-t": APGD(epsilon=self.epsilon, steps=self.steps, targeted=True),
            "fab-t": FAB(epsilon=self.epsilon, steps=self.steps),
            "square": Square(epsilon=self.epsilon, queries=self.queries, rescale=False),
        }
        return {name: every[name] for name in VERSIONS[self.version]}

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; each attack has seeds of its own, which come from ``seeds``."""
        found = Survivors(victim, x, y, target)
        for name, attack in self.attacks.items():
            images = found.images
            if not len(images):
                break
            chosen = derive(found.seeds(seeds, images), name)
            made = attack(victim, x[images], y[images], seeds=chosen, target=found.target_of(images))
            begin_draws(victim, "verdict", name)
            found.judge(images, made.x_adv, logits_of(victim, made.x_adv))
            found.effort.steps[images] += made.steps
            found.effort.queries[images] += made.queries + 1
            if found.effort.zero_gradient is None and made.zero_gradient is not None:
                found.effort.first_gradients(images, made.zero_gradient)
        return found.effort.attacked(found.best)


build = AutoAttack
