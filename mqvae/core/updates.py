"""What one batch changes: the update rules."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Gradients, Loss, LossWeights, LowerPass, gradient, moved
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradient import FiniteDifference, Hypergradient, HypergradientRule
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot


@dataclass(frozen=True)
class Step:
    """What a step reports.

    Attributes:
        task: L_task of the first pass, a scalar.
        commitment: mean ‖z_e − sg(z_q)‖², unweighted.
        codebook: mean ‖sg(z_e) − z_q‖², unweighted.
        codes: The codes of the batch.
        direct_norm: Norm of the direct hypergradient; None for rules without one.
        indirect_norm: Norm of the indirect hypergradient.
        cosine: Cosine between the two; 0 where one of them vanishes.
    """

    task: Tensor
    commitment: Tensor
    codebook: Tensor
    codes: Tensor
    direct_norm: Tensor | None = None
    indirect_norm: Tensor | None = None
    cosine: Tensor | None = None


class Update(ABC):
    """A rule by which one batch changes φ, θ and C.

    Args:
        network: The network that is trained.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ, `network.network_parameters()`.
        upper: Optimizer of C, `network.codebook_parameters()`.
        commitment_weight: β, weight of the commitment loss.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if an optimizer holds other parameters than its level's, or a weight is
            negative.
    """

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        upper: Optimizer,
        commitment_weight: float = 0.1,
        codebook_weight: float = 1.0,
    ) -> None:
        for name, value in (
            ("commitment_weight", commitment_weight),
            ("codebook_weight", codebook_weight),
        ):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}.")
        _check_holds(lower, network.network_parameters(), "lower", "network_parameters")
        _check_holds(upper, network.codebook_parameters(), "upper", "codebook_parameters")
        self.network = network
        self.loss = loss
        self.lower = lower
        self.upper = upper
        self.weights = LossWeights(commitment_weight, codebook_weight)

    def step(self, x: Tensor, y: Tensor) -> Step:
        """Change the weights by one batch.

        If a pass raises, buffers (batch-norm statistics) and the random state are as they were
        before it, and so are weights that no optimizer has stepped yet.

        Args:
            x: Inputs.
            y: Targets of the task loss; `x` itself for reconstruction.
        """
        with Snapshot(self.network, x.device) as snapshot:
            return self._step(self._batch(x, y), snapshot)

    @abstractmethod
    def _step(self, batch: Batch, snapshot: Snapshot) -> Step: ...

    def _batch(self, x: Tensor, y: Tensor) -> Batch:
        return Batch(self.network, self.loss, self.weights, x, y)

    def _descend_codebook(self, gradient_of_table: Tensor) -> None:
        """Step C's parameters along a gradient of the codebook itself, (K, D)."""
        parameters = [p for p in self.network.codebook_parameters() if p.requires_grad]
        if parameters:
            with torch.enable_grad():
                table = self.network.quantizer.codebook()
            found = torch.autograd.grad(table, parameters, gradient_of_table, allow_unused=True)
            _apply(self.upper, parameters, list(found))

    def _descend_network(self, g_phi: Gradients, g_theta: Gradients) -> None:
        _apply(self.lower, self.network.network_parameters(), [*g_phi, *g_theta])


