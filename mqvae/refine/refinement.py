"""How codes are refined."""

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mqvae.errors import MqvaeError


class Prior(Protocol):
    """What says how many bits codes cost where they are, such as a `CodePrior`."""

    def prices(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of all codes of each image, and of them with another code at one place.

        Shapes are those of `CodePrior.prices`; the latter are up to a constant of each place.
        """

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Refinement:
    """How codes are refined: annealing, then steps that make good one position's error by others.

    The last 10 passes, or all if there are no more, are Gauss-Newton steps. With δ the change of
    z_q by other codes, J the decoder's Jacobian and g the gradient by z_q, which a pass tells,

        L_task(G_θ(z_q + δ))  ≈  L_task(G_θ(z_q)) + gᵀδ + ½ μ δᵀ JᵀJ δ

    Each position in turn takes the code that minimizes this, given what the others have taken: so
    errors are carried to those not yet chosen, as GPTQ does for weights. JᵀJ is taken as the same
    at every position, and 0 beyond neighbours. The damping μ is each image's own: it falls after a
    step that was better, and rises after one that was worse, which is undone.

    Passes before these are stochastic Gumbel annealing over the 8 nearest codes of each position,

        z_q = Σ_k softmax((ℓ + noise) / τ)_k e_k            L_task(G_θ(z_q)) → min over ℓ

    with ℓ from distances at first, Adam, and τ falling from 1 to 0.4. Noise follows from the seed
    and the image's pixels alone, so the codes of an image do not depend on other images. No image
    ends with a higher loss than its nearest codes have.

    Args:
        passes: Passes through the decoder and back, for every image.
        bits_weight: λ, what a bit of the codes of an image may cost in task loss, where the
            quantizer has a rate or a prior is given: then loss + λ · bits is minimized and never
            higher. With 0 codes may become rarer, which costs bits where they are entropy-coded.
        seed: Of the noise.
        prior: What counts the bits in place of the quantizer, given neighbouring codes.

    Raises:
        MqvaeError: if a number is out of range.

    Example:
        >>> codes = tokenizer.encode(images, refine=mqvae.Refinement(10, bits_weight=1e-5))

    Source: Frantar et al. 2022, "GPTQ: accurate post-training quantization", for carried errors;
    Yang, Bamler & Mandt 2020, "Improving inference for neural image compression", for annealing.
    """

    passes: int = 10
    bits_weight: float = 0.0
    seed: int = 0
    prior: Prior | None = None

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise MqvaeError(f"refinement takes 1 pass or more, got {self.passes}.")
        if not 0 <= self.bits_weight < math.inf:
            raise MqvaeError(f"bits_weight must be 0 or more, got {self.bits_weight}.")
        if self.prior is not None and not self.bits_weight:
            raise MqvaeError("a prior counts bits, which weigh nothing: add bits_weight=1e-5.")

    @classmethod
    def of(cls, refine: "int | Refinement | None") -> "Refinement | None":
        """A number of passes as the refinement that takes so many; anything else as it is."""
        return cls(refine) if isinstance(refine, int) else refine

    def __str__(self) -> str:
        under = "" if self.prior is None else f", bits under prior {_digest(self.prior)}"
        return (
            f"refined by {self.passes} passes, bits_weight {self.bits_weight:g}{under}, "
            f"seed {self.seed}"
        )


def _digest(prior: Prior) -> str:
    """Of its weights: codes that were refined by another prior are other codes."""
    digest = hashlib.blake2b(digest_size=4)
    for name, tensor in sorted(prior.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
