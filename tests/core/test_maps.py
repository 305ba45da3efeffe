"""Codebooks of every kind, as functions of parameters, on a sphere, in groups and stages.

Their gradients are those of the chain rule through the table, and they behave as codebooks do.
"""

import copy
import io

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import QUANTIZERS, Problem, auxiliary, make_with
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from mqvae import (
    Affine,
    Cosine,
    DirectOnly,
    Ema,
    Exact,
    FiniteDifference,
    ForwardMode,
    GumbelQuantizer,
    HyperNetwork,
    Joint,
    LinearMap,
    Meta,
    Quantizer,
    ReplaceUnused,
    ResidualQuantizer,
    Table,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)

XI = 0.3
SELECTING = [name for name in QUANTIZERS if name not in ("gumbel", "none")]
STRAIGHT = [name for name in SELECTING if name != "rotation"]
every_codebook = pytest.mark.parametrize("kind", SELECTING)
every_straight_one = pytest.mark.parametrize("kind", STRAIGHT)
every_family = pytest.mark.parametrize("family", ["convolutional", "classifier"])


def change(problem: Problem, rule=None, *, lower: float = 0.0) -> dict[str, Tensor]:
    """What one step takes off every parameter, by plain descent of rate 1 on the codebook."""
    network = problem.network
    options = {
        "lower": SGD(network.network_parameters(), lr=lower),
        "upper": SGD(network.codebook_parameters(), lr=1.0),
        "commitment_weight": problem.beta,
        "codebook_weight": problem.codebook_weight,
    }
    if rule is None:
        update = Joint(network, problem.loss, **options)
    else:
        update = Meta(network, problem.loss, hypergradient=rule, xi=XI, **options)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    update.step(problem.x, problem.y)
    return {name: before[name] - p.detach() for name, p in network.named_parameters()}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each parameter's own gradient, in units of its own norm; none of them vanishes."""
    for name, value in expected.items():
        assert value.norm() > 0, name
        error = (found[f"quantizer.{name}"] - value).norm() / value.norm()
        assert error < tolerance, (name, float(error))


