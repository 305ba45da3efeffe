"""Quantizers without a codebook: rounded numbers, and signs."""

import itertools
import math

import pytest
import torch
from problems import auxiliary, squared_error
from torch import Tensor, nn
from torch.optim import SGD

from mqvae import (
    Cosine,
    FiniteScalarQuantizer,
    Joint,
    LookupFreeQuantizer,
    Meta,
    MqvaeError,
    Quantizer,
    VQNetwork,
)
from mqvae.core.quantizers import lookup_free

KINDS = {
    "FSQ": lambda: FiniteScalarQuantizer((8, 5, 2, 3)),
    "FSQ of one": lambda: FiniteScalarQuantizer((7,)),
    "LFQ": lambda: LookupFreeQuantizer(32),
    "LFQ of one": lambda: LookupFreeQuantizer(2),
    "BSQ": lambda: LookupFreeQuantizer(64, distance=Cosine()),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> Quantizer:
    return KINDS[kind]().double()


def embeddings(quantizer: Quantizer, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, quantizer.dim, dtype=torch.float64)


@every_kind
def test_every_code_is_one_vector_and_comes_back(kind):
    quantizer = make(kind)
    codes = torch.arange(quantizer.num_codes)
    vectors = quantizer.decode(codes)
    assert vectors.shape == (quantizer.num_codes, quantizer.dim) and vectors.dtype == torch.float64
    assert len(vectors.unique(dim=0)) == quantizer.num_codes
    found = quantizer.quantize(vectors)  # already where they are compared
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.z_q, vectors)
    assert not quantizer.state_dict() and not list(quantizer.parameters())


@every_kind
@pytest.mark.parametrize("shape", [(9,), (2, 3), ()])
def test_codes_are_those_of_the_nearest_vector(kind, shape):
    quantizer = make(kind)
    z_e = embeddings(quantizer, *shape)
    found = quantizer(z_e)
    vectors = quantizer.decode(torch.arange(quantizer.num_codes))
    nearest = torch.cdist(quantizer.place(z_e).reshape(-1, quantizer.dim), vectors).argmin(1)
    assert torch.equal(found.codes, nearest.view(shape))
    assert torch.equal(quantizer.encode(z_e), found.codes)
    assert torch.equal(quantizer.decode(found.codes), found.z_q)
    assert found.codebook_loss == 0


@every_kind
def test_the_gradient_goes_straight_to_the_placed_embedding(kind):
    quantizer = make(kind)
    z_e = embeddings(quantizer, 6).requires_grad_()
    g = torch.randn(6, quantizer.dim, dtype=torch.float64)
    (found,) = torch.autograd.grad(quantizer(z_e).z_q, z_e, g)
    (expected,) = torch.autograd.grad(quantizer.place(z_e), z_e, g)
    assert torch.equal(found, expected)
    assert quantizer.dim == 1 or expected.abs().max() > 0


def test_finite_scalars_by_hand():
    quantizer = FiniteScalarQuantizer((4, 3)).double()
    # 4 levels from −2 to 1 in halves, 3 from −1 to 1; the first digit is the lowest.
    table = quantizer.decode(torch.arange(12)).tolist()
    assert table == [[a / 2, float(b)] for b in (-1, 0, 1) for a in (-2, -1, 0, 1)]
    assert quantizer.encode(torch.zeros(2, dtype=torch.float64)) == 2 + 4 * 1
    far = torch.tensor([[-50.0, 50.0], [50.0, -50.0]], dtype=torch.float64)
    assert quantizer.encode(far).tolist() == [0 + 4 * 2, 3 + 4 * 0]
    # Nothing comes of nothing, and the bounds are levels, reached to a thousandth.
    torch.testing.assert_close(
        quantizer.place(far)[0], far.new_tensor([-1.0, 1.0]), rtol=2e-3, atol=0
    )
    assert quantizer.place(torch.zeros(2, dtype=torch.float64)).abs().max() < 1e-15
    # h tanh(z + s) − ½ with h = 1.5015 and tanh s = ½ / h, in halves.
    h = 1.5015
    expected = (h * math.tanh(0.3 + math.atanh(0.5 / h)) - 0.5) / 2
    found = quantizer.place(torch.tensor([0.3, 0.3], dtype=torch.float64))
    assert found[0] == pytest.approx(expected, rel=1e-12)
    assert found[1] == pytest.approx(1.001 * math.tanh(0.3), rel=1e-12)


