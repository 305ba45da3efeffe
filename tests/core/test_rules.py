"""Update rules against what their equations say, written out, in float64."""

import copy

import pytest
import reference
import torch
from problems import GROUPS, QUANTIZERS, Problem, make, make_with, squared_error
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from mqvae import (
    Alternated,
    Ema,
    Exact,
    FiniteDifference,
    ForwardMode,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    Synchronous,
    Transport,
    Undone,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.core.look_ahead import adam_slopes

XI, NU, LOWER, UPPER = 0.3, 0.7, 0.2, 0.9
STRAIGHT = [name for name in QUANTIZERS if name not in ("rotation", "gumbel", "none")]
everywhere = pytest.mark.parametrize("groups", GROUPS)
every_family = pytest.mark.parametrize("family", ["convolutional", "classifier", "linear"])
every_kind = pytest.mark.parametrize("kind", STRAIGHT)

Weights = dict[str, Tensor]


def update_of(problem: Problem, rule, *, lower: float = LOWER, upper: float = UPPER, **options):
    network = problem.network
    return rule(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=lower),
        upper=SGD(network.codebook_parameters(), lr=upper),
        commitment_weight=problem.beta,
        codebook_weight=problem.codebook_weight,
        **options,
    )


def weights(problem: Problem) -> Weights:
    return {name: p.detach().clone() for name, p in problem.network.named_parameters()}


def descended(problem: Problem, g_phi, g_theta, of_codebook: Weights) -> Weights:
    """The weights less their rates times gradients."""
    network = problem.network
    result = {}
    for part, module, gradients in (
        ("encoder", network.encoder, g_phi),
        ("decoder", network.decoder, g_theta),
    ):
        named = list(module.named_parameters())
        for (name, p), g in zip(named, gradients, strict=True):
            result[f"{part}.{name}"] = p.detach() - LOWER * g
    for name, p in network.quantizer.named_parameters():
        result[f"quantizer.{name}"] = p.detach() - UPPER * of_codebook[name]
    return result


def assert_moved_to(problem: Problem, before: Weights, expected: Weights) -> None:
    after = weights(problem)
    assert after.keys() == expected.keys()
    for name, value in expected.items():
        step, wanted = after[name] - before[name], value - before[name]
        assert wanted.norm() > 0, name
        assert (step - wanted).norm() < 1e-11 * wanted.norm(), name


def codebook_part(expected: Weights) -> Weights:
    prefix = "quantizer."
    return {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}


# -- synchronous and alternated --------------------------------------------------------------------


def embeddings_as_weights(count: int, codes: int) -> tuple[VQNetwork, Tensor]:
    """φ is the identity: the encoder's weight, transposed, is the embeddings themselves."""
    torch.manual_seed(3)
    encoder = nn.Linear(count, 4, bias=False)
    decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    network = VQNetwork(encoder, VectorQuantizer(codes, 4), decoder).double()
    with torch.no_grad():
        encoder.weight.normal_()
        if codes == count:  # each embedding has a codeword of its own
            network.quantizer.codebook.weight.copy_(encoder.weight.T + 0.1 * torch.randn(count, 4))
    return network, torch.eye(count, dtype=torch.float64)


@pytest.mark.parametrize(("count", "codes"), [(6, 6), (30, 6)])
def test_synchronous_moves_codewords_as_if_by_the_embeddings_after_their_own_step(count, codes):
    """Eq. 18: z_q ← (1 − ξ) z_q + ξ z_e', z_e' = z_e − ξ ∂L_task/∂ẑ the embedding after its step.

    Put in, that is (1 − ξ) z_q + ξ z_e − ξ² ∂L_task/∂z_q. Eq. 19 prints the last term with a plus:
    there ∂L_task/∂z_q stands for the direction in which the loss falls. With the plus read as a
    gradient, codewords would move away from where their embeddings go, and Eq. 18 would not hold.
    """
    network, x = embeddings_as_weights(count, codes)
    y = torch.randn(count, 3, dtype=torch.float64)
    xi, weight = 0.1, 1.3
    codebook = network.quantizer.codebook.weight
    # (2w/ND) times this rate is ξ; times ν it is ξ².
    rate = xi * count * 4 / (2 * weight)
    update = Synchronous(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), lr=xi),
        upper=SGD(network.codebook_parameters(), lr=rate),
        nu=xi**2 / rate,
        commitment_weight=0.0,
        codebook_weight=weight,
    )
    old, z_e = codebook.detach().clone(), network.encoder.weight.detach().T.clone()
    codes_of = torch.cdist(z_e, old).argmin(1)
    z_q = old[codes_of].requires_grad_()
    task = squared_error(network.decoder(z_q), y)
    (g,) = torch.autograd.grad(task, z_q)
    update.step(x, y)
    z_after = network.encoder.weight.detach().T
    torch.testing.assert_close(z_after, z_e - xi * g, rtol=1e-13, atol=1e-15)

    for k in range(codes):
        mine = codes_of == k
        if codes == count:
            assert mine.sum() == 1
        expected = old[k] - xi * (old[k] - z_after[mine]).sum(0)  # Eq. 18
        torch.testing.assert_close(codebook[k], expected, rtol=1e-12, atol=1e-14)
        as_19 = old[k] - xi * (old[k] - z_e[mine]).sum(0) - xi**2 * g[mine].sum(0)
        torch.testing.assert_close(codebook[k], as_19, rtol=1e-12, atol=1e-14)
        ascent = as_19 + 2 * xi**2 * g[mine].sum(0)
        assert (codebook[k] - ascent).norm() > 1e-4 * xi**2


