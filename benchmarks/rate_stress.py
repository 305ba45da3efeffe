"""Whether a rate ever collapses a codebook: 36 settings, most of them unreasonable.

    python -m benchmarks.rate_stress [--steps 600 --only TEXT --out FILE.json]

Every setting is trained on digits of 16 × 16 (4 × 4 codes an image, 64 images a batch) and again
without the rate. Shown are the bits that a code costs by its probabilities: the mean of the last
fifth of the steps, the least after prices have set in, and the entropy of the run without a rate,
which bounds what can be asked for. A setting holds if the bits end within 0.75 of what was asked
for, or of what there is where more was asked for; if they were never below half of it; and if all
is finite. Exit code 1 if one does not.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mqvae.config import Settings, load_preset
from mqvae.core.rate import Rate
from mqvae.training import Training, TrainingFailed, begin

SETTLE = 50  # steps after the first prices, until which the bits are on their way
NEAR = 0.75  # bits
SMALL = {
    "data": {"validation": 0},
    "trainer": {"accelerator": "cpu", "log_every": 50, "checkpoint_every": 10_000},
    "optimizer": {"network_lr": 1e-3},
}
EMA, JOINT = "methods/ema-replace", "methods/replace"


def settings() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Name, method, rate's arguments, and what else is set."""
    for codes in (16, 256, 1024, 4096, 16384):
        for bits in (0.1, 2.0, 6.0, 50.0):
            yield f"EMA, K {codes:,}, {bits:g} bits", EMA, {"bits": bits}, quantizer(codes)
    for factor in (0.1, 10.0):
        options = {**quantizer(1024), "optimizer": {"network_lr": 1e-3 * factor}}
        yield f"EMA, network's learning rate × {factor:g}", EMA, {"bits": 4.0}, options
    for lr in (2e-3, 2e-2, 2e-1):
        options = {**quantizer(1024), "optimizer": {"codebook_lr": lr}}
        yield f"learned codebook at {lr:g}", JOINT, {"bits": 4.0}, options
    for decay in (0.0, 0.999):
        rate = {"bits": 4.0, "decay": decay}
        yield f"probabilities' decay {decay:g}", EMA, rate, quantizer(1024)
    yield "prices from the first step", EMA, {"bits": 4.0, "after": 0}, quantizer(4096)
    yield "no replacement", "methods/ema-short", {"bits": 4.0}, quantizer(1024)
    yield "EMA of 0.99", "methods/ema", {"bits": 4.0}, quantizer(1024)
    yield "4 images a batch", EMA, {"bits": 4.0}, {**quantizer(1024), "data": {"batch_size": 4}}
    yield "commitment × 10", EMA, {"bits": 4.0}, {**quantizer(1024), **commitment(1.0)}
    yield "no commitment", EMA, {"bits": 4.0}, {**quantizer(1024), **commitment(0.0)}
    yield "4 groups", EMA, {"bits": 3.0}, quantizer(256, groups=4)
    yield "4 groups, one codebook", EMA, {"bits": 3.0}, quantizer(256, groups=4, shared=True)
    yield "cosine", "methods/cosine", {"bits": 4.0}, quantizer(1024)
    yield "MQ-VAE", "methods/mq-vae", {"bits": 4.0}, quantizer(256)


def quantizer(codes: int, groups: int = 1, shared: bool = False) -> dict[str, Any]:
    arguments = {"num_codes": codes, "groups": groups, "shared_codebook": shared}
    return {"quantizer": {"init_args": arguments}}


def commitment(weight: float) -> dict[str, Any]:
    return {"update": {"init_args": {"commitment_weight": weight}}}


def trained(
    method: str, steps: int, rate: dict[str, Any] | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Train one; bits by step, what the last rows say, and the error."""
    base = Settings.of(load_preset("digits-tiny")).config()
    delta = {key: base[key] for key in ("data", "network")}
    component = rate and {"class_path": "mqvae.RateAware", "init_args": rate}
    dim = {"quantizer": {"init_args": {"dim": 16, "rate": component}}}
    found = Settings.of(load_preset(method, delta, SMALL, dim, options, {"steps": steps}))
    spent: list[float] = []

    def look(training: Training) -> None:
        prices = [m for m in training.parts.network.modules() if isinstance(m, Rate)]
        spent.append(min(float(m.spent.min()) for m in prices) if prices else math.nan)

    with tempfile.TemporaryDirectory() as scratch:
        try:
            summary = begin(found, Path(scratch) / "run").fit(after_step=look)
        except TrainingFailed as failure:
            return {"failed": failure.cause}
    return {"spent": spent, "entropy": math.log2(summary["perplexity"]), "mse": summary["mse"]}


def judged(rate: dict[str, Any], with_rate: dict[str, Any], without: dict[str, Any]) -> str:
    """Why a setting does not hold; empty if it does."""
    if "failed" in with_rate:
        return "" if "failed" in without else with_rate["failed"]
    there = without.get("entropy", math.inf)
    asked = min(rate["bits"], there)
    last, least = ends(rate, with_rate)
    if not math.isfinite(last) or not math.isfinite(with_rate["mse"]):
        return "not finite"
    if last < asked - NEAR or (rate["bits"] < there and last > asked + NEAR):
        return f"{last:.2f} bits where {asked:.2f} were to be had"
    return f"{least:.2f} bits at a step" if least < asked / 2 else ""


def ends(rate: dict[str, Any], run: dict[str, Any]) -> tuple[float, float]:
    """Bits at the end, and the least of them once prices are settled."""
    spent = run["spent"]
    tail = spent[-len(spent) // 5 :]
    return sum(tail) / len(tail), min(spent[rate.get("after", 100) + SETTLE :])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", default="", help="settings whose name has this in it")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, bad, results = time.process_time(), 0, []
    without: dict[str, dict[str, Any]] = {}
    print(f"{'setting':36} {'asked':>6} {'last':>6} {'least':>6} {'without':>8}  MSE, without")
    for name, method, rate, more in settings():
        if options.only not in name:
            continue
        twin = json.dumps([method, more])
        if twin not in without:
            without[twin] = trained(method, options.steps, None, more)
        one, other = trained(method, options.steps, rate, more), without[twin]
        why = judged(rate, one, other)
        bad += bool(why)
        last, least = ends(rate, one) if "spent" in one else (math.nan, math.nan)
        print(
            f"{name:36} {rate['bits']:6.2f} {last:6.2f} {least:6.2f} "
            f"{other.get('entropy', math.nan):8.2f}  {one.get('mse', math.nan):.2e}, "
            f"{other.get('mse', math.nan):.2e}  {why}",
            flush=True,
        )
        keep = {"last": last, "least": least, "mse": one.get("mse"), "why": why}
        results.append({"name": name, "rate": rate, **keep, "without": other.get("entropy")})
    print(f"{bad} of {len(results)} do not hold; {time.process_time() - began:.0f} s of processor")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
