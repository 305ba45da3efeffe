"""Trained networks whose encoder and decoder stay as they are, and codes of a given entropy."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mqvae import Tokenizer, VQNetwork
from mqvae.core.nearest import nearest

ROUNDS = 3  # in which codes and what they cost are found in turn
HALVINGS = 7  # of the interval that the price of a bit is searched in


class Frozen:
    """Encoder and decoder of a trained network, without gradients of their own.

    Args:
        network: A network of images whose codes are a grid; it is copied.
    """

    def __init__(self, network: VQNetwork) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        quantizer: Any = self.network.quantizer  # one with a table
        self.codebook: Tensor = quantizer.table().detach().clone()  # (K, D)

    @classmethod
    def of_run(cls, folder: Path) -> "Frozen":
        """That of a run's last checkpoint."""
        return cls(Tokenizer.from_run(folder, device="cpu").network)

    @torch.no_grad()
    def embed(self, images: Tensor, batch_size: int = 128) -> Tensor:
        """Embeddings of images (N, C, H, W), (N, P, D) for P positions."""
        parts = [self.network.embed(part).flatten(1, 2) for part in images.split(batch_size)]
        return torch.cat(parts)

    def decode(self, z: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Images of vectors (N, P, D), by this decoder or another of its kind."""
        side = math.isqrt(z.shape[1])
        grid = self.network.channels_back(z.unflatten(1, (side, side)))
        return (decoder or self.network.decoder)(grid)


def entropy(codes: Tensor, num_codes: int) -> float:
    """−Σ p log₂ p of how often each code is among `codes`, in bits a code."""
    p = torch.bincount(codes.flatten(), minlength=num_codes) / codes.numel()
    return float(torch.special.entr(p).sum() / math.log(2))


def nearest_codes(z: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    """The codes of embeddings (..., D), (...)."""
    return nearest(z.reshape(-1, z.shape[-1]), codebook, price).view(z.shape[:-1])


@torch.no_grad()
def codes_at(z: Tensor, codebook: Tensor, bits: float) -> Tensor:
    """Codes of embeddings (N, P, D) whose entropy is at most `bits`, of least distortion.

    Where the nearest codes cost more, a code is chosen by ‖z − c_k‖² + λ (−log₂ p_k), with p the
    frequencies of the codes themselves and λ the smallest of a bisection that is enough.
    """
    num_codes = len(codebook)
    first = nearest_codes(z, codebook)
    if entropy(first, num_codes) <= bits:
        return first

    def at(multiplier: float) -> Tensor:
        codes = first
        for _ in range(ROUNDS):
            p = torch.bincount(codes.flatten(), minlength=num_codes) / codes.numel()
            price = -multiplier * p.clamp(min=0.1 / codes.numel()).log2()
            codes = nearest_codes(z, codebook, price)
        return codes

    spread = float((z - codebook[first]).square().sum(-1).mean())
    low, high = math.log(1e-3 * spread + 1e-12), math.log(10 * spread + 1e-9)
    best = at(math.exp(high))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        codes = at(math.exp(middle))
        if entropy(codes, num_codes) <= bits:
            best, high = codes, middle
        else:
            low = middle
    return best
