"""What `make demo` runs: four networks on Fashion-MNIST, and a page that compares them.

VQ-VAE with one learning rate, the same with its codebook at MQ-VAE's learning rate, MQ-VAE, and
the method `recommended`, whose codebook has no learning rate; everything else is equal, the number
of training steps included. The network is that of docs/reproduction.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mqvae.config import Settings, load_preset
from mqvae.data import DataNotFound, load
from mqvae.report import write_report
from mqvae.training import Interrupted, TrainingFailed, begin

# Four trainings and measurements in four minutes on two cores.
STEPS, WIDTH, NETWORK_LR = 500, 32, 1e-3

# Folder -> the method, and what is different from it.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "vqvae": ("vq-vae", {"name": "VQ-VAE, C at 1e-3", "optimizer": {"codebook_lr": NETWORK_LR}}),
    "vqvae-codebook-rate": ("vq-vae", {"name": "VQ-VAE, C at 6e-2"}),
    "mqvae": ("mq-vae", {}),
    "recommended": ("recommended", {}),
}


def preset_for_this_machine() -> tuple[str, str]:
    """The preset, and the report's title: Fashion-MNIST, or digits where it cannot be had."""
    try:
        load("fashion-mnist", "test")
    except DataNotFound as error:
        print(f"{error}\nTraining on scikit-learn's 8×8 digits instead.", file=sys.stderr)
        return "digits-tiny", "MQ-VAE on 8×8 digits (Fashion-MNIST could not be had)"
    return "fashion-mnist-demo", "MQ-VAE on Fashion-MNIST"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    options = parser.parse_args()
    preset, title = preset_for_this_machine()

    summaries = {}
    for folder, (method, delta) in METHODS.items():
        settings = load_preset(preset, delta, method=method)
        settings["steps"] = options.steps
        settings["network"]["init_args"]["width"] = WIDTH
        settings["optimizer"]["network_lr"] = NETWORK_LR
        training = begin(Settings.of(settings), options.out / folder, overwrite=True)
        try:
            summaries[folder] = training.fit()
        except Interrupted as stop:
            print(f"stopped after step {stop.step}; run the demo again to start anew")
            return 128 + stop.signal_number
        except TrainingFailed as error:
            print(error, file=sys.stderr)
            return 1

    first = summaries["vqvae"]
    table = Table(title=f"{title}: {first['protocol']['images']:,} test images")
    table.add_column("", no_wrap=True)
    for heading in ("MSE e-3", "PSNR", "perplexity", "usage", "gap e-5", "a step"):
        table.add_column(heading, justify="right")
    for s in summaries.values():
        table.add_row(
            s["name"],
            f"{s['mse'] * 1e3:.2f}",
            f"{s['psnr']:.2f}",
            f"{s['perplexity']:.0f}",
            f"{s['usage']:.1%}",
            f"{s['gradient_gap'] * 1e5:.1f}",
            f"{s['seconds_per_step'] / first['seconds_per_step']:.2f} ×",
        )
    Console().print(table)
    page = write_report(
        [options.out / f for f in METHODS], options.out / "report.html", title=title
    )
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