def with_task_gradient(problem: Problem, nu: float) -> tuple[list, list, Tensor]:
    """(g_φ, g_θ, g_C) where the decoder gets ẑ + ν z_q − sg(ν z_q), by backpropagation."""
    phi, theta = reference.network_weights(problem)
    table = reference.table_of(problem, reference.codebook_parameters(problem))
    table = table.detach().requires_grad_()
    z_e = reference.placed(problem, phi)
    rows = reference.selected_rows(problem, z_e, table)
    z_q = reference.selected(problem, table, rows)
    z = reference.estimate(problem, z_e, z_q) + nu * z_q - (nu * z_q).detach()
    task = problem.loss(reference.decode(problem, theta, z), problem.y)
    commitment = (z_e - z_q.detach()).square().mean()
    codebook = reference.codebook_loss(problem, z_e, table, rows)
    total = task + problem.beta * commitment + problem.codebook_weight * codebook
    found = torch.autograd.grad(total, [*phi, *theta, table])
    return list(found[: len(phi)]), list(found[len(phi) : -1]), found[-1]


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", [*STRAIGHT, "rotation"])
@every_family
def test_synchronous_is_backpropagation_with_the_codeword_added(kind, family):
    problem = make_with(family, QUANTIZERS[kind], beta=0.4)
    g_phi, g_theta, g_c = with_task_gradient(problem, NU)
    before = weights(problem)
    expected = descended(problem, g_phi, g_theta, reference.through(problem, g_c))
    update_of(problem, Synchronous, nu=NU).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)


def test_synchronous_needs_no_gradient_of_the_encoder():
    problem = make("convolutional", "three")
    frozen = copy.deepcopy(problem)
    frozen.network.encoder.requires_grad_(False)
    before = weights(problem)
    for each in (problem, frozen):
        update_of(each, Synchronous, nu=NU).step(each.x, each.y)
    for name, value in weights(problem).items():
        expected = before[name] if name.startswith("encoder") else value
        torch.testing.assert_close(weights(frozen)[name], expected, rtol=1e-12, atol=1e-14)


def test_synchronous_without_nu_is_joint():
    problem = make("convolutional", "three")
    twin = copy.deepcopy(problem)
    update_of(problem, Synchronous, nu=0.0).step(problem.x, problem.y)
    update_of(twin, Joint).step(twin.x, twin.y)
    for name, value in weights(problem).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=1e-13, atol=1e-15)


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", [*STRAIGHT, "rotation"])
@every_family
@pytest.mark.parametrize("nu", [0.0, NU])
def test_alternated_steps_the_codebook_and_then_the_network_under_it(kind, family, nu):
    problem = make_with(family, QUANTIZERS[kind], beta=0.4)
    _, _, g_c = with_task_gradient(problem, nu)
    before = weights(problem)
    zeros = [torch.zeros_like(p) for p in problem.network.encoder.parameters()]
    others = [torch.zeros_like(p) for p in problem.network.decoder.parameters()]
    first = descended(problem, zeros, others, reference.through(problem, g_c))
    # The network's gradients under the new codebook.
    moved = copy.deepcopy(problem)
    moved.network.load_state_dict(first, strict=False)
    phi, theta = reference.network_weights(moved)
    table = reference.table_of(moved, reference.codebook_parameters(moved))
    g_phi, g_theta, _ = reference.gradients_at(moved, phi, theta, table)
    expected = descended(problem, g_phi, g_theta, reference.through(problem, g_c))
    update_of(problem, Alternated, nu=nu).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)


