"""The hypergradient dL'/dC, Eq. 10 to 14: one rule per estimator.

A rule is a function of the batch below, the pass made on it at (φ, θ, C), the batch above and the
weights (φ', θ') after the virtual lower step φ' = φ − ξ g_φ, θ' = θ − ξ g_θ. It returns

    dL'/dC = g_C(φ', C)  +  indirect                                                      (Eq. 14)

g_φ, g_θ, g_C are what backpropagation gives with the straight-through estimator. They are not
the gradient of one function, so ∂g_φ/∂C and ∂g_C/∂φ are no transposes of each other, and the two
indirect terms below, which rest on the one and on the other, differ.

    symbol      here                     in the paper
    v_φ, v_θ    (g_φ, g_θ) at (φ', θ')   ∇_φ' L(φ', θ', C), ∇_θ' L(φ', θ', C)
    δ           J_φ z_e · v_φ            the change of the embeddings along v_φ
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mqvae.core.bilevel import Batch, Gradients, LowerPass, gradient, moved
from mqvae.core.distributed import mean_across_processes, mean_with_graph, shared
from mqvae.core.estimator import StraightThrough
from mqvae.core.network import VQNetwork
from mqvae.core.quantizer import CodebookQuantizer


@dataclass(frozen=True)
class Hypergradient:
    """dL'/dC = direct + indirect, each of the codebook's shape (K, D)."""

    direct: Tensor
    indirect: Tensor


class HypergradientRule(ABC):
    """An estimator of dL'/dC."""

    def check(self, quantizer: CodebookQuantizer, look_ahead: object) -> None:  # noqa: B027
        """Refuse what the rule is not right for; by default it is right for everything.

        Raises:
            ValueError: with the reason.
        """

    @abstractmethod
    def __call__(
        self,
        lower: Batch,
        here: LowerPass,
        upper: Batch,
        phi_ahead: list[Tensor],
        theta_ahead: list[Tensor],
        xi: float,
    ) -> Hypergradient: ...


class Derivative(ABC):
    """The derivative of f(p) along a tangent: d/dτ f(p + τ·tangent) at τ = 0.

    Called with f, the point p, the tangent (None where p does not move) and f(p) if it is known.
    """

    @abstractmethod
    def __call__(
        self,
        f: Callable[[list[Tensor]], Tensor],
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
    ) -> Tensor: ...


def _check_radius(radius: float) -> None:
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius must be above 0 and finite, got {radius}.")


def _radius(radius: float, tangents: Gradients) -> Tensor:
    """ε = radius / ‖tangent‖, so that the step is as long whatever the tangent's scale."""
    norm = torch.stack([t.norm() for t in tangents if t is not None]).norm()
    return radius / norm.clamp(min=torch.finfo(norm.dtype).tiny ** 0.5)


@dataclass(frozen=True)
class OneSided(Derivative):
    """(f(p + εt) − f(p)) / ε with ε = radius / ‖t‖: one pass where f(p) is known; error O(ε).

    Args:
        radius: Length of the step, in units of the parameters.

    Raises:
        ValueError: if `radius` is not above 0 and finite.
    """

    radius: float = 0.01

    def __post_init__(self) -> None:
        _check_radius(self.radius)

    def __call__(
        self,
        f: Callable[[list[Tensor]], Tensor],
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
    ) -> Tensor:
        epsilon = _radius(self.radius, tangents)
        ahead = f(moved(primals, tangents, epsilon))
        return (ahead - (f(list(primals)) if centre is None else centre)) / epsilon


@dataclass(frozen=True)
class Central(Derivative):
    """(f(p + εt) − f(p − εt)) / 2ε with ε = radius / ‖t‖: two passes, error O(ε²).

    Args:
        radius: Length of the step, in units of the parameters.

    Raises:
        ValueError: if `radius` is not above 0 and finite.
    """

    radius: float = 0.01

    def __post_init__(self) -> None:
        _check_radius(self.radius)

    def __call__(
        self,
        f: Callable[[list[Tensor]], Tensor],
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
    ) -> Tensor:
        epsilon = _radius(self.radius, tangents)
        plus = f(moved(primals, tangents, epsilon))
        minus = f(moved(primals, tangents, -epsilon))
        return (plus - minus) / (2 * epsilon)


