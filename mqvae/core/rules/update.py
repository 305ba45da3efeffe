"""What one batch changes: rules, and the frame that makes a step of one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import Signature, signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.averages import Averages
from mqvae.core.bilevel import Batch, Loss, LossWeights, gradient
from mqvae.core.distributed import ProcessGroup, agree, mean_across_processes, within, world_size
from mqvae.core.hypergradients.rule import selecting
from mqvae.core.network import VQNetwork, codebook_parameters, network_parameters, quantizers
from mqvae.core.optimizer import Gradients, apply, check_holds, forget_rows, only_finite
from mqvae.core.passes import Snapshot, device_of, finite_rows, fresh_casts
from mqvae.core.rules.module import ModuleBatch
from mqvae.core.rules.step import Found, Step
from mqvae.errors import MqvaeError, above_zero, at_least


class _Options:
    """The signature of a rule is that of its options, which `__new__` would hide."""

    def __get__(self, rule: "Rule | None", kind: "type[Rule]") -> Signature:
        return Signature(list(signature(kind.__init__).parameters.values())[1:])


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """How one batch changes φ, θ and C: options, which `Update` binds to a network.

    `Joint(network, loss, lower=…, upper=…)` is `Update(network, loss, Joint(), lower=…, upper=…)`.

    Args:
        commitment_weight: β, weight of the commitment loss.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if a weight is negative.
    """

    method: ClassVar[str]
    """Name of the method in the literature; that of the class where a rule gives none."""

    steps_codebook: ClassVar[bool] = True
    """Whether the rule trains C through an optimizer."""

    judges: ClassVar[bool] = False
    """Whether it takes a batch of its own to judge C on, `above`."""

    any_module: ClassVar[bool] = False
    """Whether it trains any module with quantizers inside."""

    scales: ClassVar[bool] = False
    """Whether it takes a `GradScaler`."""

    @property
    def gathers(self) -> bool:
        """Whether the batches of `Update.accumulate` may give one step together."""
        return False

    commitment_weight: float = 0.1
    codebook_weight: float = 1.0

    __signature__ = _Options()

    def __new__(cls, network: nn.Module | None = None, loss: Loss | None = None, **options: Any):  # type: ignore[no-untyped-def]
        if network is None:
            return super().__new__(cls)
        frame = {name: options.pop(name) for name in FRAME if name in options}
        return Update(network, loss, cls(**options), **frame)

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        super().__init_subclass__()
        if not abstract and not hasattr(cls, "method"):
            cls.method = cls.__name__

    def __post_init__(self) -> None:
        at_least(0, commitment_weight=self.commitment_weight, codebook_weight=self.codebook_weight)

    def check(self, update: "Update") -> None:  # noqa: B027
        """Refuse a network or an optimizer that the rule is not for.

        Raises:
            ValueError: with the reason.
        """

    def loss_above(self) -> Loss | None:
        """What C is judged by in place of the loss; None for the loss itself."""
        return None

    def averages(self, update: "Update") -> Averages | None:
        """What the rule remembers between steps; nothing, for most."""
        return None

    def around(self, update: "Update") -> AbstractContextManager[None]:
        """What holds during a step, from its passes to what quantizers learn from them."""
        return nullcontext()

    @abstractmethod
    def step(self, update: "Update", batch: Any, above: Any) -> Step:
        """Change the weights of `update.network` by one batch.

        Args:
            update: The frame, which steps and reduces.
            batch: A `Batch` of a VQNetwork, or a `ModuleBatch`.
            above: The batch that C is judged on; `batch` itself for most.
        """


FRAME = ("lower", "upper", "process_group", "max_norm", "scaler")


class OnePass(Rule, abstract=True):
    """A rule whose gradients one pass finds, so that several batches may give those of a step."""

    @property
    def gathers(self) -> bool:
        return True

    @abstractmethod
    def gradients(self, update: "Update", batch: Any) -> Found:
        """What a pass over this process's batch finds; it steps nothing."""

    def step(self, update: "Update", batch: Any, above: Any) -> Step:
        return update.descend(self.gradients(update, batch))


