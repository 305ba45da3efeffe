"""What a training run reaches, and after how long: the amortized rule and time to quality.

Runs are written one by one; what is there is not run again, so that it can go on after a stop.
"""

import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mqvae.bench.step import CASES, DEMO, step_costs
from mqvae.bench.table import Cell, Table
from mqvae.metrics import evaluating
from mqvae.settings import Settings, load_preset
from mqvae.trainer import Training, begin

VQ, FULL, AMORTIZED, DIRECT = "vq-vae", "mq-vae", "mq-vae-amortized", "mq-vae-direct-kept"
NAMES = {
    VQ: "VQ-VAE",
    FULL: "MQ-VAE, Algorithm 1",
    AMORTIZED: "MQ-VAE, amortized",
    DIRECT: "MQ-VAE, direct only, kept",
}
STEPS_OF = {
    VQ: "Joint",
    FULL: "Meta(FiniteDifference), undone, AdamW's step",
    AMORTIZED: "Meta(Amortized), kept",
    DIRECT: "Meta(DirectOnly), kept",
}
CHEAP = (AMORTIZED, DIRECT)  # the configurations of MQ-VAE that race against VQ-VAE
PAPER_RATES = {VQ: 3e-4, FULL: 6e-2, AMORTIZED: 6e-2, DIRECT: 6e-2}
GRID = (2e-2, 6e-2, 2e-1)
SEEDS = (0, 1, 2)
STEPS = 1500
EVERY, IMAGES = 50, 2000  # the curve: MSE of the first test images


@dataclass(frozen=True)
class Trained:
    """A run that was made.

    Attributes:
        method: Its preset under `methods/`.
        rate: Codebook learning rate.
        seed: Its seed.
        validation: MSE over images held out of the training set, on which rates are chosen.
        mse: Over all test images.
        perplexity: Over all test images.
        gradient_gap: Over all test images.
        curve: (step, MSE of the first test images).
    """

    method: str
    rate: float
    seed: int
    validation: float
    mse: float
    perplexity: float
    gradient_gap: float
    curve: Sequence[tuple[int, float]]


class Runs:
    """Runs in a folder, made when they are asked for.

    Args:
        folder: Where their figures are.
        steps: Updates of each.
        device: Where they train.
    """

    def __init__(self, folder: Path, *, steps: int = STEPS, device: str = "cpu") -> None:
        self.folder = folder
        self.steps = steps
        self.device = device

    def get(self, method: str, rate: float, seed: int) -> Trained:
        path = self.folder / f"{method}-{rate:g}-{seed}-{self.steps}.json"
        if not path.is_file():
            trained = train(method, rate, seed, steps=self.steps, device=self.device)
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(trained.__dict__, indent=1) + "\n", encoding="utf-8")
            print(
                f"{NAMES[method]}, rate {rate:g}, seed {seed}: MSE {trained.mse * 1e3:.2f}e-3",
                flush=True,
            )
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Trained(**{**found, "curve": [(int(s), float(m)) for s, m in found["curve"]]})

    def seeds(self, method: str, rate: float) -> list[Trained]:
        return [self.get(method, rate, seed) for seed in SEEDS]

    def best_rate(self, method: str) -> float:
        """Of the grid, by the first seed's MSE on images that no other figure is of."""
        return min(GRID, key=lambda rate: self.get(method, rate, SEEDS[0]).validation)


def train(
    method: str, rate: float, seed: int, *, steps: int = STEPS, device: str = "cpu"
) -> Trained:
    """One run of a preset, its MSE on the first test images noted on the way."""
    settings = load_preset(
        f"methods/{method}",
        {
            "name": NAMES[method],
            "steps": steps,
            "seed": seed,
            "optimizer": {"codebook_lr": rate},
            "trainer": {"accelerator": device},
        },
    )
    curve: list[tuple[int, float]] = []

    def note(training: Training) -> None:
        if training.step % EVERY == 0:
            curve.append((training.step, _mse(training)))

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        summary = begin(Settings.of(settings), Path(folder) / "run").fit(after_step=note)
    return Trained(
        method,
        rate,
        seed,
        summary["validation"],
        summary["mse"],
        summary["perplexity"],
        summary["gradient_gap"],
        curve,
    )


@torch.no_grad()
def _mse(training: Training) -> float:
    images, network = training.splits.test, training.parts.network
    pixels, _ = images.take(torch.arange(min(IMAGES, len(images))))
    total = 0.0
    with evaluating(network):
        for part in pixels.split(250):
            x = part.to(training.processes.device) / 255
            output = network(x).output.float()
            total += (output - x).square().flatten(1).mean(1).sum().item()
    return total / len(pixels)