@dataclass(frozen=True)
class ForwardMode(Derivative):
    """Forward-mode differentiation: exact, about two passes.

    Every operation of the network and, for `Exact`, of the loss must support it. `mse_loss` of
    some torch versions does not: write the square out, as `mqvae.tasks` does.
    """

    def __call__(
        self,
        f: Callable[[list[Tensor]], Tensor],
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
    ) -> Tensor:
        with warnings.catch_warnings(), forward_ad.dual_level():
            # The first use of forward mode makes torch script some formulas, and warn of it.
            warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
            point = [
                p.detach() if t is None else forward_ad.make_dual(p.detach(), t)
                for p, t in zip(primals, tangents, strict=True)
            ]
            primal, tangent = forward_ad.unpack_dual(f(point))
        return torch.zeros_like(primal) if tangent is None else tangent


@dataclass(frozen=True)
class DirectOnly(HypergradientRule):
    """No indirect term: the codebook loss at φ' (Eq. 20; Appendix F's stop-gradient).

    Costs one forward pass of the encoder.
    """

    def __call__(
        self,
        lower: Batch,
        here: LowerPass,
        upper: Batch,
        phi_ahead: list[Tensor],
        theta_ahead: list[Tensor],
        xi: float,
    ) -> Hypergradient:
        with torch.no_grad():
            z_e = upper.embed(phi_ahead)
        direct = codebook_gradient(upper, z_e)
        return Hypergradient(direct, torch.zeros_like(direct))


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

    def __call__(
        self,
        lower: Batch,
        here: LowerPass,
        upper: Batch,
        phi_ahead: list[Tensor],
        theta_ahead: list[Tensor],
        xi: float,
    ) -> Hypergradient:
        direct, v_phi, _ = upper_gradients(upper, phi_ahead, _frozen(theta_ahead))
        v_phi, _ = here.through_step(v_phi, [None] * len(theta_ahead))
        if self.free_codes:

            def g_c(phi: list[Tensor]) -> Tensor:
                with torch.no_grad():
                    z_e = lower.embed(phi)
                return codebook_gradient(lower, z_e)

            change = along(self.derivative, g_c, here.phi, v_phi, None)
            return Hypergradient(direct, -xi * change)
        delta = embedding_tangent(self.derivative, lower, here, v_phi)
        scale = 2 * lower.weights.codebook / delta.numel()
        return Hypergradient(direct, xi * scale * scatter(lower, here, delta))


@dataclass(frozen=True)
class Exact(HypergradientRule):
    """The derivative of the straight-through update itself (Eq. 14, 28, 29).

        indirect = −ξ scatter_k( d/dτ ∇_z L_task(G_{θ + τ v_θ}(z_q + τ δ)) − (2β/ND) δ )

    Codes are frozen: they are piecewise constant. This is ∂φ'/∂C · v_φ + ∂θ'/∂C · v_θ without a
    double backward pass: one tangent of the encoder, one directional derivative of the decoder's
    input gradient. Through the latter the task loss reaches C.

    Args:
        tangent: How to differentiate the encoder, for δ.
        curvature: How to differentiate the decoder's input gradient. That gradient jumps wherever
            a ReLU switches, and a jump counts 1/ε: hence the wide step, which a VQ-VAE's
            reconstruction takes with an error of 2 to 15%, where 0.01 costs up to 65%.
            `ForwardMode()` has no such error and takes the passes of 4 decoders more.
    """

    tangent: Derivative = OneSided()
    curvature: Derivative = OneSided(radius=1.0)

    def check(self, quantizer: CodebookQuantizer, look_ahead: object) -> None:
        require_straight_through(quantizer, "Exact")

    def __call__(
        self,
        lower: Batch,
        here: LowerPass,
        upper: Batch,
        phi_ahead: list[Tensor],
        theta_ahead: list[Tensor],
        xi: float,
    ) -> Hypergradient:
        direct, v_phi, v_theta = upper_gradients(upper, phi_ahead, theta_ahead)
        v_phi, v_theta = here.through_step(v_phi, v_theta)
        delta = embedding_tangent(self.tangent, lower, here, v_phi)

        def task_gradient(point: list[Tensor]) -> Tensor:
            z, *theta = point
            with torch.enable_grad():
                z = z.requires_grad_()
                return torch.autograd.grad(lower.task(z, theta), z)[0]

        z_q = here.quantized.z_q.detach().to(delta.dtype)
        change = along(
            self.curvature,
            task_gradient,
            [z_q, *_frozen(here.theta)],
            [delta, *v_theta],
            here.task_gradient,
        )
        change = change - 2 * lower.weights.commitment / delta.numel() * delta
        return Hypergradient(direct, -xi * scatter(lower, here, change))


