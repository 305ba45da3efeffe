"""The loop: batches in, a run folder out."""

import inspect
import math
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mqvae import __version__
from mqvae.config import (
    class_of,
    instantiate,
    with_defaults,
)
from mqvae.core.diagnostics import count_codes, perplexity, usage
from mqvae.core.updates import Step, Update
from mqvae.data import Batches
from mqvae.metrics import evaluate, evaluating
from mqvae.runs import (
    Checkpoint,
    Run,
    optimizer_groups,
    optimizer_tensors,
    restore_optimizer,
)
from mqvae.tasks import Reconstruction
from mqvae.trainer.results import device_name, versions, write_evaluation_files
from mqvae.trainer.settings import Settings, absolute, build_network, load_split

INITIALIZATION_SAMPLES = 16  # embeddings per codeword that k-means starts from
VALIDATION_IMAGES = 1000
COLLAPSE_USAGE = 0.01
COLLAPSE_STEPS = 200


class Interrupted(Exception):
    """Training was asked to stop, and has written a checkpoint."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
        self.signal_number = signal_number


class NotFinite(Exception):
    """A loss is not finite."""


def warmup_cosine(steps: int, warmup: float) -> Any:
    """Factor of the learning rate after i steps: linear over the warm-up, then a cosine to 0."""
    rise = round(steps * warmup)

    def factor(i: int) -> float:
        if i < rise:
            return (i + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (i - rise) / max(1, steps - rise))))

    return factor


class Training:
    """A training run, from its first step or from a checkpoint.

    Args:
        settings: What to train, and how.
        out: The run folder to make.
        resume: A run to go on with, instead of `out`.
        overwrite: Replace a run at `out`.
    """

    def __init__(
        self,
        settings: Settings,
        out: str | Path | None = None,
        *,
        resume: Run | None = None,
        overwrite: bool = False,
    ) -> None:
        from lightning.fabric import Fabric

        trainer = settings.trainer
        try:
            self.fabric = Fabric(
                accelerator=trainer.accelerator,
                devices=trainer.devices,
                precision=trainer.precision,  # type: ignore[arg-type]
            )
        except RuntimeError as error:
            raise ValueError(
                f"trainer.accelerator is {trainer.accelerator}, which this machine does not have: "
                "leave it out, or take cpu."
            ) from error
        self.fabric.launch()
        settings = replace(settings, data=absolute(settings.data))
        self.train_images = load_split(settings.data, "train")
        self.test_images = load_split(settings.data, "test")
        channels, side, _ = self.train_images.shape
        settings = replace(settings, data=replace(settings.data, channels=channels, side=side))

        torch.manual_seed(settings.seed)
        device = self.fabric.device
        self.network = build_network(settings).to(device)
        # Whatever the encoder cannot take is said before anything is written.
        with torch.no_grad():
            self.network.embed(torch.zeros(1, *self.train_images.shape, device=device))
        self.task = Reconstruction()
        self.optimizers = self._optimizers(settings)
        self.update: Update = instantiate(
            settings.update, network=self.network, loss=self.task, **self.optimizers
        )
        settings = replace(
            settings,
            quantizer=with_defaults(settings.quantizer, self.network.quantizer),
            update=with_defaults(settings.update, self.update),
        )
        factor = warmup_cosine(settings.steps, settings.optimizer.warmup)
        self.schedules = [LambdaLR(optimizer, factor) for _, optimizer in self._stepping()]
        self.batches = Batches(
            self.train_images,
            settings.data.batch_size,
            seed=settings.seed,
            device=device,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        self.settings = settings
        self.log_every = trainer.log_every or max(1, min(100, settings.steps // 50))
        self.checkpoint_every = trainer.checkpoint_every or max(1, min(1000, settings.steps // 5))
        self.step = 0
        self.seconds = 0.0
        self.best = math.inf
        self.step_seconds: deque[float] = deque(maxlen=10_000)
        self.collapsed_steps = 0
        self.warnings: list[str] = []
        self._reset_counts()
        if resume is None:
            if out is None:
                raise ValueError("a run needs a folder: pass --out.")
            self.run = Run.create(out, settings.config(), overwrite=overwrite)
            self._initialize_codebook()
            self._save("last")
        else:
            self.run = resume
            self._restore(resume.load("last"))
        self.run.start_metrics(after_step=self.step)

    def _optimizers(self, settings: Settings) -> dict[str, Optimizer | None]:
        """The optimizers that the rule takes, by its names for them."""
        rates = settings.optimizer

        def adamw(parameters: Iterable[Tensor], lr: float) -> AdamW:
            return AdamW(parameters, lr=lr, weight_decay=rates.weight_decay)

        codebook = list(self.network.codebook_parameters())
        made: dict[str, Optimizer | None] = {
            "lower": adamw(self.network.network_parameters(), rates.network_lr),
            "upper": adamw(codebook, rates.codebook_lr) if codebook else None,
        }
        taken = inspect.signature(class_of(settings.update["class_path"])).parameters
        return {name: optimizer for name, optimizer in made.items() if name in taken}

    def _stepping(self) -> list[tuple[str, Optimizer]]:
        """The optimizers that there are, by their names."""
        return [(name, o) for name, o in self.optimizers.items() if o is not None]

    def _initialize_codebook(self) -> None:
        """k-means on embeddings of the training set's first shuffled images."""
        quantizer = self.network.quantizer
        with torch.no_grad():
            probe = self.network.embed(
                torch.zeros(1, *self.train_images.shape, device=self.fabric.device)
            )
        positions = probe.numel() // quantizer.dim
        wanted = -(-INITIALIZATION_SAMPLES * quantizer.num_codes // positions)
        order = torch.randperm(
            len(self.train_images), generator=torch.Generator().manual_seed(self.settings.seed)
        )
        pixels, _ = self.train_images.take(order[:wanted])
        self.network.initialize_codebook(pixels.to(self.fabric.device) / 255)

    # -- the loop --------------------------------------------------------------------------------

    def fit(self, *, after_step: Callable[["Training"], None] | None = None) -> dict[str, Any]:
        """Train to the last step, evaluate, and write summary.json; returns its contents.

        Args:
            after_step: Called after every step, whose time it does not count for.

        Raises:
            Interrupted: after SIGINT or SIGTERM, when a checkpoint is written.
            NotFinite: if a loss is not finite; the last good checkpoint stays.
        """
        from mqvae.progress import Progress

        self.network.train()
        settings, cpu = self.settings, self.fabric.device.type == "cpu"
        with _Signals() as asked, self._writer() as writer:
            progress = Progress(settings.name, self.step, settings.steps)
            with progress, self.fabric.autocast():
                while self.step < settings.steps:
                    began = time.perf_counter()
                    x, y = self.batches.next()
                    result = self.update.step(x, self.task.target(x, y))
                    self.step += 1
                    at_log = self.step % self.log_every == 0 or self.step == settings.steps
                    if cpu or at_log:
                        # On a GPU every look at a value waits for it.
                        self._check(result)
                    self._count(result)
                    if at_log and not cpu:
                        torch.accelerator.synchronize()
                    elapsed = time.perf_counter() - began
                    self.seconds += elapsed
                    self.step_seconds.append(elapsed)
                    if at_log:
                        self._log(result, writer)
                    for schedule in self.schedules:
                        schedule.step()
                    progress.advance(self.step, result)
                    if after_step is not None:
                        after_step(self)
                    if self.step % self.checkpoint_every == 0 and self.step < settings.steps:
                        self._checkpoint(writer)
                    if asked.signal_number is not None:
                        self._save("last")
                        raise Interrupted(self.step, asked.signal_number)
            self._checkpoint(writer)
            if asked.signal_number is not None:
                raise Interrupted(self.step, asked.signal_number)
        return self._finish()

    def _check(self, result: Step) -> None:
        for term in ("task", "commitment", "codebook"):
            value = getattr(result, term)
            if not torch.isfinite(value):
                raise self._not_finite(f"the {term} loss is {value.item()}")

    def _not_finite(self, what: str) -> NotFinite:
        return NotFinite(
            f"{what} at step {self.step}. The last good checkpoint is kept in "
            f"{self.run.folder / 'checkpoints' / 'last'}. Try a lower optimizer.network_lr or "
            "optimizer.codebook_lr, or a smaller update.xi."
        )

    def _reset_counts(self) -> None:
        quantizer = self.network.quantizer
        self.counts = torch.zeros(
            quantizer.groups, quantizer.num_codes, dtype=torch.int64, device=self.fabric.device
        )

    def _count(self, result: Step) -> None:
        quantizer = self.network.quantizer
        self.counts += count_codes(result.codes, quantizer.num_codes, groups=quantizer.groups)

    def _log(self, result: Step, writer: Any) -> None:
        used = usage(self.counts.cpu()).item()
        row: dict[str, float | int | None] = {
            "step": self.step,
            "seconds": self.seconds,
            "perplexity": perplexity(self.counts.cpu()).item(),
            "usage": used,
            **{
                f"{of}_lr": optimizer.param_groups[0]["lr"]
                for of, optimizer in (
                    ("network", self.optimizers.get("lower")),
                    ("codebook", self.optimizers.get("upper")),
                )
                if optimizer is not None
            },
        }
        for term in ("task", "commitment", "codebook", "direct_norm", "indirect_norm", "cosine"):
            value: Tensor | None = getattr(result, term)
            row[term] = None if value is None else value.item()
        self.run.log(row)
        for name, number in row.items():
            if number is not None and name != "step":
                writer.add_scalar(name, number, self.step)
        num_codes = self.network.quantizer.num_codes
        # One code left is a collapse also where it is more than 1% of them.
        few = used < max(COLLAPSE_USAGE, 1.5 / num_codes) and num_codes > 1
        collapsed = self.collapsed_steps + self.log_every if few else 0
        if self.collapsed_steps < COLLAPSE_STEPS <= collapsed:
            total = self.counts.numel()
            self._warn(
                f"codebook collapse: {round(used * total)} of {total} codes were used over the "
                f"last {self.log_every} steps, and hardly more for {collapsed} steps, up to step "
                f"{self.step}. Try a higher optimizer.codebook_lr, fewer quantizer.num_codes, a "
                "smaller quantizer.dim, or quantizer.groups."
            )
        self.collapsed_steps = collapsed
        self._reset_counts()

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        print(f"mqvae: warning: {message}", file=sys.stderr)

    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=self.step + 1)

    # -- checkpoints -----------------------------------------------------------------------------

    def _checkpoint(self, writer: Any) -> None:
        """Save, and keep the weights apart if they are the best on the first test images."""
        validation = self._validation_task()
        if not math.isfinite(validation):
            raise self._not_finite(f"the validation loss is {validation}")
        writer.add_scalar("validation_task", validation, self.step)
        better = validation < self.best
        self.best = min(self.best, validation)
        self._save("last")
        if better:
            self._save("best")

    def _validation_task(self) -> float:
        device, total = self.fabric.device, 0.0
        pixels, labels = self.test_images.take(
            torch.arange(min(VALIDATION_IMAGES, len(self.test_images)))
        )
        with evaluating(self.network), torch.no_grad():
            for part, label in zip(pixels.split(250), labels.split(250), strict=True):
                x = part.to(device) / 255
                output = self.network(x).output.float()
                target = self.task.target(x, label.to(device))
                total += self.task(output, target).item() * len(x)
        return total / len(pixels)

    def _save(self, name: str) -> None:
        """Write a checkpoint.

        Raises:
            NotFinite: if a number in it is not finite; the one before stays.
        """
        training = {
            **{f"rule.{key}": value for key, value in self.update.state_dict().items()},
            "random.cpu": torch.get_rng_state(),
            "counts": self.counts,
        }
        for of, optimizer in self._stepping():
            training.update(optimizer_tensors(of, optimizer))
        if self.fabric.device.type == "cuda":
            training["random.cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        model = self.network.state_dict()
        for key, tensor in {**model, **training}.items():
            if not torch.isfinite(tensor).all():
                raise self._not_finite(f"{key} is not finite")
        self.run.save(
            name,
            Checkpoint(
                model,
                training,
                {
                    "step": self.step,
                    "seconds": self.seconds,
                    "best": None if math.isinf(self.best) else self.best,
                    "batches": self.batches.state_dict(),
                    "optimizers": {of: optimizer_groups(o) for of, o in self._stepping()},
                    "collapsed_steps": self.collapsed_steps,
                    "warnings": self.warnings,
                    "version": __version__,
                },
            ),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self._take_over(checkpoint)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint of {self.run.folder} does not fit its config.yaml, or is of "
                f"another version (mqvae {checkpoint.state.get('version')}, this is "
                f"{__version__}): {error}"
            ) from error

    def _take_over(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.network.load_state_dict(checkpoint.model)
        self.step = state["step"]
        # The schedules count on from here; the rates themselves come with the optimizers' groups.
        for schedule in self.schedules:
            schedule.last_epoch = self.step
        for of, optimizer in self._stepping():
            restore_optimizer(of, optimizer, checkpoint.training, state["optimizers"][of])
        rule = {k: t for k, t in checkpoint.training.items() if k.startswith("rule.")}
        self.update.load_state_dict({k.removeprefix("rule."): t for k, t in rule.items()})
        self.seconds = state["seconds"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.batches.load_state_dict(state["batches"])
        self.collapsed_steps = state["collapsed_steps"]
        self.warnings = state["warnings"]
        self.counts = checkpoint.training["counts"].to(self.fabric.device)
        torch.set_rng_state(checkpoint.training["random.cpu"])
        if self.fabric.device.type == "cuda" and "random.cuda" in checkpoint.training:
            torch.cuda.set_rng_state(checkpoint.training["random.cuda"], self.fabric.device)

    # -- the end ---------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        result = evaluate(self.network, self.test_images, device=self.fabric.device)
        write_evaluation_files(self.run, self.network, self.test_images, result)
        settings = self.settings
        summary: dict[str, Any] = {
            **result.figures,
            "name": settings.name,
            "rule": type(self.update).__name__,
            "dataset": self.train_images.name,
            "source": self.train_images.source,
            "steps": self.step,
            "wall_seconds": self.seconds,
            "seconds_per_step": statistics.median(self.step_seconds or [self.seconds / self.step]),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "seed": settings.seed,
            "device": device_name(self.fabric.device),
            "protocol": result.protocol,
            "versions": versions(),
            "warnings": self.warnings,
        }
        self.run.write_json("summary.json", summary)
        return summary


class _Signals:
    """Remembers SIGINT and SIGTERM until the step is done; a second one acts at once."""

    signal_number: int | None = None

    def __enter__(self) -> "_Signals":
        try:
            self._before = {
                number: signal.signal(number, self._note)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread, where signals do not arrive anyway
            self._before = {}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number

    def __exit__(self, *rest: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