def summed(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    assert one.keys() == other.keys()
    return {name: one[name] + other[name] for name in one}


def direct(problem: Problem) -> dict[str, Tensor]:
    return reference.through(problem, reference.above_at(problem, XI)[2])


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@every_codebook
@every_family
def test_joint_is_the_chain_rule_through_the_table(kind, family):
    problem = make_with(family, QUANTIZERS[kind], beta=0.3)
    phi, theta = reference.network_weights(problem)
    table = reference.table_of(problem, reference.codebook_parameters(problem))
    g_phi, g_theta, g_c = reference.gradients_at(problem, phi, theta, table)
    expected = reference.through(problem, g_c)
    found = change(problem, lower=1.0)
    assert_near(found, expected, 1e-12)
    for part, gradients in (("encoder", g_phi), ("decoder", g_theta)):
        steps = [step for name, step in found.items() if name.startswith(part)]
        for step, g in zip(steps, gradients, strict=True):
            torch.testing.assert_close(step, g, rtol=1e-10, atol=1e-14)


@pytest.mark.covering(1)
@every_codebook
@every_family
def test_the_direct_term_is_the_codebook_loss_at_the_look_ahead(kind, family):
    problem = make_with(family, QUANTIZERS[kind], beta=0.3)
    expected = direct(problem)
    assert_near(change(problem, DirectOnly()), expected, 1e-12)


# What the kinds above are compared with is itself compared here, once a kind of chain rule.
NUMERIC = ["shared groups", "cosine groups", "hyper-network", "residual maps"]
every_chain_rule = pytest.mark.parametrize("kind", NUMERIC)


@every_chain_rule
def test_the_direct_term_equals_a_numeric_derivative(kind):
    problem = make_with("linear", QUANTIZERS[kind], seed=1)
    expected, _ = reference.numeric_at(problem, XI)
    assert_near(change(problem, DirectOnly()), expected, 1e-8)


@pytest.mark.covering(1)
@every_codebook
@every_family
def test_finite_difference_equals_equation_13_by_the_maps_parameters(kind, family):
    problem = make_with(family, QUANTIZERS[kind], beta=0.3)
    expected = summed(direct(problem), reference.paper_difference_at(problem, XI, 1e-3))
    assert_near(change(problem, FiniteDifference(ForwardMode())), expected, 1e-8)


@pytest.mark.covering(1)
@every_straight_one
@every_family
@pytest.mark.parametrize(
    "rule", [Exact(ForwardMode(), ForwardMode()), Unrolled(1)], ids=["Exact", "Unrolled"]
)
def test_exact_equals_reverse_mode_by_the_maps_parameters(kind, family, rule):
    problem = make_with(family, QUANTIZERS[kind], beta=0.3)
    indirect = reference.reverse_mode_at(problem, XI)
    expected = summed(direct(problem), indirect)
    largest = max(float(value.norm()) for value in indirect.values())
    assert largest > 1e-3 * max(float(value.norm()) for value in expected.values())
    assert_near(change(problem, rule), expected, 1e-12)


@every_chain_rule
def test_exact_equals_a_numeric_derivative_by_the_maps_parameters(kind):
    problem = make_with("linear", QUANTIZERS[kind], beta=0.5, seed=1)
    # The weight of the codebook loss at zero leaves the indirect term alone.
    problem.codebook_weight = 0.0
    _, expected = reference.numeric_at(problem, XI)
    assert_near(change(problem, Exact(ForwardMode(), ForwardMode())), expected, 1e-7)


def test_a_maps_fixed_table_is_never_trained():
    for kind, name in (("linear map", "table"), ("hyper-network", "base")):
        problem = make_with("convolutional", QUANTIZERS[kind])
        quantizer = problem.network.quantizer
        fixed = quantizer.codebook.get_buffer(name)
        before, words = fixed.clone(), quantizer.table().detach()
        change(problem, Exact())
        assert torch.equal(fixed, before)
        assert name not in dict(quantizer.codebook.named_parameters())
        assert not torch.equal(quantizer.table(), words)


def test_unused_codewords_move_with_an_affine_or_linear_map_and_stay_in_a_table():
    for codebook, moves in ((Table(), False), (Affine(), True), (LinearMap(), True)):
        problem = make_with("linear", lambda k, d, c=codebook: VectorQuantizer(60, d, codebook=c))
        quantizer = problem.network.quantizer
        used = torch.zeros(60, dtype=torch.bool)
        used[problem.network.encode(problem.x).unique()] = True
        before = quantizer.table().detach().clone()
        change(problem)
        step = (quantizer.table().detach() - before).norm(dim=1)
        assert not used.all() and step[used].min() > 0
        assert bool((step[~used] > 0).all()) == moves
        assert bool((step[~used] > 0).any()) == moves


@pytest.mark.parametrize("groups", [1, 2])
def test_cosine_gives_the_decoder_unit_vectors_and_no_gradient_along_them(groups):
    quantizer = VectorQuantizer(9, 6, distance=Cosine(), groups=groups).double()
    z_e = torch.randn(30, 6, dtype=torch.float64, requires_grad=True)
    found = quantizer(z_e)
    width = 6 // groups
    lengths = found.z_q.detach().unflatten(-1, (groups, width)).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-14, atol=0)
    ((found.z_q.sin() * torch.randn(6)).sum() + found.commitment_loss).backward()
    found.codebook_loss.backward()
    for vectors, gradient in (
        (z_e.detach().reshape(-1, width), z_e.grad.reshape(-1, width)),
        (quantizer.codebook.weight.detach(), quantizer.codebook.weight.grad),
    ):
        assert gradient.norm() > 0
        assert (vectors * gradient).sum(-1).abs().max() < 1e-15
    # Nearest is most similar, and the scale of embeddings does not matter.
    parts = z_e.detach().unflatten(-1, (groups, width))
    books = quantizer.codebook.weight.detach().chunk(groups)
    for g, book in enumerate(books):
        similarity = torch.cosine_similarity(parts[:, g, None], book, dim=-1)
        codes = found.codes.reshape(-1, groups)[:, g]
        assert torch.equal(similarity.argmax(1), codes)
    assert torch.equal(quantizer.encode(3 * z_e), found.codes)


