"""What a diagnosis measures and finds."""

from dataclasses import dataclass

from mqvae.diagnosis.motion import Motion


@dataclass(frozen=True)
class Measured:
    """What was measured of a run; metrics are the task's, on test images."""

    figure: str  # the metric that gains are counted in, lower is better
    titles: dict[str, str]  # title of each metric
    scales: dict[str, float]  # scale of each
    units: dict[str, str]  # unit of each
    now: dict[str, float]  # the metrics of the run as it is
    # With embeddings in place of codewords, by the same encoder and decoder.
    unquantized: dict[str, float]
    refitted: dict[str, float]  # with the codebook refitted by k-means under the same encoder
    nearest: dict[str, float]  # on the images searched, as it is
    chosen: dict[str, float]  # on them with the best of the nearest codes
    changed: float  # share of codes that are then others
    candidates: int  # how many nearest codes were tried
    codewords: int  # rows of the table
    dead: int  # those that no embedding of the training images looked at had chosen
    perplexity: float  # of the codes of the test images
    usage: float  # share of codes that these use
    codes: int  # K
    perplexity_refitted: float  # with the refitted codebook
    error: float  # quantization error on the training images, mean (z_e − z_q)²
    error_refitted: float  # with the refitted codebook
    converged: bool  # whether k-means came to rest
    rate: float  # the share of the settings' rates at which they move
    motion: Motion  # how embeddings and codewords move
    test_images: int  # how many
    train_images: int  # how many the codebook was refitted to
    searched_images: int  # how many were searched

    @property
    def of_bound(self) -> float:
        """Share of the metric that quantization costs; below 0 where the decoder needs it."""
        return gain(self.now[self.figure], self.unquantized[self.figure])

    @property
    def of_refit(self) -> float:
        """Share of the metric that the refitted codebook gains."""
        return gain(self.now[self.figure], self.refitted[self.figure])

    @property
    def of_choice(self) -> float:
        """Share of the metric that the best of the nearest codes gain."""
        return gain(self.nearest[self.figure], self.chosen[self.figure])


@dataclass(frozen=True)
class Finding:
    """A sentence on what limits a run."""

    about: str  # "codebook", "choice", "bits", "network", "motion" or "gradients"
    limits: bool  # whether it is what limits the run most
    words: str
    commands: tuple[str, ...] = ()  # what to try


def gain(before: float, after: float) -> float:
    """The share of a metric, lower is better, that is gained."""
    return (before - after) / before if before else 0.0
