"""Gumbel-VQ: relaxed samples in training, hard codes in eval, the prior and the schedule."""

import copy
import math

import pytest
import torch
from problems import auxiliary, squared_error
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.optim import SGD

from mqvae import GumbelQuantizer, Joint, VQNetwork
from mqvae.core.quantizers import gumbel
from mqvae.core.quantizers.gumbel import gumbel_noise

CODES, DIM = 7, 6


def make(**options) -> GumbelQuantizer:
    return GumbelQuantizer(CODES, DIM, **options).double()


def embeddings(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, dtype=torch.float64)


def noise(logits: Tensor) -> Tensor:
    """Gumbel(0, 1) by inversion, of the whole numbers that come next."""
    uniform = (torch.empty(logits.shape, dtype=torch.int32).random_().double() + 0.5) / 2**31
    return -(-(1 - uniform).log()).log()


def network_of(quantizer: GumbelQuantizer) -> VQNetwork:
    return VQNetwork(nn.Linear(5, DIM), quantizer.float(), nn.Linear(DIM, 5))


def update_of(network: VQNetwork, lr: float = 0.1) -> Joint:
    return Joint(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), lr=lr),
        upper=SGD(network.codebook_parameters(), lr=lr),
    )


@pytest.mark.parametrize("shape", [(9,), (2, 3), ()])
def test_training_mixes_codewords_by_a_gumbel_softmax_sample(shape):
    quantizer, z_e = make(temperature=0.7), embeddings(*shape)
    torch.manual_seed(5)
    found = quantizer(z_e)
    torch.manual_seed(5)
    logits = z_e @ quantizer.head.weight.T + quantizer.head.bias
    weights = ((logits + noise(logits)) / 0.7).softmax(-1)
    torch.testing.assert_close(found.z_q, weights @ quantizer.codebook)
    assert torch.equal(found.codes, logits.argmax(-1))
    assert found.z_q.shape == z_e.shape
    assert found.commitment_loss == 0 and found.codebook_loss == 0
    # Another draw is another mixture; the codes are none of chance's.
    again = quantizer(z_e)
    assert not torch.equal(again.z_q, found.z_q)
    assert torch.equal(again.codes, found.codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_is_of_a_gumbel_distribution_to_its_far_end(dtype):
    torch.manual_seed(0)
    x = gumbel_noise(torch.empty(1000, 2000, dtype=dtype)).flatten().double().sort().values
    assert not x.isnan().any() and x[-1] < math.inf
    share = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    below = torch.exp(-torch.exp(-x))
    assert (below - share).abs().max() < 1.95 / len(x) ** 0.5  # Kolmogorov: 1 of 1,000 is beyond
    for end in (12.0, 14.0):  # of these 2,000,000 numbers 12 and 1.7 are beyond
        expected = len(x) * -math.expm1(-math.exp(-end))
        assert abs((x > end).sum() - expected) < 4 * expected**0.5
    assert len(x[-100:].unique()) == 100


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("shape", [(4, 5), (0, 5), ()])
def test_eval_selects_the_codeword_of_the_largest_logit_whatever_the_blocks(
    monkeypatch, rows, shape
):
    monkeypatch.setattr(gumbel, "CACHED", rows * CODES)
    quantizer, z_e = make().eval(), embeddings(*shape)
    logits = z_e @ quantizer.head.weight.T + quantizer.head.bias
    found = quantizer(z_e)
    assert torch.equal(found.codes, logits.argmax(-1))
    assert torch.equal(found.z_q, quantizer.codebook[logits.argmax(-1)])
    assert torch.equal(quantizer.encode(z_e), found.codes)
    assert torch.equal(quantizer.decode(found.codes), found.z_q)


def test_a_cold_sample_is_a_draw_of_the_predicted_distribution():
    quantizer = make(temperature=1e-4)
    z_e = embeddings(1).expand(20_000, DIM)
    found = quantizer(z_e).z_q
    codes = torch.cdist(found, quantizer.codebook).argmin(1)
    assert torch.cdist(found, quantizer.codebook).min(1).values.median() < 1e-6
    probabilities = (z_e[0] @ quantizer.head.weight.T + quantizer.head.bias).softmax(-1)
    frequencies = codes.bincount(minlength=CODES) / len(codes)
    torch.testing.assert_close(frequencies, probabilities.float(), rtol=0, atol=0.015)


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("training", [True, False])
def test_the_prior_is_the_weighted_divergence_from_uniform(monkeypatch, training, rows):
    monkeypatch.setattr(gumbel, "CACHED", rows * CODES)
    quantizer, z_e = make(kl_weight=0.3).train(training), 3 * embeddings(4, 5)
    logits = z_e @ quantizer.head.weight.T + quantizer.head.bias
    uniform = Categorical(logits=torch.zeros(CODES, dtype=torch.float64))
    expected = 0.3 * kl_divergence(Categorical(logits=logits), uniform).mean()
    assert expected > 0.01
    torch.testing.assert_close(auxiliary(quantizer(z_e)), expected, rtol=1e-12, atol=0)
    half = make(kl_weight=0.15).train(training)
    half.load_state_dict(quantizer.state_dict())
    torch.testing.assert_close(2 * auxiliary(half(z_e)), expected, rtol=1e-12, atol=0)


def test_the_prior_of_extreme_logits_is_finite():
    quantizer = make(kl_weight=1.0)
    quantizer.head.weight.data.mul_(1e4)
    z_e = embeddings(9).requires_grad_()
    prior = auxiliary(quantizer(z_e))
    torch.testing.assert_close(prior, torch.tensor(math.log(CODES), dtype=torch.float64))
    prior.backward()
    assert torch.isfinite(z_e.grad).all()


def test_the_task_reaches_codebook_head_and_encoder_and_the_prior_no_codeword():
    quantizer, z_e = make(), embeddings(9).requires_grad_()
    leaves = [quantizer.codebook, quantizer.head.weight, quantizer.head.bias, z_e]
    found = quantizer(z_e)
    of_task = torch.autograd.grad(
        found.z_q.sin().sum(), leaves, retain_graph=True, allow_unused=True
    )
    assert all(torch.count_nonzero(g) == g.numel() for g in of_task)
    to_codebook, *others = torch.autograd.grad(auxiliary(found), leaves, allow_unused=True)
    assert to_codebook is None
    assert all(torch.count_nonzero(g) == g.numel() for g in others)


@pytest.mark.parametrize("rows", [1, 4, 10])
@pytest.mark.parametrize(("of_task", "of_prior"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_gradients_are_those_of_the_formula_whatever_the_blocks(
    monkeypatch, rows, of_task, of_prior
):
    monkeypatch.setattr(gumbel, "CACHED", rows * CODES)
    quantizer = make(temperature=0.7, kl_weight=0.3)
    z_e = embeddings(2, 5).requires_grad_()
    leaves = [z_e, quantizer.head.weight, quantizer.head.bias, quantizer.codebook]
    direction = embeddings(2, 5)
    torch.manual_seed(5)
    found = quantizer(z_e)
    loss = z_e.sum() * 0
    if of_task:
        loss = loss + (found.z_q * direction).sum()
    if of_prior:
        loss = loss + auxiliary(found)
    torch.manual_seed(5)
    logits = z_e @ quantizer.head.weight.T + quantizer.head.bias
    sample = ((logits + noise(logits)) / 0.7).softmax(-1)
    q = logits.softmax(-1)
    divergence = (q * (q * CODES).log()).sum(-1).mean()
    expected = of_task * ((sample @ quantizer.codebook) * direction).sum()
    expected = expected + of_prior * 0.3 * divergence
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-15)
    ours = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_gradients_of_gradients_are_refused():
    quantizer, z_e = make(), embeddings(9).requires_grad_()
    (slope,) = torch.autograd.grad(quantizer(z_e).z_q.sin().sum(), [z_e], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_step_of_joint_is_backpropagation_with_the_prior():
    torch.manual_seed(1)
    network = network_of(make(kl_weight=0.5))
    twin = copy.deepcopy(network)
    x = torch.randn(8, 5)
    torch.manual_seed(2)
    step = update_of(network).step(x, x)
    torch.manual_seed(2)
    result = twin(x)
    task = squared_error(result.output, x)
    (task + auxiliary(result.quantized)).backward()
    SGD(twin.parameters(), lr=0.1).step()
    for one, other in zip(network.parameters(), twin.parameters()):
        assert torch.equal(one, other)
    assert step.task == task
    assert step.direct_norm is None


def test_the_temperature_falls_as_a_cosine_over_the_updates():
    network = network_of(make(temperature=2.0, final_temperature=0.5, anneal_steps=8))
    quantizer, update = network.quantizer, update_of(network)
    x = torch.randn(8, 5)
    seen = []
    for _ in range(11):
        seen.append(quantizer.temperature)
        network(x)  # a pass is no update
        update.step(x, x)
    expected = [0.5 + 1.5 * (1 + math.cos(math.pi * min(1.0, n / 8))) / 2 for n in range(11)]
    assert seen == pytest.approx(expected, rel=1e-14)
    assert seen[0] == 2.0 and seen[4] == pytest.approx(1.25) and seen[8:] == [0.5] * 3
    assert seen[:9] == sorted(set(seen), reverse=True)


def test_the_sample_uses_the_temperature_of_its_update():
    quantizer = make(temperature=2.0, final_temperature=0.5, anneal_steps=4)
    z_e = embeddings(9)
    quarter = 0.5 + 1.5 * (1 + math.cos(math.pi / 4)) / 2
    for steps, temperature in ((0, 2.0), (1, quarter), (2, 1.25), (4, 0.5), (9, 0.5)):
        quantizer.steps.fill_(steps)
        torch.manual_seed(3)
        found = quantizer(z_e).z_q
        torch.manual_seed(3)
        logits = z_e @ quantizer.head.weight.T + quantizer.head.bias
        weights = ((logits + noise(logits)) / temperature).softmax(-1)
        torch.testing.assert_close(found, weights @ quantizer.codebook)


def test_the_count_of_updates_is_state_and_waits_in_eval():
    network = network_of(make(anneal_steps=10))
    x = torch.randn(8, 5)
    update = update_of(network)
    for _ in range(3):
        update.step(x, x)
    state = network.state_dict()
    assert state["quantizer.steps"] == 3
    other = network_of(make(anneal_steps=10))
    other.load_state_dict(state, strict=True)
    assert other.quantizer.temperature == network.quantizer.temperature < 1
    network.eval()
    update.step(x, x)
    assert network.quantizer.steps == 3


def test_the_first_head_prefers_the_nearest_centre():
    quantizer, z_e = make(), embeddings(300)
    quantizer.initialize(z_e)
    codes = quantizer.encode(z_e)
    assert len(codes.unique()) == CODES
    assert torch.equal(codes, torch.cdist(z_e, quantizer.codebook).argmin(1))
    assert torch.isfinite(auxiliary(quantizer(z_e)))
    few = embeddings(3)  # fewer than codes: no distance is left
    quantizer.initialize(few)
    assert all(torch.isfinite(p).all() for p in quantizer.parameters())
    quantizer.eval()
    # The head is steep there: what rounding leaves of its logits decides ties.
    torch.testing.assert_close(quantizer(few).z_q, few, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 0}, "num_codes must be 1 or more, got 0"),
        ({"dim": -1}, "dim must be 1 or more, got -1"),
        ({"anneal_steps": 0}, "anneal_steps must be 1 or more, got 0"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        ({"final_temperature": -1.0}, r"final_temperature must be above 0, got -1\.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"kl_weight": -1.0}, r"kl_weight must be 0 or more, got -1\.0"),
    ],
)
def test_wrong_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        GumbelQuantizer(**{"num_codes": 4, "dim": 6, **options})


def test_another_width_and_wrong_codes_raise():
    quantizer = make()
    with pytest.raises(ValueError, match="channels last"):
        quantizer(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="channels last"):
        quantizer.encode(torch.zeros(3, 5, dtype=torch.float64))
    for wrong in (torch.tensor([7]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="codes must lie in 0 … 6"):
            quantizer.decode(wrong)
