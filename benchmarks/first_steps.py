"""The perplexity of each batch in the first steps of a run, and its lowest after some of them.

    python -m benchmarks.first_steps STEPS SETTINGS…
    python -m benchmarks.first_steps 220 fashion-mnist-demo --method recommended \
        --data photos --size 32 --quantizer.replacement.after 10

SETTINGS are those of `mqvae train`: the run is as long as they say, and is left after STEPS.
docs/collapse.md has what it found.
"""

import csv
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from mqvae.config import from_arguments
from mqvae.config.choosing import completed
from mqvae.training import Training, begin

AFTER = 50  # steps from which the lowest counts
ALONE = [
    "--trainer.loggers",
    "[]",
    "--trainer.log_every",
    "1",
    "--trainer.checkpoint_every",
    "9999",
]


class _Enough(Exception):
    """As many steps as were asked for."""


def perplexities(steps: int, arguments: list[str]) -> tuple[dict[int, float], int]:
    """Of each batch that was quantized, by step; and the number of codes."""
    settings = from_arguments([*completed(arguments)[0], *ALONE])[0]

    def stop(training: Training) -> None:
        if training.step >= steps:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        training = begin(settings, Path(folder, "run"))
        with suppress(_Enough):
            training.fit(after_step=stop)
        with open(training.run.folder / "metrics.csv", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["perplexity"]]
    codes = training.parts.network.quantizer.num_codes
    return {int(row["step"]): float(row["perplexity"]) for row in rows}, codes


def main(arguments: list[str]) -> None:
    """Print the lowest, where it was, and some on the way."""
    found, codes = perplexities(int(arguments[0]), arguments[1:])
    late = {step: value for step, value in found.items() if step > AFTER} or found
    lowest = min(late, key=lambda step: late[step])
    print(f"lowest after step {AFTER}: {late[lowest]:.0f} of {codes:,} codes, at step {lowest}")
    print("  ".join(f"{step}: {value:.0f}" for step, value in found.items() if step % 10 == 0))


if __name__ == "__main__":
    main(sys.argv[1:])
