"""Codes chosen by distance and by what they cost."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import mqvae
from mqvae.core.nearest import nearest
from mqvae.core.rate import Rate


def spread(number, dim, *, seed=0):
    """Embeddings of a very uneven distribution: a few dimensions matter, most do not."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(number, dim, generator=generator)
    return z * torch.logspace(0, -1, dim)


@pytest.mark.parametrize("codes", [1, 63, 64, 65, 700])
def test_the_search_with_prices_equals_brute_force(codes):
    z, book = torch.randn(200, 5).double() + 30, torch.randn(codes, 5).double() + 30
    price = torch.rand(codes).double() * 4
    expected = (torch.cdist(z, book).square() + price).argmin(1)
    assert (nearest(z, book, price) == expected).all()
    if codes > 1:
        assert (nearest(z, book) != expected).any()  # the price decides something


def test_a_price_that_is_the_same_for_all_changes_nothing():
    z, book = torch.randn(100, 4).double(), torch.randn(30, 4).double()
    assert (nearest(z, book, torch.full((30,), 3.0).double()) == nearest(z, book)).all()


def test_probabilities_and_bits_are_those_of_the_steps():
    rate = Rate(mqvae.RateAware(bits=1.0, decay=0.5), 1, 4)
    rate.update(torch.tensor([[6, 2, 0, 0]]), torch.tensor([16.0]))
    assert rate.probabilities[0].tolist() == [0.5, 0.25, 0.125, 0.125]
    assert rate.bits()[0].tolist() == [1.0, 2.0, 3.0, 3.0]
    assert rate.distortion.item() == 2.0  # 16 over 8 embeddings
    for _ in range(60):
        rate.update(torch.tensor([[8, 0, 0, 0]]), torch.tensor([16.0]))
    # The rest stay payable, at a tenth of their share of all codes.
    total = 1 + 3 * 0.1 / 4
    torch.testing.assert_close(
        rate.bits()[0], torch.tensor([1 / total, *[0.1 / 4 / total] * 3]).log2().neg()
    )


def test_codes_have_no_price_before_it_is_known():
    rate = Rate(mqvae.RateAware(bits=1.0, after=3), 2, 4)
    counts = torch.tensor([[5, 1, 1, 1], [2, 2, 2, 2]])
    for _ in range(3):
        rate.update(counts, torch.tensor([4.0, 4.0]))
        assert rate.price().count_nonzero() == 0
    rate.update(counts, torch.tensor([4.0, 4.0]))
    assert (rate.price() > 0).all()


def quantizer_with_rate(codes=64, dim=4, **options):
    return mqvae.VectorQuantizer(codes, dim, rate=mqvae.RateAware(**options))


