"""Initialization of codewords: k-means of embeddings."""

import torch
from torch import Tensor

from mqvae.core.nearest import SCORES, SCORES_ELSEWHERE, nearest
from mqvae.errors import MqvaeError

ROUNDS = 1024  # of drawing seeds; more centres than these are drawn several in a round


@torch.no_grad()
def kmeans(
    samples: Tensor,
    num_codes: int,
    *,
    iterations: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Centres of samples: k-means++ seeding, then Lloyd's iterations.

    There are always exactly `num_codes` distinct rows, also where there are fewer (distinct)
    samples: the rows that nothing is left for are samples with a little noise added.

    Args:
        samples: (N, D).
        num_codes: Number of centres K.
        iterations: Lloyd's iterations.
        generator: Source of randomness, on the device of `samples`; the global one if None.

    Returns:
        Centres, (K, D), in the dtype of `samples`.

    Raises:
        ValueError: if there is no sample or a sample is not finite.

    Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    if samples.ndim != 2 or not len(samples):
        raise MqvaeError(f"k-means expects samples (N, D), N ≥ 1, got {tuple(samples.shape)}.")
    if not torch.isfinite(samples).all():
        raise MqvaeError("k-means expects finite samples, got inf or nan among the embeddings.")
    wide = samples if samples.dtype == torch.float64 else samples.float()
    centres = _seed(wide, num_codes, generator)
    for _ in range(iterations):
        centres, _ = group_means(wide, nearest(wide, centres), centres)
    return _apart(centres.to(samples.dtype), wide, generator)


def group_means(samples: Tensor, codes: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's step: every centre (K, D) to the mean of its samples (N, D), whose codes are (N,).

    One without samples stays where it was. Also gives how many samples each has, (K,).
    """
    counts = torch.bincount(codes, minlength=len(centres))  # (K,)
    sums = torch.zeros_like(centres).index_add_(0, codes, samples)  # (K, D)
    means = sums / counts.clamp(min=1)[:, None]
    return torch.where(counts[:, None] > 0, means, centres), counts


def _seed(samples: Tensor, num_codes: int, generator: torch.Generator | None) -> Tensor:
    """k-means++: each next centre is a sample, drawn with the squared distance to the others.

    Where there are many, several are drawn in a round, with the distances to those of the rounds
    before. Rows that no distinct sample is left for repeat the first.
    """
    pick = torch.randint(len(samples), (1,), generator=generator, device=samples.device)
    centres = samples[pick].repeat(num_codes, 1)
    together = -(-num_codes // ROUNDS)
    if together > 1:  # products instead of differences, which round by the distance from 0
        samples = samples - (mean := samples.mean(0))
        centres -= mean
    distances = _distances(samples, centres[:1])  # (N,), to the closest centre so far
    for row in range(1, num_codes, together):
        count = min(together, num_codes - row, int(distances.count_nonzero()))
        if not count:
            break
        drawn = samples[torch.multinomial(distances, count, generator=generator)]  # (count, D)
        centres[row : row + count] = drawn
        distances = torch.minimum(distances, _distances(samples, drawn))
    return centres if together == 1 else centres + mean


def _distances(samples: Tensor, centres: Tensor) -> Tensor:
    """‖x_i − e‖² to the nearest of them, (N,); 0 for a copy of one."""
    if len(centres) == 1:
        how = "donot_use_mm_for_euclid_dist"
        return torch.cdist(samples, centres, compute_mode=how)[:, 0].square()
    found, half_norms = [], centres.square().sum(1) / 2
    at_once = SCORES.get(samples.device.type, SCORES_ELSEWHERE) // len(centres)
    for some in samples.split(max(1, at_once)):
        squares = some.square().sum(1)
        nearest_by = torch.addmm(half_norms, some, centres.T, alpha=-1).amin(1)
        distances = squares + 2 * nearest_by
        rounding = 8 * torch.finfo(samples.dtype).eps * squares
        found.append(distances.where(distances > rounding, 0))
    return torch.cat(found)


def _apart(centres: Tensor, samples: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows that repeat others become samples with noise of a hundredth of the samples' spread."""
    device = samples.device
    # Less than a few steps of the dtype would be rounded away.
    step = torch.finfo(centres.dtype).eps * float(samples.abs().max())
    scale = max(float(samples.std(0, correction=0).mean()) / 100, 4 * step, 1e-5)
    while True:
        _, kinds = centres.unique(dim=0, return_inverse=True)  # (K,), equal for equal rows
        order = kinds.argsort(stable=True)
        repeats = order[1:][kinds[order].diff() == 0]
        if not len(repeats):
            return centres
        few = len(repeats)
        picks = samples[torch.randint(len(samples), (few,), generator=generator, device=device)]
        noise = torch.randn(picks.shape, dtype=picks.dtype, generator=generator, device=device)
        centres[repeats] = (picks + scale * noise).to(centres.dtype)
        scale *= 1.5
