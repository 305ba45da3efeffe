"""What a hypergradient rule is, and the parts that rules are made of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mqvae.core.bilevel import Batch, LowerPass, gradient
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradients.derivative import Derivative, along
from mqvae.core.look_ahead import Ahead, LookAhead
from mqvae.core.network import VQNetwork, quantizers
from mqvae.core.optimizer import Gradients
from mqvae.core.passes import casting, full, without_autocast
from mqvae.core.quantizers import CodebookQuantizer, Quantizer
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class Hypergradient:
    """dL'/dC = direct + indirect, each of the codebook's shape (K, D).

    Attributes:
        direct: What the codebook loss at φ' gives.
        indirect: What comes by the answer of φ and θ; None for a rule without it.
        shift: How far codewords go outside any optimizer, before it steps; None for not at all.
            The same in every process.
    """

    direct: Tensor
    indirect: Tensor | None = None
    shift: Tensor | None = None

    def terms(self) -> list[Tensor]:
        """Those of the two that are there."""
        return [self.direct] if self.indirect is None else [self.direct, self.indirect]

    def total(self) -> Tensor:
        """dL'/dC."""
        return self.direct if self.indirect is None else self.direct + self.indirect

    def norms(self) -> dict[str, Tensor]:
        """Norms of the two, and their cosine."""
        direct = self.direct.norm()
        if self.indirect is None:
            zero = torch.zeros_like(direct)
            return {"direct_norm": direct, "indirect_norm": zero, "cosine": zero}
        indirect = self.indirect.norm()
        inner = (self.direct * self.indirect).sum()
        tiny = torch.finfo(direct.dtype).tiny
        return {
            "direct_norm": direct,
            "indirect_norm": indirect,
            "cosine": inner / (direct * indirect).clamp(min=tiny),
        }


class HypergradientRule(ABC):
    """An estimator of dL'/dC."""

    @property
    def uses_upper_loss(self) -> bool:
        """Whether the task loss of the upper-level batch is part of it."""
        return True

    def check(self, quantizer: CodebookQuantizer, look_ahead: LookAhead) -> None:  # noqa: B027
        """Refuse, by a ValueError, what the rule is not right for; nothing by default."""

    @abstractmethod
    def __call__(self, ahead: Ahead) -> Hypergradient: ...


def selecting(network: nn.Module) -> CodebookQuantizer:
    """The quantizer of a VQNetwork; refuses, by a ValueError, one that does not select."""
    assert isinstance(network, VQNetwork)
    quantizer = require_selects(network.quantizer)
    if quantizer.dropout:
        raise MqvaeError(
            "this rule makes several passes in a step, which must choose alike, and dropout of "
            "stages chooses anew in each: leave dropout out, or train with Joint."
        )
    return quantizer


def require_all_select(module: nn.Module) -> None:
    """Refuse a module, or a VQNetwork, with a quantizer that does not select from a codebook."""
    if isinstance(module, VQNetwork):
        selecting(module)
    for quantizer in quantizers(module).values():
        require_selects(quantizer)


def require_selects(quantizer: Quantizer) -> CodebookQuantizer:
    """A quantizer that selects from a codebook; refuses, by a ValueError, any other."""
    if not isinstance(quantizer, CodebookQuantizer):
        raise MqvaeError(
            f"this rule needs a quantizer that selects the nearest codeword, got a "
            f"{type(quantizer).__name__}: its codebook, if any, gets the gradient of the task loss "
            "itself. Train it with Joint."
        )
    return quantizer


def require_straight_through(quantizer: CodebookQuantizer, rule: str) -> None:
    """Refuse, by a ValueError, estimators whose own derivative by C a rule leaves out."""
    if not quantizer.estimator.straight:
        raise MqvaeError(
            f"{rule} differentiates the straight-through update; with "
            f"{type(quantizer.estimator).__name__}() the update depends on the codebook in a "
            "further way, which it would miss. Use FiniteDifference, which holds for every "
            "estimator, or StraightThrough()."
        )


def require_optimizer_step(look_ahead: LookAhead, rule: str) -> None:
    """Refuse, by a ValueError, a look-ahead that is not the lower optimizer's own step."""
    if not look_ahead.optimizer_step:
        raise MqvaeError(
            f"{rule} takes the answer from the step the lower optimizer makes: use it with "
            "look_ahead=Kept(), or Undone(optimizer_step=True)."
        )


def ends(batch: Batch, here: LowerPass, phi: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings before a step of the encoder and after it, at φ'; each (..., D)."""
    # Half precision cannot tell two near passes apart: both ends are made anew then.
    known = not casting(here.z_e.device) and here.z_e.dtype.itemsize >= 4
    return here.z_e.detach() if known else embedded(batch, here.phi), embedded(batch, phi)


def embedded(batch: Batch, phi: list[Tensor]) -> Tensor:
    """z_e at φ in full precision, (..., D)."""
    with torch.no_grad(), without_autocast(batch.device):
        return batch.embed([full(p) for p in phi])


def upper_gradients(
    batch: Batch, phi: list[Tensor], theta: list[Tensor]
) -> tuple[Tensor, Gradients, Gradients]:
    """(g_C, g_φ, g_θ) at (φ, θ, C); no weight gradients for tensors that do not require them."""
    quantizer = selecting(batch.network)
    codebook = full(quantizer.table().detach()).requires_grad_()  # (K, D)
    quantized = quantizer.quantize(batch.embed(phi), codebook)
    total = batch.weights.total(batch.task(quantized.z_q, theta), quantized)
    g_c, *rest = gradient(total, [codebook, *phi, *theta])
    rest = mean_across_processes(rest)
    direct = torch.zeros_like(codebook) if g_c is None else g_c
    return direct, rest[: len(phi)], rest[len(phi) :]


def codebook_gradient(
    batch: Batch, z_e: Tensor, codes: Tensor | None = None, table: Tensor | None = None
) -> Tensor:
    """g_C = (2/ND) scatter_k(z_q − z_e) times the weight of the codebook loss, (K, D)."""
    quantizer = selecting(batch.network)
    codebook = full((quantizer.table() if table is None else table).detach())
    codes = quantizer.nearest_codes(z_e, codebook) if codes is None else codes
    return quantizer.codebook_gradient(z_e, codes, codebook, batch.weights.codebook)


def synchronous_gradient(
    batch: Batch, z_e: Tensor, codes: Tensor, task_gradient: Tensor, nu: float
) -> Tensor:
    """g_C and ν times the task gradient at ẑ, (..., D), summed by code (Eq. 18); (K, D)."""
    g_c = codebook_gradient(batch, z_e.detach(), codes)
    reached = batch.network.quantizer.of_quantized(task_gradient)
    return g_c + nu * scatter(batch, codes, reached)


def embedding_tangent(
    derivative: Derivative, batch: Batch, here: LowerPass, v_phi: Gradients
) -> Tensor:
    """δ = J_φ z_e · v_φ at φ, (..., D)."""

    def embed(phi: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return batch.embed(phi)

    return along(derivative, embed, frozen(here.phi), v_phi, here.z_e.detach())


def scatter(batch: Batch, codes: Tensor, values: Tensor) -> Tensor:
    """Sum of values (..., D) by code, (K, D): the transpose of the quantizer's look-up."""
    quantizer = selecting(batch.network)  # half precision cannot sum many
    return quantizer.scatter(codes, values.detach().to(full(quantizer.table()).dtype))


def frozen(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]
