"""Residual stages against a literal loop, and their hypergradients."""

import pytest
import reference
import torch
from problems import QUANTIZERS, make_with
from test_hypergradient import hypergradient, relative
from torch import Tensor

from mqvae import (
    Affine,
    Cosine,
    Exact,
    FiniteDifference,
    ForwardMode,
    LinearMap,
    ResidualQuantizer,
    Rotation,
    VectorQuantizer,
)

XI = 0.3
CODES, DIM = 7, 6
every_family = pytest.mark.parametrize("family", ["convolutional", "classifier", "linear"])


def make(stages: int = 3, **options) -> ResidualQuantizer:
    return ResidualQuantizer([VectorQuantizer(CODES, DIM) for _ in range(stages)], **options)


def loop(quantizer: ResidualQuantizer, z: Tensor) -> tuple[list[int], Tensor, list[Tensor]]:
    """Codes, their sum, and what every stage was given, of one embedding in float64."""
    left, total, codes, given = z.double(), torch.zeros(DIM).double(), [], []
    for stage in quantizer.stages:
        book = stage.codebook.weight.detach().double()
        distances = [(left - word).square().sum() for word in book]
        codes.append(min(range(CODES), key=lambda k: distances[k]))
        given.append(left)
        total = total + book[codes[-1]]
        left = left - book[codes[-1]]
    return codes, total, given


@pytest.mark.covering(1)
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_values_losses_and_gradients_are_those_of_a_loop(stages, dtype):
    quantizer = make(stages).to(dtype)
    z_e = torch.randn(5, 4, DIM, dtype=dtype, requires_grad=True)
    found = quantizer(z_e)
    expected = [loop(quantizer, z) for z in z_e.detach().reshape(-1, DIM)]
    assert found.codes.reshape(20, stages).tolist() == [codes for codes, _, _ in expected]
    assert found.codes.shape == ((5, 4, stages) if stages > 1 else (5, 4))
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    values = torch.stack([value for _, value, _ in expected])
    torch.testing.assert_close(found.z_q.reshape(20, DIM).double(), values, **near)

    flat = z_e.detach().reshape(-1, DIM).double()
    commitment = (flat - values).square().mean()
    codebook, slopes = 0.0, torch.zeros(stages, CODES, DIM, dtype=torch.float64)
    for codes, _, given in expected:
        for s, left in enumerate(given):
            word = quantizer.stages[s].codebook.weight.detach()[codes[s]].double()
            codebook += (left - word).square().sum() / (20 * DIM)
            slopes[s, codes[s]] += 2 / (20 * DIM) * (word - left)
    torch.testing.assert_close(found.commitment_loss.double(), commitment, **near)
    torch.testing.assert_close(found.codebook_loss.double(), codebook, **near)

    parameters = [stage.codebook.weight for stage in quantizer.stages]
    gradients = torch.autograd.grad(found.codebook_loss, [*parameters, z_e], allow_unused=True)
    assert gradients[-1] is None
    for gradient, slope in zip(gradients, slopes):
        assert slope.norm() > 0
        torch.testing.assert_close(gradient.double(), slope, **near)
    g = torch.randn_like(z_e)
    to_z_e, *to_codewords = torch.autograd.grad(
        (found.z_q * g).sum(), [z_e, *parameters], allow_unused=True
    )
    assert torch.equal(to_z_e, g)
    assert to_codewords == [None] * stages


def test_one_stage_is_a_vector_quantizer():
    single = VectorQuantizer(CODES, DIM)
    quantizer = ResidualQuantizer([single])
    z_e = torch.randn(9, DIM)
    one, other = quantizer(z_e), single(z_e)
    for field in ("z_q", "codes", "commitment_loss", "codebook_loss"):
        assert torch.equal(getattr(one, field), getattr(other, field))


def test_every_stage_leaves_less():
    z_e = torch.randn(400, DIM)
    losses = []
    for stages in (1, 2, 3):
        torch.manual_seed(2)
        quantizer = make(stages)
        quantizer.initialize(z_e)
        losses.append(float(quantizer(z_e).commitment_loss))
    assert losses[0] > 1.3 * losses[1] > 1.3 * 1.3 * losses[2] > 0


