"""The hypergradient dL'/dC, Eq. 10 to 14: one rule per estimator.

A rule is a function of what the look-ahead knows: both batches, the pass at (φ, θ, C) and the
weights (φ', θ') after the virtual lower step φ' = φ − ξ g_φ, θ' = θ − ξ g_θ. It returns

    dL'/dC = g_C(φ', C)  +  indirect                                                      (Eq. 14)

g_φ, g_θ, g_C are what backpropagation gives with the straight-through estimator. They are not
the gradient of one function, so ∂g_φ/∂C and ∂g_C/∂φ are no transposes of each other, and the two
indirect terms below, which rest on the one and on the other, differ.

    symbol      here                     in the paper
    v_φ, v_θ    (g_φ, g_θ) at (φ', θ')   ∇_φ' L(φ', θ', C), ∇_θ' L(φ', θ', C)
    δ           J_φ z_e · v_φ            the change of the embeddings along v_φ
"""

from mqvae.core.hypergradients.amortized import Amortized as Amortized
from mqvae.core.hypergradients.derivative import Central as Central
from mqvae.core.hypergradients.derivative import Derivative as Derivative
from mqvae.core.hypergradients.derivative import ForwardMode as ForwardMode
from mqvae.core.hypergradients.derivative import OneSided as OneSided
from mqvae.core.hypergradients.direct import DirectOnly as DirectOnly
from mqvae.core.hypergradients.exact import Exact as Exact
from mqvae.core.hypergradients.finite_difference import FiniteDifference as FiniteDifference
from mqvae.core.hypergradients.rule import Hypergradient as Hypergradient
from mqvae.core.hypergradients.rule import HypergradientRule as HypergradientRule
from mqvae.core.hypergradients.transported import Transported as Transported
from mqvae.core.hypergradients.unrolled import Unrolled as Unrolled
from mqvae.core.look_ahead import Ahead as Ahead
