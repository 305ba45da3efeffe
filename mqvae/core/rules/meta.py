"""The codebook descends the loss after encoder and decoder have answered to it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch.nn.modules.loss import _Loss

from mqvae.core.bilevel import Batch, Loss, LossModule
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradients import FiniteDifference, Hypergradient, HypergradientRule
from mqvae.core.hypergradients.rule import selecting
from mqvae.core.look_ahead import LookAhead, Undone
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.rule import BatchAbove, Rule
from mqvae.core.rules.step import Step
from mqvae.errors import MqvaeError, at_least

if TYPE_CHECKING:
    UpperLoss: TypeAlias = Loss
else:  # what settings may name: a function there could be any at all
    UpperLoss = LossModule | _Loss


@dataclass(frozen=True, kw_only=True)
class LookingAhead(Rule, abstract=True):
    """A rule by which C descends the loss after φ and θ have answered to it."""

    hypergradient: HypergradientRule | None = None  # FiniteDifference()
    xi: float = 1.0
    look_ahead: LookAhead | None = None  # Undone()

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, xi=self.xi)
        # Settings show what is taken where none is given.
        object.__setattr__(self, "hypergradient", self.hypergradient or FiniteDifference())
        object.__setattr__(self, "look_ahead", self.look_ahead or Undone())

    @property
    def chosen(self) -> tuple[HypergradientRule, LookAhead]:
        """Hypergradient and look-ahead, which are there once it is made."""
        assert self.hypergradient is not None and self.look_ahead is not None
        return self.hypergradient, self.look_ahead

    def check(self, update: Levels) -> None:
        hypergradient, look_ahead = self.chosen
        hypergradient.check(selecting(update.network), look_ahead)
        look_ahead.check(update.lower, self.xi)


@dataclass(frozen=True, kw_only=True)
class Meta(LookingAhead):
    """MQ-VAE: C descends the loss after φ and θ have answered to it (Algorithm 1).

    One step:

        g_φ, g_θ  =  ∇L(φ, θ, C)
        φ', θ'    =  φ − ξ g_φ,  θ − ξ g_θ                 the look-ahead
        C         ←  C − lr · dL(φ', θ', C)/dC             the hypergradient, by `upper`
        φ, θ      ←  φ, θ − lr · ∇L(φ, θ, C)               by `lower`

    Args:
        hypergradient: How dL'/dC is estimated: `FiniteDifference` (Eq. 13), `Exact` (Eq. 14, 28,
            29) or `DirectOnly`.
        xi: ξ, size of the virtual lower step. 1 is what the paper's figures show; its text says
            the lower learning rate, at which the indirect term is negligible; 0 is `Alternated`.
        look_ahead: `Undone()` (Algorithm 1) or `Kept()`.
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.
        upper_loss: What the codebook is judged by in place of `loss`, once φ and θ have answered:
            any function of output and target; None takes `loss`, as the paper does.
        upper_batch: The batch that it is judged on: the same that encoder and decoder step on, as
            the paper has it, the next one, or one of the validation images. A loop of your own
            hands over the last two, as in `update(x, y, above=(x, y))`.

    Raises:
        ValueError: if `xi` is negative, or 0 where the look-ahead is the optimizer's step, no upper
            loss has a part in the hypergradient, or for what `Update` refuses.

    Example:
        >>> update = Update(network, loss, Meta(xi=1.0, look_ahead=Kept()),
        ...                 lower=AdamW(network_parameters(network), lr=3e-4),
        ...                 upper=AdamW(codebook_parameters(network), lr=6e-2))
        >>> step = update(x, x)
    """

    method = "MQ-VAE"
    judges = True

    upper_loss: UpperLoss | None = None
    upper_batch: BatchAbove = "same"

    def __post_init__(self) -> None:
        super().__post_init__()
        hypergradient, _ = self.chosen
        if self.upper_loss is not None and not hypergradient.uses_upper_loss:
            raise MqvaeError(
                f"no task loss above has a part in {hypergradient}: leave out upper_loss, or "
                "take FiniteDifference() or Exact()."
            )

    def loss_above(self) -> Loss | None:
        return self.upper_loss

    def batch_above(self) -> BatchAbove:
        return self.upper_batch

    def step(self, update: Levels, batch: Batch, above: Batch) -> Step:
        hypergradient, look_ahead = self.chosen
        kept = look_ahead.kept
        # g_φ and g_θ at (φ, θ, C), of all processes together.
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=kept).everywhere()
        # φ' and θ': with Kept() the real step, which stays whatever comes.
        ahead = look_ahead.ahead(update.lower, batch, above, here, self.xi, update.max_norm)
        if kept:
            update.keep()
        # dL(φ', θ', C)/dC, and C's step along it.
        hyper = hypergradient(ahead)
        direct, *indirect = mean_across_processes(hyper.terms())
        hyper = Hypergradient(direct, indirect[0] if indirect else None, hyper.shift)
        update.translate_codebook(hyper.shift)
        update.descend_codebook(hyper.total())
        if not kept:
            # φ has not moved: its pass serves again, under the new codebook.
            real = batch.lower_pass(z_e, for_real=True).everywhere()
            update.descend_network([*real.g_phi, *real.g_theta])
        return update.finish(batch, here.task, here.quantized, z_e, hyper.norms())
