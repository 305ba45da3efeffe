"""The loss of one batch, of any module with quantizers inside."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._pytree import tree_map_only

from mqvae.core.bilevel import Loss, LossWeights, scaled_gradient
from mqvae.core.network import quantizers
from mqvae.core.optimizer import Gradients
from mqvae.core.passes import Snapshot, device_of
from mqvae.core.quantizer import CodebookQuantizer, Quantized, Quantizer, unrecorded
from mqvae.core.updates.step import Found, Step
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class ModulePass:
    """What a pass gives.

    Attributes:
        total: L, with the terms of all quantizers.
        task: L_task.
        output: What the module gave, detached.
        quantized: What each quantizer gave, by its name in the module, pass by pass.
    """

    total: Tensor
    task: Tensor
    output: Any
    quantized: dict[str, tuple[Quantized, ...]]


class ModuleBatch:
    """One batch and the loss on it, of any module with quantizers inside.

    A pass calls the module with `x`, whatever that is, and adds up the losses of its quantizers,
    once for each time that one is called.

    Args:
        module: The module.
        loss: L_task(module(x), y).
        weights: Weights of the other terms.
        x: Inputs.
        y: Targets.
        scaler: As of `Batch`.
    """

    parts = 1

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        weights: LossWeights,
        x: Any,
        y: Any,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.module = module
        self.loss = loss
        self.weights = weights
        self.x = x
        self.y = y
        self.scaler = scaler

    def gradient(self, total: Tensor, tensors: Sequence[Tensor]) -> Gradients:
        """∂total/∂tensors, as `Batch.gradient`."""
        return scaled_gradient(self.scaler, total, tensors)

    def find(self, lower: Sequence[Tensor], upper: Sequence[Tensor], nu: float = 0.0) -> Found:
        """What a pass of ordinary training finds; the quantizers record theirs themselves.

        Args:
            lower: Parameters of the lower level.
            upper: Those of the upper level that are stepped along this pass.
            nu: ν, as in `pass_for_real`.
        """
        made = self.pass_for_real(nu)
        found = self.gradient(made.total, [*lower, *upper])
        quantized = [each for passes in made.quantized.values() for each in passes]
        auxiliary = [q.auxiliary_loss for q in quantized if q.auxiliary_loss is not None]
        step = Step(
            made.task,
            torch.stack([q.commitment_loss for q in quantized]).sum(),
            torch.stack([q.codebook_loss for q in quantized]).sum(),
            quantized[0].codes,
            made.output,
            torch.stack(auxiliary).sum() if auxiliary else None,
            quantized=made.quantized,
        )
        return Found(step, found[: len(lower)], found[len(lower) :])

    def pass_for_real(self, nu: float = 0.0) -> ModulePass:
        """A pass of ordinary training.

        Args:
            nu: ν, weight of the task gradient on codewords, as in `Synchronous`.
        """
        found: dict[str, list[Quantized]] = {}
        with ExitStack() as hooks:
            for name, quantizer in quantizers(self.module).items():
                hook = quantizer.register_forward_hook(_noting(found, name, nu))
                hooks.callback(hook.remove)
            output = self.module(self.x)
            task = total = self.loss(output, self.y)
        if not found:
            raise MqvaeError(
                f"a pass through {type(self.module).__name__} called none of its quantizers: call "
                "them as modules, quantizer(z)."
            )
        for quantized in found.values():
            for each in quantized:
                total = self.weights.total(total, each)
        return ModulePass(
            total,
            task.detach(),
            tree_map_only(Tensor, Tensor.detach, output),
            {name: tuple(map(_detached, each)) for name, each in found.items()},
        )

    def pass_without_trace(self, nu: float = 0.0) -> ModulePass:
        """The same, after which buffers, random state and the quantizers' statistics are as before.

        Both kinds of passes draw the same random numbers.
        """
        before = Snapshot([self.module, self.loss], device_of(self.x))
        with before.again(), unrecorded(self.module):
            return self.pass_for_real(nu)


def _noting(
    found: dict[str, list[Quantized]], name: str, nu: float
) -> Callable[[Quantizer, Any, Quantized], Quantized]:
    """A hook that remembers what a quantizer gave, and passes task gradients on to codewords."""

    def hook(quantizer: Quantizer, _: Any, given: Quantized) -> Quantized:
        found.setdefault(name, []).append(given)
        return given if nu == 0 else replace(given, z_q=given.z_q + nu * _free(quantizer, given))

    return hook


def _free(quantizer: Quantizer, given: Quantized) -> Tensor:
    """z_q − sg(z_q), zeros whose gradient goes to the codewords alone (Eq. 18)."""
    if not isinstance(quantizer, CodebookQuantizer):
        raise MqvaeError(
            f"nu needs a quantizer that selects the nearest codeword, got a "
            f"{type(quantizer).__name__}: train with Joint."
        )
    codes, table = given.codes, quantizer.table()
    words = quantizer.lookup(codes if quantizer.least_code < 0 else codes.clamp(min=0), table)
    outside = codes < 0  # of a mask
    if quantizer.groups > 1:
        outside = outside.all(-1)
    words = quantizer.of_quantized(words).masked_fill(outside[..., None], 0)
    words = words - words.detach()
    if quantizer.project_out is not None:
        words = linear(words, quantizer.project_out.weight.detach())
    return quantizer.channels_back(words).to(given.z_q.dtype)


def _detached(given: Quantized) -> Quantized:
    auxiliary = given.auxiliary_loss
    return replace(
        given,
        z_q=given.z_q.detach(),
        commitment_loss=given.commitment_loss.detach(),
        codebook_loss=given.codebook_loss.detach(),
        auxiliary_loss=None if auxiliary is None else auxiliary.detach(),
    )
