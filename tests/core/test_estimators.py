"""How the gradient passes the quantizer: values to the bit, gradients as matrices."""

import pytest
import reference
import torch
from problems import QUANTIZERS, make_with
from torch import Tensor
from torch.optim import SGD

from mqvae import Joint, Rotation, StraightThrough, VectorQuantizer

ESTIMATORS = [StraightThrough(), Rotation()]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


def pair(dim: int, *, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_e, z_q = torch.randn(2, dim, dtype=torch.float64, generator=generator).to(dtype)
    return z_e.requires_grad_(), (1.7 * z_q).requires_grad_()


def passed(estimator, z_e: Tensor, z_q: Tensor, g: Tensor) -> Tensor:
    """What z_e gets of a gradient g at ẑ."""
    return torch.autograd.grad(estimator(z_e, z_q), z_e, g)[0]


@every_estimator
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_value_is_the_codeword_to_the_bit(estimator, dtype, scale):
    z_e = (scale * torch.randn(50, 6)).to(dtype).requires_grad_()
    z_q = torch.randn(50, 6).to(dtype).requires_grad_()
    value = estimator(z_e, z_q)
    assert value.dtype == dtype
    assert torch.equal(value, z_q)
    to_z_e, to_z_q = torch.autograd.grad(
        value, [z_e, z_q], torch.ones_like(value), allow_unused=True
    )
    assert to_z_e.dtype == dtype and torch.count_nonzero(to_z_e) > 0
    assert to_z_q is None


def test_straight_through_leaves_the_gradient_as_it_is():
    z_e, z_q = pair(6)
    g = torch.randn(6, dtype=torch.float64)
    assert torch.equal(passed(StraightThrough(), z_e, z_q, g), g)


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_turned_by_a_rotation_and_scaled(dim, seed):
    """g ↦ λ Rᵀ g with R written out as a matrix: R p = q, RᵀR = 1, det R = 1, 1 off the plane."""
    z_e, z_q = pair(dim, seed=seed)
    columns = [passed(Rotation(), z_e, z_q, g) for g in torch.eye(dim, dtype=torch.float64)]
    found = torch.stack(columns).detach()  # row i is λ Rᵀ eᵢ: together λ R
    start, end = z_e.detach(), z_q.detach()
    scale = end.norm() / start.norm()
    matrix = found / scale
    p, q = start / start.norm(), end / end.norm()
    near = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(matrix @ p, q, **near)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(dim, dtype=torch.float64), **near)
    torch.testing.assert_close(matrix.det(), torch.tensor(1.0, dtype=torch.float64), **near)
    across = torch.linalg.qr(torch.stack([p, q], 1), mode="complete").Q[:, 2:]
    torch.testing.assert_close(matrix @ across, across, **near)
    torch.testing.assert_close(matrix, reference.rotation_matrix(start, end), **near)
    # So the angle between gradient and embedding is the one between gradient and codeword.
    g = torch.randn(dim, dtype=torch.float64)
    at_z_e = passed(Rotation(), z_e, z_q, g)
    torch.testing.assert_close(
        torch.cosine_similarity(at_z_e, p, 0), torch.cosine_similarity(g, q, 0), **near
    )
    torch.testing.assert_close(at_z_e.norm(), scale * g.norm(), **near)
    assert (at_z_e - g).norm() > 0.1


def test_every_embedding_turns_by_itself():
    z_e = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    z_q, g = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = passed(Rotation(), z_e, z_q, g)
    for i in range(3):
        for j in range(4):
            one = z_e[i, j].detach().requires_grad_()
            torch.testing.assert_close(found[i, j], passed(Rotation(), one, z_q[i, j], g[i, j]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ([0.0, 0, 0], [1.0, 2, 2], [1.0, -2, 3]),  # no direction: straight through
        ([0.0, 0, 0], [0.0, 0, 0], [1.0, -2, 3]),
        ([1e-30, 0, 0], [1.0, 2, 2], None),
        ([1.0, 2, 2], [1.0, 2, 2], [1.0, -2, 3]),  # nothing to turn
        ([1.0, 2, 2], [2.0, 4, 4], [2.0, -4, 6]),  # nothing to turn, twice as long
        ([1.0, 2, 2], [0.0, 0, 0], [0.0, 0, 0]),  # λ = 0
        ([1.0, 0, 0], [-2.0, 0, 0], [-2.0, -4, 6]),  # no plane: p becomes −p and the rest stays
        ([1.0, 2, 2], [-1.0, -2, -2 - 1e-3], None),
    ],
)
def test_degenerate_pairs_are_finite(start, end, expected, dtype):
    z_e = torch.tensor(start, dtype=dtype, requires_grad=True)
    z_q = torch.tensor(end, dtype=dtype)
    g = torch.tensor([1.0, -2, 3], dtype=dtype)
    value = Rotation()(z_e, z_q)
    assert torch.equal(value, z_q)
    found = passed(Rotation(), z_e, z_q, g)
    assert torch.isfinite(found).all()
    if expected is not None:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype), rtol=0.02, atol=0)
        if dtype != torch.bfloat16:
            torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype))


def test_a_quantizer_passes_gradients_by_its_estimator():
    """Codes, values and losses do not depend on the estimator; the task's gradient does."""
    quantizers = {type(e).__name__: VectorQuantizer(7, 6, estimator=e).double() for e in ESTIMATORS}
    state = quantizers["Rotation"].state_dict()
    found, gradients = {}, {}
    z = torch.randn(20, 6, dtype=torch.float64)
    for name, quantizer in quantizers.items():
        quantizer.load_state_dict(state)
        z_e = z.clone().requires_grad_()
        found[name] = quantizer(z_e)
        gradients[name] = torch.autograd.grad(found[name].z_q.sin().sum(), z_e)[0]
    one, other = found.values()
    for field in ("z_q", "codes", "commitment_loss", "codebook_loss"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    for i in range(20):
        word = one.z_q[i].detach()
        scale = word.norm() / z[i].norm()
        expected = scale * reference.rotation_matrix(z[i], word).T @ word.cos()
        torch.testing.assert_close(gradients["Rotation"][i], expected)
        torch.testing.assert_close(gradients["StraightThrough"][i], word.cos())


def test_an_encoder_trains_through_the_rotation():
    """The whole step against explicit matrices is in test_maps; here it only lowers the loss."""
    problem = make_with("convolutional", QUANTIZERS["rotation"])
    network = problem.network
    update = Joint(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=0.3),
        upper=SGD(network.codebook_parameters(), lr=0.3),
    )
    tasks = [update.step(problem.x, problem.y).task for _ in range(40)]
    assert tasks[-1] < 0.9 * tasks[0]
