"""What measurements say about a run, and what to try."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqvae.config import Settings
from mqvae.core.codebook import Table
from mqvae.core.distance import Euclidean
from mqvae.core.quantizers import VectorQuantizer
from mqvae.core.rules import Ema
from mqvae.diagnosis.measured import Finding, Measured, gain
from mqvae.diagnosis.motion import Motion
from mqvae.files import read_yaml

MATTERS = 0.05  # a share of the metric, or of the codewords, below which nothing is made of it
DEAD = 0.5  # a share of the codewords from which their death comes before all else
SLOW, FAST = 0.5, 10.0  # the codewords' speed in drifts of the embeddings
MANY = 10.0  # of the metric, from which it is told as a factor
COMMON = 0.3  # coherence of the drift from which a codeword can follow it
REPLACED = ("--quantizer.replacement", "ReplaceUnused")
WORDS = read_yaml(Path(__file__).with_name("findings.yaml"))


def findings(
    measured: Measured, settings: Settings, quantizer: VectorQuantizer, folder: Path
) -> tuple[Finding, ...]:
    """What limits the run in a folder first, then what else is to be said."""
    tried = Tried(settings, quantizer, folder)
    gains = {
        "codebook": measured.of_refit,
        "choice": measured.of_choice,
        # What is left when codewords lie where they should.
        "bits": measured.of_bound - max(measured.of_refit, 0.0),
    }
    largest = max(gains, key=lambda about: gains[about])
    first = largest if gains[largest] >= MATTERS else "network"
    # A decoder that has adapted to few codewords gains by nothing else, as long as the others are
    # dead.
    if measured.dead >= DEAD * measured.codewords and quantizer.rate is None and tried.alive():
        first = "codebook"
    found = [
        _codebook(measured, tried, limits=first == "codebook"),
        _choice(measured, tried, limits=first == "choice"),
        _bits(measured, tried, limits=first == "bits"),
        *([_network(tried)] if first == "network" else []),
        _motion(measured, tried),
        _gradients(measured.motion, tried),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.limits))


@dataclass(frozen=True)
class Tried:
    """Commands that train the run again with other settings."""

    settings: Settings
    quantizer: VectorQuantizer
    folder: Path

    def command(self, name: str, *options: str) -> str:
        """The command, into a folder of this name beside the run's."""
        out = f"{self.folder}-{name}"
        config = self.folder / "config.yaml"
        return shlex.join(["mqvae", "train", str(config), *options, "--out", out])

    @property
    def averages(self) -> bool:
        """Whether the rule sets codewords by moving averages, without a learning rate."""
        return str(self.settings.update["class_path"]).endswith(f".{Ema.__name__}")

    def alive(self) -> tuple[str, ...]:
        """What keeps codewords alive that is not on yet."""
        free = isinstance(self.quantizer.codebook, Table)
        if self.quantizer.replacement is not None or not free:
            return ()
        return (self.command("replace", *REPLACED),)

    def averaged(self) -> tuple[str, ...]:
        """Codewords as averages over few steps, which follow without a rate, and are kept alive."""
        free = isinstance(self.quantizer.codebook, Table)
        if not free or not isinstance(self.quantizer.distance, Euclidean):
            return ()
        alive = [] if self.quantizer.replacement else [*REPLACED]
        rule = ["--update", "Ema", "--update.decay", "0.9"]
        return (self.command("averaged", *rule, *alive),)

    def rate(self, factor: float) -> tuple[str, ...]:
        """Another codebook learning rate, where it has one."""
        if self.averages or "codebook" in self.settings.freeze:
            return ()
        rates = self.settings.optimizer
        rate = f"{(rates.codebook_lr or rates.network_lr) * factor:.1g}"
        return (self.command(f"codebook-lr-{rate}", "--optimizer.codebook_lr", rate),)


def _say(name: str, **numbers: Any) -> str:
    """A sentence of findings.yaml."""
    sentence: str = WORDS[name]
    return sentence.format(**numbers)


