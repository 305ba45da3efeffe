"""One bit for each dimension: no codebook."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mqvae.core.distance import Distance, Euclidean
from mqvae.core.distributed import mean_with_graph
from mqvae.core.estimator import StraightThrough
from mqvae.core.passes import full, without_autocast
from mqvae.core.quantizers.base import Quantizer
from mqvae.core.quantizers.quantized import Quantized, mean_square
from mqvae.errors import MqvaeError, above_zero, at_least

EXACT_BITS = 18  # with more, the probabilities of all codes at once take too much memory


class LookupFreeQuantizer(Quantizer):
    """LFQ: a code is the signs of an embedding, one bit for each dimension; K = 2^D.

    Codewords are the corners of a cube, s · (±1, …, ±1): s = 1, and 1/√D on the unit sphere,
    `Cosine()`, which is BSQ. The nearest is found by sign. There is no codebook to be trained and
    the gradient goes straight through; what keeps codes apart and in use is `auxiliary_loss`, of
    weight w,

        E[H(q(z_e))] − γ H(E[q(z_e)])        q(k | z) ∝ exp(−‖z − c_k‖² / T)

    in nats. As q is a product over bits, the first entropy is a sum over them; the mean of q is
    exact up to 2^18 codes, by a product of two matrices of √K columns. With more codes H(E[q]) is
    the sum over groups of at most 9 bits of the entropies of their own means, as in BSQ: an upper
    bound, which the true one reaches where the groups are independent. In training means are over
    the embeddings of all processes.

    Args:
        num_codes: Number of codes K, a power of two; D is its exponent.
        distance: Where embeddings and corners are compared: `Euclidean()`, or `Cosine()` for BSQ.
        entropy_weight: w.
        diversity: γ.
        temperature: T; at a corner a bit is certain to 1 / (1 + exp(−4 s² / T)). Published code has
            0.01, at which embeddings off the boundary have no slope left: bits that are one for all
            stay so, as they do at first where embeddings are not centred (`normalization`).
        channel_axis: The axis of the channels; None for the last.

    Raises:
        ValueError: if `num_codes` is no power of two, a weight is negative or the temperature not
            positive.

    Example:
        >>> quantizer = LookupFreeQuantizer(1024)
        >>> quantizer.dim, quantizer(torch.randn(8, 7, 7, 10)).codes.shape
        (10, torch.Size([8, 7, 7]))

    Source: Yu et al. 2023, "Language model beats diffusion: tokenizer is key to visual
    generation", Section 3.1; Zhao et al. 2024, "Image and video tokenization with binary spherical
    quantization".
    """

    corner: Tensor
    places: Tensor

    def __init__(
        self,
        num_codes: int,
        *,
        distance: Distance | None = None,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 1.0,
        channel_axis: int | None = None,
    ) -> None:
        if num_codes < 2 or num_codes & (num_codes - 1):
            larger = 2 ** max(2, num_codes.bit_length())
            raise MqvaeError(
                f"num_codes must be a power of two, one bit for each dimension, got {num_codes}: "
                f"{larger // 2} or {larger} would do."
            )
        super().__init__(num_codes, num_codes.bit_length() - 1, channel_axis=channel_axis)
        at_least(0, entropy_weight=entropy_weight, diversity=diversity)
        above_zero(temperature=temperature)
        self.distance = Euclidean() if distance is None else distance
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.temperature = temperature
        # They follow the module to its device; there is nothing in them to be saved.
        self.register_buffer("corner", self.distance.place(torch.ones(self.dim)), persistent=False)
        self.register_buffer("places", 2 ** torch.arange(self.dim), persistent=False)

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, distance={self.distance}"

    def place(self, z_e: Tensor) -> Tensor:
        return self.distance.place(z_e)

    def quantize(self, z_e: Tensor, *, mask: Tensor | None = None) -> Quantized:
        self.check_width(z_e)
        wide = full(z_e)
        with without_autocast(z_e.device):
            corner = self.corner.to(wide.dtype)
            z_q = torch.where(wide > 0, corner, -corner)
            commitment = mean_square(self.of_quantized(wide - z_q), mask)
            entropy = self._entropy(wide.reshape(-1, self.dim), mask) if self.training else None
        zero = torch.zeros_like(commitment)
        z_q = self.passed_on(z_e, StraightThrough()(z_e, z_q.to(z_e.dtype)))
        return Quantized(z_q, self._encode(z_e), commitment, zero, entropy, self.entropy_weight)

    def _entropy(self, z_e: Tensor, mask: Tensor | None) -> Tensor:
        """The auxiliary loss of placed embeddings, (N, D); means are over those of a mask."""
        # −‖z − c‖² of the two values of a bit differ by 4 s z.
        logits = 4 / self.temperature * self.corner.to(z_e.dtype) * z_e
        of_one = logits.sigmoid()
        uncertain = (softplus(logits) - logits * of_one).sum(1)
        if mask is None:
            certainty, kept = uncertain.mean(), None
            number: Tensor | int = len(z_e)
        else:
            kept = mask.reshape(-1, 1).to(z_e.dtype)  # (N, 1)
            number = kept.sum().clamp(min=1)
            certainty = (uncertain * kept[:, 0]).sum() / number
        bits = torch.stack([(-logits).sigmoid(), of_one], -1)  # (N, D, 2)
        if self.dim <= EXACT_BITS:
            low, high = bits.tensor_split([self.dim // 2], 1)
            of_low = _product(low) if kept is None else _product(low) * kept
            means = [_product(high).T @ of_low / number]  # 2^high × 2^low
        else:
            products = [_product(group) for group in bits.split(EXACT_BITS // 2, 1)]
            means = [p.mean(0) if kept is None else (p * kept).sum(0) / number for p in products]
        if torch.is_grad_enabled():  # a step, which all processes make together
            means = mean_with_graph(means)
        # What rounds to nothing has no slope.
        tiny = torch.finfo(bits.dtype).tiny
        entropies = [-(mean * mean.clamp(min=tiny).log()).sum() for mean in means]
        diversity = torch.stack(entropies).sum()
        return certainty - self.diversity * diversity

    def _encode(self, z_e: Tensor) -> Tensor:
        return ((z_e > 0) * self.places).sum(-1)

    def _decode(self, codes: Tensor) -> Tensor:
        ones = codes[..., None] // self.places % 2 == 1
        return torch.where(ones, self.corner, -self.corner)


def _product(bits: Tensor) -> Tensor:
    """Probabilities of all values of some bits, (N, 2^b), from those of each, (N, b, 2)."""
    found = bits.new_ones(len(bits), 1)
    for bit in bits.unbind(1):
        found = (bit[:, :, None] * found[:, None]).flatten(1)  # the later, the higher
    return found
