"""Codewords carried along by their embeddings, against formulas that are not the library's."""

import pytest
import reference
import torch
from problems import GROUPS, QUANTIZERS, make, make_with
from torch import Tensor
from torch.optim import SGD, AdamW

from mqvae import (
    Ema,
    Joint,
    Kept,
    Meta,
    ResidualQuantizer,
    Transport,
    Transported,
    Undone,
    VectorQuantizer,
)

CARRIED = ["table", "groups", "shared groups", "cosine", "cosine groups", "hyper-network"]
everywhere = pytest.mark.parametrize("name", [*CARRIED, "residual"])
plain = pytest.mark.parametrize("name", ["table", "groups", "shared groups", "residual"])


@pytest.fixture(autouse=True)
def double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    yield
    torch.set_default_dtype(default)


def quantized(name: str, codes: int = 40, number: int = 50) -> tuple[VectorQuantizer, Tensor]:
    """A quantizer of six dimensions, its codewords spread among embeddings, some of them unused."""
    quantizer = QUANTIZERS[name](codes, 6)
    z_e = torch.randn(number, 6)
    quantizer.initialize(z_e[:30])
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return quantizer, quantizer.place(z_e)


def shift(quantizer, z_e: Tensor, change: Tensor, **options) -> Tensor:
    codes = quantizer.nearest_codes(z_e, quantizer.table())
    return quantizer.transported(Transport(**options), codes, z_e, change)


# -- what it is -----------------------------------------------------------------------------------


@plain
def test_a_shift_of_all_embeddings_moves_every_codeword_by_it_and_changes_no_code(name):
    quantizer, z_e = quantized(name)
    codes = quantizer.nearest_codes(z_e, quantizer.table())
    by = torch.randn(3).repeat(2)  # of halves that share a codebook alike
    found = shift(quantizer, z_e, by.expand_as(z_e))
    quantizer.translate(found)
    assert torch.equal(quantizer.nearest_codes(z_e + by, quantizer.table()), codes)
    if name == "residual":  # the first stage goes, the others need not
        by = torch.cat([by.expand(40, 6), torch.zeros(80, 6)])
    elif name == "groups":
        by = by.view(3, 1, 2).expand(3, 40, 2).reshape(120, 2)
    elif name == "shared groups":
        by = by[:3]
    torch.testing.assert_close(found, by.expand_as(found), rtol=1e-12, atol=1e-12)


@everywhere
def test_embeddings_that_stay_move_nothing(name):
    quantizer, z_e = quantized(name)
    before = quantizer.table().clone()
    quantizer.translate(shift(quantizer, z_e, torch.zeros_like(z_e)))
    torch.testing.assert_close(quantizer.table(), before, rtol=1e-13, atol=1e-13)


def test_an_affine_change_of_all_embeddings_takes_unused_codewords_along():
    quantizer, z_e = quantized("table")
    turn, by = torch.randn(6, 6), torch.randn(6)
    codes = quantizer.nearest_codes(z_e, quantizer.table())
    unused = torch.bincount(codes, minlength=40) == 0
    assert 5 < unused.sum() < 35
    table = quantizer.table().detach()
    found = shift(quantizer, z_e, z_e @ turn + by, ridge=1e-13)
    torch.testing.assert_close(found[unused], table[unused] @ turn + by, rtol=1e-6, atol=1e-6)


def test_unused_codewords_go_by_ridge_regression():
    quantizer, z_e = quantized("table")
    change = torch.randn_like(z_e)
    codes = quantizer.nearest_codes(z_e, quantizer.table())
    unused = torch.bincount(codes, minlength=40) == 0
    # The least squares of the fit written out: the penalty as rows of their own.
    centred = z_e - z_e.mean(0)
    pull = (len(z_e) * 0.25 * z_e.var(0, correction=0).mean()).sqrt() * torch.eye(6)
    drift = change - change.mean(0)
    left, right = torch.cat([centred, pull]), torch.cat([drift, torch.zeros(6, 6)])
    fitted = torch.linalg.lstsq(left, right).solution
    expected = change.mean(0) + (quantizer.table().detach() - z_e.mean(0)) @ fitted
    found = shift(quantizer, z_e, change, ridge=0.25)
    torch.testing.assert_close(found[unused], expected[unused], rtol=1e-11, atol=1e-12)


