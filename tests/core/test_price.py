"""What a step does, counted: times waver, operations do not."""

import pytest
import torch
from problems import squared_error
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from mqvae import (
    Alternated,
    Amortized,
    DirectOnly,
    Ema,
    Exact,
    FiniteDifference,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    Synchronous,
    Transport,
    Transported,
    Undone,
    VectorQuantizer,
    VQNetwork,
)

# Channels, by which an operation tells whose it is: image, encoder, codeword, decoder.
IMAGE, ENCODER, DIM, DECODER = 1, 5, 4, 7
OPTIMIZER_STEP = Undone(optimizer_step=True)


class Passes(TorchDispatchMode):
    """Counts passes of encoder and decoder by the convolutions they make."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = {"forward": 0, "backward": 0}
        self.decoder = {"forward": 0, "to its input": 0, "to its weights": 0}
        self.searches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "convolution":
            self.encoder["forward"] += self._weight(args[1], IMAGE, ENCODER)
            self.decoder["forward"] += self._weight(args[1], DECODER, IMAGE)
        elif name == "convolution_backward":
            to_input, to_weight, _ = args[-1]
            self.encoder["backward"] += to_weight and self._weight(args[2], IMAGE, ENCODER)
            self.decoder["to its input"] += to_input and self._weight(args[2], DIM, DECODER)
            self.decoder["to its weights"] += to_weight and self._weight(args[2], DECODER, IMAGE)
        elif name == "addmm":
            self.searches += 1
        return function(*args, **(kwargs or {}))

    def _weight(self, weight: Tensor, inside: int, outside: int) -> bool:
        return weight.shape[:2] == (outside, inside)

    def counted(self) -> tuple[int, ...]:
        return *self.encoder.values(), *self.decoder.values(), self.searches


def passes(kind: type, **options) -> tuple[int, ...]:
    """What one step makes, the first of two: those of the second are the same."""
    torch.manual_seed(0)
    network = VQNetwork(
        nn.Sequential(nn.Conv2d(IMAGE, ENCODER, 1), nn.Tanh(), nn.Conv2d(ENCODER, DIM, 1)),
        VectorQuantizer(8, DIM),
        nn.Sequential(nn.Conv2d(DIM, DECODER, 1), nn.Tanh(), nn.Conv2d(DECODER, IMAGE, 1)),
    )
    levels = {"lower": AdamW(network.network_parameters(), lr=1e-2)}
    if kind is not Ema:
        levels["upper"] = AdamW(network.codebook_parameters(), lr=1e-2)
    update = kind(network, squared_error, **levels, **options)
    x = torch.rand(3, IMAGE, 6, 6)
    found = []
    for _ in range(2):
        with Passes() as seen:
            update.step(x, x)
        found.append(seen.counted())
    assert found[0] == found[1]
    return found[0]


# Encoder forward and backward; decoder forward, backward to its input and to its weights; searches.
PRICES = {
    "Joint": (Joint, {}, (1, 1, 1, 1, 1, 1)),
    "Ema": (Ema, {}, (1, 1, 1, 1, 1, 1)),
    "Ema(transport)": (Ema, {"transport": Transport()}, (2, 1, 1, 1, 1, 1)),
    "Synchronous": (Synchronous, {}, (1, 1, 1, 1, 1, 1)),
    "Alternated": (Alternated, {}, (1, 1, 1, 1, 1, 2)),
    "Alternated(nu=1)": (Alternated, {"nu": 1.0}, (1, 1, 2, 2, 1, 2)),
    "Meta(DirectOnly), kept": (
        Meta,
        {"hypergradient": DirectOnly(), "look_ahead": Kept()},
        (2, 1, 1, 1, 1, 2),
    ),
    "Meta(DirectOnly), undone": (Meta, {"hypergradient": DirectOnly()}, (2, 2, 2, 2, 2, 3)),
    "Meta(Amortized), kept": (
        Meta,
        {"hypergradient": Amortized(), "look_ahead": Kept()},
        (2, 1, 1, 1, 1, 2),
    ),
    "Meta(Transported), kept": (
        Meta,
        {"hypergradient": Transported(), "look_ahead": Kept()},
        (2, 1, 1, 1, 1, 1),
    ),
    "Meta(FiniteDifference), kept": (Meta, {"look_ahead": Kept()}, (3, 2, 2, 2, 1, 2)),
    "Meta(FiniteDifference), undone": (Meta, {}, (3, 3, 3, 3, 2, 3)),
    "Meta(FiniteDifference), undone, AdamW's step": (
        Meta,
        {"look_ahead": OPTIMIZER_STEP},
        (3, 3, 3, 3, 2, 3),
    ),
    "Meta(FiniteDifference), preconditioned": (
        Meta,
        {"look_ahead": Undone(optimizer_step=True, preconditioned=True)},
        (3, 3, 3, 3, 2, 3),
    ),
    "Meta(Exact), kept": (
        Meta,
        {"hypergradient": Exact(), "look_ahead": Kept()},
        (3, 2, 3, 3, 2, 2),
    ),
    "Meta(Exact), undone": (Meta, {"hypergradient": Exact()}, (3, 3, 4, 4, 3, 3)),
    "MetaNetwork (†)": (MetaNetwork, {}, (2, 1, 1, 1, 1, 4)),
    "MetaBoth (‡)": (
        MetaBoth,
        {"hypergradient": FiniteDifference()},
        (3, 3, 3, 3, 2, 5),
    ),
}


@pytest.mark.parametrize("name", PRICES)
def test_a_step_makes_these_passes_and_no_more(name):
    kind, options, expected = PRICES[name]
    assert passes(kind, **options) == expected


class Largest(TorchDispatchMode):
    """The most numbers that any operation returned."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not out._is_view():
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize(("n", "k"), [(30_000, 64), (64, 30_000), (5_000, 5_000)])
def test_no_array_of_the_quantizer_is_larger_than_its_results(n, k):
    """Neither distances nor one-hot codes: nothing grows with N × K."""
    dim = 8
    quantizer = VectorQuantizer(k, dim)
    z_e = torch.randn(n, dim, requires_grad=True)
    with Largest() as largest:
        found = quantizer(z_e)
        total = found.z_q.sum() + found.commitment_loss + found.codebook_loss
        torch.autograd.grad(total, [z_e, quantizer.codebook.weight])
    assert largest.numbers <= max(2**20, n * dim, k * dim)
