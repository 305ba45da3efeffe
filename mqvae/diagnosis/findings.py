"""What measurements say about a run, and what to try."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mqvae.config import Settings
from mqvae.core.codebook import Table
from mqvae.core.distance import Euclidean
from mqvae.core.quantizers import VectorQuantizer
from mqvae.core.rules import Ema
from mqvae.diagnosis.measured import Finding, Measured, gain
from mqvae.diagnosis.motion import Motion

MATTERS = 0.05  # a share of the metric, or of the codewords, below which nothing is made of it
DEAD = 0.5  # a share of the codewords from which their death comes before all else
SLOW, FAST = 0.5, 10.0  # the codewords' speed in drifts of the embeddings
COMMON = 0.3  # coherence of the drift from which a codeword can follow it
REPLACED = ("--quantizer.replacement", "ReplaceUnused")


def findings(
    measured: Measured, settings: Settings, quantizer: VectorQuantizer, folder: Path
) -> tuple[Finding, ...]:
    """What limits the run first, then what else is to be said.

    Args:
        measured: The measurements.
        settings: Of the run.
        quantizer: Of the run.
        folder: Of the run, which commands start from.
    """
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
        *_motion(measured, tried),
        _gradients(measured.motion, tried),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.limits))


@dataclass(frozen=True)
class Tried:
    """Commands that train the run again with other settings.

    Args:
        settings: Of the run.
        quantizer: Of the run.
        folder: Of the run.
    """

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


def _codebook(measured: Measured, tried: Tried, *, limits: bool) -> Finding:
    dead = measured.dead / measured.codewords
    priced = tried.quantizer.rate is not None
    if measured.dead:
        words = (
            f"{measured.dead:,} of {measured.codewords:,} codewords are "
            f"{'not worth their bits' if priced else 'dead'}: no embedding of "
            f"{measured.train_images:,} training images chose them. "
        )
    else:
        words = f"All {measured.codewords:,} codewords are in use. "
    closer = gain(measured.error, measured.error_refitted)
    title = measured.titles[measured.figure]
    words += (
        "k-means to convergence under the same encoder and decoder lowers the quantization error "
        f"by {closer:.0%} and changes the {title} by {-measured.of_refit:+.0%}: "
    )
    commands = tried.alive() if dead >= MATTERS and not priced else ()
    if measured.of_refit >= MATTERS:
        words += "codewords do not lie where the embeddings are."
        commands = tried.alive() + tried.averaged()
        if measured.motion.speed < measured.motion.drift:
            commands += tried.rate(3.0)
    elif closer < 2 * MATTERS:
        words += "codewords lie where they should."
    else:
        words += (
            "codewords could lie better, though this decoder, used to those it has, makes little "
            "of it."
        )
    return Finding("codebook", limits, words, commands)


def _choice(measured: Measured, tried: Tried, *, limits: bool) -> Finding:
    words = (
        f"The best of the {measured.candidates} nearest codes by the task's loss gain "
        f"{measured.of_choice:.0%}"
    )
    if measured.of_choice < MATTERS:
        return Finding("choice", limits, f"{words}: the nearest code is as good as any near it.")
    weight = 2 * float(tried.settings.update["init_args"].get("commitment_weight", 0.1))
    return Finding(
        "choice",
        limits,
        f"{words}, {measured.changed:.0%} of the codes being others then: which code is chosen "
        "counts. They were chosen with the image at hand, which is more than an encoder can do: "
        "some of it is out of reach.",
        (tried.command("commitment", "--update.commitment_weight", f"{weight:g}"),),
    )


def _bits(measured: Measured, tried: Tried, *, limits: bool) -> Finding:
    if measured.of_bound < 0:
        return Finding(
            "bits",
            limits,
            "Given its own embeddings instead of codewords, the trained network is worse by "
            f"{-measured.of_bound:.0%}: its decoder has adapted to the codewords, and nothing "
            "can be said from here about what more of them would gain.",
        )
    words = (
        f"Given its own embeddings instead of codewords, the trained network gains "
        f"{measured.of_bound:.0%}"
    )
    left = measured.of_bound - max(measured.of_refit, 0.0)
    if left < MATTERS:
        return Finding("bits", limits, f"{words}: more codewords would hardly help this network.")
    words += f", {left:.0%} of it beyond a refitted codebook: more bits would help."
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
        words += " But first those there are should be in use."
        commands = [*tried.alive()]
    return Finding("bits", limits, words, tuple(commands))


def _network(tried: Tried) -> Finding:
    steps = 2 * tried.settings.steps
    return Finding(
        "network",
        True,
        f"Nothing about the codebook would gain {MATTERS:.0%}: what limits this run is its encoder "
        "and decoder, and how long they were trained.",
        (tried.command("longer", "--steps", str(steps)), *_wider(tried)),
    )


def _wider(tried: Tried) -> Iterator[str]:
    width = tried.settings.network["init_args"].get("width")
    if isinstance(width, int):
        yield tried.command("wider", "--network.width", str(2 * width))


def _motion(measured: Measured, tried: Tried) -> Iterator[Finding]:
    moved = measured.motion
    if not moved.drift:
        yield Finding("motion", False, "The embeddings stand still: the encoder is not trained.")
        return
    ratio = moved.speed / moved.drift
    words = (
        f"In a step at {measured.rate:.0%} of the settings' rates an embedding moves by "
        f"{moved.drift:.2g}, its codeword by {moved.speed:.2g}, {ratio:.2g} times as far, at a "
        f"distance of {moved.distance:.2g} from each other. Embeddings of one code have "
        f"{moved.coherence:.0%} of that drift in common."
    )
    commands: tuple[str, ...] = ()
    if ratio < SLOW and moved.coherence >= COMMON:
        words += " They move together, and their codeword is left behind."
        commands = tried.rate(min(1 / ratio if ratio else 30.0, 30.0))
    elif ratio < SLOW:
        words += " The codeword is slower, but there is little that it could follow."
    elif ratio > FAST and not tried.averages:  # which do not move by a rate
        words += " The codeword moves further than what it follows: lower its learning rate."
        commands = tried.rate(max(3 / ratio, 1 / 30))
    left = moved.speed_of_unused
    if measured.dead and left is not None and left < SLOW * moved.drift:
        words += " Codewords that are not chosen are left behind altogether."
        commands += tried.alive()
    yield Finding("motion", False, words, tuple(dict.fromkeys(commands)))


def _gradients(moved: Motion, tried: Tried) -> Finding:
    words = (
        "The task's gradient, summed by codeword, and the codebook loss's have a cosine of "
        f"{moved.alignment:.2f}: "
    )
    if moved.alignment > 0.7:
        return Finding(
            "gradients", False, f"{words}a codebook that minds the task would go the same way."
        )
    return Finding(
        "gradients",
        False,
        f"{words}the task pulls codewords elsewhere than k-means does.",
        (tried.command("sync", "--update", "Synchronous"),) if not tried.averages else (),
    )