class Update:
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
        if loss is None:
            raise MqvaeError(f"{type(rule).__name__} needs a loss: pass loss(output, y) → scalar.")
        if isinstance(network, nn.parallel.DistributedDataParallel):
            raise MqvaeError(
                "update rules average gradients by themselves: pass the module inside "
                "DistributedDataParallel, network.module."
            )
        if max_norm is not None:
            above_zero(max_norm=max_norm)
        name = type(rule).__name__
        if scaler is not None and not rule.scales:
            raise MqvaeError(
                f"{name} takes no GradScaler: gradients of several passes in one step are compared "
                "with each other, and all must be finite. Train in bfloat16, which needs none, or "
                "with Joint."
            )
        self.network = network
        self.loss = loss
        self.rule = rule
        self.lower = lower
        self.upper = upper if rule.steps_codebook else None
        self.weights = LossWeights(rule.commitment_weight, rule.codebook_weight)
        self.process_group = process_group
        self.max_norm = max_norm
        self.scaler = scaler
        self._check_levels()
        rule.check(self)
        self.averages = rule.averages(self)
        self._agreed = False
        self._largest: Tensor | None = None  # of the codebook's gradient in a step
        self._held: Found | None = None  # of batches before, with which one step is made
        self._batches = 0
        self._snapshot: Snapshot | None = None

    def _check_levels(self) -> None:
        """Refuse optimizers that hold others than their level's parameters."""
        network, name = self.network, type(self.rule).__name__
        if isinstance(network, VQNetwork):
            network.require_apart()  # weights may have been tied since it was built
        elif not self.rule.any_module:
            raise MqvaeError(
                f"{name} makes passes of encoder and decoder apart: it needs a VQNetwork(encoder, "
                f"quantizer, decoder), got a {type(network).__name__}. Joint, Synchronous and "
                "Alternated train any module with quantizers inside, and GenericMeta looks ahead "
                "around a closure."
            )
        names = {id(p): n for n, p in network.named_parameters()}
        for level, optimizer, parameters, function in (
            ("lower", self.lower, network_parameters(network), "network_parameters"),
            ("upper", self.upper, codebook_parameters(network), "codebook_parameters"),
        ):
            if optimizer is not None:
                build = f"Build it with mqvae.{function}(network)."
                check_holds(level, optimizer, parameters, "of its level", names, build)
        trained = any(p.requires_grad for p in codebook_parameters(network))
        if self.upper is None and self.rule.steps_codebook and trained:
            raise MqvaeError(
                f"{name} trains the codebook: pass upper=an optimizer of "
                "mqvae.codebook_parameters(network), or freeze them."
            )

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
        with self._beginning(x, "step"):
            batch = self._batch(x, y, self.loss, parts)
            step = self.rule.step(self, batch, self._above(batch, above))
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
            self._held = self._with_held(found)
            self._batches += 1
            self._record(found)
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

    def keep(self) -> None:
        """What has been stepped so far stays, whatever raises later in this step."""
        assert self._snapshot is not None
        self._snapshot.retake()

    def _batch(self, x: Any, y: Any, loss: Loss, parts: int) -> Batch | ModuleBatch:
        if isinstance(self.network, VQNetwork):
            return Batch(self.network, loss, self.weights, x, y, parts=parts, scaler=self.scaler)
        if parts != 1:
            raise MqvaeError(
                f"parts={parts} cuts what encoder and decoder of a VQNetwork take; of a "
                f"{type(self.network).__name__} take smaller batches, and update.accumulate."
            )
        return ModuleBatch(self.network, loss, self.weights, x, y, scaler=self.scaler)

    def _above(
        self, batch: Batch | ModuleBatch, above: tuple[Any, Any] | None
    ) -> Batch | ModuleBatch:
        """The upper batch, the lower one itself where nothing differs."""
        loss = self.rule.loss_above()
        if above is None and loss is None:
            return batch
        x, y = (batch.x, batch.y) if above is None else above
        return self._batch(x, y, self.loss if loss is None else loss, batch.parts)

    # -- what rules are made of --------------------------------------------------------------------

    @property
    def lower_parameters(self) -> list[Tensor]:
        """φ and θ."""
        return list(network_parameters(self.network))

    @property
    def upper_parameters(self) -> list[Tensor]:
        """The parameters of C, as far as the rule steps them."""
        return list(codebook_parameters(self.network)) if self.rule.steps_codebook else []

    def descend(self, found: Found) -> Step:
        """Step all levels along what one pass found, and let the quantizers learn from it."""
        whole, number = self._with_held(found), self._batches + 1
        self._held, self._batches = None, 0
        g: Gradients = [*whole.lower, *whole.upper]
        if number > 1:
            g = [None if one is None else one / number for one in g]
        g, cut = mean_across_processes(g), len(whole.lower)
        self.descend_network(g[:cut])
        if whole.of_table:
            (g_c,) = g[cut:]
            assert g_c is not None
            self.descend_codebook(g_c)
        elif whole.upper:
            self.step_codebook(self.upper_parameters, g[cut:])
        self._record(found)
        if found.learns:
            self.learn()
        return found.step

    def _with_held(self, found: Found) -> Found:
        """A pass with the gradients of the batches before it added."""
        held = self._held
        if held is None:
            return found
        return replace(
            found,
            lower=_added(held.lower, found.lower),
            upper=_added(held.upper, found.upper),
        )

    def descend_network(self, gradients: Gradients) -> None:
        """Step φ and θ along [*g_φ, *g_θ] of all processes."""
        apply(
            self.lower,
            self.lower_parameters,
            gradients,
            max_norm=self.max_norm,
            scaler=self.scaler,
        )

    def descend_codebook(self, gradient_of_table: Tensor) -> None:
        """Step C's parameters along a gradient of the codebook itself, (K, D)."""
        parameters = [p for p in self.upper_parameters if p.requires_grad]
        if parameters:
            with torch.enable_grad():
                table = selecting(self.network).table()
            g = gradient_of_table.detach().to(table.dtype)
            plain = table is parameters[0]  # and torch has nothing to differentiate
            self.step_codebook(
                parameters, [g] if plain else gradient(table, parameters, cotangent=g)
            )

    def step_codebook(self, parameters: Sequence[Tensor], gradients: Gradients) -> None:
        """Step C's parameters along their gradients, but for numbers that are not finite.

        A network that has diverged is trained anew from a checkpoint; a codebook that it has been
        carried away by, and an optimizer's memory of it, should not be what is left.
        """
        if self.scaler is None:
            found = [g for g in gradients if g is not None]
            if found:
                largest = torch._foreach_norm(found, math.inf)
                self._largest = torch.stack([number.float() for number in largest]).amax()
            gradients = only_finite(gradients)
        apply(self.upper, parameters, gradients, max_norm=self.max_norm, scaler=self.scaler)

    def translate_codebook(self, shift: Tensor | None) -> None:
        """Move codewords outside any optimizer, by (K, D); a frozen codebook stays.

        So does a codeword whose shift is not finite.
        """
        if shift is not None and any(p.requires_grad for p in self.upper_parameters):
            selecting(self.network).translate(finite_rows(shift))

    def _record(self, found: Found) -> None:
        if found.z_e is not None and found.codes is not None:
            self.record(found.z_e, found.codes)

    def record(self, z_e: Tensor, codes: Tensor) -> None:
        """Hand placed embeddings, (..., D), and their codes to the quantizer of a VQNetwork."""
        assert isinstance(self.network, VQNetwork)
        self.network.quantizer.record(z_e.detach(), codes)

    def learn(self) -> None:
        """The quantizers' own bookkeeping, once the optimizers have stepped."""
        for quantizer in quantizers(self.network).values():
            quantizer.update(self.upper)

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Forget what is remembered of rows of the codebook: the optimizer's moments."""
        if self.upper is None:
            return
        for parameter in codebook_parameters(self.network):
            here = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
            forget_rows(self.upper, parameter, here.index_fill(0, rows.to(here.device), True))

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


def require_gradients(what: str) -> None:
    """Refuse to train where autograd records nothing.

    Raises:
        ValueError: under `torch.no_grad()` and `torch.inference_mode()`.
    """
    if not torch.is_grad_enabled():
        where = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise MqvaeError(
            f"{what} trains by gradients, which are off here: expected a call outside "
            f"torch.{where}(). Move it out, or wrap it in `with torch."
            + ("inference_mode(False):`." if where == "inference_mode" else "enable_grad():`.")
        )


def _added(one: Gradients, two: Gradients) -> Gradients:
    pairs = zip(one, two, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]
