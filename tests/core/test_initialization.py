"""k-means: how many rows, how good, how reproducible."""

from itertools import pairwise

import pytest
import torch
from problems import GROUPS
from torch import Tensor

from mqvae import VectorQuantizer
from mqvae.core import initialization
from mqvae.core.initialization import kmeans


@pytest.fixture(params=["one centre", "several"])
def drawn_in_a_round(request, monkeypatch):
    if request.param == "several":
        monkeypatch.setattr(initialization, "ROUNDS", 5)
        monkeypatch.setattr(initialization, "SCORES", {"cpu": 300})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def chosen(samples: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of every sample by brute force, and the squared distance to it."""
    d = (samples.double()[:, None] - centres.double()[None]).square().sum(-1)  # (N, K)
    return d.argmin(1), d.min(1).values


def error(samples: Tensor, centres: Tensor) -> float:
    return float(chosen(samples, centres.detach())[1].mean())


def error_of(quantizer: VectorQuantizer, z_e: Tensor) -> float:
    """The mean squared difference of embeddings and codewords, over all numbers."""
    return float(quantizer(z_e).commitment_loss.detach())


def assert_rows(centres: Tensor, rows: int, dim: int, dtype: torch.dtype) -> None:
    assert centres.shape == (rows, dim)
    assert centres.dtype == dtype
    assert not centres.requires_grad
    assert torch.isfinite(centres).all()
    assert len(centres.unique(dim=0)) == rows


SAMPLES = {
    "many": lambda: points(0, 200, 3),
    "as many": lambda: points(0, 16, 3),
    "one too few": lambda: points(0, 15, 3),
    "few": lambda: points(0, 5, 3),
    "one": lambda: points(0, 1, 3),
    "all zero": lambda: torch.zeros(40, 3),
    "all the same": lambda: torch.full((40, 3), 0.01),
    "three distinct": lambda: points(0, 3, 3).repeat(20, 1),
    "two distinct, one rare": lambda: torch.tensor([[1.0, 2, 3]] * 99 + [[-1.0, 0, 1]]),
    "on a line": lambda: points(0, 40, 1) * torch.tensor([1.0, 0, 0]),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.usefixtures("drawn_in_a_round")
@pytest.mark.parametrize("seed", range(5))
def test_always_as_many_distinct_rows_as_asked_for(name, seed):
    samples = SAMPLES[name]()
    before = samples.clone()
    centres = kmeans(samples, 16, generator=generator(seed))
    assert_rows(centres, 16, 3, torch.float32)
    assert torch.equal(samples, before)
    if len(samples.unique(dim=0)) <= 16:
        # Enough rows for every sample to have its own, up to rounding of the mean of copies.
        assert error(samples, centres) < 1e-12
        # The rows to spare lie close to a sample.
        _, distance = chosen(centres, samples)
        assert distance.sqrt().max() < 0.2 * max(float(samples.std(0, correction=0).mean()), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1.0, 100.0, 1000.0])
def test_rows_are_distinct_at_every_magnitude_and_precision(value, dtype):
    samples = torch.full((40, 4), value, dtype=dtype)
    centres = kmeans(samples, 64, generator=generator(0))
    assert_rows(centres, 64, 4, dtype)
    assert ((centres - value).abs() < 0.2 * value).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_centres_have_the_dtype_of_the_samples(dtype):
    samples = points(0, 50, 3).to(dtype)
    centres = kmeans(samples, 6, generator=generator(1))
    assert_rows(centres, 6, 3, dtype)
    # Halves are clustered in float32 and rounded once.
    if dtype != torch.float64:
        wide = kmeans(samples.float(), 6, generator=generator(1))
        assert torch.equal(centres, wide.to(dtype))


def test_float64_is_not_rounded_to_float32():
    samples = points(0, 50, 3).double() / 3
    codes, _ = chosen(samples, centres := kmeans(samples, 4, iterations=50, generator=generator(1)))
    means = torch.stack([samples[codes == k].mean(0) for k in range(4)])
    torch.testing.assert_close(centres, means, rtol=0, atol=1e-14)
    assert not torch.equal(centres, centres.float().double())


def test_a_generator_makes_it_reproducible_and_leaves_the_global_state():
    samples = points(0, 100, 4)
    few = samples[:5]  # draws noise too
    for x in (samples, few):
        state = torch.get_rng_state()
        first = kmeans(x, 12, generator=generator(3))
        again = kmeans(x, 12, generator=generator(3))
        other = kmeans(x, 12, generator=generator(4))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_without_a_generator_the_global_state_decides():
    samples = points(0, 100, 4)
    torch.manual_seed(5)
    first = kmeans(samples, 12)
    assert not torch.equal(kmeans(samples, 12), first)
    torch.manual_seed(5)
    assert torch.equal(kmeans(samples, 12), first)


@pytest.mark.parametrize("seed", range(5))
def test_recovers_separated_clusters_of_unequal_size(seed):
    centres = 100 * torch.tensor(
        [[0.0, 0], [1, 0], [0, 1], [1, 1], [-1, 0], [0, -1], [2, 2], [-2, 1]]
    )
    sizes = torch.tensor([1000, 3, 3, 3, 3, 3, 3, 3])  # rows drawn evenly would miss the small ones
    samples = centres.repeat_interleave(sizes, 0)
    samples = samples + 0.1 * torch.randn(samples.shape, generator=generator(seed))
    found = kmeans(samples, 8, generator=generator(seed))
    nearest, distance = chosen(centres, found)
    assert sorted(nearest.tolist()) == list(range(8))
    assert distance.sqrt().max() < 0.3
    # The large one is the mean of its samples, not one of them.
    assert distance[0].sqrt() < 0.02


@pytest.mark.usefixtures("drawn_in_a_round")
def test_beats_random_rows():
    for seed in range(5):
        samples = points(seed, 2000, 4)
        random = samples[torch.randperm(len(samples), generator=generator(seed))[:32]]
        found = kmeans(samples, 32, generator=generator(seed))
        assert error(samples, found) < 0.85 * error(samples, random)


def test_iterations_only_lower_the_error():
    samples = points(1, 500, 3).double()
    errors = [
        error(samples, kmeans(samples, 20, iterations=i, generator=generator(2))) for i in range(9)
    ]
    assert all(after <= before for before, after in pairwise(errors))
    assert errors[1] < 0.9 * errors[0]
    assert errors[-1] < errors[1]


def test_seeds_are_samples_and_far_apart():
    samples = points(0, 300, 2)
    seeds = kmeans(samples, 10, iterations=0, generator=generator(0))
    assert float(chosen(seeds, samples)[1].max()) == 0
    assert len(seeds.unique(dim=0)) == 10


def test_several_seeds_in_a_round_are_as_good(monkeypatch):
    samples = [points(seed, 2000, 4) for seed in range(5)]
    means = []
    for rounds in (64, 16):  # of 64 centres: each for itself, and four in a round
        monkeypatch.setattr(initialization, "ROUNDS", rounds)
        found = [kmeans(x, 64, iterations=0, generator=generator(i)) for i, x in enumerate(samples)]
        means.append(sum(error(x, seeds) for x, seeds in zip(samples, found, strict=True)))
    assert means[1] < 1.05 * means[0]


@pytest.mark.parametrize(("k", "d"), [(3, 1), (10, 2), (25, 5)])
def test_converged_centres_are_the_means_of_their_samples(k, d):
    samples = points(k, 400, d).double()
    centres = kmeans(samples, k, iterations=200, generator=generator(k))
    codes, _ = chosen(samples, centres)
    used = codes.unique().tolist()
    assert len(used) >= k - 1
    for code in used:
        torch.testing.assert_close(centres[code], samples[codes == code].mean(0))


def test_an_empty_centre_stays():
    # 3 distinct samples, 5 centres: two have nothing and keep their place beside a sample.
    samples = torch.tensor([[0.0, 0], [4, 0], [0, 4]]).repeat(10, 1)
    centres = kmeans(samples, 5, iterations=25, generator=generator(0))
    assert len(chosen(samples, centres)[0].unique()) == 3
    _, distance = chosen(centres, samples)
    assert sorted((distance == 0).tolist()) == [False, False, True, True, True]


@pytest.mark.usefixtures("drawn_in_a_round")
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_an_offset_that_all_samples_share_costs_nothing(ratio):
    around_zero = points(0, 600, 8) * 100 / ratio
    samples = around_zero + 100
    expected = error(around_zero, kmeans(around_zero, 32, generator=generator(0)))
    found = error(samples, kmeans(samples, 32, generator=generator(0)))
    assert found < 1.1 * expected


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_samples_that_are_not_finite_raise(value):
    samples = points(0, 20, 3)
    samples[7, 1] = value
    with pytest.raises(ValueError, match="expects finite samples, got inf or nan"):
        kmeans(samples, 4)


@pytest.mark.parametrize("shape", [(0, 3), (5,), (2, 5, 3)])
def test_wrong_shapes_raise(shape):
    with pytest.raises(ValueError, match="expects samples") as caught:
        kmeans(torch.zeros(shape), 4)
    assert str(shape) in str(caught.value)


# quantizer.initialize


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_gets_centres_of_its_own_parts(name):
    groups, shared = GROUPS[name]
    quantizer = VectorQuantizer(5, 6, groups=groups, shared_codebook=shared)
    width = 6 // groups
    # Parts of different groups lie far apart.
    where = 50.0 * torch.arange(groups).repeat_interleave(width)
    z_e = where + points(0, 8, 20, 6)
    weight = quantizer.codebook.weight
    quantizer.initialize(z_e, generator=generator(0))
    assert quantizer.codebook.weight is weight
    assert weight.requires_grad
    assert weight.grad is None
    group_of_row = (weight.detach() / 50).round()  # (rows, D/G)
    if shared:
        assert sorted(group_of_row.unique().tolist()) == [float(g) for g in range(groups)]
    else:
        assert torch.equal(
            group_of_row, torch.arange(groups).repeat_interleave(5)[:, None].expand(-1, width)
        )
    # As good as k-means on each group by itself.
    parts = z_e.reshape(-1, groups, width)
    if shared:
        expected = error(parts.reshape(-1, width), kmeans(parts.reshape(-1, width), 5))
    else:
        expected = sum(error(p, kmeans(p, 5)) for p in parts.unbind(1)) / groups
    assert error_of(quantizer, z_e) * width == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", GROUPS)
def test_initialize_is_reproducible(name):
    groups, shared = GROUPS[name]
    z_e = points(0, 100, 6)
    books = []
    for seed in (1, 1, 2):
        quantizer = VectorQuantizer(7, 6, groups=groups, shared_codebook=shared)
        state = torch.get_rng_state()
        quantizer.initialize(z_e, generator=generator(seed))
        assert torch.equal(torch.get_rng_state(), state)
        books.append(quantizer.codebook.weight.detach())
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("n", [1, 4, 30])
def test_initialize_lowers_the_loss_from_any_number_of_embeddings(name, n):
    groups, shared = GROUPS[name]
    quantizer = VectorQuantizer(7, 6, groups=groups, shared_codebook=shared)
    z_e = 3 + points(0, n, 6)
    before = error_of(quantizer, z_e)
    quantizer.initialize(z_e, generator=generator(0))
    assert error_of(quantizer, z_e) < 0.5 * before
    for book in quantizer.codebook.weight.detach().chunk(1 if shared else groups):
        assert len(book.unique(dim=0)) == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_initialize_from_another_dtype_keeps_the_codebooks(dtype):
    quantizer = VectorQuantizer(7, 6)
    z_e = points(0, 100, 6).to(dtype)
    quantizer.initialize(z_e, generator=generator(0))
    assert quantizer.codebook.weight.dtype == torch.float32
    wide = kmeans(z_e.float(), 7, generator=generator(0))
    assert error(z_e, quantizer.codebook.weight) < 1.01 * error(z_e, wide)


@pytest.mark.parametrize("shape", [(10, 5), (4, 6, 3)])
def test_initialize_refuses_another_dimension(shape):
    quantizer = VectorQuantizer(4, 6)
    before = quantizer.codebook.weight.detach().clone()
    with pytest.raises(ValueError, match="channels last"):
        quantizer.initialize(torch.randn(shape))
    assert torch.equal(quantizer.codebook.weight, before)


def test_initialize_refuses_what_is_not_finite():
    quantizer = VectorQuantizer(4, 6)
    before = quantizer.codebook.weight.detach().clone()
    with pytest.raises(ValueError, match="finite"):
        quantizer.initialize(torch.full((10, 6), float("nan")))
    assert torch.equal(quantizer.codebook.weight, before)
