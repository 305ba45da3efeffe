"""Training of a prior over the codes of a run."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from mqvae.errors import MqvaeError
from mqvae.files import write_json
from mqvae.metrics import evaluating
from mqvae.metrics.bits import PRIOR
from mqvae.networks.code_prior import CodePrior
from mqvae.prior.codes import CodeSplit, bits, bits_of_split, independent_bits, shuffled
from mqvae.prior.distance import SampleDistance
from mqvae.prior.sampling import images_of, sample_codes
from mqvae.prior.settings import PriorConfig
from mqvae.progress import Progress
from mqvae.provenance import code
from mqvae.runs import Checkpoint, Run, optimizer_state, restore_optimizer
from mqvae.runs.known import Changes
from mqvae.tokenizer import Tokenizer
from mqvae.training import Interrupted, NotFinite, device_name, versions, warmup_cosine
from mqvae.training.results import write_strip
from mqvae.training.stopping import KEPT, Signals

SAMPLES = 8  # drawn at the end, for the report
MOST = 1024  # codes of an image that is drawn there
COLUMNS = ("step", "seconds", "loss", "validation")


class PriorTraining:
    """A prior in training. `begin_prior` and `resume_prior` make one.

    Attributes:
        run: The folder `prior/` of a run, itself laid out as one.
        config: What is trained, and how.
        tokenizer: Whose codes it learns.
        network: The prior.
        train: Codes of the images the tokenizer was trained on.
        validation: Codes of those held out; may be empty.
        test: Codes of the test images.
        distance: How far samples are; None where they are not measured.
        step: Training steps made.
        seconds: Time they took.
        accepted: Changes of the run's images that were accepted, with the step.
    """

    def __init__(
        self,
        run: Run,
        config: PriorConfig,
        tokenizer: Tokenizer,
        network: CodePrior,
        splits: tuple[CodeSplit, CodeSplit, CodeSplit],
        distance: SampleDistance | None = None,
    ) -> None:
        self.run = run
        self.config = config
        self.tokenizer = tokenizer
        self.device = tokenizer.device
        self.network = network.to(self.device)
        self.train, self.validation, self.test = splits
        self.distance = distance
        self.optimizer = AdamW(self.network.parameters(), lr=config.prior.lr)
        self.rate = warmup_cosine(config.prior.steps, config.prior.warmup)
        self.log_every = max(1, min(100, config.prior.steps // 50))
        self.checkpoint_every = max(1, min(500, config.prior.steps // 5))
        self.step = 0
        self.seconds = 0.0
        self.accepted: list[dict[str, Any]] = []
        self._unsaid: float | None = None  # a validation loss that no row has yet

    def accept(self, changes: Changes) -> None:
        """Note from which step on the images are others than the run had."""
        if changes and {**changes} not in [_without_step(noted) for noted in self.accepted]:
            self.accepted.append({"step": self.step, **changes})

    def fit(
        self, *, after_step: Callable[["PriorTraining"], object] | None = None
    ) -> dict[str, Any]:
        """Train to the last step, measure, and write summary.json; returns its contents.

        Args:
            after_step: Called after every step, whose time it does not count for.

        Raises:
            Interrupted: after SIGINT or SIGTERM, when a checkpoint is written.
            NotFinite: if the loss is not finite; the last good checkpoint stays.
            ValueError: if another process trains it.
        """
        self.run.lock()
        try:
            self._train(after_step)
            return self._finish()
        finally:
            self.run.unlock()

    def _train(self, after_step: Callable[["PriorTraining"], object] | None) -> None:
        prior = self.config.prior
        size = min(self.config.batch_size, len(self.train))
        batches = shuffled(len(self.train), size, seed=prior.seed, start=self.step)
        self.run.start_metrics(after_step=self.step, columns=COLUMNS)
        self.network.train()
        if self.distance is not None:
            self.distance.start(self.run.folder, self.step)
        title = f"prior of {self.tokenizer.settings.name}"
        with Signals() as asked, Progress(title, self.step, prior.steps) as show:
            self._measure_samples()  # if it was stopped before they were
            while self.step < prior.steps:
                loss = self._update(next(batches))
                show.advance(self.step, f"{loss:.3f} bits per code")
                if after_step is not None:
                    after_step(self)
                if asked.number:
                    self.save()
                    raise Interrupted(self.step, asked.number)
                self._measure_samples()

    def _update(self, indices: Tensor) -> float:
        """One batch, and all that is due after it."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.prior.lr * self.rate(self.step)
        loss = bits(self.network, *self.train.take(indices, self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        value = loss.item()
        self.seconds += time.perf_counter() - began
        if not math.isfinite(value):
            raise self._not_finite(f"the loss is {value}")
        ended = self.step == self.config.prior.steps
        at_checkpoint = ended or self.step % self.checkpoint_every == 0
        if at_checkpoint and len(self.validation):
            self._unsaid = bits_of_split(self.network, self.validation, self.device)
        if ended or self.step % self.log_every == 0:
            row = {"step": self.step, "seconds": self.seconds, "loss": value}
            self.run.log({**row, "validation": self._unsaid})
            self._unsaid = None
        if at_checkpoint:
            self.save()
        return value

    def _not_finite(self, what: str) -> NotFinite:
        return NotFinite(
            f"{what} at step {self.step}. {KEPT} {self.run.folder / 'checkpoints' / 'last'}. Try a "
            "lower lr."
        )

    def _measure_samples(self) -> None:
        if self.distance is not None and self.distance.due(self.step):
            self.save()  # drawing may take longer than training did
            self.distance.measure(self.network, self.step)

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self) -> None:
        """Write the last checkpoint.

        Raises:
            NotFinite: if a number in it is not finite; the one before stays.
        """
        tensors, rest = optimizer_state("optimizer", self.optimizer)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "validation": self._unsaid,
            "optimizer": rest,
            "version": code().version,
            "accepted_changes": self.accepted,
        }
        checkpoint = Checkpoint(self.network.state_dict(), tensors, state)
        if bad := checkpoint.not_finite():
            raise self._not_finite(f"{bad} is not finite")
        self.run.save("last", checkpoint)

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint, whose weights the network has already.

        Raises:
            ValueError: if it holds something else than what `save` wrote.
        """
        try:
            restore_optimizer("optimizer", self.optimizer, saved.training, saved.state["optimizer"])
            self.step = int(saved.state["step"])
            self.seconds = float(saved.state["seconds"])
            self._unsaid = saved.state["validation"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MqvaeError(
                f"the checkpoint of {self.run.folder} does not fit its settings ({error!r}): train "
                "the prior again with --overwrite."
            ) from error
        self.accepted = saved.state.get("accepted_changes", [])

    # -- the end ---------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        measured = bits_of_split(self.network, self.test, self.device)
        data = self.tokenizer.settings.data
        numbers = (data.channels or 1) * (data.side or 1) ** 2
        distance = self.distance
        metrics = {**PRIOR, **({} if distance is None else distance.metrics())}
        content = {
            "bits_per_code": measured,
            "bits_per_dimension": measured * math.prod(self.config.shape) / numbers,
            "independent_bits_per_code": independent_bits(
                self.train, self.test, self.config.num_codes
            ),
            **({} if distance is None else distance.summary(self.train)),
            "name": f"prior of {self.tokenizer.settings.name}",
            "dataset": data.name,
            "steps": self.step,
            "wall_seconds": self.seconds,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "seed": self.config.prior.seed,
            "device": device_name(self.device),
            "tokenizer": {"checkpoint": self.config.checkpoint, "model": self.config.model},
            "protocol": {"split": "test", "images": len(self.test), "precision": "float32"},
            "figures": {key: dataclasses.asdict(metric) for key, metric in metrics.items()},
            "versions": versions(),
            "accepted_changes": self.accepted,
        }
        if math.prod(self.config.shape) <= MOST:
            with evaluating(self.network):
                codes = sample_codes(self.network, SAMPLES, torch.Generator().manual_seed(0))
            write_strip(self.run.folder / "samples.png", images_of(self.tokenizer, codes))
        write_json(self.run.folder / "summary.json", content)
        return content


def _without_step(noted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: words for name, words in noted.items() if name != "step"}
