"""The patch discriminator (Isola et al. 2017, "Image-to-image translation", Section 3.2.2)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from mqvae.core.distributed import mean_with_graph, process_rank, shared, world_size
from mqvae.core.passes import full
from mqvae.errors import MqvaeError, at_least, at_most

WIDEST = 8  # times the width of the first layer
MOST_LAYERS = 32  # each of which takes images of twice the side


class PatchDiscriminator(nn.Module):
    """Images (B, channels, H, W) → logits (B, 1, h, w), one for each patch: above 0 if it is real.

    4×4 convolutions of stride 2, each twice as wide as the one before, and two of stride 1; batch
    norm in all but the first and the last. With 3 layers a patch has 70 × 70 pixels.

    Args:
        channels: Of the images.
        width: Channels of the first layer.
        layers: Convolutions of stride 2.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, channels: int = 3, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        at_least(1, width=width, layers=layers)
        at_most(MOST_LAYERS, layers=layers)
        self.smallest = 3 * 2**layers  # pixels a side of which one logit is left
        widths = [width * min(2**i, WIDEST) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1)]
        for i, (inside, outside) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < layers else 1
            conv = nn.Conv2d(inside, outside, 4, stride=stride, padding=1, bias=False)
            parts += [nn.LeakyReLU(0.2), conv, JointBatchNorm(outside)]
        parts += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 4, padding=1)]
        self.layers = nn.Sequential(*parts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def check(self, height: int, width: int) -> None:
        """Refuse, by a ValueError that names the smallest, images that no logit is left of."""
        if min(height, width) < self.smallest:
            raise MqvaeError(
                f"this discriminator needs images of {self.smallest} × {self.smallest} pixels or "
                f"more, got {height} × {width}: give it fewer layers."
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class JointBatchNorm(nn.Module):
    """Batch norm over the joined batch of all processes, which need not be on GPUs.

    In one process it is `BatchNorm2d`. All processes must have equal shares of the batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        own = self.own
        if not self.training or world_size() == 1:
            return own(x)
        if forward_ad.unpack_dual(x).tangent is not None:
            raise MqvaeError(
                "forward mode does not reach what several processes share, here the "
                "discriminator's batch statistics: differentiate by differences, as Exact() does "
                "by itself, or train in one process."
            )
        dtype, x = x.dtype, full(x)
        # Of means and variances by process, for E[x²] − E[x]² loses a variance that is small beside
        # the mean. Each fills in its own; the mean over processes is a share of all of them.
        here = torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)])  # (2, channels)
        own_place = functional.one_hot(torch.tensor(process_rank()), world_size()).to(here)
        filled = own_place[:, None, None] * here  # (processes, 2, channels)
        (moments,) = shared(mean_with_graph([filled]))
        means, variances = (moments * world_size()).unbind(1)  # (processes, channels) each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        with torch.no_grad():
            number = x.numel() // x.shape[1] * world_size()
            assert own.running_mean is not None and own.running_var is not None
            assert own.num_batches_tracked is not None and own.momentum is not None
            own.running_mean.lerp_(mean, own.momentum)
            own.running_var.lerp_(variance * (number / (number - 1)), own.momentum)
            own.num_batches_tracked += 1
        scale = own.weight * (variance + own.eps).rsqrt()  # (channels,)
        centred = x - mean[:, None, None]
        return (centred * scale[:, None, None] + own.bias[:, None, None]).to(dtype)
