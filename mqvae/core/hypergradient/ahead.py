"""What is known when the lower level has looked ahead."""

from dataclasses import dataclass

from torch import Tensor

from mqvae.core.bilevel import Batch, LowerPass


@dataclass(frozen=True)
class Ahead:
    """What the look-ahead knows, and a hypergradient rule is a function of.

    Attributes:
        lower: The batch below, on which φ and θ step.
        upper: The batch above, on which C is judged; the paper takes `lower` itself.
        here: The pass on `lower` at (φ, θ, C).
        phi: φ' = φ − ξ g_φ, where the virtual lower step leads.
        theta: θ' = θ − ξ g_θ.
        xi: ξ, size of that step.
    """

    lower: Batch
    upper: Batch
    here: LowerPass
    phi: list[Tensor]
    theta: list[Tensor]
    xi: float
