"""The spatially transformed attack (Xiao et al. 2018; the paper's SPA, Eq. 5), for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.attacks import Attacked
from raypurify.attacks._active import ActiveRows, Effort, fools, logits_of, margin, spread
from raypurify.attacks._gradients import check_gradient, slope, vanishes

SMOOTHING = 1e-8
"""Square pixels, added to a squared difference of the flow before its root."""
DESCENT_SMOOTHING = 1e-3
"""The same in the objective's gradient. With 1e-8 its slope jumps wherever the flow is even: the descent rattles there,
ends higher by the true measure, and magnifies rounding until an image depends on its batch."""


@dataclass(frozen=True, kw_only=True)
class StAdv:
    """The least L_adv + tau L_flow, by a flow that moves an image's pixels instead of changing their values.

    L_adv is the margin of the true class over the best other one (of the best other one over the target), or -kappa if
    that is larger; L_flow is :func:`flow_loss`. The flow starts at zero and descends with momentum. Each gradient is
    first scaled to the same size, so that a flow that fools is smoothed as fast as it came, whatever tau is.

    Each image has an optimiser, a tau and an end of its own. While nothing has fooled the victim, tau is halved now and
    then: how heavy it is depends on the size of the victim's logits. From then on the steps get smaller, and the image
    leaves the batch when its flow gets no smoother. The smoothest flow that fooled the victim is kept. An image that
    none fooled, or that was wrong at first, comes back unmodified.
    """

    tau: float = 0.05
    """Weight of L_flow at first, in logits a pixel of flow."""
    kappa: float = 0.0
    """Margin by which another class has to win, in logits: an image that never gets there counts as not fooled."""
    steps: int = 200
    """The largest number of steps."""
    rate: float = 0.05
    """Length of a step at first, in pixels of flow: the root of the mean square over the image."""
    decay: float = 0.95
    """Factor of an image's rate at each step that begins with the victim fooled."""
    patience: int = 10
    """Steps without a flow that fools and is smoother by 1%, after which an image leaves, or halves its tau."""

    norm = None
    radius = None

    def __post_init__(self) -> None:
        for name in ("tau", "kappa"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)!r}")
        for name in ("steps", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0; got {self.rate!r}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1; got {self.decay!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; nothing is random."""
        return self.flow(victim, x, y, seeds=seeds, target=target)[1]

    def flow(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> tuple[Tensor, Attacked]:
        """The flows (N, 2, H, W) in pixels, as :func:`warp` takes them, zero if unmodified; and the images."""
        best, x_adv, effort = x.new_zeros(len(x), 2, *x.shape[2:]), x.clone(), Effort(x)
        smoothest = x.new_full((len(x),), torch.inf)
        right = ~fools(logits_of(victim, x), y, target)
        effort.look()
        search = _Search.start(torch.nonzero(right).flatten(), best, self)
        for step in range(1, self.steps + 1):
            active = search.images
            if not len(active):
                break
            goal = None if target is None else target[active]
            warped, fooled, gradient = self._objective(victim, x[active], y[active], goal, search)
            effort.step(active)
            if step == 1:
                effort.first_gradients(active, vanishes(gradient))
            loss = flow_loss(search.flow)
            better = fooled & (loss < smoothest[active])
            kept = active[better]
            best[kept], x_adv[kept], smoothest[kept] = search.flow[better], warped[better], loss[better]
            finished = self._watch(search, fooled, loss)
            self._descend(search, gradient, fooled, step)
            search = search.select(~finished)
        return best, effort.attacked(x_adv)

    def _objective(
        self, victim: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, search: _Search
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, whether they fool the victim (M,), and the gradient (M, 2, H, W) of the objective by their flow."""
        with torch.enable_grad():
            flow = search.flow.detach().requires_grad_(True)
            warped = warp(x, flow).clamp(0, 1)
            logits = victim(warped).float()
            check_gradient(logits)  # the flow's loss has one in any case
            excess = margin(logits, y) if target is None else -margin(logits, target)
            objective = excess.clamp_min(-self.kappa) + search.tau * flow_loss(flow, DESCENT_SMOOTHING)
            gradient = slope(objective.sum(), flow)
        fooled = fools(logits, y, target) & (excess <= -self.kappa)
        return warped.detach(), fooled, gradient

    def _watch(self, search: _Search, fooled: Tensor, loss: Tensor) -> Tensor:
        """Which images are finished: (M,) bool. Halves the tau of those that fool nobody and had the time to."""
        progress = fooled & (loss < 0.99 * search.lowest)
        search.lowest = torch.where(progress, loss, search.lowest)
        search.idle = torch.where(progress, 0, search.idle + 1)
        stale = search.idle == self.patience
        search.idle = torch.where(stale, 0, search.idle)
        once_fooled = search.lowest < torch.inf
        search.tau = torch.where(stale & ~once_fooled, search.tau / 2, search.tau)
        return stale & once_fooled

    def _descend(self, search: _Search, gradient: Tensor, fooled: Tensor, step: int) -> None:
        """The ``step``-th step of the flow."""
        size = gradient.square().flatten(1).mean(dim=1).sqrt() + 1e-12
        search.mean = search.mean.lerp(gradient / spread(size, gradient), 0.1)
        search.flow = search.flow - spread(search.rate / (1 - 0.9**step), gradient) * search.mean
        search.rate = torch.where(fooled, search.rate * self.decay, search.rate)


@dataclass(kw_only=True)
class _Search(ActiveRows):
    """The images that are still in the batch, a row each in every field."""

    images: Tensor
    """(M,) int64: their numbers in the whole batch."""
    flow: Tensor
    """(M, 2, H, W)."""
    mean: Tensor
    """(M, 2, H, W): running mean of the gradients, each of unit size."""
    rate: Tensor
    """(M,)."""
    tau: Tensor
    """(M,)."""
    lowest: Tensor
    """(M,): the lowest flow loss that fooled the victim, infinite while none has."""
    idle: Tensor
    """(M,) int64: steps since ``lowest`` fell by 1%."""

    @classmethod
    def start(cls, images: Tensor, flow: Tensor, attack: StAdv) -> _Search:
        """The search for these images (M,), numbers of rows of ``flow`` (N, 2, H, W), from which it goes."""
        each = flow.new_ones(len(images))
        return cls(
            images=images,
            flow=flow[images],
            mean=torch.zeros_like(flow[images]),
            rate=attack.rate * each,
            tau=attack.tau * each,
            lowest=torch.inf * each,
            idle=torch.zeros_like(images),
        )


def warp(x: Tensor, flow: Tensor, *, padding: str = "border") -> Tensor:
    """Each image with its pixels fetched from where the flow points: ``out[p] = x[p + flow[p]]``, bilinear.

    The grid's -1 and 1 are the outer edges of the image (``align_corners=False``): so a pixel is a pixel at any height
    and width, 1 included. For a flow in pixels, ``align_corners=True`` gives the same image.

    Args:
        x: (N, C, H, W).
        flow: (N, 2, H, W) in pixels: first to the right, then down.
        padding: beyond the image: "border", the nearest pixel, or "zeros", black.

    Returns:
        (N, C, H, W); differentiable by both.
    """
    height, width = x.shape[2:]
    columns = torch.arange(width, device=x.device, dtype=x.dtype) + flow[:, 0]
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def flow_loss(flow: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """L_flow (Xiao et al. 2018, Eq. 4): (N,), the sum over each pixel and each of its up to four neighbours of
    ``sqrt(du^2 + dv^2 + smoothing)``, so that a pair of neighbours counts twice.

    Args:
        flow: (N, 2, H, W) in pixels.
        smoothing: keeps the root differentiable where the flow is even.
    """
    across, down = flow.diff(dim=3), flow.diff(dim=2)
    lengths = [(step.square().sum(dim=1) + smoothing).sqrt().flatten(1).sum(dim=1) for step in (across, down)]
    return 2 * (lengths[0] + lengths[1])


build = StAdv