@plain
def test_used_codewords_take_newtons_step_along_the_papers_indirect_term(name):
    """By automatic differentiation of the codebook loss alone, its gradient field and Jacobian."""
    quantizer, z_e = quantized(name)
    change = 0.1 * torch.randn_like(z_e)
    table = quantizer.table().detach()
    codes = quantizer.nearest_codes(z_e, table)

    def field(book: Tensor, z: Tensor) -> Tensor:
        """g_C for frozen codes, a function of C and of the embeddings."""
        book = book.requires_grad_() if not book.requires_grad else book
        loss = quantizer.codebook_loss(z, codes, book, quantizer.lookup(codes, book))
        return torch.autograd.grad(loss, book, create_graph=True)[0]

    def whole_field(book: Tensor, z: Tensor) -> Tensor:
        """The same where later stages see the codewords before them move."""
        if not isinstance(quantizer, ResidualQuantizer):
            return field(book, z)
        books, total = book.chunk(3), []
        for stage in range(3):
            left = z - sum(books[s][codes[:, s]] for s in range(stage))
            error = books[stage][codes[:, stage]] - left
            zero = torch.zeros_like(books[stage])
            total.append(2 / z.numel() * zero.index_add(0, codes[:, stage], error))
        return torch.cat(total)

    torch.testing.assert_close(whole_field(table, z_e), field(table.clone(), z_e))
    _, indirect = torch.autograd.functional.jvp(lambda z: whole_field(table, z), z_e, change)
    jacobian = torch.autograd.functional.jacobian(lambda book: whole_field(book, z_e), table)
    size = table.numel()
    jacobian = jacobian.reshape(size, size)
    used = jacobian.diagonal() != 0
    step = torch.linalg.solve(jacobian[used][:, used], -indirect.flatten()[used])
    found = shift(quantizer, z_e, change).flatten()
    torch.testing.assert_close(found[used], step, rtol=1e-10, atol=1e-12)
    assert used.sum() < size


def test_the_order_of_codewords_makes_no_difference():
    quantizer, z_e = quantized("table")
    change, order = torch.randn_like(z_e), torch.randperm(40)
    found = shift(quantizer, z_e, change)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(quantizer.codebook.weight[order])
    torch.testing.assert_close(shift(quantizer, z_e, change), found[order], rtol=1e-11, atol=1e-12)


def test_embeddings_that_are_all_alike_move_all_codewords_by_their_mean():
    quantizer, z_e = quantized("table")
    z_e, change = z_e[:1].expand(50, 6), torch.randn(50, 6)
    found = shift(quantizer, z_e, change)
    torch.testing.assert_close(found, change.mean(0).expand_as(found), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "cosine groups"])
def test_on_a_sphere_codewords_go_where_they_are_compared_and_keep_their_length(name):
    quantizer, z_e = quantized(name)
    with torch.no_grad():
        quantizer.codebook.weight.mul_(3)
    before, lengths = quantizer.table().detach(), quantizer.codebook.weight.norm(dim=1)
    after = quantizer.place(z_e + 0.01 * torch.randn_like(z_e))
    by = shift(quantizer, z_e, after - z_e)
    quantizer.translate(by)
    expected = torch.nn.functional.normalize(before + by, dim=1)
    torch.testing.assert_close(quantizer.table(), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(quantizer.translated(torch.zeros_like(by)), expected)
    torch.testing.assert_close(quantizer.codebook.weight.norm(dim=1), lengths, rtol=3e-2, atol=0)


# -- the rule -------------------------------------------------------------------------------------


def update_of(problem, *, upper_lr: float = 0.4, **options) -> Meta:
    network = problem.network
    return Meta(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=0.3),
        upper=SGD(network.codebook_parameters(), lr=upper_lr),
        hypergradient=Transported(),
        look_ahead=Kept(),
        commitment_weight=problem.beta,
        codebook_weight=problem.codebook_weight,
        **options,
    )


@pytest.mark.covering(1)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", ["convolutional", "linear", "classifier"])
def test_a_step_is_the_networks_the_transport_and_the_direct_term_after_it(family, groups):
    problem = make(family, groups)
    phi, theta, codebook = reference.weights(problem)
    g_phi, g_theta, _ = reference.gradients(problem, phi, theta, codebook)
    z_e = reference.embed(problem, phi).detach()
    rows = reference.rows_of(problem, z_e, codebook)
    phi = [p - 0.3 * g for p, g in zip(phi, g_phi, strict=True)]
    after = reference.embed(problem, phi).detach()
    expected = codebook.detach().clone()
    width = expected.shape[1]
    parts, moved = z_e.reshape(-1, width), after.reshape(-1, width)
    for k in range(len(expected)):
        mine = rows.flatten() == k
        if mine.any():
            expected[k] += (moved - parts)[mine].mean(0)
    used = torch.bincount(rows.flatten(), minlength=len(expected)) > 0
    expected.requires_grad_()
    loss = (after - reference.select(expected, rows)).square().mean()
    (g_c,) = torch.autograd.grad(problem.codebook_weight * loss, expected)
    expected = expected - 0.4 * g_c
    step = update_of(problem).step(problem.x, problem.y)
    weight = problem.network.quantizer.codebook.weight
    torch.testing.assert_close(weight[used], expected[used], rtol=1e-11, atol=1e-13)
    found = [*problem.network.network_parameters()]
    wanted = [*phi, *(t - 0.3 * g for t, g in zip(theta, g_theta, strict=True))]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    if used.all():
        torch.testing.assert_close(step.direct_norm, g_c.norm(), rtol=1e-10, atol=0)


