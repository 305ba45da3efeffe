"""The search for the nearest code against brute force in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mqvae.core import nearest as module
from mqvae.core.nearest import nearest

EPS = torch.finfo(torch.float32).eps

# derandomize: the same examples in every run.
every_shape = settings(derandomize=True, deadline=None, max_examples=150)


def distances(z_e: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances, (N, K), in float64 and with nothing to cancel."""
    return (z_e.double()[:, None] - codebook.double()[None]).square().sum(-1)


def excess(codes: Tensor, z_e: Tensor, codebook: Tensor) -> Tensor:
    """How much farther the codes are than the best ones, in squared distance, (N,)."""
    d = distances(z_e, codebook)
    return d.gather(1, codes[:, None])[:, 0] - d.min(1).values


def points(seed: int, *shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    return offset + scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Largest(TorchDispatchMode):
    """The most elements of any tensor an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out._is_view():
            self.elements = max(self.elements, out.numel())
        return out


@every_shape
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 40),
    d=st.integers(1, 24),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_equals_brute_force_up_to_rounding(n, k, d, scale, offset, seed):
    z_e = points(seed, n, d, scale=scale, offset=offset)
    codebook = points(seed + 1, k, d, scale=scale, offset=offset)
    codes = nearest(z_e, codebook)
    assert codes.shape == (n,)
    assert codes.dtype == torch.int64
    # Rounding of the two scores compared, relative to the squared norms they are made of.
    norms = z_e.double().square().sum(1) + codebook.double().square().sum(1).max()
    assert (excess(codes, z_e, codebook) <= 8 * EPS * norms).all()


@every_shape
@given(n=st.integers(1, 40), k=st.integers(1, 40), d=st.integers(1, 24), seed=st.integers(0, 2**32))
def test_equals_brute_force_exactly_in_float64(n, k, d, seed):
    z_e, codebook = points(seed, n, d).double(), points(seed + 1, k, d).double()
    assert torch.equal(nearest(z_e, codebook), distances(z_e, codebook).argmin(1))


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_far_from_the_origin(ratio, dim):
    """Embeddings that share a large offset, as behind a bias or a collapsed encoder."""
    z_e = points(0, 500, dim, scale=100 / ratio, offset=100.0)
    codebook = points(1, 256, dim, scale=100 / ratio, offset=100.0)
    codes = nearest(z_e, codebook)
    assert len(codes.unique()) > 50
    # Relative to the spread, not to the norm: an offset that all share decides nothing.
    centre = codebook.double().mean(0)
    spread = (z_e - centre).square().sum(1) + (codebook - centre).square().sum(1).max()
    assert (excess(codes, z_e, codebook) <= 8 * EPS * spread).all()


def test_a_codeword_far_away_spoils_nothing():
    z_e, codebook = points(0, 500, 16), points(1, 256, 16)
    near = 8 * EPS * (z_e.double().square().sum(1) + codebook.double().square().sum(1).max())
    codebook[77] = 1e6
    codes = nearest(z_e, codebook)
    assert len(codes.unique()) > 50
    assert (excess(codes, z_e, codebook) <= near).all()


def test_ties_go_to_the_lowest_index():
    # Small integers: every sum is exact in any order.
    codebook = torch.tensor(
        [[3.0, 0], [1, 1], [-1, 1], [1, 1], [-1, -1], [3, 0], [-3, -2], [-3, 0]]
    )
    z_e = torch.tensor([[3.0, 0], [1, 1], [0, 1], [0, 0], [-1, 0], [5, 0], [-3, -1]])
    expected = [0, 1, 1, 1, 2, 0, 6]
    assert distances(z_e, codebook).argmin(1).tolist() == expected
    assert nearest(z_e, codebook).tolist() == expected
    assert nearest(z_e.double(), codebook.double()).tolist() == expected


@pytest.mark.covering(2)
@pytest.mark.parametrize("scores", [1, 63, 64, 65, 128, 1000, 10_000])
@pytest.mark.parametrize("columns", [64, 128, 192, 2**14])
@pytest.mark.parametrize("band", [20, 2**16])
def test_tiles_change_nothing(monkeypatch, scores, columns, band):
    z_e, codebook = points(0, 53, 5), points(1, 330, 5)
    whole = nearest(z_e, codebook)
    assert len(whole.unique()) > 40
    assert torch.equal(whole, distances(z_e, codebook).argmin(1))
    monkeypatch.setitem(module.SCORES, "cpu", scores)
    monkeypatch.setattr(module, "CODEWORDS", columns * 5)
    monkeypatch.setattr(module, "BAND", band)
    assert torch.equal(nearest(z_e, codebook), whole)


@pytest.mark.parametrize("columns", [64, 2**14])
@pytest.mark.parametrize("codes", [63, 64, 65, 128, 200, 513])
def test_ties_across_blocks_and_tiles_go_to_the_lowest_index(monkeypatch, codes, columns):
    """Small integers, so that every sum is exact; each codeword there some ten times."""
    monkeypatch.setattr(module, "CODEWORDS", columns * 2)
    generator = torch.Generator().manual_seed(codes)
    codebook = torch.randint(-2, 3, (codes, 2), generator=generator).float()
    z_e = torch.randint(-4, 5, (300, 2), generator=generator).float()
    assert torch.equal(nearest(z_e, codebook), distances(z_e, codebook).argmin(1))


def test_memory_is_bounded(monkeypatch):
    z_e, codebook = points(0, 500, 2), points(1, 190, 2)
    with Largest() as largest:
        whole = nearest(z_e, codebook)
    assert largest.elements == 500 * 192  # under the limit nothing is cut
    monkeypatch.setitem(module.SCORES, "cpu", 64 * 40)
    monkeypatch.setattr(module, "CODEWORDS", 64 * 2)
    monkeypatch.setattr(module, "BAND", 100)
    with Largest() as largest:
        codes = nearest(z_e, codebook)
    assert largest.elements == 64 * 40
    assert torch.equal(codes, whole)


def test_no_embeddings_have_no_codes():
    codes = nearest(torch.empty(0, 3), torch.randn(4, 3))
    assert codes.shape == (0,)
    assert codes.dtype == torch.int64


def test_one_codeword():
    assert nearest(torch.randn(5, 3), torch.randn(1, 3)).tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half_codebook", [False, True])
def test_half_precision_ranks_as_float32(dtype, half_codebook):
    z_e = points(0, 400, 4).to(dtype)
    codebook = points(1, 300, 4).to(dtype if half_codebook else torch.float32)
    expected = distances(z_e, codebook).argmin(1)
    assert torch.equal(nearest(z_e, codebook), expected)
    # In half precision it would not be so.
    in_half = codebook.to(dtype)
    scores = in_half.square().sum(1) / 2 - z_e @ in_half.T
    assert (scores.argmin(1) != expected).any()


def test_autocast_ranks_as_float32():
    z_e, codebook = points(0, 400, 16), points(1, 200, 16)
    expected = distances(z_e, codebook).argmin(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = nearest(z_e, codebook)
        in_half = (codebook.square().sum(1) / 2 - z_e @ codebook.T).argmin(1)
    assert torch.equal(codes, expected)
    assert (in_half != expected).any()


def test_float64_ranks_as_float64():
    # Two codewords that are one in float32.
    codebook = torch.tensor([[1 + 1e-8], [1.0]], dtype=torch.float64)
    assert len(codebook.float().unique()) == 1
    z_e = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    assert nearest(z_e, codebook).tolist() == [1, 0]


@pytest.mark.parametrize("z_dtype", [torch.float32, torch.float64])
def test_embeddings_and_codebook_may_differ_in_dtype(z_dtype):
    z_e = points(0, 50, 4).to(z_dtype)
    other = torch.float32 if z_dtype == torch.float64 else torch.float64
    codebook = points(1, 20, 4).to(other)
    assert torch.equal(nearest(z_e, codebook), distances(z_e, codebook).argmin(1))


def test_not_contiguous():
    z_e, codebook = points(0, 5, 60), points(1, 40, 10)
    assert not z_e.T.is_contiguous()
    assert not codebook[::2, ::2].is_contiguous()
    codes = nearest(z_e.T, codebook[::2, ::2])
    assert len(codes.unique()) > 5
    assert torch.equal(codes, nearest(z_e.T.contiguous(), codebook[::2, ::2].contiguous()))


def test_tracks_no_gradient():
    z_e, codebook = points(0, 9, 3).requires_grad_(), points(1, 4, 3).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda kept: kept):
        nearest(z_e, codebook)
        assert not saved
        (z_e @ codebook.T).sum()
        assert saved  # the hooks do see what is tracked


def test_changes_no_input():
    z_e, codebook = points(0, 9, 3), points(1, 4, 3)
    nearest(z_e, codebook)
    assert torch.equal(z_e, points(0, 9, 3))
    assert torch.equal(codebook, points(1, 4, 3))


@pytest.mark.parametrize(
    ("embeddings", "codewords"),
    [((5, 3), (4, 2)), ((2, 5, 3), (4, 3)), ((5, 3), (3,)), ((3,), (4, 3))],
)
def test_wrong_shapes_are_named(embeddings, codewords):
    with pytest.raises(
        ValueError, match="reshape them, or build the quantizer with dim=D"
    ) as error:
        nearest(torch.zeros(embeddings), torch.zeros(codewords))
    assert str(embeddings) in str(error.value)
    assert str(codewords) in str(error.value)