def test_cosine_of_nothing_is_finite():
    quantizer = VectorQuantizer(5, 4, distance=Cosine())
    z_e = torch.zeros(3, 4, requires_grad=True)
    found = quantizer(z_e)
    (found.z_q.sum() + found.commitment_loss + found.codebook_loss).backward()
    assert torch.isfinite(found.z_q).all() and torch.isfinite(found.commitment_loss)
    assert torch.isfinite(z_e.grad).all()
    assert torch.isfinite(quantizer.codebook.weight.grad).all()


@pytest.mark.parametrize("codebook", [Table(), Affine(), LinearMap(), HyperNetwork(3, 4)])
def test_assigned_codewords_are_the_codebook(codebook):
    built = codebook.built(7, 4)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += torch.randn_like(parameter)
    codewords = torch.randn(7, 4)
    built.assign(codewords)
    torch.testing.assert_close(built(), codewords)  # through a product, where there is a map
    assert all(p.requires_grad for p in built.parameters())


# -- properties ------------------------------------------------------------------------------------

RANDOM = settings(derandomize=True, deadline=None, max_examples=10)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def far_stages(codes: int, dim: int) -> Quantizer:
    """Stages each a hundredth as large as the one before, so that a sum has one way to be made."""
    quantizer = ResidualQuantizer([VectorQuantizer(codes, dim) for _ in range(3)])
    with torch.no_grad():
        for s, stage in enumerate(quantizer.stages):
            stage.codebook.weight.mul_(100.0**-s)
    return quantizer


def gumbel_around_codewords(codes: int, dim: int) -> Quantizer:
    """Its head prefers the nearest codeword, as after `initialize`."""
    quantizer = GumbelQuantizer(codes, dim)
    with torch.no_grad():
        quantizer.head.weight.copy_(2 * quantizer.codebook)
        quantizer.head.bias.copy_(-quantizer.codebook.square().sum(1))
    return quantizer


