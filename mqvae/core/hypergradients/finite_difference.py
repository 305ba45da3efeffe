"""The paper's hypergradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.hypergradients.derivative import Derivative, OneSided, along
from mqvae.core.hypergradients.rule import (
    Hypergradient,
    HypergradientRule,
    codebook_gradient,
    embedding_tangent,
    frozen,
    scatter,
    upper_gradients,
)
from mqvae.core.look_ahead import Ahead


@dataclass(frozen=True)
class FiniteDifference(HypergradientRule):
    """The paper's difference of ∂L/∂C around φ along v_φ (Eq. 13).

        indirect = −ξ d/dτ g_C(φ + τ v_φ, C)  =  +ξ (2/ND) · scatter_k(δ)

    A codeword moves to where its embeddings are about to go. g_C does not depend on θ, so the
    decoder's share of Eq. 13 is exactly zero and needs no pass; with the codes frozen, g_C is
    linear in z_e and only the encoder's tangent δ is left to compute.

    Args:
        derivative: How to differentiate along v_φ.
        free_codes: Look the codes of the displaced embeddings up anew, as Eq. 13 read literally
            does. An embedding that changes its code then costs an error of 1/ε.

    Source: Liu et al. 2018, "DARTS"; the paper, Section 4.2.
    """

    derivative: Derivative = OneSided()
    free_codes: bool = False

    def __call__(self, ahead: Ahead) -> Hypergradient:
        lower, here = ahead.lower, ahead.here
        direct, v_phi, v_theta = upper_gradients(ahead.upper, ahead.phi, frozen(ahead.theta))
        v_phi, _ = ahead.through_step(v_phi, v_theta)
        if self.free_codes:

            def g_c(phi: list[Tensor]) -> Tensor:
                with torch.no_grad():
                    z_e = lower.embed(phi)
                return codebook_gradient(lower, z_e)

            change = along(self.derivative, g_c, here.phi, v_phi, None)
            return Hypergradient(direct, -ahead.xi * change)
        delta = embedding_tangent(self.derivative, lower, here, v_phi)
        scale = ahead.xi * (2 * lower.weights.codebook / delta.numel())
        return Hypergradient(direct, scale * scatter(lower, here.quantized.codes, delta))