@dataclass(frozen=True)
class Unrolled(HypergradientRule):
    """Reverse mode through k virtual steps, the graph kept (Section 4.2, Appendix F).

    With one step it equals `Exact`. Memory and time grow with k: every step holds the graph of its
    gradient. Codes are looked up anew at each step and frozen within it.

    Args:
        steps: Number k of virtual steps of plain descent.
        stop_gradients: Detach φ and θ from C between the steps: a k-step look-ahead of which only
            the direct term is left.

    Raises:
        ValueError: if `steps` is not positive.
    """

    steps: int = 1
    stop_gradients: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}.")

    def check(self, quantizer: CodebookQuantizer, look_ahead: object) -> None:
        require_straight_through(quantizer, "Unrolled")
        if getattr(look_ahead, "optimizer_step", True):
            raise ValueError(
                "Unrolled differentiates plain descent: use it with look_ahead=Undone(), whose "
                "virtual step is not the optimizer's."
            )

    def __call__(
        self,
        lower: Batch,
        here: LowerPass,
        upper: Batch,
        phi_ahead: list[Tensor],
        theta_ahead: list[Tensor],
        xi: float,
    ) -> Hypergradient:
        table = selecting(lower.network).table().detach().requires_grad_()
        ends, cut = [*here.phi, *here.theta], len(here.phi)
        for _ in range(self.steps):
            # The steps are those of all processes together: each has its own share of g alone.
            here_all = shared(ends)
            g = mean_with_graph(_update_field(lower, here_all[:cut], here_all[cut:], table))
            ends = [p if d is None else p - xi * d for p, d in zip(ends, g, strict=True)]
            if self.stop_gradients:
                ends = [p.detach().requires_grad_(p.requires_grad) for p in ends]
        leaves = [e.detach().requires_grad_(e.requires_grad) for e in ends]
        direct, v_phi, v_theta = upper_gradients(upper, leaves[:cut], leaves[cut:])
        reached = [
            (e * v).sum() for e, v in zip(ends, [*v_phi, *v_theta], strict=True) if v is not None
        ]
        if not reached:
            return Hypergradient(direct, torch.zeros_like(direct))
        (indirect,) = gradient(torch.stack(reached).sum(), [table])
        return Hypergradient(direct, torch.zeros_like(direct) if indirect is None else indirect)


def _update_field(batch: Batch, phi: list[Tensor], theta: list[Tensor], table: Tensor) -> Gradients:
    """[*g_φ, *g_θ] of the straight-through estimator, differentiable by φ, θ and C."""
    quantizer = selecting(batch.network)
    z_e = batch.embed(phi)
    z_q = quantizer.lookup(quantizer.nearest_codes(z_e, table), table)
    to_z, *g_theta = gradient(batch.task(z_q, theta), [z_q, *theta], create_graph=True)
    cotangent = 2 * batch.weights.commitment / z_e.numel() * (z_e - z_q)
    if to_z is not None:
        cotangent = cotangent + to_z
    # Not through ẑ = z_e + sg(z_q − z_e): its second derivative would see z_e where z_q is meant.
    return [*gradient(z_e, phi, cotangent=cotangent, create_graph=True), *g_theta]