@pytest.mark.parametrize("levels", range(2, 9))
def test_every_level_is_reached(levels):
    quantizer = FiniteScalarQuantizer((levels,))
    codes = quantizer.encode(torch.linspace(-9, 9, 4001)[:, None])
    assert torch.equal(codes.unique(), torch.arange(levels))
    assert (codes.diff() >= 0).all()


def test_signs_by_hand():
    quantizer = LookupFreeQuantizer(8)
    z_e = torch.tensor([[0.5, -2.0, 3.0], [-1.0, 0.0, -0.1]])
    found = quantizer.eval()(z_e)
    assert found.codes.tolist() == [1 + 4, 0]
    assert found.z_q.tolist() == [[1, -1, 1], [-1, -1, -1]]
    square = [0.25, 1, 4, 0, 1, 0.81]
    assert found.commitment_loss.item() == pytest.approx(sum(square) / 6, rel=1e-6)
    assert found.auxiliary_loss is None


def test_on_the_sphere_vectors_have_length_one():
    quantizer = make("BSQ")
    norms = quantizer.decode(torch.arange(64)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(64, dtype=torch.float64))
    found = quantizer(embeddings(quantizer, 50))
    torch.testing.assert_close(found.z_q.norm(dim=1), norms[:50])


@pytest.mark.parametrize("kind", ["LFQ", "LFQ of one", "BSQ"])
@pytest.mark.parametrize("diversity", [0.0, 1.0, 2.5])
def test_the_prior_is_what_a_softmax_over_all_codes_gives(kind, diversity):
    quantizer = make(kind)
    quantizer.entropy_weight, quantizer.diversity, quantizer.temperature = 0.3, diversity, 0.7
    z_e = (0.3 * embeddings(quantizer, 4, 3)).requires_grad_()
    vectors = quantizer.decode(torch.arange(quantizer.num_codes))

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(-1)

    away = quantizer.place(z_e).reshape(-1, 1, quantizer.dim) - vectors
    q = (-away.square().sum(-1) / 0.7).softmax(1)  # (12, K)
    expected = 0.3 * (entropy(q).mean() - diversity * entropy(q.mean(0)))
    found = auxiliary(quantizer(z_e))
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, z_e)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 1e-4


def test_the_prior_of_embeddings_that_are_far_away_is_finite():
    quantizer = LookupFreeQuantizer(1024, temperature=0.01)
    z_e = (100 * torch.randn(20, 10)).requires_grad_()
    found = auxiliary(quantizer(z_e))
    # Codes are certain, and as many as there are embeddings.
    assert found.item() == pytest.approx(-0.1 * math.log(len(quantizer.encode(z_e).unique())), 1e-4)
    (slope,) = torch.autograd.grad(found, z_e)
    assert torch.isfinite(slope).all()


def test_many_codes_take_little_memory():
    """262,144 of them for each of 3,000 embeddings would be 3 GB."""
    quantizer = LookupFreeQuantizer(2**18)
    z_e = torch.randn(3000, 18, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        sizes: list[int] = []
        auxiliary(quantizer(z_e)).backward()
    assert max(sizes) <= 3000 * 2**9
    assert torch.isfinite(z_e.grad).all()


@every_kind
def test_joint_trains_what_is_around_it_and_other_rules_refuse(kind):
    torch.manual_seed(3)
    quantizer = KINDS[kind]()
    network = VQNetwork(nn.Linear(5, quantizer.dim), quantizer, nn.Linear(quantizer.dim, 5))
    lower = SGD(network.network_parameters(), lr=0.05)
    update = Joint(network, squared_error, lower=lower, upper=None)
    x = torch.randn(64, 5)
    losses = [update.step(x, x).task.item() for _ in range(60)]
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="needs a quantizer that selects the nearest codeword"):
        Meta(network, squared_error, lower=lower, upper=None)
    network.initialize_codebook(x)
    assert network.decode(network.encode(x)).shape == x.shape


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_come_back_as_they_went_in(kind, dtype):
    quantizer = KINDS[kind]()
    z_e = torch.randn(40, quantizer.dim).to(dtype)
    found = quantizer(z_e)
    assert found.z_q.dtype == dtype and found.commitment_loss.dtype == torch.float32
    assert torch.equal(found.codes, quantizer.encode(z_e))
    assert torch.equal(quantizer.decode(found.codes).to(dtype), found.z_q)


