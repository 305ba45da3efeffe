"""Base class of tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mqvae.core.bilevel import LossModule
from mqvae.core.network import VQNetwork
from mqvae.errors import MqvaeError
from mqvae.files import read_yaml


@dataclass(frozen=True)
class Metric:
    """Description of a metric.

    Attributes:
        title: Its name in tables.
        better: Which end is good; None where neither is.
        protocol: How it is computed.
        unit: As in "dB"; nothing for pure numbers.
        scale: What it is shown in multiples of: 1e-3 writes 0.0042 as 4.2 ×10⁻³, 0.01 with the
            unit "%" as a percentage.
    """

    title: str
    better: Literal["lower", "higher"] | None
    protocol: str = ""
    unit: str = ""
    scale: float = 1.0


@cache
def _all_rows() -> Any:
    return read_yaml(Path(__file__).with_name("metrics.yaml"))


def rows_of(group: str) -> Mapping[str, dict[str, Any]]:
    """The rows of a group in metrics.yaml, by their keys."""
    rows: Mapping[str, dict[str, Any]] = _all_rows()[group]
    return rows


def metrics_of(group: str) -> dict[str, Metric]:
    """The metrics of a group in metrics.yaml, by their keys."""
    return {key: Metric(**row) for key, row in rows_of(group).items()}


@dataclass(frozen=True)
class Strip:
    """Images beside each other, `samples/NAME.png` of a run.

    Attributes:
        name: The file, without its ending.
        title: What it shows.
        images: (n, C, H, W) in [0, 1].
        reference: It shows the data, and is the same for every run on them.
    """

    name: str
    title: str
    images: Tensor = field(repr=False)
    reference: bool = False


@dataclass(frozen=True)
class Matrix:
    """Counts by two classes, `samples/NAME.csv` of a run.

    Attributes:
        name: The file, without its ending.
        title: What it shows.
        counts: (rows, columns) int64.
        rows: What a row is, as in "class".
        columns: What a column is, as in "prediction".
    """

    name: str
    title: str
    counts: Tensor = field(repr=False)
    rows: str
    columns: str


Picture = Strip | Matrix


class Measurement(ABC):
    """The metrics of one network over a split, batch by batch, and what of it can be shown."""

    @abstractmethod
    def update(self, output: Tensor, target: Tensor) -> None:
        """Take a batch into account."""

    @abstractmethod
    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The metrics over all batches, by their keys in `Task.metrics`.

        Args:
            total: The sum of a tensor over the processes that share the split; the tensor itself
                where one measures alone.
        """

    def show(self, x: Tensor, output: Tensor) -> Sequence[Picture]:
        """Pictures for the run's folder; none by default. Called after `compute`.

        Args:
            x: A few images of the split, (n, C, H, W).
            output: What the network makes of them.
        """
        return ()


@dataclass
class AuxiliaryOptimizer:
    """Trains an auxiliary network, one of the task's own.

    Attributes:
        optimizer: Of its parameters.
        schedule: Of its learning rate, stepped once a training step.
    """

    optimizer: Optimizer
    schedule: LRScheduler | None = None


class Task(LossModule, ABC):
    """Base class of tasks: the loss, metrics and pictures of a network.

    As a function it is L_task(output, target) → scalar, a mean over the batch, written so that
    forward mode can differentiate it.

    It may own auxiliary networks: as a module, its parameters and buffers are theirs. No look-ahead
    leaves a trace in them. Those with `auxiliary_optimizers` are trained by `step`, after the
    update rule, and are part of every checkpoint; frozen parameters are not, the task brings them
    along.
    """

    metrics: ClassVar[Mapping[str, Metric]]
    """What it can measure, in the order of tables."""

    logs: ClassVar[Sequence[str]] = ()
    """Names of what `step` returns, columns of metrics.csv; it may leave some out."""

    @abstractmethod
    def target(self, x: Tensor, y: Tensor) -> Tensor:
        """What the output is compared with, given images (B, C, H, W) and labels (B,)."""

    @abstractmethod
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """L_task."""

    @abstractmethod
    def measurement(self) -> Measurement:
        """A new measurement."""

    def images(self, output: Tensor) -> Tensor:
        """What the network gives as images, (B, C, H, W) in [0, 1].

        Raises:
            ValueError: if it gives something else; so it does by default.
        """
        raise MqvaeError(f"what a network gives in a {type(self).__name__} task is no image.")

    def attend(self, network: VQNetwork, x: Tensor) -> None:
        """Receive the network, once before training (default: nothing is done with it).

        Args:
            network: The network that is trained.
            x: Images as they will come, (n, C, H, W).

        Raises:
            ValueError: if it cannot train such a network on such images; says what would do.
        """

    def auxiliary_optimizers(self, steps: int) -> Mapping[str, AuxiliaryOptimizer]:
        """Optimizers of auxiliary networks, by name, for a run of `steps` steps (default: none)."""
        return {}

    def step(
        self, auxiliary: Mapping[str, AuxiliaryOptimizer], x: Tensor, y: Tensor, output: Tensor
    ) -> Mapping[str, Tensor]:
        """Train auxiliary networks by one batch; returns scalars to log, by the names in `logs`.

        Several processes pass their own shares of the batch: `mean_across_processes` makes the
        gradients those of the whole.

        Args:
            auxiliary: What `auxiliary_optimizers` made.
            x: Images.
            y: Labels.
            output: What the network gave for them before the update, detached.
        """
        return {}

    def troubles(self, logged: Mapping[str, float]) -> Mapping[str, str]:
        """Signs that training diverges, each with what to try (default: none).

        What is there in row after row is said, once for each kind.

        Args:
            logged: What `step` returned, over all processes.

        Returns:
            Sentences by kind.
        """
        return {}
