"""Nothing in a step waits for a GPU, which takes the work and answers later.

A step on the device "meta" has no values: an operation that reads one on the host, or whose result
has a size that depends on one, fails there or is seen here. It takes the ways that a GPU takes.
"""

from contextlib import suppress

import pytest
import torch
from problems import squared_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mqvae import (
    Affine,
    Alternated,
    Amortized,
    Cosine,
    Ema,
    Exact,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    HyperNetwork,
    Joint,
    Kept,
    LinearMap,
    LookupFreeQuantizer,
    Meta,
    MetaBoth,
    MetaNetwork,
    MovingAverage,
    NoQuantizer,
    Quantizer,
    RateAware,
    ReplaceUnused,
    ResidualQuantizer,
    Rotation,
    RowwiseAdam,
    Synchronous,
    Transport,
    Transported,
    Undone,
    Unquantized,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.core import replacement

WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::bincount",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_unique",
    "aten::_unique2",
    "aten::masked_select",
    "aten::equal",
    "aten::multinomial",
    "aten::repeat_interleave",
}


class Waiting(TorchDispatchMode):
    """Notes what would make the host wait: reading values, sizes that depend on them, copies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t)]
        there = any(t.is_meta for t in tensors)
        if there and (name in WAITS or (name == "aten::index" and _boolean(args[1]))):
            self.found.append(name)
        if name in ("aten::_to_copy", "aten::copy_"):
            moved = kwargs.get("device") is not None or len({t.is_meta for t in tensors}) > 1
            away = moved and tensors[0].is_meta != (str(kwargs.get("device", "")) == "meta")
            if away and tensors[0].ndim and not kwargs.get("non_blocking"):
                self.found.append(f"{name} between devices")
        return func(*args, **kwargs)


def _boolean(indices) -> bool:
    return any(i is not None and i.dtype == torch.bool for i in indices)


@pytest.mark.parametrize("look", ["item", "nonzero", "boolean", "bincount", "bool"])
def test_what_waits_is_seen(look):
    z = torch.zeros(4, device="meta", dtype=torch.int64)
    looks = {
        "item": lambda: z[0].item(),
        "nonzero": lambda: z.nonzero(),
        "boolean": lambda: z[z > 0],
        "bincount": lambda: torch.bincount(z),
        "bool": lambda: bool(z.any()),
    }
    with Waiting() as waiting, suppress(RuntimeError, NotImplementedError):
        looks[look]()
    assert waiting.found


CODES, DIM = 8, 4
MAY = {"distance": Cosine(), "estimator": Rotation(), "groups": 2}

QUANTIZERS = {
    "vector": lambda: VectorQuantizer(CODES, DIM),
    "everything": lambda: VectorQuantizer(
        CODES, DIM, **MAY, replacement=ReplaceUnused(1), rate=RateAware(2.0)
    ),
    "shared": lambda: VectorQuantizer(
        CODES, DIM, groups=2, shared_codebook=True, replacement=ReplaceUnused(1)
    ),
    "affine": lambda: VectorQuantizer(CODES, DIM, codebook=Affine()),
    "linear map": lambda: VectorQuantizer(CODES, DIM, codebook=LinearMap()),
    "hyper-network": lambda: VectorQuantizer(CODES, DIM, codebook=HyperNetwork()),
    "residual": lambda: ResidualQuantizer(
        [VectorQuantizer(CODES, DIM, rate=RateAware(2.0)) for _ in range(3)]
    ),
    "gumbel": lambda: GumbelQuantizer(CODES, DIM),
    "fsq": lambda: FiniteScalarQuantizer((4, 3, 3, 3)),
    "lfq": lambda: LookupFreeQuantizer(16),
    "bsq": lambda: LookupFreeQuantizer(16, distance=Cosine()),
    "none": lambda: NoQuantizer(DIM),
}
RULES = {
    "joint": (Joint, {}),
    "synchronous": (Synchronous, {}),
    "alternated": (Alternated, {"nu": 0.5}),
    "ema": (Ema, {}),
    "ema transport": (Ema, {"transport": Transport()}),
    "meta": (Meta, {}),
    "meta optimizer": (Meta, {"look_ahead": Undone(optimizer_step=True)}),
    "meta kept exact": (Meta, {"look_ahead": Kept(), "hypergradient": Exact()}),
    "meta preconditioned": (Meta, {"look_ahead": Kept(preconditioned=True)}),
    "meta amortized": (Meta, {"look_ahead": Kept(), "hypergradient": Amortized()}),
    "meta transported": (Meta, {"look_ahead": Kept(), "hypergradient": Transported()}),
    "meta unrolled": (Meta, {"hypergradient": Unrolled(steps=2)}),
    "meta network": (MetaNetwork, {}),
    "meta both": (MetaBoth, {}),
    "unquantized": (Unquantized, {}),
}


def step(quantizer: Quantizer, rule, optimizer=torch.optim.AdamW, **options) -> list[str]:
    """What would wait in the second step of a rule, in which optimizers have their state."""
    network = VQNetwork(nn.Linear(5, DIM), quantizer, nn.Linear(DIM, 5), channel_axis=-1)
    network.to("meta")
    quantizer.unquantized = 0.5
    levels = {"lower": optimizer(network.network_parameters(), lr=1e-3)}
    trained = list(network.codebook_parameters())
    if rule not in (Ema, Unquantized):
        levels["upper"] = optimizer(trained, lr=1e-3) if trained else None
    update = rule(network, squared_error, **levels, **options)
    x = torch.empty(6, 7, 5, device="meta")
    update.step(x, x)
    with Waiting() as waiting:
        update.step(x, x)
    return waiting.found


@pytest.mark.parametrize("name", QUANTIZERS)
def test_no_quantizer_waits(name):
    assert step(QUANTIZERS[name](), Joint) == []


@pytest.mark.parametrize("name", RULES)
def test_no_rule_waits(name):
    rule, options = RULES[name]
    quantizer = VectorQuantizer(CODES, DIM, replacement=ReplaceUnused(1), rate=RateAware(2.0))
    assert step(quantizer, rule, **options) == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, RowwiseAdam])
def test_no_optimizer_waits(optimizer):
    assert step(VectorQuantizer(CODES, DIM), Joint, optimizer) == []


def test_a_plain_loop_does_not_wait():
    quantizer = VectorQuantizer(
        CODES, DIM, codebook=MovingAverage(), replacement=ReplaceUnused(1), rate=RateAware(2.0)
    ).to("meta")
    z_e = torch.empty(6, 7, DIM, device="meta")
    with Waiting() as waiting:
        for _ in range(2):
            quantizer(z_e)
            quantizer(z_e)
            quantizer.update()
    assert waiting.found == []


# -- the ways of a GPU, taken on a CPU -------------------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"groups": 2}])
def test_replacement_without_waiting_replaces_the_same_rows(monkeypatch, layout):
    torch.manual_seed(0)
    one = VectorQuantizer(32, DIM, replacement=ReplaceUnused(2), **layout)
    two = VectorQuantizer(32, DIM, replacement=ReplaceUnused(2), **layout)
    two.load_state_dict(one.state_dict())
    before = one.codebook.weight.detach().clone()
    z_e = torch.randn(2, 9, DIM)
    for quantizer in (one, two):
        if quantizer is two:
            monkeypatch.setattr(replacement, "readable", lambda tensor: False)
        for each in z_e:
            quantizer(each)
            quantizer.update()
    replaced = (one.codebook.weight != before).any(1)
    assert torch.equal((two.codebook.weight != before).any(1), replaced)
    assert 0 < replaced.sum() < len(before)
    assert torch.equal(one.unused_steps, two.unused_steps)
    parts = z_e[1].reshape(9, quantizer.groups, -1)
    for row in replaced.nonzero().flatten().tolist():
        assert (parts[:, row // 32] == two.codebook.weight[row]).all(1).any()
