"""Layers that mix or draw over a batch, made to do so over the global batch, whatever the number of workers.

Data-parallel workers each see a part of a batch. Batch normalisation would take the statistics of that part, and
dropout would draw for it by itself: the network would depend on the number of workers. Here statistics are those of all
parts together, and a mask belongs to the image's place in the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A lane of a global batch's images, whose dropout masks one generator draws, and those that this worker has."""

    generator: torch.Generator
    """Seeded alike by every worker that has images of the lane."""
    images: int
    """How many images the lane has."""
    own: range
    """This worker's images of the lane."""


def with_global_batch(network: nn.Module, lanes: Sequence[Lane]) -> nn.Module:
    """``network`` with its batch norms and dropouts exchanged; parameters, buffers and their names stay.

    Args:
        network: to be trained. What it draws or mixes by other means than ``torch.nn``'s own layers stays as it is.
        lanes: which hold this worker's images of a global batch, in their order.
    """
    shared = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if shared and lanes[0].generator.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DROPOUTS) and type(child) in DROPOUTS:
                setattr(module, name, PlacedDropout(child.p, type(child) is not nn.Dropout, lanes))
            elif type(child) in BATCH_NORMS and shared:
                child.__class__ = GlobalBatchNorm
    return network


def average(gradients: Sequence[Tensor]) -> None:
    """Exchange gradients, in place, for their means over all workers."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1 or not gradients:
        return
    together = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share_weights(network: nn.Module) -> nn.Module:
    """``network`` with the weights and statistics of the first worker's, wherever its own came from."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        for value in network.state_dict().values():
            shared = value.contiguous()  # weights may lie channels-last
            torch.distributed.broadcast(shared, src=0)
            value.copy_(shared)
    return network


class PlacedDropout(nn.Module):
    """Dropout whose masks follow from an image's place in the global batch, and not from the images at hand."""

    def __init__(self, p: float, whole_maps: bool, lanes: Sequence[Lane]) -> None:
        super().__init__()
        self.p, self.whole_maps, self.lanes = p, whole_maps, lanes

    @property
    def cuda_graphs(self) -> bool:
        """Whether it computes alike at each step: it draws where it is trained."""
        return not self.training or self.p == 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape; only where N is a multiple of this worker's images of a global batch do the masks
        not depend on the number of workers.
        """
        if not self.training or self.p == 0:
            return x
        kept = 1 - self.p
        # In the memory format of ``x``: a product of two formats is slow.
        mask = x.new_empty((*x.shape[:2], *[1] * (x.ndim - 2))) if self.whole_maps else torch.empty_like(x)
        own = sum(len(lane.own) for lane in self.lanes)
        edges = [len(x) * images // own for images in accumulate((len(lane.own) for lane in self.lanes), initial=0)]
        for lane, (start, stop) in zip(self.lanes, pairwise(edges), strict=True):
            part = mask[start:stop]
            if len(lane.own) == lane.images:
                part.bernoulli_(kept, generator=lane.generator)
            else:
                first = len(x) * lane.own.start // own
                images = max(len(x) * lane.images // own, first + len(part))
                whole = part.new_empty((images, *part.shape[1:])).bernoulli_(kept, generator=lane.generator)
                part.copy_(whole[first : first + len(part)])
        return x * (mask.div_(kept) if kept else mask)


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the equal parts of all workers, on CPUs; nn.SyncBatchNorm needs CUDA."""

    def _check_input_dim(self, input: Tensor) -> None:
        return

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        if not self.training:
            return super().forward(x)
        y, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps)
        count, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        if count is not None and running_mean is not None and running_var is not None:
            count.add_(1)
            momentum = 1 / float(count) if self.momentum is None else self.momentum
            n = x.numel() // x.shape[1] * torch.distributed.get_world_size()
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (n / (n - 1)), momentum)
        return y


class _Normalize(torch.autograd.Function):
    """Normalise by the mean and the variance of all workers' parts, which are of one size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # In channels-last memory the native kernel sums so roughly that gradients are off by up to 1%.
        own = torch.stack(torch.var_mean(x.float(), dim=[0, *range(2, x.ndim)], correction=0))
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, own)
        variances, means = torch.stack(parts, dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, torch.ones_like(mean) if weight is None else weight, mean, (variance + eps).rsqrt())
        ctx.affine = weight is not None
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        # As if the statistics were of this part alone; then what the sums of all parts change, which is linear in x.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, scale, True, 0.0, [True, True, True]
        )
        own = torch.stack([dbias, dweight])
        mean_of_all = own.clone()
        torch.distributed.all_reduce(mean_of_all)
        mean_of_all /= torch.distributed.get_world_size()
        bias_change, weight_change = (own - mean_of_all) / (x.numel() // x.shape[1])
        slope = weight * scale * scale * weight_change
        offset = weight * scale * bias_change - slope * mean
        shape = [1, -1, *[1] * (x.ndim - 2)]
        dx = torch.addcmul(dx + offset.view(shape).to(dx.dtype), x, slope.view(shape).to(dx.dtype))
        return dx, *((dweight, dbias) if ctx.affine else (None, None)), None
