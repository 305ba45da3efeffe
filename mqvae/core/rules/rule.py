"""What a rule is: how one batch changes φ, θ and C."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Any, ClassVar, Literal, TypeAlias

from torch import nn

from mqvae.core.averages import Averages
from mqvae.core.bilevel import Loss
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.step import Found, Step
from mqvae.errors import at_least

BatchAbove: TypeAlias = Literal["same", "next", "held-out"]


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

    bind: ClassVar[Callable[..., Any]]
    """`Update`, which comes after rules."""

    commitment_weight: float = 0.1
    codebook_weight: float = 1.0

    __signature__ = _Options()

    def __new__(cls, network: nn.Module | None = None, loss: Loss | None = None, **options: Any):  # type: ignore[no-untyped-def]
        if network is None:
            return super().__new__(cls)
        frame = {name: options.pop(name) for name in FRAME if name in options}
        return cls.bind(network, loss, cls(**options), **frame)

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        super().__init_subclass__()
        if not abstract and not hasattr(cls, "method"):
            cls.method = cls.__name__

    def __post_init__(self) -> None:
        at_least(0, commitment_weight=self.commitment_weight, codebook_weight=self.codebook_weight)

    @property
    def gathers(self) -> bool:
        """Whether the batches of `Update.accumulate` may give one step together."""
        return False

    def check(self, update: Levels) -> None:  # noqa: B027
        """Refuse, by a ValueError, a network or an optimizer that the rule is not for."""

    def loss_above(self) -> Loss | None:
        """The upper-level loss; None for the loss itself."""
        return None

    def batch_above(self) -> BatchAbove:
        """The upper-level batch, as training gives it."""
        return "same"

    def averages(self, update: Levels) -> Averages | None:
        """What the rule remembers between steps; nothing, for most."""
        return None

    def around(self, update: Levels) -> AbstractContextManager[None]:
        """What holds during a step, from its passes to what quantizers learn from them."""
        return nullcontext()

    @abstractmethod
    def step(self, update: Levels, batch: Any, above: Any) -> Step:
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
    def gradients(self, update: Levels, batch: Any) -> Found:
        """What a pass over this process's batch finds; it steps nothing."""

    def step(self, update: Levels, batch: Any, above: Any) -> Step:
        return update.descend(self.gradients(update, batch))
