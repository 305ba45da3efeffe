"""What one batch changes: the frame that all update rules share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Gradients, Loss, LossWeights, pulled_back
from mqvae.core.distributed import ProcessGroup, agree, within, world_size
from mqvae.core.hypergradient.rule import selecting
from mqvae.core.network import VQNetwork
from mqvae.core.optimizer import forget_rows
from mqvae.core.passes import Snapshot, finite_rows, fresh_casts
from mqvae.core.quantizer import Quantized
from mqvae.core.shown import Shown
from mqvae.errors import MqvaeError


@dataclass(frozen=True, repr=False)
class Step(Shown):
    """What a step reports.

    Attributes:
        task: L_task of the first pass, a scalar.
        commitment: mean ‖z_e − sg(z_q)‖², unweighted.
        codebook: mean ‖sg(z_e) − z_q‖², unweighted.
        auxiliary: The quantizer's own term, unweighted: `Quantized.auxiliary_loss`; None without.
        codebook_gradient: Largest number of the gradient that an optimizer stepped C along, by
            size; not finite if some were not, along which C was not stepped. None without one.
        codes: The codes of the batch.
        output: The decoder's output in the first pass, (B, ...), detached.
        direct_norm: Norm of the direct hypergradient; None for rules without one.
        indirect_norm: Norm of the indirect hypergradient.
        cosine: Cosine between the two; 0 where one of them vanishes.
    """

    task: Tensor
    commitment: Tensor
    codebook: Tensor
    codes: Tensor
    output: Tensor
    auxiliary: Tensor | None = None
    codebook_gradient: Tensor | None = None
    direct_norm: Tensor | None = None
    indirect_norm: Tensor | None = None
    cosine: Tensor | None = None


class Update(ABC):
    """A rule by which one batch changes φ, θ and C.

    Several processes train as one: each takes its share of a batch, and all make the same step. At
    the first step all take over the weights, codebooks and buffers of the first process.

    Args:
        network: The network that is trained.
        loss: L_task(output, target) → scalar, a mean over the batch. A module may own parameters
            and buffers: no rule trains the ones, no look-ahead changes the others.
        lower: Optimizer of φ and θ, `network.network_parameters()`.
        upper: Optimizer of C, `network.codebook_parameters()`; None where C has none.
        commitment_weight: β, weight of the commitment loss.
        codebook_weight: Weight of the codebook loss.
        process_group: The processes that train together; None for all that there are.

    Raises:
        ValueError: if an optimizer holds other parameters than its level's, two levels share a
            parameter, or a weight is negative.
    """

    method: ClassVar[str]
    """What the field calls it; a rule that does not say so is called as its class is."""

    steps_codebook: ClassVar[bool] = True
    """Whether the rule trains C through an optimizer."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "method"):
            cls.method = cls.__name__

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        upper: Optimizer | None,
        commitment_weight: float = 0.1,
        codebook_weight: float = 1.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        for name, value in (
            ("commitment_weight", commitment_weight),
            ("codebook_weight", codebook_weight),
        ):
            if not value >= 0:
                raise MqvaeError(f"{name} must be 0 or more, got {value}.")
        network.require_apart()  # weights may have been tied since it was built
        names = {id(p): name for name, p in network.named_parameters()}
        for name, optimizer, level in (
            ("lower", lower, "network_parameters"),
            ("upper", upper, "codebook_parameters"),
        ):
            if optimizer is not None:
                check_holds(
                    name,
                    optimizer,
                    list(getattr(network, level)()),
                    "of its level",
                    names,
                    f"Build it with network.{level}().",
                )
        if (
            upper is None
            and self.steps_codebook
            and any(p.requires_grad for p in network.codebook_parameters())
        ):
            raise MqvaeError(
                f"{type(self).__name__} trains the codebook: pass upper=an optimizer of "
                "network.codebook_parameters(), or freeze them."
            )
        self.network = network
        self.loss = loss
        self.lower = lower
        self.upper = upper
        self.weights = LossWeights(commitment_weight, codebook_weight)
        self.process_group = process_group
        self._agreed = False
        self._largest: Tensor | None = None  # of the codebook's gradient in a step

    def step(self, x: Tensor, y: Tensor, *, parts: int = 1) -> Step:
        """Change the weights by one batch.

        If a pass raises, buffers (batch-norm statistics) and the random state are as they were
        before it, and so are weights that no optimizer has stepped yet.

        Args:
            x: Inputs.
            y: Targets of the task loss; `x` itself for reconstruction.
            parts: Number of parts that encoder and decoder take the batch in, to hold the graph of
                one at a time; about one forward pass dearer per gradient. Without batch norm and
                dropout the step is that of the whole batch, every statistic included.

        Raises:
            ValueError: if gradients are off (`torch.no_grad()`), or the encoder's output is not D
                wide.
        """
        with self._beginning(x) as snapshot:
            return self._told(self._step(self._batch(x, y, parts), snapshot))

    @contextmanager
    def _beginning(self, x: Tensor) -> Iterator[Snapshot]:
        """Around every step: what it must not be without, and what is put back if it raises."""
        require_gradients(f"{type(self).__name__}.step")
        with within(self.process_group):
            # Not at construction: the processes may meet after it.
            if world_size() > 1 and not self._agreed:
                agree(self._modules())
                self._agreed = True
            with fresh_casts(), Snapshot(self._modules(), x.device) as snapshot:
                yield snapshot

    def _modules(self) -> list[object]:
        """What a pass goes through."""
        return [self.network, self.loss]

    @abstractmethod
    def _step(self, batch: Batch, snapshot: Snapshot) -> Step: ...

    def _told(self, step: Step) -> Step:
        """A step's report, with what the codebook was stepped along."""
        largest, self._largest = self._largest, None
        return replace(step, codebook_gradient=largest)

    def _batch(self, x: Tensor, y: Tensor, parts: int) -> Batch:
        return Batch(self.network, self.loss, self.weights, x, y, parts=parts)

    def _translate_codebook(self, shift: Tensor | None) -> None:
        """Move codewords outside any optimizer, by (K, D); a frozen codebook stays.

        So does a codeword whose shift is not finite.
        """
        if shift is not None and any(p.requires_grad for p in self.network.codebook_parameters()):
            selecting(self.network).translate(finite_rows(shift))

    def _descend_codebook(self, gradient_of_table: Tensor) -> None:
        """Step C's parameters along a gradient of the codebook itself, (K, D)."""
        parameters = [p for p in self.network.codebook_parameters() if p.requires_grad]
        if parameters:
            with torch.enable_grad():
                table = selecting(self.network).table()
            self._step_codebook(parameters, pulled_back(gradient_of_table, table, parameters))

    def _step_codebook(self, parameters: Sequence[Tensor], gradients: Gradients) -> None:
        """Step C's parameters along their gradients, but for numbers that are not finite.

        A network that has diverged is trained anew from a checkpoint; a codebook that it has been
        carried away by, and an optimizer's memory of it, should not be what is left.
        """
        found = [g for g in gradients if g is not None]
        if found:
            largest = torch._foreach_norm(found, math.inf)
            self._largest = torch.stack([number.float() for number in largest]).amax()
        apply(self.upper, parameters, only_finite(gradients))

    def _descend_network(self, g_phi: Gradients, g_theta: Gradients) -> None:
        apply(self.lower, self.network.network_parameters(), [*g_phi, *g_theta])

    def _after_step(self, z_e: Tensor, codes: Tensor) -> None:
        """The quantizer's own bookkeeping, once the optimizers have stepped."""
        quantizer = self.network.quantizer
        quantizer.discard()  # of passes that no step was made for
        quantizer.record(z_e.detach(), codes)
        quantizer.update(self.upper)

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Forget what is remembered of rows of the codebook: the optimizer's moments."""
        if self.upper is None:
            return
        for parameter in self.network.codebook_parameters():
            here = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
            forget_rows(self.upper, parameter, here.index_fill(0, rows.to(here.device), True))

    def state_dict(self) -> dict[str, Tensor]:
        """What the rule itself remembers; nothing, for most."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put `state_dict` back.

        Raises:
            ValueError: if it is another rule's.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise MqvaeError(
                f"{type(self).__name__} remembers {sorted(own)}, got {sorted(state)}: the state "
                "is another rule's."
            )
        for name, value in own.items():
            value.copy_(state[name])


def step_of(
    batch: Batch, task: Tensor, quantized: Quantized, norms: dict[str, Tensor] | None = None
) -> Step:
    """The report of a step from its first pass."""
    auxiliary = quantized.auxiliary_loss
    return Step(
        task.detach(),
        quantized.commitment_loss.detach(),
        quantized.codebook_loss.detach(),
        quantized.codes,
        batch.output,
        None if auxiliary is None else auxiliary.detach(),
        **(norms or {}),
    )


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


def apply(optimizer: Optimizer | None, parameters: Iterable[Tensor], gradients: Gradients) -> None:
    """One step of an optimizer along given gradients; nothing stays behind in `.grad`."""
    parameters = list(parameters)
    if optimizer is None:
        return
    for parameter, g in zip(parameters, gradients, strict=True):
        # Convolutions return gradients laid out otherwise than their weights. `backward` would put
        # that right; fused optimizers, which walk through memory, would take number for number.
        if g is not None and g.stride() != parameter.stride():
            g = torch.empty_like(parameter).copy_(g)
        parameter.grad = g
    try:
        optimizer.step()
    finally:
        for parameter in parameters:
            parameter.grad = None


def only_finite(gradients: Gradients) -> Gradients:
    """Gradients with 0 in place of each number that is not finite."""
    return [None if g is None else g.nan_to_num(0.0, 0.0, 0.0) for g in gradients]


def check_holds(
    name: str,
    optimizer: Optimizer,
    level: Sequence[Tensor],
    which: str,
    names: Mapping[int, str],
    remedy: str,
) -> None:
    """Refuse an optimizer that does not hold what its level trains, or holds anything else.

    Raises:
        ValueError: with the names of the parameters, and the remedy.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = held - {id(p) for p in level}
    missing = {id(p) for p in level if p.requires_grad} - held
    if foreign or missing:
        listed = sorted(names.get(p, "one that is not the module's") for p in foreign)
        raise MqvaeError(
            f"the {name} optimizer must hold the parameters {which}. "
            + (f"It also holds: {', '.join(listed)}. " if foreign else "")
            + (f"It lacks: {', '.join(sorted(names[p] for p in missing))}. " if missing else "")
            + remedy
        )
