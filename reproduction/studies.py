"""What the studies of hypergradients have in common, as programs and in training."""

import argparse
from pathlib import Path

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parser_of(name: str, results: Path) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(prog=f"python -m reproduction {name}")
    parser.add_argument("runs", nargs="*", type=Path, help="a run for each seed: 0, 1, …")
    parser.add_argument("--results", type=Path, default=results, help="file of the results")
    return parser


def conclude(table: str, *, won: bool) -> int:
    """Print what came out; returns the exit code."""
    print(table)
    print("wins" if won else "does not win")
    return 0


def falling(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Learning rates that fall to zero in a straight line."""
    return LambdaLR(optimizer, lambda step: 1 - step / steps)
