"""Which embeddings replaced codewords become."""

import pytest
import torch
from problems import make, squared_error
from torch import Tensor, nn
from torch.optim import SGD

from mqvae import (
    Alternated,
    ByError,
    ByTaskGradient,
    Cosine,
    Ema,
    Joint,
    Kept,
    LeastRecentlyUsed,
    Meta,
    MetaBoth,
    MetaNetwork,
    Placement,
    Synchronous,
    Update,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.core.replacement import Pool

by_either = pytest.mark.parametrize("placed", [ByError(), ByTaskGradient()])


class Watched(Placement):
    """Remembers what it is asked with."""

    pool: Pool

    def weights(self, pool: Pool) -> Tensor:
        self.pool = pool
        return torch.ones(pool.parts.shape[:2], dtype=pool.parts.dtype)


class Given(Placement):
    def __init__(self, weights: Tensor) -> None:
        self.given = weights

    def weights(self, pool: Pool) -> Tensor:
        return self.given


def pool_of(parts: Tensor, z_q: Tensor, g: Tensor | None = None, rows: int = 8) -> Pool:
    return Pool(parts, torch.tensor([len(parts)]), rows, lambda: z_q, g)


def test_the_weights_are_these_numbers():
    parts = torch.tensor([[[0.0, 0.0]], [[1.0, 2.0]], [[3.0, 1.0]]])
    z_q = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]], [[2.0, 3.0]]])
    g = torch.tensor([[[2.0, -1.0]], [[7.0, 7.0]], [[1.0, -1.0]]])
    pool = pool_of(parts, z_q, g)
    assert ByError().weights(pool).tolist() == [[25.0], [0.0], [5.0]]
    # 2·3 − 1·4; no error, no gain; −1 − 2 is a loss that a codeword would raise.
    assert ByTaskGradient().weights(pool).tolist() == [[2.0], [0.0], [0.0]]