# -- moving averages -------------------------------------------------------------------------------


def ema_of(problem: Problem, **options) -> Ema:
    network = problem.network
    return Ema(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=LOWER),
        commitment_weight=problem.beta,
        **options,
    )


@everywhere
@pytest.mark.parametrize("family", ["convolutional", "linear"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
def test_ema_is_equation_17_over_several_steps(family, groups, epsilon):
    problem = make(family, groups, beta=0.4)
    decay = 0.8
    update = ema_of(problem, decay=decay, epsilon=epsilon)
    weight = problem.network.quantizer.codebook.weight
    sizes = [1.0] * len(weight)
    sums = list(weight.detach().clone())
    for step in range(4):
        problem.x = torch.randn_like(problem.x)  # each step its own batch
        if family == "convolutional":
            problem.y = problem.x
        phi, theta, codebook = reference.weights(problem)
        z_e = reference.embed(problem, phi).detach()
        rows = reference.rows_of(problem, z_e, codebook)
        parts = z_e.reshape(-1, weight.shape[1])
        g_phi, g_theta, _ = reference.gradients(problem, phi, theta, codebook)
        update.step(problem.x, problem.y)

        for k in range(len(weight)):
            mine = parts[rows.flatten() == k]
            sizes[k] = decay * sizes[k] + (1 - decay) * len(mine)
            sums[k] = decay * sums[k] + (1 - decay) * mine.sum(0)
            expected = codebook[k]
            if len(mine):
                expected = (sums[k] + epsilon * codebook[k]) / (sizes[k] + epsilon)
            torch.testing.assert_close(weight[k], expected, rtol=1e-12, atol=1e-14)
        # Encoder and decoder have stepped as ever, from where the codebook was.
        for p, old, g in zip(
            problem.network.network_parameters(), [*phi, *theta], [*g_phi, *g_theta]
        ):
            torch.testing.assert_close(p, old - LOWER * g, rtol=1e-12, atol=1e-14)
        assert (weight - codebook).norm() > 1e-3, step


@everywhere
def test_ema_is_descent_on_the_codebook_loss_at_a_rate_of_each_codeword(groups):
    """e ← e − ρ (e − mean z_e): the gradient (2/ND) n (e − mean z_e) at the rate ρ ND / 2n."""
    problem = make("convolutional", groups)
    update = ema_of(problem, decay=0.8, epsilon=0.0)
    weight = problem.network.quantizer.codebook.weight
    for _ in range(3):
        phi, _, codebook = reference.weights(problem)
        z_e = reference.embed(problem, phi)
        rows = reference.rows_of(problem, z_e, codebook).flatten()
        loss = (z_e.detach() - reference.select(codebook, rows.view(*z_e.shape[:-1], -1))).square()
        (g_c,) = torch.autograd.grad(loss.mean(), codebook)
        old_sizes = (
            update.state_dict()["sizes"].clone()
            if update.state_dict()["sizes"].any()
            else torch.ones(len(weight), dtype=weight.dtype)
        )
        update.step(problem.x, problem.y)
        n = rows.bincount(minlength=len(weight)).double()
        rho = 0.2 * n / (0.8 * old_sizes + 0.2 * n)
        rate = torch.where(n > 0, rho * z_e.numel() / (2 * n.clamp(min=1)), 0.0)
        expected = codebook - rate[:, None] * g_c
        torch.testing.assert_close(weight, expected.detach(), rtol=1e-11, atol=1e-13)
        assert (weight - codebook).norm() > 1e-3


@pytest.mark.parametrize("transport", [None, Transport()], ids=["", "transport"])
@pytest.mark.parametrize("kind", ["cosine", "cosine groups"])
def test_on_the_sphere_codewords_are_the_directions_of_averages_of_unit_vectors(kind, transport):
    problem = make_with("convolutional", QUANTIZERS[kind], beta=0.4)
    quantizer = problem.network.quantizer
    update = ema_of(problem, decay=0.8, epsilon=0.0, transport=transport)
    table = reference.table_of(problem, reference.codebook_parameters(problem)).detach()
    sums = table.clone()
    sizes = torch.ones(len(table), dtype=table.dtype)
    for _ in range(4):
        problem.x = problem.y = torch.randn_like(problem.x)
        phi, theta = reference.network_weights(problem)
        u = reference.placed(problem, phi).detach()
        rows = reference.rows_of(problem, u, table)
        parts = u.reshape(-1, table.shape[1])
        if transport is not None:
            g_phi, _, _ = reference.gradients_at(problem, phi, theta, table)
            phi = [p - LOWER * g for p, g in zip(phi, g_phi, strict=True)]
            after = reference.placed(problem, phi).detach()
            # Where nothing chose a codeword, the fit: tested by itself.
            shift = quantizer.transported(
                transport, quantizer.nearest_codes(u, table), u, after - u
            )
            for k in rows.unique():
                mine = rows.flatten() == k
                shift[k] = (after.reshape(parts.shape)[mine] - parts[mine]).mean(0)
            sums += sizes[:, None] * shift
            parts = after.reshape(parts.shape)
        for k in range(len(table)):
            mine = parts[rows.flatten() == k]
            sums[k] = 0.8 * sums[k] + 0.2 * mine.sum(0)
            sizes[k] = 0.8 * sizes[k] + 0.2 * len(mine)
        update.step(problem.x, problem.y)
        before, table = table, quantizer.table().detach()
        directions = sums / sums.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(table, directions, rtol=1e-11, atol=1e-13)
        assert (table - before).norm() > 1e-3


@pytest.mark.parametrize("how", ["eval", "frozen"])
def test_averages_wait_while_the_codebook_is_in_eval_or_frozen(how):
    problem = make("convolutional")
    network, update = problem.network, ema_of(problem)
    update.step(problem.x, problem.y)
    if how == "eval":
        network.eval()
    else:
        network.quantizer.requires_grad_(False)
    averages, before = copy.deepcopy(update.state_dict()), weights(problem)
    update.step(problem.x, problem.y)
    assert all(torch.equal(averages[k], v) for k, v in update.state_dict().items())
    after = weights(problem)
    still = {k for k in before if torch.equal(before[k], after[k])}
    assert still == {"quantizer.codebook.weight"}
    network.train().requires_grad_(True)
    update.step(problem.x, problem.y)
    assert not torch.equal(averages["sums"], update.state_dict()["sums"])


def test_averages_start_from_the_codebook_as_the_first_step_finds_it():
    problem = make("linear")
    update = ema_of(problem, decay=0.9, epsilon=0.0)
    weight = problem.network.quantizer.codebook.weight
    with torch.no_grad():
        weight.mul_(1.5)  # after the rule was made, as an initialization is
    old = weight.detach().clone()
    rows = problem.network.encode(problem.x)
    update.step(problem.x, problem.y)
    unused = [k for k in range(len(weight)) if k not in rows]
    for k in unused:
        torch.testing.assert_close(weight[k], old[k])
    torch.testing.assert_close(
        update.state_dict()["sizes"], 0.9 + 0.1 * rows.bincount(minlength=len(weight)).double()
    )


@pytest.mark.parametrize("transport", [None, Transport()], ids=["", "transport"])
@pytest.mark.parametrize("when", ["before the first step", "after it"])
def test_averages_follow_the_network_to_another_type(when, transport):
    """Converted after construction, and as if the network had been made in that type."""
    problem = make("linear")
    problem.network.float()
    update = ema_of(problem, decay=0.9, transport=transport)
    x, y = problem.x, problem.y
    if when == "after it":
        update.step(x.float(), y.float())
    problem.network.double()
    for _ in range(3):
        update.step(x, y)
    assert all(value.dtype == torch.float64 for value in update.state_dict().values())
    half = copy.deepcopy(problem.network).bfloat16()
    other = ema_of(Problem(half, problem.loss, x, y, problem.beta, 0.0), transport=transport)
    before = half.quantizer.codebook.weight.detach().clone()
    for _ in range(30):
        other.step(x.bfloat16(), y.bfloat16())
    state = other.state_dict()
    # Averages in bfloat16 would not notice a hundredth.
    assert state["sums"].dtype == state["sizes"].dtype == torch.float32
    assert not torch.equal(half.quantizer.codebook.weight, before)


def test_a_codebook_that_is_set_anew_is_what_averages_go_on_from():
    """By an initialization or by hand; before, the next step brought the old codewords back."""
    problem = make("linear")
    update = ema_of(problem, decay=0.9)
    weight = problem.network.quantizer.codebook.weight
    for _ in range(3):
        update.step(problem.x, problem.y)
    problem.network.initialize_codebook(5 + 3 * torch.randn_like(problem.x))
    with torch.no_grad():
        weight[0] = 7.0
    fresh = copy.deepcopy(problem)
    update.step(problem.x, problem.y)
    ema_of(fresh, decay=0.9).step(fresh.x, fresh.y)
    assert torch.equal(weight, fresh.network.quantizer.codebook.weight)


def test_what_is_not_set_anew_keeps_its_average():
    problem = make("linear")
    update = ema_of(problem, decay=0.9)
    for _ in range(3):
        update.step(problem.x, problem.y)
    before = update.state_dict()["sizes"].clone()
    with torch.no_grad():
        problem.network.quantizer.codebook.weight[0] += 0.5
    rows = problem.network.encode(problem.x)
    update.step(problem.x, problem.y)
    before[0] = 1
    expected = 0.9 * before + 0.1 * rows.bincount(minlength=len(before)).double()
    torch.testing.assert_close(update.state_dict()["sizes"], expected)


def test_the_state_of_a_run_made_before_codewords_were_kept_is_taken():
    problem = make("linear")
    update = ema_of(problem, decay=0.9)
    for _ in range(3):
        update.step(problem.x, problem.y)
    state = {name: value.clone() for name, value in update.state_dict().items()}
    other = copy.deepcopy(problem)
    again = ema_of(other, decay=0.9)
    again.load_state_dict(
        {"started": torch.tensor(True), "sizes": state["sizes"], "sums": state["sums"]}
    )
    for each, rule in ((problem, update), (other, again)):
        rule.step(each.x, each.y)
    one, same = (p.network.quantizer.codebook.weight for p in (problem, other))
    assert torch.equal(one, same)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_ema_keeps_codewords_finite_that_nothing_selects(epsilon):
    """Their sizes fall to nothing, and they stay where they are, to the bit."""
    problem = make("linear")
    with torch.no_grad():
        problem.network.encoder.weight.mul_(1e-3)
        weight = problem.network.quantizer.codebook.weight
        weight.copy_(1e-3 * torch.randn_like(weight))
        weight[0] = 100.0
    problem.network.requires_grad_(False)
    problem.network.quantizer.requires_grad_(True)
    update = ema_of(problem, decay=0.01, epsilon=epsilon)
    for _ in range(170):
        update.step(problem.x, problem.y)
    assert update.state_dict()["sizes"][0] < 1e-150
    assert torch.isfinite(weight).all()
    assert torch.equal(weight[0], torch.full_like(weight[0], 100.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1\.0"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\), got -0\.1"),
        ({"decay": float("nan")}, r"decay must lie in \[0, 1\), got nan"),
        ({"epsilon": -1.0}, r"epsilon must be 0 or more, got -1\.0"),
    ],
)
def test_wrong_settings_of_ema_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ema_of(make("linear"), **options)


@pytest.mark.parametrize("rule", [Synchronous, Alternated])
@pytest.mark.parametrize("nu", [-0.1, float("nan")])
def test_a_negative_nu_raises(rule, nu):
    with pytest.raises(ValueError, match="nu must be 0 or more"):
        update_of(make("linear"), rule, nu=nu)


# -- hypergradient on the network, on both ---------------------------------------------------------


def codebook_after(problem: Problem, expected: Weights) -> Weights:
    """g_C by the codebook's parameters at the new φ, from the old codebook."""
    moved = copy.deepcopy(problem)
    network_only = {k: v for k, v in expected.items() if not k.startswith("quantizer")}
    moved.network.load_state_dict(network_only, strict=False)
    phi, theta = reference.network_weights(moved)
    table = reference.table_of(moved, reference.codebook_parameters(moved))
    return reference.through(moved, reference.gradients_at(moved, phi, theta, table)[2])


@pytest.mark.covering(1)
@every_kind
@every_family
@pytest.mark.parametrize("xi", [0.0, XI, 3.0])
def test_meta_network_is_reverse_mode_through_the_codebooks_virtual_step(kind, family, xi):
    problem = make_with(family, QUANTIZERS[kind], beta=0.4)
    g_phi, g_theta = reference.network_reverse_mode(problem, xi)
    before = weights(problem)
    zero = {n: torch.zeros_like(p) for n, p in problem.network.quantizer.named_parameters()}
    expected = descended(problem, g_phi, g_theta, zero)
    of_codebook = codebook_after(problem, expected)
    expected = descended(problem, g_phi, g_theta, of_codebook)
    update_of(problem, MetaNetwork, xi=xi).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)


