"""The fast adaptive boundary attack in L-infinity, targeted (Croce and Hein 2020; FAB-T)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import begin_draws, fools, logits_of, rivals, spread
from raypurify.attacks._gradients import check_epsilon, project, slope, vanishes
from raypurify.attacks._survivors import Survivors, check_counts, random_point
from raypurify.seeds import derive


@dataclass(frozen=True, kw_only=True)
class FAB:
    """Steps onto the boundary of the linearised classifier that stay near the clean image, towards one class each time.

    A step goes a little beyond the nearest point of the hyperplane, in L-infinity and in [0, 1], and a little towards
    the hyperplane's point that is nearest to the clean image. After a step that has crossed the boundary, the next
    begins nearer to the clean image. The attack looks for the least distance; but only what fools the victim inside
    the ball counts, and an image that is fooled there leaves the batch. Of another, the nearest that fooled the victim
    comes back, cut to the ball; or the clean image, where none did or it was wrong at first.
    """

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    steps: int = 100
    """Linearisations from each start."""
    classes: int = 9
    """Classes that it goes towards, those that score highest on the clean image."""
    restarts: int = 1
    """Starts for each class: the clean image, then random points of the ball of half the radius."""
    alpha_max: float = 0.1
    """Largest weight of the way that begins at the clean image, in [0, 1]."""
    eta: float = 1.05
    """How far a step goes, in distances to the hyperplane."""
    beta: float = 0.9
    """Where the next step begins, as a share of the way from the clean image to a point beyond the boundary."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_counts(self, "steps", "classes", "restarts")
        if self.eta < 1:
            raise ValueError(f"eta must be at least 1; got {self.eta!r}")
        for name in ("alpha_max", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1]; got {getattr(self, name)!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; only starts after the first come from ``seeds``."""
        found = Survivors(victim, x, y, target)
        nearest, distance = x.clone(), torch.full_like(found.lowest, torch.inf)
        for number, goal in enumerate(found.goals(self.classes)):
            for restart in range(self.restarts):
                images = found.images
                if not len(images):
                    break
                begin_draws(victim, "fab", number, restart)
                point = x[images]
                if restart:
                    chosen = derive(found.seeds(seeds, images), "start", number, restart)
                    point = random_point(point, self.epsilon / 2, chosen)
                self._descend(victim, found, images, goal, point, nearest, distance)
        begin_draws(victim, "fab", "outside")
        outside = torch.nonzero(~found.fooled & distance.isfinite()).flatten()
        if len(outside):
            cut = project(nearest[outside], x[outside], self.epsilon)
            found.judge(outside, cut, logits_of(victim, cut))
            found.effort.look(outside)
        return found.effort.attacked(found.best)

    def _descend(
        self,
        victim: nn.Module,
        found: Survivors,
        images: Tensor,
        goal: Tensor,
        point: Tensor,
        nearest: Tensor,
        distance: Tensor,
    ) -> None:
        """One start of some images (M,), numbers, from ``point`` (M, C, H, W) towards a class each of ``goal`` (N,).

        What fools the victim inside the ball goes to ``found``; what does outside it to ``nearest`` (N, C, H, W) and
        ``distance`` (N,), where it is nearer.
        """
        for _ in range(self.steps):
            if not len(images):
                break
            clean, y, target = found.x[images], found.y[images], found.target_of(images)
            gap, normal = hyperplane(victim, point, y if target is None else None, goal[images])
            found.effort.step(images)
            if found.effort.zero_gradient is None:
                found.effort.first_gradients(images, vanishes(normal))
            point = self._step(point, clean, gap, normal)
            logits = logits_of(victim, point)
            found.effort.look(images)
            fooled = fools(logits, y, target)
            away = (point - clean).flatten(1).abs().amax(dim=1)
            inside = fooled & (away <= self.epsilon)
            found.judge(images[inside], point[inside], logits[inside])
            nearer = fooled & (away < distance[images])
            nearest[images[nearer]], distance[images[nearer]] = point[nearer], away[nearer]
            point = torch.where(spread(fooled, point), clean + self.beta * (point - clean), point)
            images, point = images[~inside], point[~inside]

    def _step(self, point: Tensor, clean: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """The next points, from the hyperplanes ``gap + normal . (z - point) = 0``."""
        normal, count = normal.flatten(1), len(point)
        lacking = -gap + (normal * (point - clean).flatten(1)).sum(dim=1)
        changes = onto_hyperplane(
            torch.cat([point, clean]).flatten(1), torch.cat([normal, normal]), torch.cat([-gap, lacking])
        )
        lengths = changes.abs().amax(dim=1).clamp_min(1e-8)
        weight = (lengths[:count] / (lengths[:count] + lengths[count:])).clamp_max(self.alpha_max)
        changes = self.eta * changes.view(2, *point.shape)
        return torch.lerp(point + changes[0], clean + changes[1], spread(weight, point)).clamp_(0, 1)


def hyperplane(victim: nn.Module, x: Tensor, own: Tensor | None, goal: Tensor) -> tuple[Tensor, Tensor]:
    """The linearised boundary between class ``own`` (N,), or the best class besides ``goal``, and class ``goal`` (N,).

    Returns:
        by how much the logit of ``goal`` is ahead (N,), and the gradient of that (N, C, H, W); 0 for what is no number.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = victim(x).float()
        own = rivals(logits.detach(), goal, 1)[:, 0] if own is None else own
        gap = (logits.gather(1, goal[:, None]) - logits.gather(1, own[:, None]))[:, 0]
        return gap.detach().nan_to_num(), slope(gap.sum(), x)


def onto_hyperplane(x: Tensor, normal: Tensor, lacking: Tensor) -> Tensor:
    """The change d of the least L-infinity norm with ``normal . d = lacking`` and x + d in [0, 1].

    All pixels move by one length, those that reach the edge of the box before by less. Where the box is too small, all
    go to its edge.

    Args:
        x: (N, D) in [0, 1]; normal: (N, D); lacking: (N,).

    Returns:
        (N, D); pixels without a slope do not move.
    """
    direction = normal.sign() * lacking.sign()[:, None]
    room = torch.where(direction > 0, 1 - x, x)
    rooms, order = room.sort(dim=1)
    weights = normal.abs().gather(1, order)
    # Before a length of rooms[k] is reached, the first k pixels are at the edge and the others move alike.
    spent = (weights * rooms).cumsum(dim=1).roll(1, dims=1)
    spent[:, 0] = 0
    free = weights.flip(1).cumsum(dim=1).flip(1)
    at_edge = (spent + free * rooms < lacking.abs()[:, None]).sum(dim=1, keepdim=True)
    last = at_edge.clamp_max(x.shape[1] - 1)
    length = (lacking.abs()[:, None] - spent.gather(1, last)) / free.gather(1, last)
    length = torch.where((at_edge > last) | ~length.isfinite(), 1, length.clamp_min(0))
    return direction * torch.minimum(room, length)


build = FAB