def test_losses_and_gradients_for_given_codes_are_those_without_a_rate():
    quantizer = quantizer_with_rate(bits=2.0, after=0)
    z = spread(300, 4)
    for _ in range(40):
        quantizer.record(z, quantizer.encode(z))
        quantizer.update()
    plain = mqvae.VectorQuantizer(64, 4)
    plain.codebook.assign(quantizer.codebook().detach())
    found = quantizer(z)
    expected = plain.at_codes(z, found.codes, plain.table())
    assert (found.codes != plain.encode(z)).any()
    for name in ("z_q", "commitment_loss", "codebook_loss"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    (with_rate,) = torch.autograd.grad(found.codebook_loss, list(quantizer.codebook.parameters()))
    (without,) = torch.autograd.grad(expected.codebook_loss, list(plain.codebook.parameters()))
    assert torch.equal(with_rate, without)


def lloyd(quantizer, steps, *, number=500, scale=lambda step: 1.0):
    """Codewords become the means of the embeddings that choose them; returns bits spent a step."""
    spent = []
    for step in range(steps):
        z = spread(number, quantizer.dim, seed=step) * scale(step)
        codes = quantizer.encode(z)
        for book, (part, chosen) in enumerate(
            zip(quantizer.by_codebook(z), codes.reshape(len(z), -1).unbind(1), strict=True)
        ):
            rows = chosen + book * quantizer.num_codes
            sums = torch.zeros_like(quantizer.codebook()).index_add_(0, rows, part)
            counts = torch.bincount(rows, minlength=len(sums))[:, None]
            with torch.no_grad():
                means = sums / counts.clamp(min=1)
                quantizer.codebook.weight.lerp_(means, 0.1 * (counts > 0))
        quantizer.record(z, codes)
        quantizer.update()
        spent.append(quantizer.prices.spent.clone())
    return torch.stack(spent)  # (steps, books)


# Targets to the extreme, and embeddings that shrink, grow, or stay and then are thirty times as
# large all at once.
STRESS = [
    ({"bits": 1.0}, lambda step: 0.998**step),
    ({"bits": 5.0, "after": 0}, lambda step: 1.005**step),
    ({"bits": 5.0}, lambda step: 1.0 if step < 300 else 30.0),
]


@pytest.mark.parametrize(("options", "scale"), STRESS)
def test_the_bits_asked_for_are_spent_and_nothing_collapses(options, scale):
    quantizer = quantizer_with_rate(128, **options)
    quantizer.initialize(spread(1500, 4))
    spent = lloyd(quantizer, 600, number=300, scale=scale)
    assert spent[-100:].mean().item() == pytest.approx(options["bits"], abs=0.15)
    assert spent.min() > 0.75 * options["bits"]


def test_a_target_above_what_the_codes_have_leaves_the_nearest():
    quantizer = quantizer_with_rate(codes=32, bits=9.0, after=0)
    quantizer.initialize(spread(2000, 4))
    lloyd(quantizer, 300)
    z = spread(1000, 4, seed=999)
    same = quantizer.encode(z) == nearest(z, quantizer.table())
    assert same.float().mean() > 0.99


def test_each_group_has_its_own_prices():
    quantizer = mqvae.VectorQuantizer(64, 8, groups=2, rate=mqvae.RateAware(bits=3.0))
    quantizer.initialize(spread(1500, 8))
    spent = lloyd(quantizer, 500, number=300)
    assert quantizer.prices.probabilities.shape == (2, 64)
    assert spent[-100:].mean(0).tolist() == pytest.approx([3.0, 3.0], abs=0.35)


def network_with(quantizer):
    return mqvae.VQNetwork(nn.Linear(6, quantizer.dim), quantizer, nn.Linear(quantizer.dim, 6))


def mse(output, target):
    return (output - target).square().mean()


def ema(network):
    return mqvae.Ema(network, mse, lower=AdamW(network.network_parameters(), lr=1e-3), decay=0.9)


def joint(network):
    return mqvae.Joint(
        network,
        mse,
        lower=SGD(network.network_parameters(), lr=1e-2),
        upper=SGD(network.codebook_parameters(), lr=1e-1),
    )


def meta(network):
    return mqvae.Meta(
        network,
        mse,
        lower=AdamW(network.network_parameters(), lr=1e-3),
        upper=AdamW(network.codebook_parameters(), lr=1e-2),
        look_ahead=mqvae.Undone(),
    )


@pytest.mark.parametrize("rule", [ema, joint, meta])
def test_every_rule_counts_a_step_once_and_resumes_to_the_bit(rule):
    torch.manual_seed(0)
    network = network_with(quantizer_with_rate(codes=16, bits=2.0, after=2))
    x = spread(120, 6)
    network.initialize_codebook(x)
    update = rule(network)
    for _ in range(5):
        update.step(x, x)
    assert network.quantizer.prices.steps.item() == 5
    twin = network_with(quantizer_with_rate(codes=16, bits=2.0, after=2))
    twin.load_state_dict(network.state_dict())  # strict
    resumed = rule(twin)
    resumed.load_state_dict(copy.deepcopy(update.state_dict()))
    for name in ("lower", "upper"):
        if getattr(update, name) is not None:
            getattr(resumed, name).load_state_dict(
                copy.deepcopy(getattr(update, name).state_dict())
            )
    for each in (update, resumed):
        each.step(x, x)
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_evaluation_and_a_frozen_codebook_learn_no_prices():
    network = network_with(quantizer_with_rate(codes=16, bits=2.0))
    x = spread(120, 6)
    network.quantizer.requires_grad_(False)
    mqvae.Joint(network, mse, lower=AdamW(network.network_parameters(), lr=1e-3), upper=None).step(
        x, x
    )
    network.quantizer.requires_grad_(True)
    network.eval()
    joint(network).step(x, x)
    assert network.quantizer.prices.steps.item() == 0


def test_a_new_codebook_knows_no_prices():
    quantizer = quantizer_with_rate(codes=16, bits=2.0, after=0)
    z = spread(200, 4)
    for _ in range(3):
        quantizer.record(z, quantizer.encode(z))
        quantizer.update()
    assert quantizer.prices.price().count_nonzero()
    quantizer.initialize(z)
    assert not quantizer.prices.price().count_nonzero()


def test_prices_stay_in_single_precision():
    quantizer = quantizer_with_rate(codes=16, bits=2.0, after=0).to(torch.bfloat16)
    z = spread(200, 4).bfloat16()
    before = quantizer.prices.probabilities.clone()
    assert before.dtype == torch.float32
    quantizer.record(z, quantizer.encode(z))
    quantizer.update()
    changed = (quantizer.prices.probabilities - before).abs().max()
    assert 0 < changed < 0.01


def test_embeddings_that_are_not_finite_leave_the_prices_finite():
    quantizer = quantizer_with_rate(codes=16, bits=2.0, after=0)
    z = spread(200, 4)
    codes = quantizer.encode(z)
    quantizer.record(z, codes)
    quantizer.update()
    quantizer.record(z * math.inf, codes)
    quantizer.update()
    assert all(torch.isfinite(value).all() for value in quantizer.prices.state_dict().values())


def test_every_stage_of_a_residual_quantizer_has_a_rate():
    stages = [mqvae.VectorQuantizer(64, 4, rate=mqvae.RateAware(bits=b)) for b in (3.0, 2.0)]
    quantizer = mqvae.ResidualQuantizer(stages)
    z = spread(300, 4)
    quantizer.initialize(z)
    for _ in range(400):
        quantizer.record(z, quantizer.encode(z))
        quantizer.update()
    spent = [stage.prices.spent.item() for stage in stages]
    assert spent == pytest.approx([3.0, 2.0], abs=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0.0}, "bits"),
        ({"bits": math.nan}, "bits"),
        ({"bits": 3.0, "after": -1}, "after"),
        ({"bits": 3.0, "decay": 1.0}, "decay"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(mqvae.MqvaeError, match=message):
        mqvae.RateAware(**options)