@everywhere
def test_the_codebooks_answer_equals_a_numeric_derivative(groups):
    """The indirect term alone: of the codebook loss by C'(φ), embeddings below the loss stopped."""
    problem = make("linear", groups, beta=0.4)
    xi = 3.0
    phi, theta = reference.network_weights(problem)
    table = reference.table_of(problem, reference.codebook_parameters(problem)).detach()
    rows = reference.selected_rows(problem, reference.placed(problem, phi), table)
    z_e = reference.placed(problem, phi).detach()
    ahead = reference.virtual_table(problem, z_e, table, rows, xi).detach()
    rows_ahead = reference.selected_rows(problem, z_e, ahead)

    def loss(displaced: Weights) -> float:
        moved = reference.placed(problem, [displaced["phi"]])
        table_ahead = reference.virtual_table(problem, moved, table, rows, xi)
        found = reference.codebook_loss(problem, z_e, table_ahead, rows_ahead)
        return problem.codebook_weight * found.item()

    expected = reference.slopes_of(loss, {"phi": phi[0]})["phi"]
    plain, _, _ = reference.gradients_at(problem, phi, theta, ahead)
    before = weights(problem)["encoder.weight"]
    update_of(problem, MetaNetwork, xi=xi).step(problem.x, problem.y)
    step = (before - weights(problem)["encoder.weight"]) / LOWER
    found = step - plain[0]
    assert expected.norm() > 1e-3
    assert (found - expected).norm() < 1e-8 * expected.norm()


