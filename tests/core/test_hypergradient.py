"""Every hypergradient against independent derivations, in float64."""

from dataclasses import replace

import pytest
import reference
import torch
from problems import FAMILIES, GROUPS, Problem, make, squared_error
from torch.optim import SGD

from mqvae import (
    Ahead,
    Amortized,
    Central,
    DirectOnly,
    Exact,
    FiniteDifference,
    ForwardMode,
    Hypergradient,
    HypergradientRule,
    Kept,
    Meta,
    MetaBoth,
    OneSided,
    Step,
    Transported,
    Undone,
    Unrolled,
    vqvae,
)

XI = 0.3
everywhere = pytest.mark.parametrize("groups", GROUPS)
every_family = pytest.mark.parametrize("family", FAMILIES)


class Recorded(HypergradientRule):
    """A hypergradient rule that keeps what it returned."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, ahead: Ahead) -> Hypergradient:
        self.result = self.rule(ahead)
        return self.result


def hypergradient(
    problem: Problem,
    rule,
    xi: float = XI,
    *,
    lr: float = 0.0,
    look_ahead=None,
    above=None,
    upper_loss=None,
) -> Hypergradient:
    """What a rule gives to `Meta` on the problem, whose weights stay where they are unless `lr`."""
    network = problem.network
    recorded = Recorded(rule)
    update = Meta(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=lr),
        upper=SGD(network.codebook_parameters(), lr=0.0),
        hypergradient=recorded,
        xi=xi,
        look_ahead=look_ahead,
        commitment_weight=problem.beta,
        codebook_weight=problem.codebook_weight,
        upper_loss=upper_loss,
    )
    update.step(problem.x, problem.y, above=above)
    return recorded.result


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


@pytest.mark.covering(1)
@everywhere
@every_family
@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_exact_equals_reverse_mode_through_the_step(family, groups, beta):
    problem = make(family, groups, beta)
    found = hypergradient(problem, Exact(ForwardMode(), ForwardMode()))
    assert relative(found.indirect, reference.reverse_mode(problem, XI)) < 1e-12
    assert relative(found.direct, reference.above(problem, XI)[2]) < 1e-12


@pytest.mark.covering(1)
@everywhere
@every_family
def test_exact_equals_a_numeric_derivative(family, groups):
    problem = make(family, groups, beta=0.5, seed=1)
    expected = reference.numeric(problem, XI)
    found = hypergradient(problem, Exact(ForwardMode(), ForwardMode())).indirect
    assert relative(found, expected) < 1e-8
    assert relative(reference.reverse_mode(problem, XI), expected) < 1e-8


@pytest.mark.covering(1)
@everywhere
@every_family
def test_finite_difference_equals_its_closed_form(family, groups):
    problem = make(family, groups, seed=2)
    expected = reference.paper_closed_form(problem, XI)
    assert relative(hypergradient(problem, FiniteDifference(ForwardMode())).indirect, expected) < (
        1e-12
    )
    literal, _ = reference.paper_difference(problem, XI, 1e-4, frozen=True)
    assert relative(literal, expected) < 1e-6


@pytest.mark.parametrize(("derivative", "order"), [(OneSided, 1), (Central, 2)])
@pytest.mark.parametrize("family", ["convolutional", "classifier"])
def test_a_difference_converges_at_its_order(family, derivative, order):
    problem = make(family, "three", seed=3)
    for rule, expected in (
        (FiniteDifference, reference.paper_closed_form(problem, XI)),
        (lambda d: Exact(d, ForwardMode()), reference.reverse_mode(problem, XI)),
        (lambda d: Exact(ForwardMode(), d), reference.reverse_mode(problem, XI)),
    ):
        wide, narrow = (
            relative(hypergradient(problem, rule(derivative(radius))).indirect, expected)
            for radius in (0.08, 0.02)
        )
        # A quarter of the radius: a quarter of the error at order 1, a sixteenth at order 2.
        assert 0 < narrow < wide
        assert wide / narrow == pytest.approx(4**order, rel=0.3)


def test_the_passes_of_a_difference_differ():
    problem = make("convolutional")
    seen = []

    def spied(derivative):
        def differentiate(f, primals, tangents, centre, length):
            def recorded(point):
                value = f(point)
                seen.append(value)
                return value

            seen.append(centre)
            return derivative(recorded, primals, tangents, centre, length)

        return differentiate

    hypergradient(problem, FiniteDifference(spied(Central())))
    centre, plus, minus = seen
    assert not torch.equal(plus, minus)
    assert not torch.equal(plus, centre)
    # They lie on opposite sides of the centre, as far to first order.
    assert torch.cosine_similarity((plus - centre).flatten(), (centre - minus).flatten(), 0) > 0.99
    seen.clear()
    hypergradient(problem, Exact(ForwardMode(), spied(OneSided())))
    centre, ahead = seen
    assert not torch.equal(centre, ahead)


def test_the_centre_a_difference_reuses_is_the_function_at_the_centre():
    problem = make("convolutional", "three")

    def check(f, primals, tangents, centre, length):
        torch.testing.assert_close(f(list(primals)), centre, rtol=1e-12, atol=1e-15)
        return Central()(f, primals, tangents, centre, length)

    hypergradient(problem, Exact(check, check))


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_linear_network_by_hand(beta):
    problem = make("linear", beta=beta, seed=4)
    network, x, t = problem.network, problem.x, problem.y
    a, b = network.encoder.weight.detach(), network.decoder.weight.detach()
    c = network.quantizer.codebook.weight.detach()
    n, w = x.shape[0], problem.codebook_weight
    scale_z, scale_y = 2 / (n * 6), 2 / (n * 3)

    def step(a, b):
        z = x @ a.T
        k = torch.cdist(z, c).argmin(1)
        residual = c[k] @ b.T - t
        to_z = scale_y * residual @ b + beta * scale_z * (z - c[k])
        g_a, g_b = to_z.T @ x, scale_y * residual.T @ c[k]
        g_c = torch.zeros_like(c).index_add(0, k, w * scale_z * (c[k] - z))
        return k, g_a, g_b, g_c

    k, g_a, g_b, _ = step(a, b)
    _, v_a, v_b, direct = step(a - XI * g_a, b - XI * g_b)
    delta = x @ v_a.T
    paper = torch.zeros_like(c).index_add(0, k, XI * w * scale_z * delta)
    change = scale_y * ((c[k] @ v_b.T + delta @ b.T) @ b + (c[k] @ b.T - t) @ v_b)
    exact = torch.zeros_like(c).index_add(0, k, -XI * (change - beta * scale_z * delta))

    for rule, indirect in (
        (FiniteDifference(ForwardMode()), paper),
        (FiniteDifference(OneSided()), paper),  # linear: a difference has no error
        (Exact(ForwardMode(), ForwardMode()), exact),
    ):
        found = hypergradient(problem, rule)
        assert relative(found.direct, direct) < 1e-12
        assert relative(found.indirect, indirect) < 1e-10


@pytest.mark.covering(1)
@everywhere
@every_family
def test_the_decoders_share_of_the_papers_difference_is_zero(family, groups):
    problem = make(family, groups)
    of_encoder, of_decoder = reference.paper_difference(problem, XI, 1e-3, frozen=False)
    assert torch.count_nonzero(of_decoder) == 0
    assert torch.count_nonzero(of_encoder) > 0


@everywhere
def test_free_codes_are_the_literal_equation_13(groups):
    problem = make("convolutional", groups, seed=5)
    v_phi, _, _ = reference.above(problem, XI)
    norm = torch.stack([v.norm() for v in v_phi]).norm()
    radius = 0.3  # wide enough for codes to change
    literal, _ = reference.paper_difference(problem, XI, float(radius / norm), frozen=False)
    frozen, _ = reference.paper_difference(problem, XI, float(radius / norm), frozen=True)
    found = hypergradient(problem, FiniteDifference(Central(radius), free_codes=True)).indirect
    assert relative(found, literal) < 1e-10
    assert relative(frozen, literal) > 1e-3


@pytest.mark.covering(1)
@everywhere
@every_family
def test_direct_only_equals_stopping_the_gradient(family, groups):
    problem = make(family, groups, seed=6)
    found = hypergradient(problem, DirectOnly())
    assert relative(found.direct, reference.stopped(problem, XI)) < 1e-12
    assert found.indirect is None


@pytest.mark.covering(2)
@everywhere
@every_family
@pytest.mark.parametrize("look", [Kept(), Undone(optimizer_step=True)], ids=["kept", "undone"])
def test_amortized_is_the_secant_of_the_embeddings_scattered(family, groups, look):
    """Descent of size 0.3 is SGD's step here; ξ scales the indirect term besides."""
    problem, twin = (make(family, groups, seed=7) for _ in range(2))
    found = hypergradient(problem, Amortized(), 0.7, lr=XI, look_ahead=look)
    phi, _, codebook = reference.weights(twin)
    phi_ahead, _ = reference.look_ahead(twin, XI)
    z_here, z_ahead = reference.embed(twin, phi), reference.embed(twin, phi_ahead)
    change = (z_here - z_ahead).reshape(-1, codebook.shape[1])
    expected = torch.zeros_like(codebook)
    rows = reference.rows_of(twin, z_here, codebook).flatten().tolist()
    for row, part in zip(rows, change.detach()):
        expected[row] += 0.7 * 2 * twin.codebook_weight / change.numel() * part
    assert relative(found.indirect, expected) < 1e-12
    assert relative(found.direct, reference.above(twin, XI)[2]) < 1e-12


