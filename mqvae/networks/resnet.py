"""ResNet18, quantized half-way (He et al. 2016; MQ-VAE, Section 5.3)."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mqvae.errors import MqvaeError, at_least, one_of
from mqvae.networks.architecture import Architecture, Inputs
from mqvae.networks.normalization import Normalization, check_normalization, norms

SMALL_SIDE = 64  # the largest that the small stem is chosen for


@dataclass(frozen=True)
class ResNet18(Architecture):
    """torchvision's ResNet18 as a classifier, cut after its second macroblock.

    The encoder is the stem, `layer1` and `layer2`; the decoder is `layer3`, `layer4`, the average
    over positions, and `fc`. Parts have torchvision's names and are made of its blocks. Between
    them are 2·base_width dimensions: for codewords of another number, a 1×1 convolution goes to
    theirs and another comes back.

    For images of up to 64 pixels a side the stem is what everybody takes on CIFAR, a 3×3
    convolution of stride 1 and no max-pool, so that 28 × 28 pixels have 14 × 14 embeddings; above,
    it is the original's 7×7 of stride 2 and the max-pool, and 224 × 224 pixels have 28 × 28.
    With "imagenet" it is the original's at any side, as torchvision's own network runs on small
    images: 28 × 28 pixels then have 4 × 4 embeddings.

    Batch norm in several processes: each normalizes by its own share of a batch, as
    DistributedDataParallel leaves it; what is measured and saved has the first one's statistics.

    Args:
        base_width: Channels of the stem and of `layer1`; the original has 64.
        stem: "small" or "imagenet" (default: by the images' side).
        normalization: Of embeddings before they are quantized, as in `VQVAE`.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", Table 1.
    """

    base_width: int = 64
    stem: Literal["small", "imagenet"] | None = None
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        at_least(1, base_width=self.base_width)
        one_of(("small", "imagenet", None), stem=self.stem)
        check_normalization(self.normalization)

    def check(self, inputs: Inputs) -> None:
        if inputs.classes < 2:
            raise MqvaeError(
                f"ResNet18 tells 2 or more classes apart, got {inputs.classes}: take images that "
                "have labels, in class folders or as .cls in shards, and no --data.classes 1."
            )
        # Rounded up, layer4 then still halves what is left a last time.
        least = 8 if self._small(inputs.side) else 17
        if inputs.side < least:
            advice = "" if least == 8 else ", or --network.stem small"
            raise MqvaeError(
                f"ResNet18 takes images of {least} pixels a side or more, got {inputs.side}: "
                f"--size {least}{advice}."
            )

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        width, half = self.base_width, 2 * self.base_width
        encoder = OrderedDict[str, nn.Module]()
        kernel, stride, padding = (3, 1, 1) if self._small(inputs.side) else (7, 2, 3)
        encoder["conv1"] = nn.Conv2d(inputs.channels, width, kernel, stride, padding, bias=False)
        encoder["bn1"] = nn.BatchNorm2d(width)
        encoder["relu"] = nn.ReLU()
        if not self._small(inputs.side):
            encoder["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
        encoder["layer1"] = _macroblock(width, width)
        encoder["layer2"] = _macroblock(width, half)
        decoder = OrderedDict[str, nn.Module](
            layer3=_macroblock(half, 2 * half),
            layer4=_macroblock(2 * half, 4 * half),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * half, inputs.classes),
        )
        for part in nn.ModuleList([*encoder.values(), *decoder.values()]).modules():
            if isinstance(part, nn.Conv2d):  # as torchvision does it
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        if dim != half:
            encoder["to_codes"] = nn.Conv2d(half, dim, 1)
            decoder["from_codes"] = nn.Conv2d(dim, half, 1)
            decoder.move_to_end("from_codes", last=False)
        for layer in norms(self.normalization, dim):
            encoder["normalization"] = layer
        return nn.Sequential(encoder), nn.Sequential(decoder)

    def _small(self, side: int) -> bool:
        return self.stem == "small" or (self.stem is None and side <= SMALL_SIDE)


def _macroblock(channels: int, width: int) -> nn.Sequential:
    """Two of torchvision's basic blocks; with another width than before, the first has stride 2."""
    from torchvision.models.resnet import BasicBlock

    first = BasicBlock(channels, width)
    if channels != width:
        conv = nn.Conv2d(channels, width, 1, stride=2, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        first = BasicBlock(channels, width, 2, shortcut)
    return nn.Sequential(first, BasicBlock(width, width))