def test_without_a_step_of_the_encoder_it_is_joint():
    one, other = make("convolutional"), make("convolutional")
    for problem, kind in ((one, Meta), (other, Joint)):
        network = problem.network
        options = {"hypergradient": Transported(), "look_ahead": Kept()} if kind is Meta else {}
        kind(
            network,
            problem.loss,
            lower=SGD(network.network_parameters(), lr=0.0),
            upper=AdamW(network.codebook_parameters(), lr=0.1),
            **options,
        ).step(problem.x, problem.y)
    for found, expected in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@everywhere
def test_a_frozen_codebook_stays(name):
    problem = make_with("convolutional", QUANTIZERS[name])
    for parameter in problem.network.codebook_parameters():
        parameter.requires_grad_(False)
    before = problem.network.quantizer.table().clone()
    network = problem.network
    Meta(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=0.3),
        upper=SGD(network.codebook_parameters(), lr=0.4),
        hypergradient=Transported(),
        look_ahead=Kept(),
    ).step(problem.x, problem.y)
    assert torch.equal(network.quantizer.table(), before)


@pytest.mark.parametrize("name", ["affine", "linear map", "residual maps"])
def test_codewords_that_cannot_move_by_themselves_are_refused(name):
    problem = make_with("convolutional", QUANTIZERS[name])
    with pytest.raises(ValueError, match=r"cannot move by itself.*Table\(\)"):
        update_of(problem)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="ridge must be above 0, got 0"):
        Transport(ridge=0)
    network = make("convolutional").network
    with pytest.raises(ValueError, match=r"Transported takes .* look_ahead=Kept\(\)"):
        Meta(
            network,
            torch.nn.functional.mse_loss,
            lower=SGD(network.network_parameters(), lr=0.1),
            upper=SGD(network.codebook_parameters(), lr=0.1),
            hypergradient=Transported(),
            look_ahead=Undone(),
        )


# -- carried by moving averages -------------------------------------------------------------------


@pytest.mark.covering(1)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", ["convolutional", "linear"])
def test_averages_are_carried_along_before_what_comes_after_the_step(family, groups):
    problem = make(family, groups, beta=0.4)
    network = problem.network
    decay, weight = 0.7, network.quantizer.codebook.weight
    update = Ema(
        network,
        problem.loss,
        lower=SGD(network.network_parameters(), lr=0.3),
        decay=decay,
        epsilon=0.0,
        commitment_weight=problem.beta,
        transport=Transport(),
    )
    sizes, width = torch.ones(len(weight)), weight.shape[1]
    for _ in range(4):
        problem.x = torch.randn_like(problem.x)  # each step its own batch
        if family == "convolutional":
            problem.y = problem.x
        phi, theta, codebook = reference.weights(problem)
        z_e = reference.embed(problem, phi).detach()
        rows = reference.rows_of(problem, z_e, codebook)
        g_phi, _, _ = reference.gradients(problem, phi, theta, codebook)
        phi = [p - 0.3 * g for p, g in zip(phi, g_phi, strict=True)]
        after = reference.embed(problem, phi).detach()
        change = (after - z_e).reshape(-1, width)
        # Where nothing chose a codeword, the fit: tested by itself.
        carried = codebook.detach() + network.quantizer.transported(
            Transport(), network.quantizer.nearest_codes(z_e, codebook), z_e, after - z_e
        )
        for k in rows.unique():
            carried[k] = codebook[k].detach() + change[rows.flatten() == k].mean(0)
        parts = after.reshape(-1, width)
        expected = carried.clone()
        for k in range(len(weight)):
            mine = parts[rows.flatten() == k]
            size = decay * sizes[k] + (1 - decay) * len(mine)
            expected[k] = (decay * sizes[k] * carried[k] + (1 - decay) * mine.sum(0)) / size
            sizes[k] = size
        update.step(problem.x, problem.y)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-11, atol=1e-13)
