"""Logs of a run: metrics.csv, loggers, warnings."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(eq=False, repr=False)
class Log:
    """Rows of metrics.csv, and their like for loggers, written by the first process.

    There is one `every` so many steps. With `skips` they count steps that were skipped, since a
    number in them was not finite.
    """

    parts: Parts
    processes: Processes
    every: int
    loggers: Sequence[str] = ()
    skips: bool = False

    def __post_init__(self) -> None:
        self._opened: list[Logger] = []
        self.collapsed_steps = 0  # for how many steps hardly any code has been used
        # In how many rows in succession the task has had a trouble, by kind; stays when it has been
        # warned of.
        self.troubled_rows: dict[str, int] = {}
        self.skipped: set[str] = set()  # names of images that no process could read
        # How many steps were taken back, since a number was not finite; and of these the last ones.
        self.skipped_steps = self.skipped_in_a_row = 0
        self.warnings: list[str] = []  # what has been warned of
        self._since = (0.0, 0.0)  # seconds looked at for waiting, and those waited of them
        # How often this process has seen each code since the last row.
        self.counts = self._nothing()

    def open(self, run: Run, step: int) -> None:
        """Begin or go on after a step."""
        self._run = run
        if self.processes.first:
            further = [*self.parts.task.logs, *["skipped_steps"] * self.skips]
            run.start_metrics(after_step=step, further=further)
            self._opened = opened(self.loggers, run, step)

    def close(self) -> None:
        for logger in self._opened:
            logger.close()

    def row(
        self,
        step: int,
        seconds: float,
        took: float,
        waited: float,
        result: Step,
        logged: Mapping[str, Tensor],
        validation: float | None,
    ) -> None:
        """Write a row, and warn of what goes wrong. All processes take part.

        All steps took `seconds`; those since the last row `took`, of which they `waited` for data.
        """
        found = mean_across_processes([getattr(result, term) for term in LOSSES])
        losses = {k: v.item() for k, v in zip(LOSSES, found, strict=True) if v is not None}
        [waited] = (t.item() for t in mean_across_processes([torch.tensor(waited)]))
        counts = self.counts.of_all_processes()
        quantized = counts.used > 0  # before quantization sets in there are no codes
        means = mean_across_processes([logged[name].detach().float() for name in logged])
        of_task = {name: value.item() for name, value in zip(logged, means, strict=True)}
        levels = self.parts.levels
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
            **({"skipped_steps": self.skipped_steps} if self.skips else {}),
        }
        norms = {name: getattr(result, name) for name in NORMS}
        row |= {name: None if norm is None else norm.item() for name, norm in norms.items()}
        # Only those of a step that was skipped are not finite.
        row = {k: v if v is not None and math.isfinite(v) else None for k, v in row.items()}
        if self.processes.first:
            self._run.log(row)
            figures = {k: v for k, v in row.items() if v is not None and k != "step"}
            for logger in self._opened:
                logger.log(figures, step)
        if quantized:
            self._look_for_collapse(counts, step)
        self._look_for_troubles(of_task, step)
        self._look_for_waiting(took, waited, step)
        self.counts = self._nothing()

    def _look_for_collapse(self, counts: CodeCounts, step: int) -> None:
        codes = counts.num_codes
        parts = self.parts.network.quantizer.modules()
        bits = min((part.target.bits for part in parts if isinstance(part, Rate)), default=math.inf)
        wanted = 2 ** min(bits, math.log2(codes))  # so many that a rate allows are not few
        # One code left is a collapse also where it is more than 1% of them.
        few = counts.used / counts.groups < max(COLLAPSE_USAGE * wanted, 1.5) and codes > 1
        collapsed = self.collapsed_steps + self.every if few else 0
        if self.collapsed_steps < COLLAPSE_STEPS <= collapsed:
            self.warn(
                f"codebook collapse: {counts.used} of {counts.groups * codes} codes were used over "
                f"the training images of the last {self.every} steps, and hardly more for "
                f"{collapsed} steps, up to step {step}. Try a higher optimizer.codebook_lr, fewer "
                "quantizer.num_codes, a smaller quantizer.dim, or quantizer.groups."
            )
        self.collapsed_steps = collapsed

    def _look_for_troubles(self, of_task: Mapping[str, float], step: int) -> None:
        found, before = self.parts.task.troubles(of_task), self.troubled_rows
        self.troubled_rows = {k: n for k, n in before.items() if k in found or n >= TROUBLED_ROWS}
        for kind, message in found.items():
            self.troubled_rows[kind] = rows = before.get(kind, 0) + 1
            if rows == TROUBLED_ROWS:
                self.warn(f"{message} So it was in {rows} rows of metrics.csv, up to step {step}.")

    def _look_for_waiting(self, took: float, waited: float, step: int) -> None:
        images = self.parts.batches.images
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
        own = torch.tensor(list(text.encode(errors="surrogateescape")), dtype=torch.uint8)
        every = from_all_processes(own)
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
        if self.processes.first:
            print(f"mqvae: warning: {message}", file=sys.stderr)

    def _nothing(self) -> CodeCounts:
        quantizer = self.parts.network.quantizer
        return CodeCounts(quantizer.num_codes, quantizer.groups, device=self.processes.device)
