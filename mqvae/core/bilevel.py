"""The loss L(φ, θ, C) of one batch as a function of tensors (Eq. 6, 9)."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mqvae.core.distributed import mean_across_processes
from mqvae.core.network import VQNetwork
from mqvae.core.optimizer import Gradients
from mqvae.core.passes import RandomState, call, device_of, full, in_parts, traceless
from mqvae.core.quantizers import Quantized
from mqvae.errors import at_least

Loss = Callable[[Any, Any], Tensor]
"""L_task(y, target) → scalar: a mean over the batch of the output and its target."""


class LossModule(nn.Module):
    """A loss that is a module, and that settings may name by its class."""


@dataclass(frozen=True)
class LossWeights:
    """L = L_task + β · L_commit + codebook · L_codebook + auxiliary_weight · L_auxiliary."""

    commitment: float
    codebook: float

    def total(self, task: Tensor, quantized: Quantized) -> Tensor:
        total = task + self.commitment * quantized.commitment_loss
        total = total + self.codebook * quantized.codebook_loss
        if quantized.auxiliary_loss is None:
            return total
        return total + quantized.auxiliary_weight * quantized.auxiliary_loss


@dataclass(frozen=True)
class LowerPass:
    """A pass at (φ, θ, C) and what backpropagation gave, with the straight-through estimator."""

    phi: list[Tensor]  # where the pass was made
    theta: list[Tensor]
    z_e: Tensor  # embeddings with the encoder's graph, (..., D)
    quantized: Quantized
    task: Tensor  # L_task
    task_gradient: Tensor  # ∂L_task/∂ẑ, (..., D)
    g_phi: Gradients  # ∂L/∂φ
    g_theta: Gradients  # ∂L/∂θ

    def everywhere(self) -> "LowerPass":
        """The same with the gradients of all processes' batches together."""
        g_phi, g_theta, _ = averaged(self.g_phi, self.g_theta)
        return replace(self, g_phi=g_phi, g_theta=g_theta)


def averaged(
    g_phi: Gradients, g_theta: Gradients, tables: Sequence[Tensor] = ()
) -> tuple[Gradients, Gradients, list[Tensor]]:
    """Gradients, and what else of the codebook's shape is due, averaged in one reduction."""
    found = mean_across_processes([*g_phi, *g_theta, *tables])
    cut, end = len(g_phi), len(g_phi) + len(g_theta)
    return found[:cut], found[cut:end], [t for t in found[end:] if t is not None]


def scaled(vectors: Gradients, factors: Gradients | None) -> Gradients:
    """Vectors times factors, number by number; as they are without factors."""
    if factors is None:
        return vectors
    return [
        None if v is None or f is None else v * f for v, f in zip(vectors, factors, strict=True)
    ]