KINDS = {
    **{name: QUANTIZERS[name] for name in SELECTING if not name.startswith("residual")},
    "residual": far_stages,
    "gumbel": gumbel_around_codewords,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def perturbed(kind: str, codes: int, dim: int) -> Quantizer:
    quantizer = KINDS[kind](codes, dim).eval()
    if kind not in ("gumbel", "residual"):
        with torch.no_grad():
            for parameter in quantizer.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return quantizer


def codes_of(quantizer: Quantizer, *shape: int) -> Tensor:
    groups = () if quantizer.groups == 1 else (quantizer.groups,)
    return torch.randint(quantizer.num_codes, (*shape, *groups))


@every_kind
@RANDOM
@given(
    seed=st.integers(0, 2**16),
    codes=st.integers(1, 40),
    parts=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_quantizing_codewords_gives_them_back(kind, seed, codes, parts, dtype):
    torch.manual_seed(seed)
    quantizer = perturbed(kind, codes, 12 * parts).to(dtype)
    chosen = codes_of(quantizer, 30)
    z_e = quantizer.decode(chosen).detach()
    found = quantizer(z_e)
    assert torch.equal(found.codes, chosen)
    assert torch.equal(quantizer.encode(z_e), chosen)
    assert torch.equal(found.z_q, z_e)
    assert found.commitment_loss < 1e-10
    assert found.codebook_loss < 1e-10 or kind == "residual"


# What has one row per codeword.
BY_ROW = {
    Table: ("weight",),
    Affine: ("weight",),
    LinearMap: ("table",),
    HyperNetwork: ("base", "embedding"),
}


def permute(quantizer: Quantizer) -> list[Tensor]:
    """Other orders for every codebook; row j of the new one is row order[j] of the old."""
    k = quantizer.num_codes
    if isinstance(quantizer, GumbelQuantizer):
        (order,) = orders = [torch.randperm(k)]
        tensors = [(quantizer.codebook, order), (quantizer.head.weight, order)]
        tensors.append((quantizer.head.bias, order))
    elif isinstance(quantizer, ResidualQuantizer):
        orders = [torch.randperm(k) for _ in quantizer.stages]
        tensors = [(s.codebook.weight, o) for s, o in zip(quantizer.stages, orders)]
    else:
        books = 1 if quantizer.shared_codebook else quantizer.groups
        orders = [torch.randperm(k) for _ in range(books)]
        rows = torch.cat([b * k + order for b, order in enumerate(orders)])
        by_row = BY_ROW[type(quantizer.codebook)]
        tensors = [(getattr(quantizer.codebook, name), rows) for name in by_row]
    with torch.no_grad():
        for tensor, rows in tensors:
            tensor.copy_(tensor[rows])
    return orders


@every_kind
@RANDOM
@given(seed=st.integers(0, 2**16), codes=st.integers(2, 40), parts=st.integers(1, 4))
def test_permuting_the_codebook_permutes_codes_and_nothing_else(kind, seed, codes, parts):
    torch.manual_seed(seed)
    quantizer = perturbed(kind, codes, 12 * parts).double()
    z_e = torch.randn(30, 12 * parts, dtype=torch.float64)
    before = quantizer(z_e)
    orders = permute(quantizer)
    after = quantizer(z_e)
    old = before.codes.reshape(30, -1)
    new = after.codes.reshape(30, -1)
    for g in range(quantizer.groups):
        assert torch.equal(orders[g % len(orders)][new[:, g]], old[:, g])
    # A matrix product may round differently where a row stands elsewhere.
    exact = kind not in ("linear map", "linear map cosine", "hyper-network", "gumbel")
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-12, "atol": 1e-13}
    for field in ("z_q", "commitment_loss", "codebook_loss"):
        torch.testing.assert_close(getattr(after, field), getattr(before, field), **tolerance)
    torch.testing.assert_close(auxiliary(after), auxiliary(before), rtol=1e-12, atol=0)


def network_of(quantizer: Quantizer) -> VQNetwork:
    dim = quantizer.dim
    encoder = nn.Sequential(nn.Conv2d(2, 8, 2, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, dim, 1))
    decoder = nn.Sequential(nn.ConvTranspose2d(dim, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return VQNetwork(encoder, quantizer, decoder)


@pytest.mark.parametrize("kind", [name for name in QUANTIZERS if name != "none"])
@pytest.mark.parametrize("device", DEVICES)
def test_codes_decode_to_the_forward_pass_to_the_bit(kind, device):
    network = network_of(QUANTIZERS[kind](9, 12)).to(device).eval()
    x = torch.randn(4, 2, 8, 8, device=device)
    network.initialize_codebook(x)
    with torch.no_grad():
        result, codes = network(x), network.encode(x)
        assert len(codes.unique()) > 3
        assert torch.equal(codes, result.quantized.codes)
        assert torch.equal(network.quantizer.decode(codes), result.quantized.z_q)
        assert torch.equal(network.decode(codes), result.output)


@pytest.mark.parametrize("kind", [name for name in QUANTIZERS if name != "none"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_float32_quantizer_in_a_bfloat16_network_decodes_too(kind, device):
    network = network_of(QUANTIZERS[kind](9, 12)).to(device).eval()
    network.encoder.bfloat16()
    network.decoder.bfloat16()
    x = torch.randn(4, 2, 8, 8, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        result = network(x)
        found = network.decode(network.encode(x))
    assert result.quantized.z_q.dtype == found.dtype == torch.bfloat16
    assert torch.equal(found, result.output)


@pytest.mark.covering(2)
@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_device_are_kept(kind, device, training, wide, dtype):
    """Embeddings in any dtype, the codebook in float32 or float64."""
    quantizer = QUANTIZERS[kind](9, 12).to(device, wide).train(training)
    z_e = torch.randn(5, 12, device=device, dtype=dtype, requires_grad=True)
    found = quantizer(z_e)
    assert found.z_q.dtype == dtype and found.z_q.device.type == device
    assert found.codes.dtype == torch.int64 and found.codes.device.type == device
    for loss in (found.commitment_loss, found.codebook_loss):
        assert loss.dtype in (torch.float32, torch.float64)
        assert loss.device.type == device
    (found.z_q.float().sin().sum() + found.commitment_loss + auxiliary(found)).backward()
    assert z_e.grad.dtype == dtype and torch.isfinite(z_e.grad).all()
    if kind != "none":
        words = quantizer.decode(found.codes)
        assert words.dtype == wide and words.device.type == device


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", [name for name in QUANTIZERS if name != "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_quantizer_in_half_precision_works_and_keeps_it(kind, dtype):
    quantizer = QUANTIZERS[kind](9, 12).to(dtype)
    z_e = torch.randn(5, 12, dtype=dtype, requires_grad=True)
    found = quantizer(z_e)
    assert found.z_q.dtype == dtype
    assert torch.isfinite(found.z_q).all()
    total = found.z_q.float().sum() + found.commitment_loss + found.codebook_loss
    (total + auxiliary(found)).backward()
    assert all(p.grad is None or p.grad.dtype == dtype for p in quantizer.parameters())
    assert torch.isfinite(z_e.grad).all()


def trained(kind: str, seed: int):
    """A network, its update and a batch; where the rule has state, Ema."""
    torch.manual_seed(seed)
    if kind in ("ema", "replaced"):
        replacement = ReplaceUnused(2) if kind == "replaced" else None
        quantizer = VectorQuantizer(9, 12, groups=3, replacement=replacement)
    else:
        quantizer = QUANTIZERS[kind](9, 12)
    network = network_of(quantizer)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    lower = AdamW(network.network_parameters(), lr=1e-2)
    if kind == "ema":
        return network, Ema(network, loss, lower=lower, decay=0.8)
    parameters = list(network.codebook_parameters())
    upper = AdamW(parameters, lr=1e-2) if parameters else None
    rule = Joint if kind in ("gumbel", "none") else Meta
    return network, rule(network, loss, lower=lower, upper=upper)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", [*QUANTIZERS, "ema", "replaced"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_state_is_loaded_strictly_and_training_goes_on_to_the_bit(kind, steps):
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    network, update = trained(kind, seed=1)
    keys = network.state_dict().keys(), update.state_dict().keys()
    for _ in range(steps):
        update.step(x, x)
    assert (network.state_dict().keys(), update.state_dict().keys()) == keys
    other, again = trained(kind, seed=2)
    other.load_state_dict(through_a_file(network.state_dict()), strict=True)
    again.load_state_dict(through_a_file(update.state_dict()))
    for mine, its in (("lower", "lower"), ("upper", "upper")):
        if getattr(update, mine) is not None:
            getattr(again, its).load_state_dict(through_a_file(getattr(update, mine).state_dict()))
    for one, rule in ((network, update), (other, again)):
        torch.manual_seed(3)
        for _ in range(3):
            rule.step(x, x)
        one.eval()
    assert torch.equal(network(x).output, other(x).output)
    first, second = network.state_dict(), other.state_dict()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    mine, its = update.state_dict(), again.state_dict()
    assert [k for k in mine if not torch.equal(mine[k], its[k])] == []


@pytest.mark.parametrize("kind", [*QUANTIZERS, "ema", "replaced"])
def test_eval_changes_no_state(kind):
    x = torch.randn(3, 2, 4, 4)
    network, update = trained(kind, seed=1)
    update.step(x, x)
    network.eval()
    before = copy.deepcopy(network.state_dict()), copy.deepcopy(update.state_dict())
    random = torch.get_rng_state()
    one, other = network(x), network(x)
    network.encode(x)
    if kind != "none":
        network.decode(one.quantized.codes)
    assert torch.equal(one.output, other.output)
    assert torch.equal(torch.get_rng_state(), random)
    for old, new in zip(before, (network.state_dict(), update.state_dict())):
        assert old.keys() == new.keys()
        assert [k for k in old if not torch.equal(old[k], new[k])] == []


@pytest.mark.parametrize("kind", [*QUANTIZERS, "ema", "replaced"])
def test_frozen_is_frozen(kind):
    """A frozen quantizer keeps all its state but Gumbel's count of updates, which is a clock."""
    x = torch.randn(3, 2, 4, 4)
    network, update = trained(kind, seed=1)
    network.quantizer.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    averages = copy.deepcopy(update.state_dict())
    for _ in range(4):
        update.step(x, x)
    after = network.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {"encoder.0.weight", "decoder.0.weight"} <= moved
    assert {k for k in moved if k.startswith("quantizer")} <= {"quantizer.steps"}
    assert all(torch.equal(averages[k], v) for k, v in update.state_dict().items())