def test_the_first_order_gain_is_that_of_the_loss():
    problem = make("convolutional")
    network = problem.network
    with torch.no_grad():
        z_e = network.embed(problem.x)
    z_q = network.quantizer(z_e).z_q.detach().requires_grad_()

    def loss(z: Tensor) -> Tensor:
        return problem.loss(network.decoder(network.channels_back(z)), problem.y)

    (g,) = torch.autograd.grad(loss(z_q), z_q)
    shape = (-1, 1, 6)
    pool = pool_of(z_e.reshape(shape), z_q.detach().reshape(shape), g.reshape(shape))
    found = ByTaskGradient().weights(pool).flatten()
    assert (found > 0).any() and (found == 0).any()
    for n in range(0, len(found), 5):
        step = torch.zeros(len(found), 1, dtype=torch.float64)
        step[n] = 1e-6
        moved = z_q + step.view(*z_q.shape[:-1], 1) * (z_e - z_q)
        gain = (loss(z_q) - loss(moved)) / 1e-6
        torch.testing.assert_close(found[n], gain.detach().clamp(min=0), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
def test_draws_are_in_proportion(groups):
    """To less than two draws in all, for each draw has its own part of the whole."""
    number, draws = 20, 400
    weights = torch.rand(number, groups, dtype=torch.float64).square()
    weights[3] = 0
    parts = torch.randn(number, groups, 2, dtype=torch.float64)
    pool = pool_of(parts, parts, rows=groups * draws)
    rows = torch.arange(groups * draws)[torch.randperm(groups * draws)]
    found = pool.draw(rows, Given(weights))
    for group in range(groups):
        own = found[rows // draws == group]
        counts = (own[:, None] == parts[None, :, group]).all(-1).sum(0)
        assert counts.sum() == draws
        assert counts[3] == 0
        expected = draws * weights[:, group] / weights[:, group].sum()
        assert (counts - expected).abs().max() < 2


def test_a_single_draw_is_in_proportion():
    weights = torch.tensor([[1.0], [0.0], [3.0]])
    parts = torch.arange(3.0)[:, None, None]
    pool = pool_of(parts, parts)
    found = torch.cat([pool.draw(torch.tensor([5]), Given(weights)) for _ in range(800)])
    counts = found.long().flatten().bincount()
    assert counts[1] == 0
    assert abs(int(counts[0]) - 200) < 5 * (800 * 0.25 * 0.75) ** 0.5


def test_without_any_weight_all_are_alike():
    parts = torch.arange(5.0)[:, None, None]
    found = pool_of(parts, parts).draw(torch.arange(5), Given(torch.zeros(5, 1)))
    assert sorted(found.flatten().tolist()) == [0, 1, 2, 3, 4]
    assert pool_of(parts, parts).draw(torch.arange(0), Given(torch.ones(5, 1))).shape == (0, 1)


@by_either
def test_no_row_draws_behind_the_end(placed, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(size, 1 - 2**-24))
    parts = torch.arange(1.0, 6)[:, None, None]
    pool = pool_of(parts, torch.zeros_like(parts), -torch.ones_like(parts))
    found = pool.draw(torch.arange(7), placed)
    assert (found > 0).all() and found[-1] == 5


# -- under every rule ------------------------------------------------------------------------------

RULES = {
    "Joint": (Joint, {}),
    "Synchronous": (Synchronous, {}),
    "Alternated": (Alternated, {}),
    "Alternated, nu": (Alternated, {"nu": 1.0}),
    "Ema": (Ema, {}),
    "Meta": (Meta, {}),
    "Meta, kept": (Meta, {"look_ahead": Kept()}),
    "MetaNetwork": (MetaNetwork, {"xi": 0.0}),
    "MetaBoth": (MetaBoth, {}),
}
LAYOUTS = {
    "one": {},
    "groups": {"groups": 3},
    "shared groups": {"groups": 2, "shared_codebook": True},
    "cosine": {"distance": Cosine()},
}


def network_of(placed: Placement | None, **options) -> VQNetwork:
    """More codewords than a batch has embeddings, in float64."""
    quantizer = VectorQuantizer(40, 6, replacement=LeastRecentlyUsed(1, placed), **options)
    return VQNetwork(nn.Linear(5, 6), quantizer, nn.Linear(6, 5)).double()


def update_of(network: VQNetwork, rule=Joint, **options) -> Update:
    """Its codebook stays where it is, so that nothing but replacement moves it."""
    lower = SGD(network.network_parameters(), lr=1e-2)
    if rule is Ema:
        return Ema(network, squared_error, lower=lower, decay=1 - 1e-12, **options)
    upper = SGD(network.codebook_parameters(), lr=0.0)
    return rule(network, squared_error, lower=lower, upper=upper, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rule", "options"), RULES.values(), ids=RULES)
def test_every_rule_hands_over_error_and_task_gradient(rule, options, layout):
    network = network_of(watched := Watched(), **LAYOUTS[layout])
    x = torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        z_e = network.embed(x)
        before = network.quantizer(z_e)
    z_q = before.z_q.clone().requires_grad_()
    (g,) = torch.autograd.grad(squared_error(network.decoder(z_q), x), z_q)
    update_of(network, rule, **options).step(x, x)
    pool = watched.pool
    d = network.quantizer.codebook.weight.shape[1]
    shape = (-1, 1 if layout == "shared groups" else network.quantizer.groups, d)
    torch.testing.assert_close(pool.parts, z_e.view(shape))
    torch.testing.assert_close(pool.task_gradient, g.view(shape))
    error = (before.z_q - z_e).view(shape).square().sum(-1)
    torch.testing.assert_close(ByError().weights(pool), error, rtol=1e-7, atol=1e-9)


@by_either
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unused_codewords_become_the_embeddings_that_weigh(placed, layout):
    """All weight is on those embeddings whose codeword is far away."""
    network = network_of(placed, **LAYOUTS[layout])
    x = torch.randn(30, 5, dtype=torch.float64)
    with torch.no_grad():
        z_e = network.embed(x)
        near = z_e[:6].unflatten(-1, (network.quantizer.groups, -1))  # (6, G, d)
        weight = network.quantizer.codebook.weight
        if layout == "groups":
            weight.view(3, 40, 2)[:, :6] = near.transpose(0, 1)
        else:
            weight[: near.shape[0] * near.shape[1]] = near.flatten(0, 1)
        before = network.quantizer(z_e)
    update_of(network).step(x, x)
    d = weight.shape[1]
    parts, codewords = z_e.view(-1, d), before.z_q.view(-1, d)
    there = (parts - codewords).square().sum(-1) < 1e-20
    used = torch.zeros(len(weight), dtype=torch.bool)
    used[network.quantizer.rows(before.codes).flatten()] = True
    assert there.any() and not there.all() and not used.all()
    for row in (~used).nonzero().flatten():
        (position,) = (weight[row] == parts).all(1).nonzero().flatten()
        assert not there[position]


def test_a_frozen_encoder_has_no_task_gradient_and_all_are_alike():
    for rule, options in (RULES[name] for name in ("Joint", "Meta", "MetaNetwork")):
        network = network_of(ByTaskGradient())
        network.encoder.requires_grad_(False)
        update = update_of(network, rule, **options)
        x = torch.randn(7, 5, dtype=torch.float64)
        update.step(x, x)
        with torch.no_grad():
            left = network.quantizer(network.embed(x)).codebook_loss
        assert left < 1e-20  # each embedding has a codeword of its own


def test_a_rule_that_hands_over_no_task_gradient_is_told():
    quantizer = VectorQuantizer(40, 6, replacement=LeastRecentlyUsed(1, ByTaskGradient()))
    z_e = torch.randn(7, 6)
    quantizer.record(z_e, quantizer.encode(z_e))
    with pytest.raises(ValueError, match="needs ∂L_task/∂ẑ") as caught:
        quantizer.update()
    assert "or use ByError()" in str(caught.value)
    quantizer.replacement = LeastRecentlyUsed(1, ByError())
    quantizer.record(z_e, quantizer.encode(z_e))
    quantizer.update()