@dataclass(eq=False, repr=False)
class Batch:
    """One batch and the loss on it.

    Passes come in two kinds. `embed` and `task` are functions of the weights they are given: they
    leave batch-norm statistics and the random state as they were, those of a loss that is a module
    included, and all of them draw the same random numbers. `embed_for_real` and `task_for_real` are
    the passes of ordinary training.
    """

    network: VQNetwork
    loss: Loss  # L_task; a module may own networks and buffers
    weights: LossWeights  # weights of the other terms
    x: Any  # inputs: a tensor, or nested ones where they are not cut into parts
    y: Any  # targets of the task loss, as it takes them
    _: KW_ONLY
    parts: int = 1  # number of parts that encoder and decoder take the batch in
    # Scales losses before they are differentiated, and their gradients back; None for not at all.
    scaler: torch.amp.GradScaler | None = None
    # The decoder's output in its first pass over this batch, detached.
    output: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        at_least(1, parts=self.parts)
        self.device = device_of(self.x)
        self._before_encoder = self._before_decoder = RandomState(self.device)

    def embed(self, phi: Sequence[Tensor] | None = None) -> Tensor:
        """z_e at φ, (..., D), without a trace."""
        encoder = self.network.encoder
        with self._before_encoder.replayed():
            features = in_parts(lambda x: call(encoder, phi, x), self.x, self.parts)
            self._before_decoder = RandomState(self.device)
        return self.network.placed(features)

    def embed_for_real(self) -> Tensor:
        """z_e at the network's own φ, (..., D), as ordinary training makes it."""
        features = in_parts(self._once(self.network.encoder), self.x, self.parts)
        self._before_decoder = RandomState(self.device)
        return self.network.placed(features)

    def task(self, z_q: Tensor, theta: Sequence[Tensor] | None = None) -> Tensor:
        """L_task of decoding z_q, (..., D), at θ, without a trace."""
        decoder = self.network.decoder
        with self._before_decoder.replayed():
            z = self.network.channels_back(z_q)
            output = in_parts(lambda part: call(decoder, theta, part), z, self.parts)
            self._note(output)
            return traceless(self.loss, output, self.y)

    def task_for_real(self, z_q: Tensor) -> Tensor:
        """L_task of decoding z_q, (..., D), as ordinary training does."""
        z = self.network.channels_back(z_q)
        output = in_parts(self._once(self.network.decoder), z, self.parts)
        self._note(output)
        return self.loss(output, self.y)

    def _note(self, output: Tensor) -> None:
        if self.output is None:
            self.output = output.detach()

    def _once(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The module, which leaves its traces on the first pass over each part alone."""
        # A part's graph may be made again, for its gradient, when all parts have been seen.
        left = 1 if self.parts == 1 else len(self.x.chunk(self.parts))

        def run(part: Tensor) -> Tensor:
            nonlocal left
            left -= 1
            return module(part) if left >= 0 else call(module, None, part)

        return run

    def task_gradient(self, z_e: Tensor) -> tuple[Quantized, Tensor]:
        """The quantization of embeddings and ∂L_task/∂ẑ, (..., D), without a trace."""
        with torch.enable_grad():
            quantized = self.network.quantizer.quantize(z_e.detach())
            z_q = quantized.z_q.detach().requires_grad_()
            theta = [p.detach() for p in self.network.decoder_parameters()]
            (found,) = self.gradient(self.task(z_q, theta), [z_q])
        return quantized, torch.zeros_like(z_q) if found is None else found

    def gradient(
        self, total: Tensor, tensors: Sequence[Tensor], *, retain_graph: bool = False
    ) -> Gradients:
        """∂total/∂tensors; what float16 would round to nothing is scaled on its way."""
        return scaled_gradient(self.scaler, total, tensors, retain_graph=retain_graph)

    def lower_pass(self, z_e: Tensor, *, for_real: bool) -> LowerPass:
        """Decode from embeddings and backpropagate to φ and θ, for this process's batch.

        The encoder's graph outlives the pass unless it is the real one.
        """
        phi: list[Tensor] = list(self.network.encoder_parameters())
        theta: list[Tensor] = list(self.network.decoder_parameters())
        quantized = self.network.quantizer.quantize(z_e)
        task = self.task_for_real(quantized.z_q) if for_real else self.task(quantized.z_q)
        total = self.weights.total(task, quantized)
        task_gradient, *rest = self.gradient(
            total, [quantized.z_q, *phi, *theta], retain_graph=not for_real
        )
        if task_gradient is None:
            task_gradient = torch.zeros_like(z_e)
        g_phi, g_theta = rest[: len(phi)], rest[len(phi) :]
        return LowerPass(phi, theta, z_e, quantized, task.detach(), task_gradient, g_phi, g_theta)


def gradient(
    scalar: Tensor,
    tensors: Sequence[Tensor],
    *,
    cotangent: Tensor | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> Gradients:
    """∂scalar/∂tensors, None for what is frozen or unused; with a cotangent of any tensor."""
    wanted = [t for t in tensors if t.requires_grad]
    if not wanted or not scalar.requires_grad:
        return [None] * len(tensors)
    how = {"retain_graph": retain_graph or create_graph, "create_graph": create_graph}
    found = iter(torch.autograd.grad(scalar, wanted, cotangent, allow_unused=True, **how))
    return [next(found) if t.requires_grad else None for t in tensors]


def scaled_gradient(
    scaler: torch.amp.GradScaler | None,
    total: Tensor,
    tensors: Sequence[Tensor],
    *,
    retain_graph: bool = False,
) -> Gradients:
    """`gradient` of a loss that a scaler scales, scaled back; without one `gradient` itself."""
    if scaler is None:
        return gradient(total, tensors, retain_graph=retain_graph)
    found = gradient(scaler.scale(total), tensors, retain_graph=retain_graph)
    back = 1 / scaler.scale(torch.ones((), device=total.device))
    return [None if g is None else full(g) * back for g in found]


@torch.no_grad()
def moved(tensors: Sequence[Tensor], directions: Gradients, scale: Tensor | float) -> list[Tensor]:
    """tensors + scale · directions, as new leaves; a tensor without a direction stays itself."""
    pairs = [(t, d) for t, d in zip(tensors, directions, strict=True) if d is not None]
    if not pairs:
        return list(tensors)
    steps = torch._foreach_mul([d for _, d in pairs], scale)
    found = iter(torch._foreach_add([t for t, _ in pairs], steps))
    return [
        t if d is None else next(found).requires_grad_(t.requires_grad)
        for t, d in zip(tensors, directions, strict=True)
    ]
