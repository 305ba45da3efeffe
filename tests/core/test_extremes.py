"""Numbers that go wrong, and sizes as small as can be: every codebook that is left is finite."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from mqvae import (
    Alternated,
    Amortized,
    Cosine,
    DirectOnly,
    Ema,
    Exact,
    FiniteScalarQuantizer,
    GenericMeta,
    GumbelQuantizer,
    HyperNetwork,
    Joint,
    Kept,
    LookupFreeQuantizer,
    Meta,
    MetaBoth,
    MetaNetwork,
    MqvaeError,
    Quantizer,
    ReplaceUnused,
    ResidualQuantizer,
    Rotation,
    Synchronous,
    Transport,
    Transported,
    Undone,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)

Make = Callable[[int, int], Quantizer]


def vector(**options: Any) -> Make:
    return lambda codes, dim: VectorQuantizer(codes, dim, **options)


QUANTIZERS: dict[str, Make] = {
    "table": vector(),
    "cosine": vector(distance=Cosine()),
    "rotation": vector(estimator=Rotation()),
    "hyper-network": vector(codebook=HyperNetwork(3, 4)),
    "replacing": vector(replacement=ReplaceUnused(1)),
    "residual": lambda k, d: ResidualQuantizer([VectorQuantizer(k, d) for _ in range(2)]),
    "gumbel": lambda k, d: GumbelQuantizer(k, d),
    "lookup-free": lambda k, d: LookupFreeQuantizer(2**d),
    "finite scalar": lambda k, d: FiniteScalarQuantizer((3,) * d),
}
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Joint": (Joint, {}),
    "Synchronous": (Synchronous, {}),
    "Alternated": (Alternated, {"nu": 0.5}),
    "Ema": (Ema, {}),
    "Ema, transport": (Ema, {"transport": Transport()}),
    "Meta": (Meta, {}),
    "Meta, optimizer's step": (Meta, {"look_ahead": Undone(optimizer_step=True)}),
    "Exact, kept": (Meta, {"hypergradient": Exact(), "look_ahead": Kept()}),
    "Direct only": (Meta, {"hypergradient": DirectOnly()}),
    "Amortized": (Meta, {"hypergradient": Amortized(), "look_ahead": Kept()}),
    "Transported": (Meta, {"hypergradient": Transported(), "look_ahead": Kept()}),
    "Unrolled": (Meta, {"hypergradient": Unrolled(2)}),
    "MetaNetwork": (MetaNetwork, {}),
    "MetaBoth": (MetaBoth, {}),
    "GenericMeta": (GenericMeta, {}),
}
every_kind = pytest.mark.parametrize("kind", QUANTIZERS)
# Every rule, by turns with and without replacement, and every quantizer under the two plainest.
every_pair = pytest.mark.parametrize(
    ("rule", "kind"),
    [
        *((rule, ("table", "replacing")[at % 2]) for at, rule in enumerate(RULES)),
        *(("Meta", kind) for kind in ("cosine", "hyper-network", "residual")),
        *(("Joint", kind) for kind in ("rotation", "gumbel", "lookup-free", "finite scalar")),
    ],
)


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def generic(network: VQNetwork, x: Tensor, y: Tensor) -> Tensor:
    result = network(x)
    return squared_error(result.output, y) + result.quantized.codebook_loss


def made(rule: str, kind: str, codes: int = 5, dim: int = 4, sgd: bool = False) -> Any:
    """The rule around a small network; skipped where it refuses the quantizer, as it says."""
    torch.manual_seed(1)
    network = VQNetwork(
        nn.Sequential(nn.Linear(3, dim), nn.Tanh(), nn.Linear(dim, dim)),
        QUANTIZERS[kind](codes, dim),
        nn.Linear(dim, 3),
        channel_axis=-1,
    )
    optimizer = SGD if sgd else AdamW
    codebook = list(network.codebook_parameters())
    levels = {
        "lower": optimizer(network.network_parameters(), lr=1e-2),
        "upper": optimizer(codebook, lr=1e-2) if codebook else None,
    }
    cls, options = RULES[rule]
    if cls is Ema:
        del levels["upper"]
    if cls is GenericMeta:
        options = {**options, "codebook": codebook}
    try:
        return cls(network, generic if cls is GenericMeta else squared_error, **levels, **options)
    except MqvaeError as refusal:
        pytest.skip(str(refusal))


def network_of(update: Any) -> VQNetwork:
    return update._total.module if isinstance(update, GenericMeta) else update.network


def table(update: Any) -> list[Tensor]:
    """All that the codebook is made of, and what the rule remembers of it."""
    quantizer = network_of(update).quantizer
    remembered = [] if isinstance(update, GenericMeta) else update.state_dict().values()
    upper = [] if update.upper is None else update.upper.state.values()
    moments = [value for entry in upper for value in entry.values()]
    kept = [*quantizer.parameters(), *quantizer.buffers(), *remembered, *moments]
    return [tensor.detach() for tensor in kept]


# -- numbers that go wrong -------------------------------------------------------------------------


def spoilt(place: str, value: float, update: Any, x: Tensor) -> Tensor:
    """Put a number that is not finite into one place of the step to come."""
    network = network_of(update)
    if place == "input":
        x = x.clone()
        x[1, 2] = value
    elif place == "weight":
        with torch.no_grad():
            network.encoder[0].weight[0, 0] = value
    elif place == "gradient of the encoder":
        network.encoder[0].weight.register_hook(lambda g: g * value)
    elif place == "gradient of the decoder":
        network.decoder.weight.register_hook(lambda g: g * value)
    else:
        for parameter in network.codebook_parameters():
            parameter.register_hook(lambda g: g * value)
    return x


INJECTED = {
    "input": (math.nan, math.inf, 1e30),
    "weight": (math.nan, -math.inf),
    "gradient of the encoder": (math.nan,),
    "gradient of the decoder": (math.inf,),
    "gradient of C": (math.nan, math.inf),
}


@every_pair
def test_no_codebook_is_written_with_a_number_that_is_not_finite(rule, kind):
    """Nor what is remembered of it; two steps, for what has gone wrong to go through all."""
    turn = list(RULES).index(rule) + list(QUANTIZERS).index(kind)
    for place, values in INJECTED.items():
        value = values[turn % len(values)]
        update = made(rule, kind)
        x = torch.randn(8, 3)
        update.step(x, x)
        x = spoilt(place, value, update, x)
        for _ in range(2):
            update.step(x, x)
            # A square of 1e30 is more than a float32 can hold, and a second moment is one.
            held = network_of(update).codebook_parameters() if value == 1e30 else table(update)
            assert all(torch.isfinite(tensor).all() for tensor in held), (place, value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_of_the_codebook_that_is_left_out_is_told(value):
    update = made("Joint", "table")
    x = torch.randn(8, 3)
    step = update.step(x, x)
    assert 0 < step.codebook_gradient < math.inf
    x = spoilt("gradient of C", value, update, x)
    step = update.step(x, x)
    assert torch.isfinite(torch.stack([step.task, step.codebook, step.commitment])).all()
    assert not torch.isfinite(step.codebook_gradient)
    assert made("Ema", "table").step(x, x).codebook_gradient is None


@every_kind
def test_initialization_from_what_is_not_finite_is_refused_and_changes_nothing(kind):
    network = network_of(made("Joint", kind))
    before = [tensor.clone() for tensor in network.quantizer.state_dict().values()]
    x = torch.randn(8, 3)
    x[0, 0] = math.nan
    if kind in ("lookup-free", "finite scalar"):  # there is nothing to initialize
        network.initialize_codebook(x)
    else:
        with pytest.raises(MqvaeError, match="finite"):
            network.initialize_codebook(x)
    after = network.quantizer.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


# -- as small as can be ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Size:
    """What is small."""

    codes: int = 5
    dim: int = 4
    batch: int = 8
    constant: bool = False


SIZES = {
    "constant": Size(constant=True),
    "one sample": Size(batch=1),
    "fewer samples than codes": Size(codes=40, batch=3),
    "one code": Size(codes=1),
    "one dimension": Size(dim=1),
    "one of each": Size(codes=1, dim=1, batch=1, constant=True),
}


@every_pair
def test_small_sizes_train(rule, kind):
    for one in SIZES.values():
        trains(made(rule, kind, one.codes, one.dim), one)


def trains(update: Any, one: Size) -> None:
    """A step or more from a codebook of its own embeddings, and codes that are those of it."""
    network = network_of(update)
    x = torch.ones(one.batch, 3) if one.constant else torch.randn(one.batch, 3)
    network.initialize_codebook(x)
    before = [p.detach().clone() for p in network.parameters()]
    for _ in range(2):
        update.step(x, x)
    after = list(network.parameters())
    assert all(torch.isfinite(tensor).all() for tensor in [*after, *table(update)])
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    codes = network.eval().encode(x)
    assert torch.equal(codes, network(x).quantized.codes)
    assert int(codes.min()) >= 0 and int(codes.max()) < network.quantizer.num_codes