def _codebook(measured: Measured, tried: Tried, *, limits: bool) -> Finding:
    dead = measured.dead / measured.codewords
    priced = tried.quantizer.rate is not None
    closer, worse = gain(measured.error, measured.error_refitted), -measured.of_refit
    change = f"{worse:+.0%}" if worse < MANY else f"a factor of {1 + worse:,.0f}"
    fate, title = "not worth their bits" if priced else "dead", measured.titles[measured.figure]
    said = [
        _say("dead" if measured.dead else "alive", measured=measured, fate=fate),
        _say("refitted", closer=closer, title=title, change=change),
    ]
    commands = tried.alive() if dead >= MATTERS and not priced else ()
    if measured.of_refit >= MATTERS:
        said.append(_say("refit_gains"))
        commands = tried.alive() + tried.averaged()
        if measured.motion.speed < measured.motion.drift:
            commands += tried.rate(3.0)
    else:
        said.append(_say("refit_as_good" if closer < 2 * MATTERS else "refit_unused"))
    return Finding("codebook", limits, " ".join(said), commands)


def _choice(measured: Measured, tried: Tried, *, limits: bool) -> Finding:
    words = _say("choice", measured=measured)
    if measured.of_choice < MATTERS:
        return Finding("choice", limits, words + _say("choice_as_good"))
    weight = 2 * float(tried.settings.update["init_args"].get("commitment_weight", 0.1))
    command = tried.command("commitment", "--update.commitment_weight", f"{weight:g}")
    return Finding("choice", limits, words + _say("choice_counts", measured=measured), (command,))


def _bits(measured: Measured, tried: Tried, *, limits: bool) -> Finding:
    if measured.of_bound < 0:
        worse = -measured.of_bound
        words = f"{worse:.0%}" if worse < MANY else f"{worse:,.0f} times"
        return Finding("bits", limits, _say("bits_worse", worse=words))
    words = _say("bits", measured=measured)
    left = measured.of_bound - max(measured.of_refit, 0.0)
    if left < MATTERS:
        return Finding("bits", limits, words + _say("bits_enough"))
    words += _say("bits_more", left=left)
    rate = tried.quantizer.rate
    if rate is not None:
        more = f"{rate.bits + 1:g}"
        command = tried.command(f"bits-{more}", "--quantizer.rate.bits", more)
        return Finding("bits", limits, words, (command,))
    groups = 2 * tried.quantizer.groups
    commands = [tried.command("codes", "--quantizer.num_codes", str(4 * measured.codes))]
    if tried.quantizer.dim % groups == 0:
        commands.append(tried.command("groups", "--quantizer.groups", str(groups)))
    # More of them is no use while many of those there are dead.
    if measured.dead >= DEAD * measured.codewords:
        words = f"{words} {_say('bits_in_use')}"
        commands = [*tried.alive()]
    return Finding("bits", limits, words, tuple(commands))


def _network(tried: Tried) -> Finding:
    commands = [tried.command("longer", "--steps", str(2 * tried.settings.steps))]
    width = tried.settings.network["init_args"].get("width")
    if isinstance(width, int):
        commands.append(tried.command("wider", "--network.width", str(2 * width)))
    return Finding("network", True, _say("network", matters=MATTERS), tuple(commands))


def _motion(measured: Measured, tried: Tried) -> Finding:
    moved = measured.motion
    if not moved.drift:
        return Finding("motion", False, _say("still"))
    ratio = moved.speed / moved.drift
    said = [_say("motion", rate=measured.rate, moved=moved, ratio=ratio)]
    commands: tuple[str, ...] = ()
    if ratio < SLOW and moved.coherence >= COMMON:
        said.append(_say("left_behind"))
        commands = tried.rate(min(1 / ratio if ratio else 30.0, 30.0))
    elif ratio < SLOW:
        said.append(_say("nothing_to_follow"))
    elif ratio > FAST and not tried.averages:  # which do not move by a rate
        said.append(_say("too_fast"))
        commands = tried.rate(max(3 / ratio, 1 / 30))
    left = moved.speed_of_unused
    if measured.dead and left is not None and left < SLOW * moved.drift:
        said.append(_say("unused_left_behind"))
        commands += tried.alive()
    return Finding("motion", False, " ".join(said), tuple(dict.fromkeys(commands)))


def _gradients(moved: Motion, tried: Tried) -> Finding:
    words = _say("gradients", moved=moved)
    if moved.alignment > 0.7:
        return Finding("gradients", False, f"{words} {_say('gradients_agree')}")
    commands = () if tried.averages else (tried.command("sync", "--update", "Synchronous"),)
    return Finding("gradients", False, f"{words} {_say('gradients_differ')}", commands)