def amortized_table(runs: Runs) -> Table:
    """The amortized rule beside Algorithm 1, paired by seed."""
    full, cheap = runs.seeds(FULL, PAPER_RATES[FULL]), runs.seeds(AMORTIZED, PAPER_RATES[AMORTIZED])
    apart = [100 * (b.mse / a.mse - 1) for a, b in zip(full, cheap, strict=True)]
    rows: list[dict[str, Cell]] = [
        {
            "seed": str(a.seed),
            "Algorithm 1, MSE e-3": a.mse * 1e3,
            "amortized, MSE e-3": b.mse * 1e3,
            "apart, %": round(difference, 2),
            "perplexity": f"{a.perplexity:.0f} and {b.perplexity:.0f}",
        }
        for a, b, difference in zip(full, cheap, apart, strict=True)
    ]
    mean = statistics.mean(apart)
    return Table(
        "quality-amortized",
        "Final test MSE of the amortized rule beside Algorithm 1, paired by seed",
        _conditions(runs, {"codebook rate": "6e-2"}),
        rows,
        [
            f"Mean {mean:+.2f}%, standard error {statistics.stdev(apart) / len(apart) ** 0.5:.2f}. "
            f"No worse than 2%: {'held' if mean <= 2 else 'not held'}."
        ],
    )


def race_table(runs: Runs, costs: Mapping[str, float]) -> Table:
    """When each cheap MQ-VAE passes what VQ-VAE ends with, in both protocols."""
    rows: list[dict[str, Cell]] = []
    for protocol in ("paper", "matched"):
        matched = protocol == "matched"
        rates = {m: runs.best_rate(m) if matched else PAPER_RATES[m] for m in (VQ, *CHEAP)}
        baseline = runs.seeds(VQ, rates[VQ])
        rows.append(
            {
                "protocol": protocol,
                "method": NAMES[VQ],
                "codebook rate": f"{rates[VQ]:g}",
                **_reached(baseline),
                "cost of a step": 1.0,
            }
        )
        for method in CHEAP:
            found = runs.seeds(method, rates[method])
            times = []
            for run, base in zip(found, baseline, strict=True):
                goal = base.curve[-1][1]
                passed = next((step for step, mse in run.curve if mse <= goal), None)
                times.append(None if passed is None else passed * costs[method] / runs.steps)
            rows.append(
                {
                    "protocol": protocol,
                    "method": NAMES[method],
                    "codebook rate": f"{rates[method]:g}",
                    **_reached(found),
                    "cost of a step": costs[method],
                    "time to VQ-VAE's final MSE": ", ".join(
                        "not reached" if t is None else f"{t:.2f}" for t in times
                    ),
                }
            )
    return Table(
        "quality-race",
        "Time to quality: VQ-VAE's whole run is 1; one figure per seed",
        _conditions(runs, {"grid of the matched protocol": ", ".join(f"{r:g}" for r in GRID)}),
        rows,
        [
            f"Passed is judged every {EVERY} updates on the first {IMAGES:,} test images, on which "
            "VQ-VAE's final MSE is taken, too; time is updates times the cost of a step, measured "
            "in turns. The matched rates are the best of the grid by the first seed."
        ],
    )


def _reached(found: Sequence[Trained]) -> dict[str, Cell]:
    values = [run.mse * 1e3 for run in found]
    perplexity = statistics.mean(run.perplexity for run in found)
    return {
        "MSE e-3": f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}",
        "perplexity": round(perplexity),
    }


def _conditions(runs: Runs, more: Mapping[str, Cell]) -> dict[str, Cell]:
    return {
        "preset": "fashion-mnist-demo",
        "updates": runs.steps,
        "seeds": ", ".join(map(str, SEEDS)),
        **more,
    }


def curves(runs: Runs) -> dict[str, list[Trained]]:
    """The runs of the plot, by label."""
    found = {
        f"{NAMES[VQ]}, rate {PAPER_RATES[VQ]:g} (paper)": runs.seeds(VQ, PAPER_RATES[VQ]),
        NAMES[FULL]: runs.seeds(FULL, PAPER_RATES[FULL]),
    }
    for method in (VQ, *CHEAP):
        rate = runs.best_rate(method)
        found[f"{NAMES[method]}, rate {rate:g} (matched)"] = runs.seeds(method, rate)
    return found


def run(*, device: str, rounds: int | None, folder: Path) -> list[Table]:
    """Both tables; an hour and a half on two cores, less what is in the folder already."""
    runs = Runs(folder, device=device)
    torch.manual_seed(0)
    x = torch.rand(DEMO.batch_size, DEMO.channels, DEMO.side, DEMO.side, device=device)
    table = step_costs(
        "quality-steps",
        {STEPS_OF[m]: CASES[STEPS_OF[m]] for m in (VQ, FULL, *CHEAP)},
        DEMO.network,
        x,
        rounds=rounds or 20,
        conditions=DEMO.conditions(),
    )
    ratios = {row["step"]: row["ratio"] for row in table.rows}
    costs = {m: float(ratios[STEPS_OF[m]] or 0) for m in (VQ, FULL, *CHEAP)}
    return [amortized_table(runs), race_table(runs, costs)]
