"""How the gradient passes the quantizer: from ẑ, which the decoder gets, back to z_e."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class Estimator(ABC):
    """Base class of gradient estimators: ẑ from embeddings and their codewords.

    Called with z_e and z_q, (..., D); returns ẑ, (..., D), whose value is z_q.
    """

    straight: ClassVar[bool] = False
    """Whether the gradient goes to z_e as it comes. A quantizer may then make ẑ and its losses at
    once, and what differentiates the step knows that ẑ depends on the codebook in no other way."""

    @abstractmethod
    def __call__(self, z_e: Tensor, z_q: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class StraightThrough(Estimator):
    """The gradient goes to z_e unchanged: ẑ = z_e + sg(z_q − z_e), without its rounding (Eq. 3).

    Source: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".
    """

    straight = True

    def __call__(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        return z_q.detach() + (z_e - z_e.detach())


@dataclass(frozen=True)
class Rotation(Estimator):
    """The gradient is rotated and scaled as z_e is to become z_q: ẑ = sg(λ R) z_e.

    R is the rotation of z_e/‖z_e‖ to z_q/‖z_q‖ in their plane, λ = ‖z_q‖ / ‖z_e‖. The gradient
    z_e gets is λ Rᵀ g, so that its angle to z_e is the one g has to z_q. With several groups each
    part of an embedding turns by itself only if it is quantized by itself; here the whole turns.

    Source: Fifty et al. 2024, "Restructuring vector quantization with the rotation trick".
    """

    def __call__(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        target = z_q.detach()
        wide = torch.promote_types(z_e.dtype, torch.float32)
        with torch.no_grad():
            tiny = torch.finfo(wide).tiny ** 0.5
            start, end = z_e.to(wide), target.to(wide)
            size, goal = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
            # Nothing has no direction to turn from, and no length to scale: straight through.
            nothing = size <= tiny
            q = end / goal.clamp(min=tiny)
            p = torch.where(nothing, q, start / size.clamp(min=tiny))
            # R x = x − 2 r (r·x) + 2 q (p·x) with r the unit vector between p and q.
            r = p + q
            r = r / r.norm(dim=-1, keepdim=True).clamp(min=tiny)
            scale = torch.where(nothing, 1.0, goal / size.clamp(min=tiny))
        x = z_e.to(wide)
        turned = x - 2 * r * (r * x).sum(-1, keepdim=True) + 2 * q * (p * x).sum(-1, keepdim=True)
        turned = (scale * turned).to(z_e.dtype)
        # The value is the codeword's to the bit, whatever the rotation rounds.
        return target + (turned - turned.detach())