@pytest.mark.covering(1)
@every_kind
@every_family
@pytest.mark.parametrize("name", ["FiniteDifference", "Exact", "Unrolled"])
def test_meta_both_steps_both_from_the_same_point(kind, family, name):
    problem = make_with(family, QUANTIZERS[kind], beta=0.4)
    if name == "FiniteDifference":
        rule = FiniteDifference(ForwardMode())
        indirect = reference.paper_difference_at(problem, XI, 1e-3)
    else:
        rule = Exact(ForwardMode(), ForwardMode()) if name == "Exact" else Unrolled(1)
        indirect = reference.reverse_mode_at(problem, XI)
    direct = reference.through(problem, reference.above_at(problem, XI)[2])
    of_codebook = {name: direct[name] + indirect[name] for name in direct}
    g_phi, g_theta = reference.network_reverse_mode(problem, XI)
    before = weights(problem)
    expected = descended(problem, g_phi, g_theta, of_codebook)
    step = update_of(problem, MetaBoth, xi=XI, hypergradient=rule).step(problem.x, problem.y)
    assert step.direct_norm > 0 and step.indirect_norm > 0
    after = weights(problem)
    tolerance = 1e-8 if name == "FiniteDifference" else 1e-11
    for key, value in expected.items():
        wanted = value - before[key]
        assert (after[key] - value).norm() < tolerance * wanted.norm(), key


