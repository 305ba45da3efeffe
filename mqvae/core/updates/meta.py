"""The codebook descends the loss after encoder and decoder have answered to it."""

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Loss, LossModule, LowerPass
from mqvae.core.distributed import ProcessGroup, mean_across_processes
from mqvae.core.hypergradient import Ahead, FiniteDifference, Hypergradient, HypergradientRule
from mqvae.core.hypergradient.rule import selecting
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot
from mqvae.core.updates.lookahead import LookAhead, Undone
from mqvae.core.updates.update import Step, Update, step_of
from mqvae.errors import MqvaeError

if TYPE_CHECKING:
    UpperLoss: TypeAlias = Loss
else:  # what settings may name: a function there could be any at all
    UpperLoss = LossModule | _Loss


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
        upper_loss: What the codebook is judged by in place of `loss`, once φ and θ have answered:
            any function of output and target; None takes `loss`, as the paper does.
        process_group: The processes that train together; None for all that there are.

    Raises:
        ValueError: if `xi` is negative, no upper loss has a part in the hypergradient, or for what
            `Update` refuses.

    Example:
        >>> update = Meta(network, loss, lower=AdamW(network.network_parameters(), lr=3e-4),
        ...               upper=AdamW(network.codebook_parameters(), lr=6e-2))
        >>> step = update.step(x, x)
    """

    method = "MQ-VAE"

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
        upper_loss: UpperLoss | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            network,
            loss,
            lower=lower,
            upper=upper,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            process_group=process_group,
        )
        if not xi >= 0:
            raise MqvaeError(f"xi must be 0 or more, got {xi}.")
        self.xi = xi
        self.upper_loss = upper_loss
        self.hypergradient = FiniteDifference() if hypergradient is None else hypergradient
        if upper_loss is not None and not self.hypergradient.uses_upper_loss:
            raise MqvaeError(
                f"no task loss above has a part in {self.hypergradient}: leave out upper_loss, or "
                "take FiniteDifference() or Exact()."
            )
        self.look_ahead = Undone() if look_ahead is None else look_ahead
        self.hypergradient.check(selecting(network), self.look_ahead)
        self.look_ahead.check(lower)

    def step(
        self,
        x: Tensor,
        y: Tensor,
        *,
        parts: int = 1,
        above: tuple[Tensor, Tensor] | None = None,
    ) -> Step:
        """Change the weights by one batch.

        If a pass raises, buffers (batch-norm statistics) and the random state are as they were
        before it, and so are weights that no optimizer has stepped yet.

        Args:
            x: Inputs.
            y: Targets of the task loss; `x` itself for reconstruction.
            parts: Number of parts that encoder and decoder take a batch in, as in `Update.step`.
            above: A second batch (x, y) for the upper level; None uses the same on both, as the
                paper does.
        """
        with self._beginning(x) as snapshot:
            lower = self._batch(x, y, parts)
            return self._told(self._meta_step(lower, self._upper(lower, above), snapshot))

    def _modules(self) -> list[object]:
        return [*super()._modules(), self.upper_loss]

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        return self._meta_step(batch, self._upper(batch, None), snapshot)

    def _upper(self, lower: Batch, above: tuple[Tensor, Tensor] | None) -> Batch:
        """The batch above, the lower one itself where nothing differs."""
        if above is None and self.upper_loss is None:
            return lower
        x, y = (lower.x, lower.y) if above is None else above
        loss = self.loss if self.upper_loss is None else self.upper_loss
        return Batch(self.network, loss, self.weights, x, y, parts=lower.parts)

    def _meta_step(self, lower: Batch, upper: Batch, snapshot: Snapshot) -> Step:
        kept = self.look_ahead.kept
        z_e = lower.embed_for_real()
        here = lower.lower_pass(z_e, for_real=kept).everywhere()
        ahead = ahead_of(self.look_ahead, self.lower, lower, upper, here, self.xi)
        if kept:
            snapshot.retake()
        hyper = self.hypergradient(ahead)
        direct, *indirect = mean_across_processes(hyper.terms())
        hyper = Hypergradient(direct, indirect[0] if indirect else None, hyper.shift)
        self._translate_codebook(hyper.shift)
        self._descend_codebook(hyper.total())
        if not kept:
            # φ has not moved: its pass serves again, under the new codebook.
            real = lower.lower_pass(z_e, for_real=True).everywhere()
            self._descend_network(real.g_phi, real.g_theta)
        self._after_step(z_e, here.quantized.codes)
        return step_of(lower, here.task, here.quantized, hyper.norms())


def ahead_of(
    look_ahead: LookAhead,
    optimizer: Optimizer,
    lower: Batch,
    upper: Batch,
    here: LowerPass,
    xi: float,
) -> Ahead:
    """φ and θ after their answer to C, along the gradients of a pass."""
    cut = len(here.phi)
    answer = look_ahead.answer(
        optimizer, [*here.phi, *here.theta], [*here.g_phi, *here.g_theta], xi
    )
    here = replace(here, phi=answer.here[:cut], theta=answer.here[cut:])
    if answer.slopes is not None:
        here = replace(here, step_phi=answer.slopes[:cut], step_theta=answer.slopes[cut:])
    return Ahead(lower, upper, here, answer.ahead[:cut], answer.ahead[cut:], xi)
