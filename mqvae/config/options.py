"""All settings, with the descriptions that --help shows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, TypeAlias

from jsonargparse import ArgumentParser, Namespace
from torch.optim import Optimizer as TorchOptimizer

import mqvae
from mqvae.core.quantizers import Quantizer
from mqvae.core.rules import Rule
from mqvae.data import ArrayData, Data, ImageData, TorchData
from mqvae.errors import MqvaeError
from mqvae.networks.architecture import Architecture
from mqvae.ranges import Decay, Norm, Number, Rate, Seed, Share
from mqvae.tasks import Task

Part: TypeAlias = Literal["encoder", "codebook", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "codebook", "decoder")

Spec: TypeAlias = dict[str, Any]
"""A component: {"class_path": …, "init_args": {…}}."""

ADAMW: Spec = {"class_path": "torch.optim.AdamW"}


def with_arguments(spec: Spec, arguments: Mapping[str, Any]) -> Spec:
    """A component with these arguments over its own."""
    return {**spec, "init_args": {**spec["init_args"], **arguments}}


@dataclass(frozen=True)
class Optimizer:
    """Both levels' optimizers; their learning rates rise linearly, then follow a schedule.

    Args:
        network_lr: Learning rate of encoder and decoder.
        codebook_lr: Learning rate of the codebook.
        weight_decay: Weight decay of both, unless a level's own optimizer names one.
        warmup: Share of the steps in which the learning rates rise.
        schedule: What they do after that: fall to 0 as a cosine or linearly, or stay.
        network: Optimizer of encoder and decoder.
        codebook: Optimizer of the codebook.
    """

    network_lr: Rate = 3e-4
    codebook_lr: Rate = 6e-2
    weight_decay: Rate = 1e-4
    warmup: Share = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    network: Spec = field(default_factory=lambda: dict(ADAMW))
    codebook: Spec = field(default_factory=lambda: dict(ADAMW))


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Args:
        run: Folder of the run that they are taken from, or a tokenizer of `mqvae pretrained`
            (default: none).
        parts: Which of them: encoder, codebook, decoder.
    """

    run: str
    parts: tuple[Part, ...] = PARTS


@dataclass(frozen=True)
class WarmStart:
    """Quantization warm-up: training steps before quantization begins.

    Args:
        unquantized: Share of the steps that are made without quantization, by the task loss alone;
            then the codebook is set by k-means, as at the start, and trained.
        gradual: Share of the steps over which quantization sets in after that: the samples that
            are not quantized fall from all to none.
    """

    unquantized: Share = 0.0
    gradual: Share = 0.0

    def __post_init__(self) -> None:
        if self.unquantized + self.gradual > 1:
            raise MqvaeError(
                "warm_start.unquantized and warm_start.gradual are shares of the same steps, 1 "
                f"at most together; got {self.unquantized} and {self.gradual}."
            )