@pytest.mark.parametrize("name", ["FiniteDifference", "Exact"])
def test_meta_both_looks_ahead_by_the_optimizers_own_step(name):
    rule = {
        "FiniteDifference": FiniteDifference(ForwardMode()),
        "Exact": Exact(ForwardMode(), ForwardMode()),
    }[name]
    problem = make("convolutional", "three")
    after = {}
    for kind, options in (
        (MetaBoth, {"hypergradient": rule, "look_ahead": Undone(optimizer_step=True)}),
        (MetaBoth, {"hypergradient": rule}),
        (Meta, {"hypergradient": rule, "look_ahead": Undone(optimizer_step=True)}),
        (MetaNetwork, {}),
    ):
        twin = copy.deepcopy(problem)
        kind(
            twin.network,
            twin.loss,
            lower=AdamW(twin.network.network_parameters(), lr=LOWER, eps=1e-2),
            upper=SGD(twin.network.codebook_parameters(), lr=UPPER),
            xi=XI,
            **options,
        ).step(twin.x, twin.y)
        after[kind, len(options)] = weights(twin)
    for key, value in after[MetaBoth, 2].items():
        # C goes as in MQ-VAE, φ and θ as in MQ-VAE†; what the optimizer keeps was put back.
        expected = after[Meta, 2] if key.startswith("quantizer") else after[MetaNetwork, 0]
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)
    (codebook,) = (key for key in after[MetaBoth, 2] if key.startswith("quantizer"))
    assert not torch.allclose(after[MetaBoth, 2][codebook], after[MetaBoth, 1][codebook])