def test_stages_start_from_what_the_stages_before_left_over():
    quantizer, z_e = make(2).double(), torch.randn(60, DIM, dtype=torch.float64)
    quantizer.initialize(z_e)
    left = z_e
    for stage in quantizer.stages:
        codes = torch.cdist(left, stage.codebook.weight.detach()).argmin(1)
        for k in range(CODES):
            mean = left[codes == k].mean(0)
            # Lloyd's iterations may stop before they have settled.
            assert (stage.codebook.weight[k] - mean).norm() < 0.5 * left.std()
        left = left - stage.codebook.weight[codes]


def test_the_estimator_turns_the_whole():
    quantizer = make(2, estimator=Rotation()).double()
    z_e = torch.randn(5, DIM, dtype=torch.float64, requires_grad=True)
    found = quantizer(z_e)
    g = torch.randn(5, DIM, dtype=torch.float64)
    (to_z_e,) = torch.autograd.grad(found.z_q, z_e, g)
    for i in range(5):
        start, end = z_e[i].detach(), found.z_q[i].detach()
        matrix = end.norm() / start.norm() * reference.rotation_matrix(start, end)
        torch.testing.assert_close(to_z_e[i], matrix.T @ g[i])


@pytest.mark.covering(1)
@every_family
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_finite_difference_equals_its_closed_form(family, beta):
    """+ξ (2w/ND) scatter(δ): every stage's codeword follows the whole motion of its embeddings."""
    problem = make_with(family, QUANTIZERS["residual"], beta)
    v_phi, _, direct = reference.above_at(problem, XI)
    phi, _ = reference.network_weights(problem)
    table = reference.table_of(problem, reference.codebook_parameters(problem)).detach()
    rows = reference.selected_rows(problem, reference.placed(problem, phi), table)
    delta = reference.tangent(problem, v_phi)
    scale = XI * 2 * problem.codebook_weight / delta.numel()
    expected = scale * reference.scattered(problem, rows, delta, table)
    found = hypergradient(problem, FiniteDifference(ForwardMode()), XI)
    assert relative(found.indirect, expected) < 1e-12
    assert relative(found.direct, direct) < 1e-12


@pytest.mark.covering(1)
@every_family
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_exact_equals_reverse_mode_and_a_numeric_derivative(family, beta):
    problem = make_with(family, QUANTIZERS["residual"], beta)
    found = hypergradient(problem, Exact(ForwardMode(), ForwardMode()), XI)
    assert relative(found.direct, reference.above_at(problem, XI)[2]) < 1e-12
    names = [f"stages.{s}.codebook.weight" for s in range(3)]
    reverse = reference.reverse_mode_at(problem, XI)
    assert relative(found.indirect, torch.cat([reverse[name] for name in names])) < 1e-12
    if family == "linear":
        _, numeric = reference.numeric_at(problem, XI)
        assert relative(found.indirect, torch.cat([numeric[name] for name in names])) < 1e-8


def test_wrong_stages_raise():
    first = VectorQuantizer(7, 6)
    with pytest.raises(ValueError, match="needs one stage or more, got none"):
        ResidualQuantizer([])
    for other in (
        VectorQuantizer(8, 6),
        VectorQuantizer(7, 5),
        VectorQuantizer(7, 6, groups=2),
    ):
        with pytest.raises(ValueError, match="must have the same num_codes and dim, and groups=1"):
            ResidualQuantizer([first, other])
    with pytest.raises(ValueError, match="must be Euclidean"):
        ResidualQuantizer([first, VectorQuantizer(7, 6, distance=Cosine())])
    for options in ({"channel_axis": 1}, {"initialize": "kmeans"}):
        with pytest.raises(ValueError, match="is laid out as a whole"):
            ResidualQuantizer([first, VectorQuantizer(7, 6, **options)])
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\]"):
        ResidualQuantizer([first], dropout=1.5)
    with pytest.raises(ValueError, match="give the estimator to ResidualQuantizer"):
        ResidualQuantizer([first, VectorQuantizer(7, 6, estimator=Rotation())])


def test_stages_may_be_maps_of_their_own():
    quantizer = ResidualQuantizer(
        [VectorQuantizer(7, 6, codebook=m) for m in (LinearMap(), Affine())]
    )
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    z_e = torch.randn(9, 6)
    codes = quantizer.encode(z_e)
    expected = sum(stage.table()[codes[:, s]] for s, stage in enumerate(quantizer.stages))
    torch.testing.assert_close(quantizer(z_e).z_q, expected)