@dataclass(frozen=True)
class Trainer:
    """The training loop.

    Args:
        accelerator: What it runs on; auto is a GPU where there is one.
        devices: Processes on each machine.
        precision: "bf16-mixed" takes bfloat16 where torch's autocast does; "16-mixed" float16,
            with scaled losses, for rules that do not look ahead.
        gradient_clip_val: Norm that each optimizer's gradients are clipped to (default: not
            clipped).
        accumulate_grad_batches: Batches of `data.batch_size` that a training step is made of, for
            rules that do not step between their passes.
        log_every: Steps between two rows of metrics.csv (default: chosen by `steps`).
        checkpoint_every: Steps between two checkpoints (default: chosen by `steps`).
        micro_batches: Number of micro-batches that a batch is cut into, whose gradients are
            accumulated, to hold the graph of one at a time.
        ema_decay: Decay of the EMA of the weights, which is then what is measured and used; 0 for
            none. After n steps it is min(ema_decay, (1 + n) / (10 + n)).
        loggers: Where the rows of metrics.csv go as well: tensorboard, wandb, trackio, as in
            tensorboard,wandb; [] for none (default: TensorBoard, where it is installed).
        on_nonfinite: What happens at a step whose loss, gradient norm or weight is not finite: stop
            ends the run there, and names it; skip takes the step back whole and counts it, at the
            price of a copy of all that is trained, and of waiting for the device, at every step.
        fast_dev_run: Two steps, few images to measure on, no loggers: whether it works at
            all. Without --out, in runs/fast_dev_run, which is replaced.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Number = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    gradient_clip_val: Norm | None = None
    accumulate_grad_batches: Number = 1
    log_every: Number | None = None
    checkpoint_every: Number | None = None
    micro_batches: Number = 1
    ema_decay: Decay = 0.0
    loggers: list[Literal["tensorboard", "wandb", "trackio"]] | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    fast_dev_run: bool = False


LEVELS = ("network", "codebook")
GROUPS: Mapping[str, type[Any]] = {
    "optimizer": Optimizer,
    "warm_start": WarmStart,
    "trainer": Trainer,
}
LISTED: Mapping[str, type[Any]] = {"data": ImageData, **GROUPS}
"""What --help-all lists with all that can be set in it."""
BOOLEANS: tuple[tuple[str, type[Any]], ...] = (
    *LISTED.items(),
    ("data", ArrayData),
    ("data", TorchData),
)
FLAGS = {
    f"--{name}.{each.name}"
    for name, group in BOOLEANS
    for each in fields(group)
    if each.type is bool
}
"""Options that stand alone as well, without `true`."""
SLOTS: Mapping[str, tuple[type, Spec | None]] = {
    "data": (Data, {"class_path": "mqvae.ImageData"}),
    "network": (Architecture, {"class_path": "mqvae.VQVAE"}),
    "quantizer": (Quantizer, None),
    "task": (Task, {"class_path": "mqvae.Reconstruction"}),
    "update": (Rule, None),
    "optimizer.network": (TorchOptimizer, ADAMW),
    "optimizer.codebook": (TorchOptimizer, ADAMW),
}
"""Components: what they must be derived from, and what they are unless something else is said."""
KEPT: Mapping[str, frozenset[str]] = {
    "data": frozenset(each.name for each in fields(Data) if each.name != "name")
}
"""Arguments of components that stay where another class takes a place."""
HANDED_LATER = {"params", "lr"}
"""Arguments of optimizers that are no settings: a run has them, or says them once."""

SETTINGS: Mapping[str, Any] = {
    "out": str | None,
    "name": str | None,
    "seed": Seed,
    "steps": Number,
    "from": Start | None,
    "freeze": tuple[Part, ...],
    "overwrite": bool,
}
"""Settings of no group, and the options beside them."""
USUAL: Mapping[str, Any] = {"seed": 0, "steps": 1000, "freeze": (), "overwrite": False}


class _Parser(ArgumentParser):
    """Checks settings that are parsed, and not once more where they are completed."""

    checked: ContextVar[bool] = ContextVar("checked", default=False)
    _found: Namespace | None = None

    def validate(self, *args: Any, **options: Any) -> None:
        if not self.checked.get():
            super().validate(*args, **options)

    def get_defaults(self, *args: Any, **options: Any) -> Namespace:
        """Defaults of all arguments, found once: nothing sets others."""
        if self._found is None:
            self._found = super().get_defaults(*args, **options)
        return self._found.clone()


@contextmanager
def checked_before() -> Iterator[None]:
    """Settings that are parsed here have been checked by `settings_parser()` before."""
    token = _Parser.checked.set(True)
    try:
        yield
    finally:
        _Parser.checked.reset(token)


@cache
def settings_parser() -> ArgumentParser:
    """The parser of all settings, with type, range and default of each."""
    for name in mqvae.__all__:  # classes answer to their names once they are imported
        getattr(mqvae, name)
    parser = _Parser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name}", type=kind, default=USUAL.get(name))
    for name, group in GROUPS.items():
        parser.add_class_arguments(group, name, skip={*LEVELS} if group is Optimizer else None)
    for name, (base, default) in SLOTS.items():
        parser.add_subclass_arguments(
            base,
            name,
            as_group=False,
            skip=HANDED_LATER if base is TorchOptimizer else None,
            required=default is None,
            default=default,
        )
    for action in parser._actions:  # a value is a value, and never a file to be read
        if hasattr(action, "_enable_path"):
            action._enable_path = False
        if isinstance(more := getattr(action, "sub_add_kwargs", None), dict):
            more["sub_configs"] = False
    return parser