def test_meta_both_cannot_keep_its_look_ahead():
    with pytest.raises(ValueError, match=r"MetaBoth undoes its look-ahead.*look_ahead=Undone"):
        update_of(make("convolutional", "three"), MetaBoth, look_ahead=Kept())


def test_meta_both_at_xi_zero_is_joint():
    problem = make("convolutional", "three")
    twin = copy.deepcopy(problem)
    step = update_of(problem, MetaBoth, xi=0.0).step(problem.x, problem.y)
    update_of(twin, Joint).step(twin.x, twin.y)
    assert step.indirect_norm == 0
    for name, value in weights(problem).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=1e-13, atol=1e-15)


def test_meta_network_at_xi_zero_is_joint_and_the_codebook_after():
    problem = make("convolutional", "three")
    twin = copy.deepcopy(problem)
    update_of(problem, MetaNetwork, xi=0.0).step(problem.x, problem.y)
    update_of(twin, Joint, upper=0.0).step(twin.x, twin.y)
    update_of(twin, Joint, lower=0.0).step(twin.x, twin.y)
    for name, value in weights(problem).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=1e-13, atol=1e-15)


# -- the virtual step as AdamW takes it ------------------------------------------------------------


def slopes_by_hand(optimizer, parameters, gradients) -> list[Tensor]:
    """lr / (√(s/(1 − β₂ᵗ)) + eps), s and t those of the step to come."""
    result = []
    for p, g in zip(parameters, gradients):
        (group,) = [
            group for group in optimizer.param_groups if any(p is q for q in group["params"])
        ]
        beta2 = group["betas"][1]
        state = optimizer.state[p]
        t = float(state["step"]) + 1
        s = beta2 * state["exp_avg_sq"] + (1 - beta2) * g**2
        result.append(group["lr"] / ((s / (1 - beta2**t)) ** 0.5 + group["eps"]))
    return result


def held(kind, beta1: float):
    """Parameters and an optimizer whose second moment no gradient changes noticeably."""
    torch.manual_seed(2)
    parameters = [nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (4, 7)]
    groups = [
        {"params": parameters[:1], "lr": 0.3, "eps": 1e-2},
        {"params": parameters[1:], "lr": 0.02, "eps": 1e-8},
    ]
    optimizer = kind(groups, betas=(beta1, 1 - 1e-12), weight_decay=0.0)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in parameters:
        state = optimizer.state[p]
        state["step"].fill_(1e6)
        state["exp_avg"].normal_()
        state["exp_avg_sq"].uniform_(0.5, 2.0).mul_(1e-6)
        p.grad = None
    return parameters, optimizer


