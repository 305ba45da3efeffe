"""The quantizer as a layer of anybody's model: `update`, accumulation, checkpointing, DDP."""

import copy
import warnings

import pytest
import torch
from pairs import meet
from problems import squared_error
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mqvae import (
    Cosine,
    Ema,
    GumbelQuantizer,
    Joint,
    MovingAverage,
    MqvaeError,
    RateAware,
    ReplaceUnused,
    VectorQuantizer,
    VQNetwork,
)

CODES, DIM = 32, 8


def quantizer_of(**options) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(CODES, DIM, **options)


def embeddings(seed: int = 0, number: int = 96) -> Tensor:
    """Around few places, so that most codewords of a random codebook go unused."""
    generator = torch.Generator().manual_seed(seed)
    places = 3 * torch.randn(48, DIM, generator=torch.Generator().manual_seed(99))
    at = torch.randint(48, (number,), generator=generator)
    return places[at] + 0.1 * torch.randn(number, DIM, generator=generator)


def used(quantizer: nn.Module, number: int = 2000) -> int:
    with torch.no_grad():
        return len(quantizer(embeddings(1234, number)).codes.unique())


# -- update ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_codewords_by_ema_are_held_still_as_parameters_are(inside):
    quantizer = quantizer_of(codebook=MovingAverage(0.9), replacement=ReplaceUnused(3))
    network = VQNetwork(nn.Identity(), quantizer, nn.Identity(), channel_axis=-1)
    for still in (True, False):
        (network if inside else quantizer).requires_grad_(not still)
        before = quantizer.table().clone()
        for step in range(5):
            quantizer(embeddings(step))
            quantizer.update()
        assert torch.equal(quantizer.table(), before) == still


@pytest.mark.parametrize("codebook", [None, MovingAverage(0.9)], ids=["learned", "ema"])
@pytest.mark.parametrize("layout", [{}, {"groups": 2}, {"groups": 2, "shared_codebook": True}])
def test_a_plain_loop_brings_unused_codes_back(codebook, layout):
    found = []
    for replacement in (None, ReplaceUnused(3)):
        quantizer = quantizer_of(codebook=codebook, replacement=replacement, **layout)
        trained = list(quantizer.parameters())
        optimizer = torch.optim.AdamW(trained, lr=0.05) if trained else None
        for step in range(60):
            out = quantizer(embeddings(step))
            if optimizer is not None:
                optimizer.zero_grad()
                out.codebook_loss.backward()
                optimizer.step()
            quantizer.update(optimizer)
        rows = quantizer.rows(quantizer(embeddings(7, 2000)).codes).flatten()
        found.append(len(rows.unique()) / len(quantizer.table()))
    assert found[1] >= 0.95 > found[0]


def network_of(codebook, **options) -> VQNetwork:
    torch.manual_seed(3)
    encoder, decoder = nn.Linear(5, 4), nn.Linear(4, 5)
    quantizer = VectorQuantizer(9, 4, codebook=codebook, **options)
    with torch.no_grad():
        quantizer.codebook.weight.mul_(2)
    return VQNetwork(encoder, quantizer, decoder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distance": Cosine()},
        {"replacement": ReplaceUnused(2)},
        {"rate": RateAware(bits=2.0, after=1)},
    ],
)
def test_the_rule_is_the_joint_rule_over_the_average(options):
    """Joint over it, the rule Ema and a plain loop: the same to the bit."""
    networks = [
        network_of(kind, **options) for kind in (MovingAverage(0.9), None, MovingAverage(0.9))
    ]
    lower = [torch.optim.AdamW(n.network_parameters(), lr=1e-2) for n in networks]
    rules = [
        Joint(networks[0], squared_error, lower=lower[0], upper=None, commitment_weight=0.25),
        Ema(networks[1], squared_error, lower=lower[1], decay=0.9, commitment_weight=0.25),
    ]
    for step in range(6):
        x = torch.randn(20, 5, generator=torch.Generator().manual_seed(step))
        states = torch.get_rng_state()
        for rule in rules:
            torch.set_rng_state(states)
            rule.step(x, x)
        torch.set_rng_state(states)
        out = networks[2](x)
        loss = squared_error(out.output, x) + 0.25 * out.quantized.commitment_loss
        lower[2].zero_grad()
        loss.backward()
        lower[2].step()
        networks[2].quantizer.update()
        first, *others = (n.quantizer.codebook.weight for n in networks)
        for other in others:
            torch.testing.assert_close(first, other, rtol=1e-5, atol=1e-6)
        assert torch.equal(first, others[0])
        if "rate" in options:
            one, two = (n.quantizer.prices.state_dict() for n in networks[:2])
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_average_of_an_average_is_refused():
    network = network_of(MovingAverage())
    lower = torch.optim.SGD(network.network_parameters(), lr=0.1)
    with pytest.raises(MqvaeError, match="use Joint with upper=None"):
        Ema(network, squared_error, lower=lower)
    with pytest.raises(MqvaeError, match="decay must lie in"):
        MovingAverage(1.0)