class Joint(Update):
    """One pass, φ, θ and C stepped at once: the VQ-VAE (Eq. 6).

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        network = self.network
        quantized = network.quantizer(batch.embed_for_real())
        task = batch.task_for_real(quantized.z_q)
        lower = list(network.network_parameters())
        upper = list(network.codebook_parameters())
        found = mean_across_processes(
            gradient(self.weights.total(task, quantized), [*lower, *upper])
        )
        _apply(self.lower, lower, found[: len(lower)])
        _apply(self.upper, upper, found[len(lower) :])
        return Step(
            task.detach(),
            quantized.commitment_loss.detach(),
            quantized.codebook_loss.detach(),
            quantized.codes,
        )


class Alternated(Update):
    """C first, on the codebook loss alone; then φ and θ with the new C (Eq. 15, 16).

    Algorithm 1 with ξ = 0. The paper sets β = 0 here; `commitment_weight` says which is wanted.

    Source: Huh et al. 2023, "Straightening out the straight-through estimator".
    """

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        z_e = batch.embed_for_real()
        quantized = self.network.quantizer(z_e)
        upper = list(self.network.codebook_parameters())
        g_c = gradient(self.weights.codebook * quantized.codebook_loss, upper)
        _apply(self.upper, upper, mean_across_processes(g_c))
        here = batch.lower_pass(z_e, for_real=True)
        self._descend_network(here.g_phi, here.g_theta)
        return _report(here)


class LookAhead:
    """What becomes of the virtual lower step: `Undone` or `Kept`."""


@dataclass(frozen=True)
class Undone(LookAhead):
    """The look-ahead is undone: φ and θ step from where they were, with the new C (Algorithm 1).

    Args:
        optimizer_step: Look ahead by the step the lower optimizer would take instead of by plain
            descent, φ − ξ g_φ; its state is put back as well.
    """

    optimizer_step: bool = False


@dataclass(frozen=True)
class Kept(LookAhead):
    """The look-ahead is the lower optimizer's real step and stays; C answers to it."""


class Meta(Update):
    """MQ-VAE: C descends the loss after φ and θ have answered to it (Algorithm 1).

    One step:

        g_φ, g_θ  =  ∇L(φ, θ, C)
        φ', θ'    =  φ − ξ g_φ,  θ − ξ g_θ                 the look-ahead
        C         ←  C − lr · dL(φ', θ', C)/dC             the hypergradient, by `upper`
        φ, θ      ←  φ, θ − lr · ∇L(φ, θ, C)               by `lower`

    Args:
        network: The network that is trained.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ.
        upper: Optimizer of C.
        hypergradient: How dL'/dC is estimated: `FiniteDifference` (Eq. 13), `Exact` (Eq. 14, 28,
            29) or `DirectOnly`.
        xi: ξ, size of the virtual lower step. 1 is what the paper's figures show; its text says
            the lower learning rate, at which the indirect term is negligible.
        look_ahead: `Undone()` (Algorithm 1) or `Kept()`.
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if `xi` is negative, or for what `Update` refuses.

    Example:
        >>> update = Meta(network, loss, lower=AdamW(network.network_parameters(), lr=3e-4),
        ...               upper=AdamW(network.codebook_parameters(), lr=6e-2))
        >>> step = update.step(x, x)
    """

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        upper: Optimizer,
        hypergradient: HypergradientRule | None = None,
        xi: float = 1.0,
        look_ahead: LookAhead | None = None,
        commitment_weight: float = 0.1,
        codebook_weight: float = 1.0,
    ) -> None:
        super().__init__(
            network,
            loss,
            lower=lower,
            upper=upper,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
        )
        if not xi >= 0:
            raise ValueError(f"xi must be 0 or more, got {xi}.")
        self.xi = xi
        self.hypergradient = FiniteDifference() if hypergradient is None else hypergradient
        self.look_ahead = Undone() if look_ahead is None else look_ahead

    def step(self, x: Tensor, y: Tensor, *, above: tuple[Tensor, Tensor] | None = None) -> Step:
        """Change the weights by one batch.

        If a pass raises, buffers (batch-norm statistics) and the random state are as they were
        before it, and so are weights that no optimizer has stepped yet.

        Args:
            x: Inputs.
            y: Targets of the task loss; `x` itself for reconstruction.
            above: A second batch (x, y) for the upper level; None uses the same on both, as the
                paper does.
        """
        with Snapshot(self.network, x.device) as snapshot:
            lower = self._batch(x, y)
            upper = lower if above is None else self._batch(*above)
            return self._meta_step(lower, upper, snapshot)

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        return self._meta_step(batch, batch, snapshot)

    def _meta_step(self, lower: Batch, upper: Batch, snapshot: Snapshot) -> Step:
        kept = isinstance(self.look_ahead, Kept)
        z_e = lower.embed_for_real()
        here = lower.lower_pass(z_e, for_real=kept)
        here, phi_ahead, theta_ahead = self._look_ahead(here)
        if kept:
            snapshot.retake()
        hyper = self.hypergradient(lower, here, upper, phi_ahead, theta_ahead, self.xi)
        hyper = Hypergradient(*mean_across_processes([hyper.direct, hyper.indirect]))
        self._descend_codebook(hyper.direct + hyper.indirect)
        if not kept:
            # φ has not moved: its pass serves again, under the new codebook.
            real = lower.lower_pass(z_e, for_real=True)
            self._descend_network(real.g_phi, real.g_theta)
        return _report(here, hyper)

    def _look_ahead(self, here: LowerPass) -> tuple[LowerPass, list[Tensor], list[Tensor]]:
        """The pass at weights that stay where they are, and φ', θ'."""
        if isinstance(self.look_ahead, Kept):
            here = replace(
                here,
                phi=[p.detach().clone() for p in here.phi],
                theta=[p.detach().clone() for p in here.theta],
            )
            self._descend_network(here.g_phi, here.g_theta)
            network = self.network
            return here, list(network.encoder_parameters()), list(network.decoder_parameters())
        if isinstance(self.look_ahead, Undone) and self.look_ahead.optimizer_step:
            return here, *self._preview(here)
        return (
            here,
            moved(here.phi, here.g_phi, -self.xi),
            moved(here.theta, here.g_theta, -self.xi),
        )

    def _preview(self, here: LowerPass) -> tuple[list[Tensor], list[Tensor]]:
        """φ', θ' after the lower optimizer's own step; weights and its state are put back."""
        weights = [*here.phi, *here.theta]
        before = [w.detach().clone() for w in weights]
        state = deepcopy(self.lower.state_dict())
        # The weights come back bit for bit, so the graph of the first pass, which is used again,
        # stays valid; without this autograd would refuse it for having seen them change.
        with torch.autograd._unsafe_preserve_version_counter(tuple(weights)):  # type: ignore[attr-defined]
            try:
                self._descend_network(here.g_phi, here.g_theta)
                after = [w.detach().clone().requires_grad_(w.requires_grad) for w in weights]
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(weights, before)
                self.lower.load_state_dict(state)
        return after[: len(here.phi)], after[len(here.phi) :]