def stepped(parameters, optimizer, gradients, then: int = 0) -> list[Tensor]:
    """Where the optimizer's own step leads, and `then` steps without gradient; nothing stays."""
    optimizer = copy.deepcopy(optimizer)
    copies = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(copies, gradients):
        p.grad = g
    optimizer.step()
    for _ in range(then):
        for p in copies:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    return [p.detach() for p in copies]


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_slopes_are_the_derivative_of_the_optimizers_own_update(kind, beta1):
    """With momentum: of this step and all later ones, among which it spreads a gradient."""
    parameters, optimizer = held(kind, beta1)
    gradients = [torch.randn_like(p) for p in parameters]
    h, then = 1e-3, 0 if beta1 == 0 else 400
    plus = stepped(parameters, optimizer, [g + h for g in gradients], then)
    minus = stepped(parameters, optimizer, [g - h for g in gradients], then)
    found = adam_slopes(optimizer, parameters, gradients)
    for slope, a, b in zip(found, plus, minus):
        # Element by element: the update of a number depends on its own gradient alone.
        torch.testing.assert_close(-slope, (a - b) / (2 * h), rtol=1e-4, atol=0)
    for slope, expected in zip(found, slopes_by_hand(optimizer, parameters, gradients)):
        torch.testing.assert_close(slope, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("steps", [0, 3])
def test_slopes_have_the_second_moment_that_the_optimizer_then_keeps(kind, steps):
    parameter = nn.Parameter(torch.randn(6, dtype=torch.float64))
    optimizer = kind([parameter], lr=0.3, betas=(0.9, 0.8), eps=1e-3, weight_decay=0.5)
    for _ in range(steps):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    g = torch.randn_like(parameter)
    (slope,) = adam_slopes(optimizer, [parameter], [g])
    parameter.grad = g
    optimizer.step()
    state = optimizer.state[parameter]
    assert state["step"] == steps + 1
    moment = state["exp_avg_sq"] / (1 - 0.8 ** (steps + 1))
    torch.testing.assert_close(slope, 0.3 / (moment.sqrt() + 1e-3), rtol=1e-12, atol=0)


def test_slopes_before_the_first_step_are_those_of_the_gradient_itself():
    parameter = nn.Parameter(torch.randn(5, dtype=torch.float64))
    g = torch.randn(5, dtype=torch.float64)
    (slope,) = adam_slopes(AdamW([parameter], lr=0.3, eps=1e-4), [parameter], [g])
    torch.testing.assert_close(slope, 0.3 / (g.abs() + 1e-4))
    assert adam_slopes(AdamW([parameter]), [parameter], [None]) == [None]


class Recorded:
    """A hypergradient rule that keeps what it returned."""

    def __init__(self, rule):
        self.rule = rule
        self.check = rule.check

    def __call__(self, *args):
        self.result = self.rule(*args)
        return self.result


@pytest.mark.covering(2)
@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("look", ["undone", "kept"])
@pytest.mark.parametrize("name", ["FiniteDifference", "Exact"])
@pytest.mark.parametrize("kind", ["table", "groups", "cosine", "residual"])
def test_the_tangent_is_preconditioned_by_the_second_moment(kind, name, look, preconditioned):
    problem = make_with("classifier", QUANTIZERS[kind], beta=0.4)
    network = problem.network
    if name == "Exact":
        rule = Recorded(Exact(ForwardMode(), ForwardMode()))
    else:
        rule = Recorded(FiniteDifference(ForwardMode()))
    look_ahead = (
        Kept(preconditioned=preconditioned)
        if look == "kept"
        else Undone(optimizer_step=True, preconditioned=preconditioned)
    )
    lower = AdamW(network.network_parameters(), lr=0.02, betas=(0.9, 0.95))
    update = Meta(
        network,
        problem.loss,
        lower=lower,
        upper=SGD(network.codebook_parameters(), lr=0.1),
        hypergradient=rule,
        xi=XI,
        look_ahead=look_ahead,
        commitment_weight=problem.beta,
        codebook_weight=problem.codebook_weight,
    )
    for _ in range(3):  # a second moment to speak of
        update.step(problem.x, problem.y)

    start = copy.deepcopy(problem)
    phi, theta = reference.network_weights(start)
    table = reference.table_of(start, reference.codebook_parameters(start)).detach()
    g_phi, g_theta, _ = reference.gradients_at(start, phi, theta, table)
    own = list(network.network_parameters())
    slopes = slopes_by_hand(lower, own, [*g_phi, *g_theta])
    ends = stepped(own, lower, [*g_phi, *g_theta])
    ahead = [e.clone().requires_grad_() for e in ends]
    v_phi, v_theta, direct = reference.gradients_at(
        start, ahead[: len(phi)], ahead[len(phi) :], table
    )
    v = [*v_phi, *v_theta]
    if preconditioned:
        v = [s * one for s, one in zip(slopes, v)]
    z_e = reference.placed(start, phi)
    rows = reference.selected_rows(start, z_e, table)
    if name == "FiniteDifference":
        delta = reference.tangent(start, v[: len(phi)])
        scale = XI * 2 * problem.codebook_weight / delta.numel()
        expected = scale * reference.scattered(start, rows, delta, table)
    else:
        leaf = table.requires_grad_()
        z_q = reference.selected(start, leaf, rows)
        task = start.loss(reference.decode(start, theta, z_q + z_e - z_e.detach()), start.y)
        scalar = task + start.beta * (z_e - z_q).square().mean()
        found = torch.autograd.grad(scalar, [*phi, *theta], create_graph=True)
        moved = sum((-XI * g * one).sum() for g, one in zip(found, v))
        (expected,) = torch.autograd.grad(moved, leaf)

    update.step(problem.x, problem.y)
    for found, wanted in ((rule.result.direct, direct), (rule.result.indirect, expected)):
        assert wanted.norm() > 0
        assert (found - wanted).norm() < 1e-10 * wanted.norm()
