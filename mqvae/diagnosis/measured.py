"""What a diagnosis measures and finds."""

from dataclasses import dataclass

from mqvae.diagnosis.motion import Motion


@dataclass(frozen=True)
class Measured:
    """What was measured of a run; metrics are the task's, on test images.

    Attributes:
        figure: The metric that gains are counted in, lower is better.
        titles: Title of each metric.
        scales: Scale of each.
        units: Unit of each.
        now: The metrics of the run as it is.
        unquantized: With embeddings in place of codewords, by the same encoder and decoder.
        refitted: With the codebook refitted by k-means under the same encoder.
        nearest: On the images searched, as it is.
        chosen: On them with the best of the nearest codes.
        changed: Share of codes that are then others.
        candidates: How many nearest codes were tried.
        codewords: Rows of the table.
        dead: Those that no embedding of the training images looked at had chosen.
        perplexity: Of the codes of the test images.
        usage: Share of codes that these use.
        codes: K.
        perplexity_refitted: With the refitted codebook.
        error: Quantization error on the training images, mean (z_e − z_q)².
        error_refitted: With the refitted codebook.
        converged: Whether k-means came to rest.
        rate: The share of the settings' rates at which they move.
        motion: How embeddings and codewords move.
        test_images: How many.
        train_images: How many the codebook was refitted to.
        searched_images: How many were searched.
    """

    figure: str
    titles: dict[str, str]
    scales: dict[str, float]
    units: dict[str, str]
    now: dict[str, float]
    unquantized: dict[str, float]
    refitted: dict[str, float]
    nearest: dict[str, float]
    chosen: dict[str, float]
    changed: float
    candidates: int
    codewords: int
    dead: int
    perplexity: float
    usage: float
    codes: int
    perplexity_refitted: float
    error: float
    error_refitted: float
    converged: bool
    rate: float
    motion: Motion
    test_images: int
    train_images: int
    searched_images: int

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
    """A sentence on what limits a run.

    Attributes:
        about: "codebook", "choice", "bits", "network", "motion" or "gradients".
        limits: Whether it is what limits the run most.
        words: The sentence.
        commands: What to try.
    """

    about: str
    limits: bool
    words: str
    commands: tuple[str, ...] = ()


def gain(before: float, after: float) -> float:
    """The share of a metric, lower is better, that is gained."""
    return (before - after) / before if before else 0.0
