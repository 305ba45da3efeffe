"""The loss of one batch, of any module with quantizers inside."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._pytree import tree_map_only

from mqvae.core.bilevel import Loss, LossWeights, scaled_gradient
from mqvae.core.network import quantizers
from mqvae.core.passes import Snapshot, device_of
from mqvae.core.quantizers import CodebookQuantizer, Quantized, Quantizer, unrecorded
from mqvae.core.rules.step import Found, Step, step_of
from mqvae.errors import MqvaeError


@dataclass
class ModuleBatch:
    """One batch and the loss on it, L_task(module(x), y), of any module with quantizers inside.

    A pass calls the module with `x`, whatever that is, and adds up the losses of its quantizers,
    once for each time that one is called. Arguments are those of `Batch`.
    """

    module: nn.Module
    loss: Loss
    weights: LossWeights
    x: Any
    y: Any
    scaler: torch.amp.GradScaler | None = None

    parts = 1

    def find(
        self,
        lower: Sequence[Tensor],
        upper: Sequence[Tensor],
        nu: float = 0.0,
        *,
        trace: bool = True,
    ) -> Found:
        """What a pass of ordinary training finds; the quantizers record theirs themselves.

        With ν the task gradient reaches codewords, as in `Synchronous`. Without a trace buffers,
        random state and the quantizers' statistics stay; both kinds draw the same random numbers.
        """
        given: dict[str, list[Quantized]] = {}
        with ExitStack() as inside:
            if not trace:
                before = Snapshot([self.module, self.loss], device_of(self.x))
                inside.enter_context(before.again())
                inside.enter_context(unrecorded(self.module))
            for name, quantizer in quantizers(self.module).items():
                hook = quantizer.register_forward_hook(_noting(given, name, nu))
                inside.callback(hook.remove)
            output = self.module(self.x)
            task = total = self.loss(output, self.y)
            found = {name: tuple(each) for name, each in given.items()}
            for quantized in chain(*found.values()):
                total = self.weights.total(total, quantized)
            # Here, as checkpointing makes the pass again.
            g = scaled_gradient(self.scaler, total, [*lower, *upper])
        step = self._step(task, output, tree_map_only(Tensor, Tensor.detach, found))
        return Found(step, g[: len(lower)], g[len(lower) :])

    def _step(self, task: Tensor, output: Any, found: dict[str, tuple[Quantized, ...]]) -> Step:
        quantized = list(chain(*found.values()))
        if not quantized:
            raise MqvaeError(
                f"a pass through {type(self.module).__name__} called none of its quantizers: call "
                "them as modules, quantizer(z)."
            )
        output = tree_map_only(Tensor, Tensor.detach, output)
        report = step_of(task, quantized, output)
        return replace(report, quantized=found)


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