def selecting(network: VQNetwork) -> CodebookQuantizer:
    """The network's quantizer, which selects from a codebook.

    Raises:
        ValueError: if it does not; its codebook then has no commitment and codebook loss to
            look ahead with.
    """
    quantizer = network.quantizer
    if not isinstance(quantizer, CodebookQuantizer):
        raise ValueError(
            f"this rule needs a quantizer that selects the nearest codeword, got a "
            f"{type(quantizer).__name__}: its codebook, if any, gets the gradient of the task loss "
            "itself. Train it with Joint."
        )
    return quantizer


def require_straight_through(quantizer: CodebookQuantizer, rule: str) -> None:
    """Refuse estimators whose own derivative by the codebook a rule leaves out.

    Raises:
        ValueError: if the estimator is not the straight-through one.
    """
    if not isinstance(quantizer.estimator, StraightThrough):
        raise ValueError(
            f"{rule} differentiates the straight-through update; with "
            f"{type(quantizer.estimator).__name__}() the update depends on the codebook in a "
            "further way, which it would miss. Use FiniteDifference, which holds for every "
            "estimator, or StraightThrough()."
        )


def upper_gradients(
    batch: Batch, phi: list[Tensor], theta: list[Tensor]
) -> tuple[Tensor, Gradients, Gradients]:
    """(g_C, g_φ, g_θ) at (φ, θ, C); no weight gradients for tensors that do not require them."""
    quantizer = selecting(batch.network)
    codebook = quantizer.table().detach().requires_grad_()  # (K, D)
    quantized = quantizer.quantize(batch.embed(phi), codebook)
    total = batch.weights.total(batch.task(quantized.z_q, theta), quantized)
    g_c, *rest = gradient(total, [codebook, *phi, *theta])
    rest = mean_across_processes(rest)
    direct = torch.zeros_like(codebook) if g_c is None else g_c
    return direct, rest[: len(phi)], rest[len(phi) :]


def codebook_gradient(batch: Batch, z_e: Tensor) -> Tensor:
    """g_C = (2/ND) scatter_k(z_q − z_e) times the weight of the codebook loss, (K, D)."""
    quantizer = selecting(batch.network)
    codebook = quantizer.table().detach().requires_grad_()
    quantized = quantizer.quantize(z_e, codebook)
    (g_c,) = gradient(batch.weights.codebook * quantized.codebook_loss, [codebook])
    return torch.zeros_like(codebook) if g_c is None else g_c


def embedding_tangent(
    derivative: Derivative, batch: Batch, here: LowerPass, v_phi: Gradients
) -> Tensor:
    """δ = J_φ z_e · v_φ at φ, (..., D)."""

    def embed(phi: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return batch.embed(phi)

    return along(derivative, embed, _frozen(here.phi), v_phi, here.z_e.detach())


def scatter(batch: Batch, here: LowerPass, values: Tensor) -> Tensor:
    """Sum of values (..., D) by code, (K, D): the transpose of the quantizer's look-up."""
    quantizer = selecting(batch.network)
    codebook = quantizer.table().detach().requires_grad_()
    with torch.enable_grad():
        z_q = quantizer.lookup(here.quantized.codes, codebook)
    return torch.autograd.grad(z_q, codebook, values.to(z_q.dtype))[0]


def along(
    derivative: Derivative,
    f: Callable[[list[Tensor]], Tensor],
    primals: Sequence[Tensor],
    tangents: Gradients,
    centre: Tensor | None,
) -> Tensor:
    """The derivative in full precision: half precision cannot tell two near passes apart."""
    device = primals[0].device.type
    if torch.is_autocast_enabled(device):
        centre = None  # known in half precision only
    with torch.autocast(device, enabled=False):
        if all(t is None for t in tangents):
            return torch.zeros_like(f(list(primals)) if centre is None else centre)
        return derivative(f, primals, tangents, centre)


def _frozen(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]
