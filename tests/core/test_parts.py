"""A batch in parts is the batch as a whole, for every rule and every statistic."""

import copy

import pytest
import torch
from problems import make
from test_updates import assert_same, noisy_network
from torch.optim import AdamW

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
    ReplaceUnused,
    Synchronous,
    Undone,
    Unrolled,
    VectorQuantizer,
)

CASES = {
    "joint": (Joint, {}),
    "ema": (Ema, {"decay": 0.9}),
    "alternated": (Alternated, {"nu": 0.5}),
    "synchronous": (Synchronous, {}),
    "meta": (Meta, {}),
    "meta-free": (Meta, {"hypergradient": FiniteDifference(free_codes=True)}),
    "meta-kept": (Meta, {"look_ahead": Kept()}),
    "meta-optimizer": (Meta, {"look_ahead": Undone(optimizer_step=True, preconditioned=True)}),
    "exact": (Meta, {"hypergradient": Exact()}),
    "exact-forward": (Meta, {"hypergradient": Exact(ForwardMode(), ForwardMode())}),
    "unrolled": (Meta, {"hypergradient": Unrolled(2)}),
    "meta-network": (MetaNetwork, {}),
    "meta-both": (MetaBoth, {}),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("family", ["convolutional", "classifier"])
@pytest.mark.parametrize("case", CASES)
def test_parts_equal_the_whole(case, family):
    problem = make(family, "three")
    quantizer = VectorQuantizer(
        problem.network.quantizer.num_codes, 6, groups=3, replacement=ReplaceUnused(2)
    ).double()
    quantizer.codebook.load_state_dict(problem.network.quantizer.codebook.state_dict())
    rule, arguments = CASES[case]
    found = []
    for parts in (1, 3):
        network = copy.deepcopy(problem.network)
        network.quantizer = copy.deepcopy(quantizer)
        optimizers = {"lower": AdamW(network.network_parameters(), lr=1e-2)}
        if rule is not Ema:
            optimizers["upper"] = AdamW(network.codebook_parameters(), lr=3e-2)
        update = rule(network, problem.loss, **optimizers, **arguments)
        torch.manual_seed(5)
        steps = [update.step(problem.x, problem.y, parts=parts) for _ in range(4)]
        found.append((network.state_dict(), steps, update.state_dict()))
    (whole, one, memory), (parted, other, again) = found
    for key, value in whole.items():
        torch.testing.assert_close(parted[key], value, rtol=1e-8, atol=1e-10)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.codes, b.codes)
        torch.testing.assert_close(a.task, b.task)
        torch.testing.assert_close(a.codebook, b.codebook)
    for key, value in memory.items():
        torch.testing.assert_close(again[key], value)


@pytest.mark.parametrize("look", [Undone(), Kept()], ids=["undone", "kept"])
def test_parts_leave_the_traces_of_one_pass(look):
    """Batch norm sees every part once, though graphs are made again."""
    network = noisy_network()
    x = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    update = Meta(
        network,
        lambda output, y: (output - y).square().mean(),
        lower=AdamW(network.network_parameters(), lr=1e-2),
        upper=AdamW(network.codebook_parameters(), lr=1e-2),
        look_ahead=look,
    )
    twin = copy.deepcopy(network.encoder)
    torch.manual_seed(2)
    update.step(x, x, parts=3)
    torch.manual_seed(2)
    for part in x.chunk(3):
        twin(part)
    assert_same(dict(network.encoder.named_buffers()), dict(twin.named_buffers()))
    counts = [b for name, b in network.decoder.named_buffers() if name.endswith("tracked")]
    assert [int(c) for c in counts] == [3]


def test_parts_hold_less():
    """What autograd keeps between the passes is the inputs of the parts, not their insides."""
    held = {}
    for parts in (1, 4):
        network = noisy_network()
        x = torch.rand(8, 1, 6, 6)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        update = Joint(
            network,
            lambda output, y: (output - y).square().mean(),
            lower=AdamW(network.network_parameters()),
            upper=AdamW(network.codebook_parameters()),
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            update.step(x, x, parts=parts)
        held[parts] = sum(sizes)
    assert held[4] < held[1] / 2


def test_no_parts_are_refused():
    problem = make("classifier")
    network = problem.network
    update = Joint(
        network,
        problem.loss,
        lower=AdamW(network.network_parameters()),
        upper=AdamW(network.codebook_parameters()),
    )
    with pytest.raises(ValueError, match="parts must be 1 or more"):
        update.step(problem.x, problem.y, parts=0)