@every_family
def test_amortized_is_the_papers_difference_for_small_steps(family):
    """v at φ' tends to v at φ, and the secant to the tangent: the error falls with the step."""
    errors = []
    for lr in (1e-2, 1e-3, 1e-4):
        problem, twin = (make(family, seed=8) for _ in range(2))
        found = hypergradient(problem, Amortized(), 1.0, lr=lr, look_ahead=Kept()).indirect
        papers = hypergradient(twin, FiniteDifference(ForwardMode()), lr).indirect
        errors.append(relative(found, papers))
    assert errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]
    assert errors[2] < 1e-2


def test_amortized_takes_its_direct_term_from_a_second_batch_above():
    problem, twin = make("convolutional"), make("convolutional")
    other = torch.randn_like(problem.x)
    same = hypergradient(problem, Amortized(), lr=0.1, look_ahead=Kept())
    fresh = hypergradient(twin, Amortized(), lr=0.1, look_ahead=Kept(), above=(other, other))
    assert torch.equal(fresh.indirect, same.indirect)
    assert not torch.equal(fresh.direct, same.direct)


def another_loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Smooth, of no classes or images in particular: what is judged above need not be the task."""
    return torch.log1p(output.square()).mean() + 0.1 * output.mean() * y.double().mean()


def upper_of(problem: Problem, what: str) -> tuple[Problem, dict]:
    """The problem as the level above sees it, and how `Meta` is told."""
    other, told = problem, {}
    if "batch" in what:
        x, y = problem.x[:3].flip(0) + 0.5, problem.y[:3].flip(0)
        other, told = replace(other, x=x, y=y), {"above": (x, y)}
    if "loss" in what:
        other, told = replace(other, loss=another_loss), {**told, "upper_loss": another_loss}
    return other, told


@pytest.mark.covering(2)
@everywhere
@every_family
@pytest.mark.parametrize("what", ["batch", "loss", "batch and loss"])
def test_an_upper_level_of_its_own(family, groups, what):
    problem = make(family, groups, beta=0.5, seed=9)
    upper, told = upper_of(problem, what)
    direct = reference.above(problem, XI, upper)[2]
    exact = hypergradient(problem, Exact(ForwardMode(), ForwardMode()), **told)
    assert relative(exact.indirect, reference.reverse_mode(problem, XI, upper)) < 1e-12
    assert relative(exact.direct, direct) < 1e-12
    papers = hypergradient(problem, FiniteDifference(ForwardMode()), **told)
    assert relative(papers.indirect, reference.paper_closed_form(problem, XI, upper)) < 1e-12
    assert relative(papers.direct, direct) < 1e-12
    # Another level above is another hypergradient.
    same = reference.reverse_mode(problem, XI)
    assert relative(exact.indirect, same) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_upper_level_of_its_own_equals_a_numeric_derivative(family):
    problem = make(family, "three", beta=0.5, seed=10)
    upper, told = upper_of(problem, "batch and loss")
    expected = reference.numeric(problem, XI, upper=upper)
    exact = hypergradient(problem, Exact(ForwardMode(), ForwardMode()), **told).indirect
    assert relative(exact, expected) < 1e-8
    unrolled = hypergradient(problem, Unrolled(), **told).indirect
    assert relative(unrolled, expected) < 1e-8


@pytest.mark.parametrize("rule", [DirectOnly(), Amortized(), Unrolled(2, stop_gradients=True)])
def test_a_rule_without_a_task_above_takes_no_upper_loss(rule):
    problem = make("linear")
    look = Kept() if isinstance(rule, Amortized) else None
    with pytest.raises(ValueError, match=r"no task loss above has a part in .*: leave out upper"):
        Meta(
            problem.network,
            problem.loss,
            lower=SGD(problem.network.network_parameters(), lr=0.1),
            upper=SGD(problem.network.codebook_parameters(), lr=0.1),
            hypergradient=rule,
            look_ahead=look,
            upper_loss=another_loss,
        )


def test_amortized_needs_the_optimizers_own_step():
    network = make("linear").network
    levels = {
        "lower": SGD(network.network_parameters(), lr=0.1),
        "upper": SGD(network.codebook_parameters(), lr=0.1),
    }
    for rule in (Meta, MetaBoth):
        with pytest.raises(ValueError, match=r"use it with look_ahead=Kept\(\)"):
            rule(network, squared_error, hypergradient=Amortized(), **levels)


def test_the_two_indirect_terms_are_not_the_same():
    problem = make("convolutional")
    paper = hypergradient(problem, FiniteDifference(ForwardMode())).indirect
    exact = hypergradient(problem, Exact(ForwardMode(), ForwardMode())).indirect
    assert abs(torch.cosine_similarity(paper.flatten(), exact.flatten(), 0)) < 0.9


def test_a_frozen_encoder_leaves_only_the_direct_term():
    problem = make("convolutional")
    problem.network.encoder.requires_grad_(False)
    found = hypergradient(problem, FiniteDifference())
    assert torch.count_nonzero(found.indirect) == 0
    assert torch.count_nonzero(found.direct) > 0


# -- weights in half precision ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [FiniteDifference(), FiniteDifference(Central()), Exact()], ids=["one", "two", "exact"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_difference_in_bfloat16_weights_is_taken_in_float32(rule, seed):
    """The step of the difference is shorter than a bfloat16 can tell: 3 to 19% of the norm went."""

    def step(dtype: torch.dtype) -> Step:
        torch.manual_seed(seed)
        network = vqvae(1, num_codes=64, dim=16, width=32)
        x = torch.rand(16, 1, 16, 16)
        network.initialize_codebook(x)
        network = network.bfloat16().to(dtype)  # the same numbers in both
        update = Meta(
            network,
            squared_error,
            lower=SGD(network.network_parameters(), 1e-3),
            upper=SGD(network.codebook_parameters(), 1e-3),
            hypergradient=rule,
        )
        found = update.step(x.bfloat16().to(dtype), x.bfloat16().to(dtype))
        assert all(p.dtype == dtype and torch.isfinite(p).all() for p in network.parameters())
        return found

    half, whole = step(torch.bfloat16), step(torch.float32)
    assert half.indirect_norm.dtype == torch.float32
    # What is left is that of the gradients, which bfloat16 rounds to 0.4%.
    assert half.indirect_norm.item() == pytest.approx(whole.indirect_norm.item(), rel=0.015)


@pytest.mark.parametrize("name", ["free codes", "transport", "amortized"])
def test_further_rules_take_bfloat16_weights(name):
    torch.manual_seed(0)
    network = vqvae(1, num_codes=16, dim=8, width=8).bfloat16()
    network.encoder.layers.append(torch.nn.BatchNorm2d(8).bfloat16())
    rule = {
        "free codes": FiniteDifference(free_codes=True),
        "transport": Transported(),
        "amortized": Amortized(),
    }[name]
    update = Meta(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), 0.5),
        upper=SGD(network.codebook_parameters(), 0.5),
        hypergradient=rule,
        look_ahead=Undone(optimizer_step=True),
    )
    x = torch.rand(4, 1, 8, 8).bfloat16()
    before = network.quantizer.codebook.weight.detach().clone()
    step = update.step(x, x)
    assert torch.isfinite(step.direct_norm) and torch.isfinite(step.indirect_norm)
    assert not torch.equal(network.quantizer.codebook.weight, before)
    assert all(t.dtype == torch.bfloat16 for t in network.parameters())
    assert network.encoder.layers[-1].running_mean.dtype == torch.bfloat16