EVERYTHING = {
    "codebook": MovingAverage(0.9),
    "replacement": ReplaceUnused(2),
    "rate": RateAware(bits=3.0, after=1),
}


def same_state(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_accumulated_passes_are_one_pass():
    options = {**EVERYTHING, "replacement": None}
    whole, parts = quantizer_of(**options), quantizer_of(**options)
    for step in range(4):
        z_e = embeddings(step)
        whole(z_e)
        for part in z_e.chunk(4):
            parts(part)
        whole.update()
        parts.update()
        same_state(whole, parts)


def test_passes_in_eval_mode_and_second_updates_change_nothing():
    quantizer, twin = quantizer_of(**EVERYTHING), quantizer_of(**EVERYTHING)
    for step in range(3):
        for each in (quantizer, twin):
            torch.manual_seed(step)
            each(embeddings(step))
            if each is quantizer:
                each.eval()
                each(embeddings(50))
                each.update()
                each.train()
            each.update()
        quantizer.update()
        same_state(quantizer, twin)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pass_that_checkpointing_makes_again_counts_once(reentrant):
    found = []
    for wrapped in (False, True):
        quantizer = quantizer_of(codebook=MovingAverage(0.9), rate=RateAware(bits=3.0))
        z_e = embeddings().requires_grad_()

        def layer(z: Tensor, quantizer=quantizer) -> Tensor:
            out = quantizer(2 * z)
            return out.z_q.square().mean() + out.commitment_loss

        loss = checkpoint(layer, z_e, use_reentrant=reentrant) if wrapped else layer(z_e)
        loss.backward()
        assert quantizer._pending.counts.sum() == len(z_e)
        quantizer.update()
        found.append((quantizer, z_e.grad))
    same_state(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_who_forgets_to_update_is_warned_once():
    quantizer = quantizer_of(replacement=ReplaceUnused())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(250):
            quantizer(embeddings(number=2))
    assert [each.category for each in caught] == [UserWarning]
    assert "call quantizer.update()" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        idle = quantizer_of()
        for step in range(110):
            idle(embeddings(number=2))
            if step % 50 == 0:
                quantizer.update()
            quantizer(embeddings(number=2))


def test_passes_before_a_step_of_a_rule_do_not_count():
    found = []
    for passes in (0, 2):
        network = network_of(MovingAverage(0.9), replacement=ReplaceUnused(2))
        lower = torch.optim.SGD(network.network_parameters(), lr=0.1)
        rule = Joint(network, squared_error, lower=lower, upper=None)
        x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        for _ in range(passes):
            network(x + 1)
        rule.step(x, x)
        found.append(network)
    same_state(*found)


def test_state_is_saved_and_copies_are_apart():
    quantizer = quantizer_of(**EVERYTHING)
    for step in range(3):
        quantizer(embeddings(step))
        quantizer.update()
    other = quantizer_of(**EVERYTHING)
    other.load_state_dict(quantizer.state_dict())
    clone = copy.deepcopy(quantizer)
    for each in (quantizer, other, clone):
        torch.manual_seed(0)
        each(embeddings(8))
        each.update()
    same_state(quantizer, other)
    same_state(quantizer, clone)
    assert quantizer.half().codebook.averages.sums.dtype == torch.float32


def test_temperature_falls_by_update():
    quantizer = GumbelQuantizer(4, 6, anneal_steps=10)
    quantizer(torch.randn(3, 6))
    assert quantizer.temperature == 1.0
    quantizer.update()
    assert quantizer.temperature < 1.0


# -- several processes -----------------------------------------------------------------------------

STEPS, SHARE = 5, 48


def trained_under_ddp() -> dict[str, Tensor]:
    """A plain loop: DistributedDataParallel, two accumulated passes a step, one without sync."""
    there = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if there else 0
    size = torch.distributed.get_world_size() if there else 1
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(DIM, DIM), VectorQuantizer(CODES, DIM, **EVERYTHING)])
    model.forward = lambda z: model[1](model[0](z))
    wrapped = nn.parallel.DistributedDataParallel(model) if there else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        parts = embeddings(step, 2 * SHARE).chunk(2)
        optimizer.zero_grad()
        for i, part in enumerate(parts):
            quiet = there and i == 0 and step % 2  # and without it, as people forget
            own = part.chunk(size)[rank]
            with wrapped.no_sync() if quiet else warnings.catch_warnings():
                (wrapped(own).commitment_loss / 2).backward()
        optimizer.step()
        model[1].update()
    return model.state_dict()


def work(rank: int, folder: str) -> dict[str, Tensor]:
    meet(rank, folder)
    return trained_under_ddp()


def test_two_processes_under_ddp_train_what_one_does(pair, tmp_path):
    first, second = pair(work, str(tmp_path))
    one = trained_under_ddp()
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        if value.dtype == torch.int64:
            assert torch.equal(first[name], value), name
        else:
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
