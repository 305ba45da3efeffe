"""Logs of a run: metrics.csv, loggers, warnings."""

import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mqvae.core.distributed import from_all_processes, mean_across_processes
from mqvae.core.rate import Rate
from mqvae.core.rules import Step
from mqvae.core.usage import CodeCounts
from mqvae.runs import Run
from mqvae.training.assembly import Parts
from mqvae.training.loggers import Logger, opened
from mqvae.training.processes import Processes

COLLAPSE_USAGE = 0.01
COLLAPSE_STEPS = 200
TROUBLED_ROWS = 3
WAIT_SHARE = 0.2
WAIT_SECONDS = 10.0  # of training that a share is taken of
LOSSES = ("task", "commitment", "codebook", "auxiliary")
NORMS = ("direct_norm", "indirect_norm", "cosine")


class Log:
    """Rows of metrics.csv, and their like for loggers, written by the first process.

    Args:
        parts: What is trained.
        processes: The processes that train together.
        every: Steps between two rows.
        loggers: Names of those that take the rows as well.
        skips: Whether steps in which a number is not finite are skipped, and counted in the rows.

    Attributes:
        counts: How often this process has seen each code since the last row.
        collapsed_steps: For how many steps hardly any code has been used.
        troubled_rows: In how many rows in succession the task has had a trouble, by kind; stays
            when it has been warned of.
        skipped: Names of images that no process could read.
        skipped_steps: How many steps were taken back, since a number was not finite.
        skipped_in_a_row: How many of them were the last ones.
        warnings: What has been warned of.
    """

    def __init__(
        self,
        parts: Parts,
        processes: Processes,
        every: int,
        loggers: Sequence[str] = (),
        *,
        skips: bool = False,
    ) -> None:
        self._parts = parts
        self._processes = processes
        self._every = every
        self._names = loggers
        self._skips = skips
        self._loggers: list[Logger] = []
        self.collapsed_steps = 0
        self.troubled_rows: dict[str, int] = {}
        self.skipped: set[str] = set()
        self.skipped_steps = self.skipped_in_a_row = 0
        self.warnings: list[str] = []
        self._since = (0.0, 0.0)  # seconds looked at for waiting, and those waited of them
        self.counts = self._nothing()

    def open(self, run: Run, step: int) -> None:
        """Begin or go on after a step."""
        self._run = run
        if self._processes.first:
            further = [*self._parts.task.logs, *["skipped_steps"] * self._skips]
            run.start_metrics(after_step=step, further=further)
            self._loggers = opened(self._names, run, step)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()

    def count(self, result: Step) -> None:
        """Count the codes of a step."""
        self.counts.add(result.codes)

    def losses(self, result: Step) -> dict[str, float]:
        """The loss terms of a step, over all processes."""
        found = mean_across_processes([getattr(result, term) for term in LOSSES])
        named = zip(LOSSES, found, strict=True)
        return {term: value.item() for term, value in named if value is not None}

    def row(
        self,
        step: int,
        seconds: float,
        took: float,
        waited: float,
        losses: Mapping[str, float],
        result: Step,
        logged: Mapping[str, Tensor],
        validation: float | None,
    ) -> None:
        """Write a row, and warn of what goes wrong. All processes take part.

        Args:
            step: Training steps made.
            seconds: Time they took.
            took: Time since the last row.
            waited: What of it was spent waiting for data.
            losses: The loss terms of the last step.
            result: What the last step gave.
            logged: What the task logs.
            validation: The validation loss, if there is a new one.
        """
        [waited] = (t.item() for t in mean_across_processes([torch.tensor(waited)]))
        counts = self.counts.of_all_processes()
        quantized = counts.used > 0  # before quantization sets in there are no codes
        means = mean_across_processes([logged[name].detach().float() for name in logged])
        of_task = {name: value.item() for name, value in zip(logged, means, strict=True)}
        levels = self._parts.levels
        row: dict[str, float | int | None] = {
            "step": step,
            "seconds": seconds,
            "data_wait": waited / took,
            "perplexity": counts.perplexity if quantized else None,
            "usage": counts.usage if quantized else None,
            **{
                f"{of}_lr": levels[level].param_groups[0]["lr"]
                for of, level in (("network", "lower"), ("codebook", "upper"))
                if level in levels
            },
            **losses,
            **of_task,
            "validation": validation,
            **({"skipped_steps": self.skipped_steps} if self._skips else {}),
        }
        for name in NORMS:
            value: Tensor | None = getattr(result, name)
            row[name] = None if value is None else value.item()
        # Only those of a step that was skipped are not finite.
        row = {k: v if v is not None and math.isfinite(v) else None for k, v in row.items()}
        if self._processes.first:
            self._run.log(row)
            figures = {k: v for k, v in row.items() if v is not None and k != "step"}
            for logger in self._loggers:
                logger.log(figures, step)
        if quantized:
            self._look_for_collapse(counts, step)
        self._look_for_troubles(of_task, step)
        self._look_for_waiting(took, waited, step)
        self.counts = self._nothing()

    def _look_for_collapse(self, counts: CodeCounts, step: int) -> None:
        codes = counts.num_codes
        parts = self._parts.network.quantizer.modules()
        bits = min((part.target.bits for part in parts if isinstance(part, Rate)), default=math.inf)
        wanted = 2 ** min(bits, math.log2(codes))  # so many that a rate allows are not few
        # One code left is a collapse also where it is more than 1% of them.
        few = counts.used / counts.groups < max(COLLAPSE_USAGE * wanted, 1.5) and codes > 1
        collapsed = self.collapsed_steps + self._every if few else 0
        if self.collapsed_steps < COLLAPSE_STEPS <= collapsed:
            self.warn(
                f"codebook collapse: {counts.used} of {counts.groups * codes} codes were used over "
                f"the training images of the last {self._every} steps, and hardly more for "
                f"{collapsed} steps, up to step {step}. Try a higher optimizer.codebook_lr, fewer "
                "quantizer.num_codes, a smaller quantizer.dim, or quantizer.groups."
            )
        self.collapsed_steps = collapsed

    def _look_for_troubles(self, of_task: Mapping[str, float], step: int) -> None:
        found, before = self._parts.task.troubles(of_task), self.troubled_rows
        self.troubled_rows = {k: n for k, n in before.items() if k in found or n >= TROUBLED_ROWS}
        for kind, message in found.items():
            self.troubled_rows[kind] = rows = before.get(kind, 0) + 1
            if rows == TROUBLED_ROWS:
                self.warn(f"{message} So it was in {rows} rows of metrics.csv, up to step {step}.")

    def _look_for_waiting(self, took: float, waited: float, step: int) -> None:
        images = self._parts.batches.images
        took, waited = self._since[0] + took, self._since[1] + waited
        self._since = (took, waited)
        if not images.ahead or took < WAIT_SECONDS:
            return
        self._since = (0.0, 0.0)
        said = any(warning.startswith("waiting for data") for warning in self.warnings)
        if waited > WAIT_SHARE * took and not said:
            self.warn(
                f"waiting for data took {waited / took:.0%} of the time up to step {step}. Try "
                "more data.workers, images that are stored no larger than data.side needs, shards "
                "instead of single files, or data.memory true if they fit."
            )

    def note_skipped(self, names: Sequence[str], step: int) -> None:
        """Images that this process could not read. All processes take part."""
        text = "\0".join(names) + "\0" if names else ""
        every = from_all_processes(
            torch.tensor(list(text.encode(errors="surrogateescape")), dtype=torch.uint8)
        )
        text = bytes(every.tolist()).decode(errors="surrogateescape")
        before = len(self.skipped)
        self.skipped |= set(text.split("\0")) - {""}
        if self.skipped and not before:
            self.warn(
                f"{len(self.skipped)} image(s) could not be read and were skipped, up to step "
                f"{step}; the next one took the place of each. The first is {min(self.skipped)}. "
                "--data.on_error stop ends a run at such an image; summary.json counts them."
            )

    def note_skipped_step(self, what: str, step: int) -> None:
        """A step that was taken back, and why. All processes take part."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_steps == 1:
            self.warn(
                f"step {step} was skipped: {what}. It has changed nothing; metrics.csv and "
                "summary.json count such steps (skipped_steps)."
            )

    def warn(self, message: str) -> None:
        """Say something on the terminal, and keep it for summary.json."""
        self.warnings.append(message)
        if self._processes.first:
            print(f"mqvae: warning: {message}", file=sys.stderr)

    def _nothing(self) -> CodeCounts:
        quantizer = self._parts.network.quantizer
        return CodeCounts(quantizer.num_codes, quantizer.groups, device=self._processes.device)
