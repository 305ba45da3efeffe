"""LPIPS, a perceptual distance of images."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mqvae.core.passes import full
from mqvae.tasks.reconstruction import Reconstruction
from mqvae.tasks.task import Measurement, Picture
from mqvae.weights import NETWORKS, Weights, WeightsNotFound, lpips_heads, read

PART = 64  # images that the network is measured on at once
SMALLEST = 16  # pixels a side of which VGG16 has something left

# Mean and deviation of ImageNet, for images in [−1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """LPIPS: images in [0, 1] → the distance of each pair, (B,).

        Σ_l mean_hw Σ_c w_lc (â_lc − b̂_lc)²

    â and b̂ are what five layers of the network make of output and target, each position at unit
    length; w are LPIPS' trained heads. Nothing in it trains, and no gradient goes to the target.
    Grey images are repeated to three channels. The network is "vgg16" or "alexnet", its weights
    those on this machine if none are given.

    Raises:
        WeightsNotFound: if they are not there.

    Source:
        Zhang et al. 2018, "The unreasonable effectiveness of deep features".
    """

    def __init__(self, weights: Weights | None = None, *, network: str = "vgg16") -> None:
        super().__init__()
        try:
            weights = weights or read(network)
        except WeightsNotFound as error:
            raise WeightsNotFound(
                f"the perceptual loss needs a trained network: {error} To train without it, "
                "--task.perceptual_weight 0."
            ) from error
        layers = NETWORKS[network].features()
        layers.load_state_dict(weights.tensors, assign=True)
        if network == "vgg16":  # what is compared comes before each pool, of AlexNet from each ReLU
            ends = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        else:
            ends = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
        self.blocks = nn.ModuleList(layers[a:b] for a, b in pairwise([0, *ends]))
        heads = lpips_heads(NETWORKS[network])
        self.heads = nn.ParameterList(head[:, None, None] for head in heads)  # (C, 1, 1)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        a, b = self._prepared(output), self._prepared(target)
        distance = torch.zeros(len(output), device=output.device)
        for block, head in zip(self.blocks, self.heads, strict=True):
            a = block(a)
            with torch.no_grad():
                b = block(b)
            apart = (_unit(a) - _unit(b)).square()  # (B, C, h, w)
            distance = distance + (head * apart).sum(1).mean((1, 2))  # (B,)
        return distance

    def _prepared(self, images: Tensor) -> Tensor:
        assert isinstance(self.shift, Tensor) and isinstance(self.scale, Tensor)
        return (2 * images.expand(-1, 3, -1, -1) - 1 - self.shift) / self.scale


def _unit(features: Tensor) -> Tensor:
    features = full(features)
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()


class PixelAndPerceptualErrors(Measurement):
    """Errors of pixels, and the mean perceptual distance where there is a network for it."""

    def __init__(self, distance: PerceptualDistance | None) -> None:
        self.errors = Reconstruction().measurement()
        self.distance = distance
        self.sums = torch.zeros(2, dtype=torch.float64)  # of distances, of images

    def update(self, output: Tensor, target: Tensor) -> None:
        self.errors.update(output, target)
        if self.distance is None:
            return
        for pair in zip(output.split(PART), target.split(PART), strict=True):
            with torch.no_grad():
                distances = self.distance(*map(full, pair)).cpu().double()
            self.sums += torch.tensor([distances.sum(), len(distances)], dtype=torch.float64)

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        found = self.errors.compute(total)
        if self.distance is not None:
            distances, images = total(self.sums).tolist()
            found["perceptual_loss"] = distances / images
        return found

    def show(self, x: Tensor, output: Tensor) -> Sequence[Picture]:
        return self.errors.show(x, output)