def _report(here: LowerPass, hyper: Hypergradient | None = None) -> Step:
    norms: dict[str, Tensor] = {}
    if hyper is not None:
        direct, indirect = hyper.direct.norm(), hyper.indirect.norm()
        inner = (hyper.direct * hyper.indirect).sum()
        tiny = torch.finfo(direct.dtype).tiny
        norms = {
            "direct_norm": direct,
            "indirect_norm": indirect,
            "cosine": inner / (direct * indirect).clamp(min=tiny),
        }
    return Step(
        here.task,
        here.quantized.commitment_loss.detach(),
        here.quantized.codebook_loss.detach(),
        here.quantized.codes,
        **norms,
    )


def _apply(optimizer: Optimizer, parameters: Iterable[Tensor], gradients: Gradients) -> None:
    """One step of an optimizer along given gradients; nothing stays behind in `.grad`."""
    parameters = list(parameters)
    for parameter, g in zip(parameters, gradients, strict=True):
        parameter.grad = g
    try:
        optimizer.step()
    finally:
        for parameter in parameters:
            parameter.grad = None


def _check_holds(
    optimizer: Optimizer, parameters: Iterable[Tensor], name: str, method: str
) -> None:
    parameters = list(parameters)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    level = {id(p) for p in parameters}
    trained = {id(p) for p in parameters if p.requires_grad}
    if not (held <= level and trained <= held):
        raise ValueError(
            f"the {name} optimizer must hold the parameters of its level, got {len(held)} "
            f"parameters of which {len(held & level)} of the level's {len(level)}: build it with "
            f"network.{method}()."
        )
