"""The frame that makes a step of a rule."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Loss, LossWeights
from mqvae.core.distributed import ProcessGroup, agree, within, world_size
from mqvae.core.hypergradients.rule import selecting
from mqvae.core.network import VQNetwork, quantizers
from mqvae.core.passes import Snapshot, device_of, fresh_casts
from mqvae.core.rules.checks import check_levels, refuse_wrapped, require_gradients
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.module import ModuleBatch
from mqvae.core.rules.rule import OnePass, Rule
from mqvae.core.rules.step import Step
from mqvae.errors import MqvaeError, above_zero


class Update(Levels):
    """A rule on a network: one batch changes φ, θ and C.

    Several processes train as one: each takes its share of a batch, and all make the same step. At
    the first step all take over the weights, codebooks and buffers of the first process.

    Args:
        network: What is trained: a `VQNetwork`; with `Joint`, `Synchronous` and `Alternated` any
            module with quantizers inside, which is called with x.
        loss: L_task(output, y) → scalar, a mean over the batch. A module may own parameters
            and buffers: no rule trains the ones, no look-ahead changes the others.
        rule: The rule.
        lower: Optimizer of φ and θ, `mqvae.network_parameters(network)`.
        upper: Optimizer of C, `mqvae.codebook_parameters(network)`; None where C has none. Left
            alone by `Ema` and `Unquantized`, which step no codebook along gradients.
        process_group: The processes that train together; None for all that there are.
        max_norm: The norm that each optimizer's gradients are clipped to; None for not at all.
        scaler: Scales losses under autocast to float16, and leaves out steps that overflow.

    Raises:
        ValueError: if an optimizer holds other parameters than its level's, two levels share a
            parameter, or the rule is for another network or does not take an option.

    Example:
        >>> update = Update(network, loss, Meta(xi=1.0, look_ahead=Kept()),
        ...                 lower=AdamW(network_parameters(network), lr=3e-4),
        ...                 upper=AdamW(codebook_parameters(network), lr=6e-2))
        >>> for x, y in batches:
        ...     step = update(x, y)
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss | None,
        rule: Rule,
        *,
        lower: Optimizer,
        upper: Optimizer | None = None,
        process_group: ProcessGroup | None = None,
        max_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        name = type(rule).__name__
        if loss is None:
            raise MqvaeError(f"{name} needs a loss: pass loss(output, y) → scalar.")
        refuse_wrapped(network)
        if max_norm is not None:
            above_zero(max_norm=max_norm)
        if scaler is not None and not rule.scales:
            raise MqvaeError(
                f"{name} takes no GradScaler: gradients of several passes in one step are compared "
                "with each other, and all must be finite. Train in bfloat16, which needs none, or "
                "with Joint."
            )
        upper = upper if rule.steps_codebook else None
        super().__init__(network, lower, upper, rule.steps_codebook, max_norm, scaler)
        self.loss = loss
        self.rule = rule
        self.weights = LossWeights(rule.commitment_weight, rule.codebook_weight)
        self.process_group = process_group
        self._agreed = False
        check_levels(network, lower, self.upper, rule)
        rule.check(self)
        self.averages = rule.averages(self)

    def __call__(self, x: Any, y: Any, *, parts: int = 1, above: Any = None) -> Step:
        """As `step`."""
        return self.step(x, y, parts=parts, above=above)

    def step(self, x: Any, y: Any, *, parts: int = 1, above: tuple[Any, Any] | None = None) -> Step:
        """Change the weights by one batch, and those that `accumulate` took since the last step.

        If a pass raises, buffers (batch-norm statistics) and the random state are as they were
        before it, and so are weights that no optimizer has stepped yet.

        Args:
            x: Inputs: what the encoder or the module takes, a tensor or nested ones.
            y: Targets of the task loss, as it takes them; `x` itself for reconstruction.
            parts: Number of parts that encoder and decoder take the batch in, to hold the graph of
                one at a time, for about one forward pass more per gradient. Without batch norm and
                dropout the step is that of the whole batch, every statistic included.
            above: A second batch (x, y) for the upper level of `Meta`; None uses the same on both,
                as the paper does.

        Raises:
            ValueError: if gradients are off (`torch.no_grad()`), the encoder's output is not D
                wide, or the rule takes no batch `above`.
        """
        if above is not None and not self.rule.judges:
            raise MqvaeError(
                f"{type(self.rule).__name__} judges the codebook by no batch of its own: leave out "
                "above, or take Meta."
            )
        if above is None and self.rule.batch_above() != "same":
            raise MqvaeError(
                f"upper_batch is {self.rule.batch_above()}: hand that batch over, as in "
                "update(x, y, above=(x, y)), or leave upper_batch out."
            )
        loss = self.rule.loss_above()
        with self._beginning(x, "step"):
            upper = batch = self._batch(x, y, self.loss, parts)
            if above is not None or loss is not None:
                upper = self._batch(*(above or (x, y)), self.loss if loss is None else loss, parts)
            step = self.rule.step(self, batch, upper)
        if self.scaler is not None:
            self.scaler.update()
        largest, self._largest = self._largest, None
        return replace(step, codebook_gradient=largest)

    def accumulate(self, x: Any, y: Any, *, parts: int = 1) -> Step:
        """Add a batch to those that the next `step` is made of; steps nothing.

        n batches of B and a step with another are a step of one batch of (n + 1) B, but for batch
        norm and the codes that replacement draws. Arguments and errors are those of `step`.

        Raises:
            ValueError: if the rule steps between its passes.
        """
        if not (isinstance(self.rule, OnePass) and self.rule.gathers):
            raise MqvaeError(
                f"{type(self.rule).__name__} steps between the passes of a batch, which therefore "
                "cannot be gathered from several: hand over the whole batch with parts=, which "
                "needs the memory of one part."
            )
        with self._beginning(x, "accumulate"):
            found = self.rule.gradients(self, self._batch(x, y, self.loss, parts))
            self._held = found.added_to(self._held)
            self._batches += 1
            self._record(found.z_e, found.codes)
        return found.step

    @contextmanager
    def _beginning(self, x: Any, what: str) -> Iterator[None]:
        """Around every step: what it must not be without, and what is put back if it raises."""
        require_gradients(f"{type(self.rule).__name__}.{what}")
        modules = [self.network, self.loss, self.rule.loss_above()]
        if self._held is None:  # of passes that no step was made for
            for quantizer in quantizers(self.network).values():
                quantizer.discard()
        with within(self.process_group):
            # Not at construction: the processes may meet after it.
            if world_size() > 1 and not self._agreed:
                agree(modules)
                self._agreed = True
            self._snapshot = Snapshot(modules, device_of(x))
            try:
                with fresh_casts(), self._snapshot.put_back_if_raised(), self.rule.around(self):
                    yield
            finally:
                self._snapshot = None

    def _batch(self, x: Any, y: Any, loss: Loss, parts: int) -> Batch | ModuleBatch:
        if isinstance(self.network, VQNetwork):
            return Batch(self.network, loss, self.weights, x, y, parts=parts, scaler=self.scaler)
        if parts != 1:
            raise MqvaeError(
                f"parts={parts} cuts what encoder and decoder of a VQNetwork take; of a "
                f"{type(self.network).__name__} take smaller batches, and update.accumulate."
            )
        return ModuleBatch(self.network, loss, self.weights, x, y, scaler=self.scaler)

    def state_dict(self) -> dict[str, Tensor]:
        """What the rule itself remembers; nothing, for most. Weights are the network's."""
        averages = self.averages
        return {} if averages is None else dict(averages.named_buffers())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put `state_dict` back; that of a run made before codewords were in it, too.

        Raises:
            ValueError: if it is another rule's.
        """
        own = self.state_dict()
        if self.averages is not None and state.keys() == {"started", "sizes", "sums"}:
            codewords = selecting(self.network).table()
            state = {"sizes": state["sizes"], "sums": state["sums"], "codewords": codewords}
        if state.keys() != own.keys():
            raise MqvaeError(
                f"{type(self.rule).__name__} remembers {sorted(own)}, got {sorted(state)}: the "
                "state is another rule's."
            )
        for name, value in own.items():
            value.copy_(state[name])


Rule.bind = Update
