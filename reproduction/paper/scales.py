"""The sizes at which the paper is run again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import yaml

from mqvae.errors import MqvaeError

SCALES = {
    "debug": "seconds; that every table and figure works",
    "cpu": "two cores; sizes at which quantization limits the networks",
    "appendix-i": "the paper's networks and codes, few steps of small batches; two cores",
    "paper": "the paper's sizes (Appendix I); one GPU",
}


@dataclass(frozen=True)
class Scale:
    """Sizes of all runs, and of what is measured on them.

    Attributes:
        name: One of `SCALES`.
        seeds: How many seeds each row has.
        rates: Codebook rates of the matched protocol, beside the network's.
        images: Test images of the figures that take large networks.
        prior: Settings of the PixelCNN (Figure 3).
        samples: Images drawn from it at each point of its curve.
        points: How many points the curve has.
        candidates_on: Test images of the diagnosis by the nearest codes.
        refitted_on: Training images of the diagnosis by a refitted codebook.
        rounds: Turns in which costs are measured.
        lengths: Numbers of training steps that are compared to settle the scale.
        sizes: Numbers of codes and their dimensions, beside the scale's own, at which rules for a
            codebook are compared.
        judged_after: By task, the steps (at a checkpoint) after which a codebook's rate is
            judged; a rule in the first round of those rules too.
        first_round: Codebook rates of that round.
        few: Training images of runs that overfit, those held out beside them, their side, codebook
            rates and, by task, training steps.
        settings: By task, what is laid over a method's preset.
        dataset: Taken in place of every other one; None for the paper's own.
        steps_of: Updates of some data sets, where they are not the task's.
        side_of: Side of the images of some data sets, where the task gives none; else their own.
        classifier: Scale of the classifier that class scores are taken with; None for this one.
    """

    name: str
    seeds: int
    rates: Sequence[float]
    images: int
    prior: Mapping[str, Any]
    samples: int
    points: int
    candidates_on: int
    refitted_on: int
    rounds: int
    lengths: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    judged_after: Mapping[str, int]
    first_round: Sequence[float]
    few: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    dataset: str | None = None
    steps_of: Mapping[str, int] = field(default_factory=dict)
    side_of: Mapping[str, int] = field(default_factory=dict)
    classifier: str | None = None

    def steps(self, task: str, dataset: str = "") -> int:
        """Updates of a run."""
        return self.steps_of.get(dataset) or int(self.settings[task]["steps"])

    def network_rate(self, task: str) -> float:
        """Learning rate of encoder and decoder."""
        return float(self.settings[task].get("optimizer", {}).get("network_lr", 3e-4))


@cache
def load_scale(name: str) -> Scale:
    """A scale by its name.

    Raises:
        ValueError: if there is no such scale.
    """
    if name not in SCALES:
        raise MqvaeError(f"there is no scale '{name}': {', '.join(SCALES)}.")
    file = resources.files("reproduction.paper") / "scales" / f"{name}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if base := content.pop("base", None):
        return replace(load_scale(base), name=name, **content)
    content["sizes"] = [(codes, dim) for codes, dim in content["sizes"]]
    return Scale(name=name, **content)
