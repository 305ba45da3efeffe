"""What a quantizer gives."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mqvae.core.passes import full
from mqvae.errors import MqvaeError
from mqvae.shown import Shown


@dataclass(frozen=True, repr=False)
class Quantized(Shown):
    """What a quantizer makes of embeddings z_e of shape (..., D).

    Attributes:
        z_q: ẑ, what the decoder gets, (..., D). For a nearest-codeword quantizer its value is the
            selected codewords to the bit and its gradient goes to z_e (Eq. 3).
        codes: Indices of the codewords, (...) int64, or (..., G) with G > 1 codes an embedding; −1
            where a mask leaves an embedding out, or dropout a stage.
        commitment_loss: mean ‖z_e − sg(z_q)‖² over all numbers (Eq. 4), unweighted scalar.
        codebook_loss: mean ‖sg(z_e) − z_q‖² over all numbers (Eq. 5), unweighted scalar.
        auxiliary_loss: The quantizer's own loss term, unweighted scalar: Gumbel-VQ's divergence of
            the codes from uniform, LFQ's entropies; None for quantizers without one.
        auxiliary_weight: Its weight in the total loss, which the quantizer sets.
        num_codes: Number K of values of a code, from `forward`; 0 where it is not said.
        groups: Number G of codes of an embedding.
    """

    z_q: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    auxiliary_loss: Tensor | None = None
    auxiliary_weight: float = 0.0
    num_codes: int = field(default=0, repr=False)
    groups: int = field(default=1, repr=False)

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy (in nats) of this batch's codes, averaged over groups; a scalar.

        It is computed when asked for, and nothing waits for a GPU. Positions that a mask leaves out
        do not count.
        """
        counts = self._counts().float()
        p = counts / counts.sum(1, keepdim=True).clamp(min=1)
        return torch.special.entr(p).sum(1).exp().mean()

    @property
    def usage(self) -> Tensor:
        """Share of codes that this batch chose, averaged over groups; a scalar in [0, 1].

        Raises:
            MqvaeError: if it is not known how many codes there are.
        """
        if not self.num_codes:
            raise MqvaeError(
                "usage is a share of all codes, whose number `forward` says and `quantize` does "
                "not: call the quantizer itself."
            )
        return (self._counts() > 0).sum(1).float().mean() / self.num_codes

    def _counts(self) -> Tensor:
        """How often each code that occurs was chosen, ascending, (G, N) with zeros at the end."""
        ordered = self.codes.detach().reshape(-1, self.groups).T.sort(1).values  # (G, N)
        differs = (ordered[:, 1:] != ordered[:, :-1]).long()
        place = nn.functional.pad(differs.cumsum(1), (1, 0)) if ordered.shape[1] else ordered
        return torch.zeros_like(ordered).scatter_add_(1, place, (ordered >= 0).long())


# Exported programs and wrappers of modules look for tensors in what a module gives.
torch.export.register_dataclass(Quantized, serialized_type_name="mqvae.Quantized")


def mean_square(difference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of squares over all numbers (..., D), or over those of a mask, (...) bool."""
    if mask is None:
        return difference.square().mean()
    kept = difference.masked_fill(~mask[..., None], 0).square().sum()
    return kept / (mask.sum() * difference.shape[-1]).clamp(min=1)


def no_loss(z_e: Tensor) -> Tensor:
    """Zero, in float32 at least."""
    return full(z_e.new_zeros(()))
