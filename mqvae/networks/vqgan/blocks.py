"""What the VQ-GAN's encoder and decoder are made of (Esser et al. 2021, Appendix A.1)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

GROUPS = 32

Through = Callable[[nn.Module, Tensor], Tensor]
"""How an input goes through a block."""


def directly(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, its graph kept."""
    return block(x)


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, whose graph is made again when its gradient is wanted: only `x` is kept."""
    if not torch.is_grad_enabled():
        return block(x)
    # A pass at other weights has put its own back by the time that the graph is made again, so
    # the weights of now are handed over.
    names, weights = zip(*block.named_parameters(), strict=True)

    def again(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(block, dict(zip(names, weights, strict=True)), (x,))

    return checkpoint(again, x, *weights, use_reentrant=False)


def group_norm(width: int, least: int = 4) -> nn.GroupNorm:
    """In 32 groups, or in fewer, that divide the width, so that each has some channels.

    A group of one channel would lose its mean: no image could be brighter than another.
    """
    most = max(1, min(GROUPS, width // least))
    groups = next(g for g in range(most, 0, -1) if width % g == 0)
    return nn.GroupNorm(groups, width, eps=1e-6)


class Residual(nn.Module):
    """x + (norm, swish, 3×3, norm, swish, dropout, 3×3)(x), x by a 1×1 where widths differ.

    A norm's groups have `least` channels or more.
    """

    def __init__(self, channels: int, width: int, dropout: float, least: int = 4) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, least)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = group_norm(width, least)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """x + what each of N positions takes from all of them, with one head over C channels."""

    def __init__(self, width: int, least: int = 4) -> None:
        super().__init__()
        self.norm = group_norm(width, least)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, C, N) each
        query, key, value = (part(h).flatten(2) for part in (self.query, self.key, self.value))
        # Written out: the fused kernels have no forward mode and no second derivative.
        scores = query.transpose(1, 2) @ key * query.shape[1] ** -0.5  # (B, N, N)
        taken = value @ scores.softmax(-1).transpose(1, 2)  # (B, C, N)
        return x + self.out(taken.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Half the side: a 3×3 convolution of stride 2, padded on the right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: every number four times, then a 3×3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each of them, and the way to the next."""

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        blocks: int,
        attention: bool,
        resample: nn.Module,
        dropout: float,
        least: int,
        through: Through,
    ) -> None:
        super().__init__()
        self.through = through
        self.residual = nn.ModuleList(
            Residual(width if i else channels, width, dropout, least) for i in range(blocks)
        )
        self.attention = nn.ModuleList(
            Attention(width, least) for _ in range(blocks if attention else 0)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, residual in enumerate(self.residual):
            x = self.through(residual, x)
            if self.attention:
                x = self.through(self.attention[i], x)
        return self.resample(x)


class Middle(nn.Sequential):
    """Residual block, attention, residual block."""

    def __init__(self, width: int, *, dropout: float, least: int, through: Through) -> None:
        super().__init__(
            Residual(width, width, dropout, least),
            Attention(width, least),
            Residual(width, width, dropout, least),
        )
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.through(block, x)
        return x
