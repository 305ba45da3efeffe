"""Reverse mode through k virtual steps against the steps themselves, in float64."""

import pytest
import reference
import torch
from problems import GROUPS, QUANTIZERS, Problem, make, make_with
from test_hypergradient import hypergradient, relative

from mqvae import DirectOnly, Exact, ForwardMode, Unrolled

XI = 0.3
everywhere = pytest.mark.parametrize("groups", GROUPS)
every_family = pytest.mark.parametrize("family", ["convolutional", "classifier", "linear"])


def steps_ahead(problem: Problem, steps: int) -> tuple[list, list]:
    """(φ_k, θ_k) after k steps of plain descent, codes looked up anew at each."""
    phi, theta, codebook = reference.weights(problem)
    for _ in range(steps):
        g_phi, g_theta, _ = reference.gradients(problem, phi, theta, codebook)
        phi, theta = reference.ahead(phi, g_phi, -XI), reference.ahead(theta, g_theta, -XI)
    return phi, theta


@pytest.mark.covering(1)
@everywhere
@every_family
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_one_step_equals_exact(family, groups, beta):
    problem = make(family, groups, beta)
    one = hypergradient(problem, Unrolled(1), XI)
    exact = hypergradient(problem, Exact(ForwardMode(), ForwardMode()), XI)
    assert relative(one.indirect, exact.indirect) < 1e-12
    assert relative(one.direct, exact.direct) < 1e-12


@pytest.mark.covering(1)
@everywhere
@pytest.mark.parametrize("family", ["convolutional", "linear"])
@pytest.mark.parametrize("steps", [2, 3])
def test_k_steps_equal_a_numeric_derivative(family, groups, steps):
    problem = make(family, groups, beta=0.5, seed=1)
    direct, indirect = reference.numeric_at(problem, XI, steps)
    found = hypergradient(problem, Unrolled(steps), XI)
    assert relative(found.indirect, indirect["codebook.weight"]) < 1e-8
    assert relative(found.direct, direct["codebook.weight"]) < 1e-8
    # Every step adds something.
    fewer = hypergradient(problem, Unrolled(steps - 1), XI)
    assert relative(fewer.indirect, indirect["codebook.weight"]) > 1e-2


@pytest.mark.parametrize("kind", ["cosine", "residual"])
def test_two_steps_equal_a_numeric_derivative_for_other_codebooks(kind):
    problem = make_with("linear", QUANTIZERS[kind], beta=0.5, seed=1)
    problem.codebook_weight = 0.0  # leaves the indirect term alone
    _, expected = reference.numeric_at(problem, XI, 2)
    # By the codebook's parameters: the chain rule is the reference's own.
    found = reference.through(problem, hypergradient(problem, Unrolled(2), XI).indirect)
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-7


@pytest.mark.covering(1)
@everywhere
@every_family
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_stopped_gradients_leave_the_direct_term_at_the_end(family, groups, steps):
    problem = make(family, groups, beta=0.5)
    found = hypergradient(problem, Unrolled(steps, stop_gradients=True), XI)
    phi, theta = steps_ahead(problem, steps)
    _, _, direct = reference.gradients(problem, phi, theta, reference.weights(problem)[2])
    assert relative(found.direct, direct) < 1e-12
    assert found.indirect is None
    # The graph kept, it is the same direct term with an indirect one.
    kept = hypergradient(problem, Unrolled(steps), XI)
    assert torch.equal(kept.direct, found.direct)
    assert kept.indirect.norm() > 0


def test_one_stopped_step_is_direct_only():
    problem = make("convolutional", "three")
    one = hypergradient(problem, Unrolled(1, stop_gradients=True), XI)
    other = hypergradient(problem, DirectOnly(), XI)
    assert relative(one.direct, other.direct) < 1e-14


def test_codes_are_looked_up_anew_at_every_step():
    """At a step so long that codes change between the steps the two still agree."""
    problem = make("convolutional", beta=0.5, seed=2)
    xi = 20.0
    phi, theta, codebook = reference.weights(problem)
    g_phi, _, _ = reference.gradients(problem, phi, theta, codebook)
    first = reference.rows_of(problem, reference.embed(problem, phi), codebook)
    moved = reference.ahead(phi, g_phi, -xi)
    assert not torch.equal(
        first, reference.rows_of(problem, reference.embed(problem, moved), codebook)
    )
    _, expected = reference.numeric_at(problem, xi, 2)
    found = hypergradient(problem, Unrolled(2), xi)
    assert relative(found.indirect, expected["codebook.weight"]) < 1e-7


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_frozen_parts_do_not_answer(part):
    problem = make("classifier", beta=0.5)
    getattr(problem.network, part).requires_grad_(False)
    found = hypergradient(problem, Unrolled(1), XI)
    exact = hypergradient(problem, Exact(ForwardMode(), ForwardMode()), XI)
    assert relative(found.indirect, exact.indirect) < 1e-12
    assert relative(found.direct, exact.direct) < 1e-12
    problem.network.requires_grad_(False)
    problem.network.quantizer.requires_grad_(True)
    nothing = hypergradient(problem, Unrolled(2), XI)
    assert nothing.indirect is None
    assert nothing.direct.norm() > 0


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        Unrolled(steps)