def test_codes_of_another_quantizer_are_refused():
    for kind in KINDS:
        quantizer = make(kind)
        with pytest.raises(ValueError, match="codes must lie in 0"):
            quantizer.decode(torch.tensor([quantizer.num_codes]))
        with pytest.raises(ValueError, match="the quantizer expects embeddings"):
            quantizer(torch.zeros(3, quantizer.dim + 1))


@pytest.mark.parametrize("levels", [(), (1,), (5, 0)])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be whole numbers of 2 or more"):
        FiniteScalarQuantizer(levels)


@pytest.mark.parametrize(
    ("number", "options", "said"),
    [
        (1000, {}, "a power of two, one bit for each dimension, got 1000: 512 or 1024 would do"),
        (1, {}, "got 1: 2 or 4 would do"),
        (0, {}, "got 0: 2 or 4 would do"),
        (8, {"entropy_weight": -1.0}, "entropy_weight must be 0 or more, got -1.0"),
        (8, {"diversity": float("nan")}, "diversity must be 0 or more, got nan"),
        (8, {"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_what_has_no_bits_or_no_weight_is_refused(number, options, said):
    with pytest.raises(ValueError, match=said):
        LookupFreeQuantizer(number, **options)


def test_mixed_radix_follows_a_literal_loop():
    levels = (3, 4, 2)
    quantizer = FiniteScalarQuantizer(levels)
    for digits in itertools.product(*[range(n) for n in levels]):
        code, place = 0, 1
        for digit, number in zip(digits, levels, strict=True):
            code, place = code + digit * place, place * number
        expected = [(d - n // 2) / (n // 2) for d, n in zip(digits, levels, strict=True)]
        torch.testing.assert_close(quantizer.decode(torch.tensor(code)), torch.tensor(expected))


# -- more codes than there is memory for -----------------------------------------------------------


def test_the_entropy_of_many_bits_is_bounded_by_that_of_groups(monkeypatch):
    """20 bits exactly, and in groups of 9: alike where bits do not depend on each other."""
    quantizer = LookupFreeQuantizer(2**20, diversity=1.0).double()
    one = torch.randn(1, 20, dtype=torch.float64).expand(6, 20)  # bits of one embedding do not
    for z_e, independent in ((one, True), (3 * embeddings(quantizer, 40), False)):
        with torch.no_grad():
            grouped = quantizer(z_e).auxiliary_loss
            monkeypatch.setattr(lookup_free, "EXACT_BITS", 20)
            exact = quantizer(z_e).auxiliary_loss
            monkeypatch.undo()
        # The entropy is subtracted.
        if independent:
            torch.testing.assert_close(grouped, exact)
        else:
            assert grouped < exact - 0.1


@pytest.mark.parametrize(
    "quantizer", [LookupFreeQuantizer(2**32), FiniteScalarQuantizer((4,) * 16)], ids=["LFQ", "FSQ"]
)
def test_four_billion_codes_train_in_little_memory(quantizer):
    dim = quantizer.dim
    network = VQNetwork(nn.Linear(4, dim), quantizer, nn.Linear(dim, 4), channel_axis=-1)
    update = Joint(network, squared_error, lower=SGD(network.network_parameters(), 0.1), upper=None)
    x = torch.randn(50, 4)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        step = update.step(x, x)
    assert max(sizes) <= 50 * 2**10
    assert step.codes.max() > 2**31 and len(step.codes.unique()) > 10
    codes = network.encode(x)
    assert torch.equal(network.quantizer.encode(network.encoder(x)), codes)
    assert network.decode(codes).shape == x.shape
    assert all(p.grad is None and torch.isfinite(p).all() for p in network.parameters())


def test_more_codes_than_an_int64_tells_apart_are_refused():
    for make_it in (
        lambda: LookupFreeQuantizer(2**64),
        lambda: FiniteScalarQuantizer((8,) * 500),
    ):
        with pytest.raises(MqvaeError, match=r"2\^\d+ codes are more than an int64 tells apart"):
            make_it()
    assert LookupFreeQuantizer(2**63).encode(torch.ones(63)) == 2**63 - 1
