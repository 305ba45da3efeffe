"""Small smooth problems in float64 on which every gradient is checked."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mqvae import (
    Affine,
    Cosine,
    GumbelQuantizer,
    HyperNetwork,
    LinearMap,
    NoQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
    Rotation,
    VectorQuantizer,
    VQNetwork,
)


def squared_error(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def auxiliary(found: Quantized) -> Tensor:
    """The quantizer's own term of the loss, weighted; 0 without one."""
    loss = found.auxiliary_loss
    return torch.tensor(0.0) if loss is None else found.auxiliary_weight * loss


@dataclass
class Problem:
    network: VQNetwork
    loss: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    beta: float
    codebook_weight: float


def convolutional(groups: int, shared: bool, beta: float) -> Problem:
    """Reconstruction of images, with tanh so that everything is smooth."""
    encoder = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(5, 6, 3, padding=1)
    )
    decoder = nn.Sequential(
        nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1), nn.Tanh(), nn.Conv2d(5, 2, 3, padding=1)
    )
    quantizer = VectorQuantizer(7, 6, groups=groups, shared_codebook=shared)
    x = torch.randn(4, 2, 6, 6)
    return Problem(VQNetwork(encoder, quantizer, decoder), squared_error, x, x, beta, 1.0)


def classifier(groups: int, shared: bool, beta: float) -> Problem:
    """Cross-entropy behind a quantized hidden layer."""
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6))
    decoder = nn.Sequential(nn.Linear(6, 9), nn.Softplus(), nn.Linear(9, 4))
    quantizer = VectorQuantizer(5, 6, groups=groups, shared_codebook=shared)
    x, y = torch.randn(11, 5), torch.randint(4, (11,))
    return Problem(
        VQNetwork(encoder, quantizer, decoder), nn.functional.cross_entropy, x, y, beta, 0.7
    )


def linear(groups: int, shared: bool, beta: float) -> Problem:
    """z_e = A x, y = B z: small enough for formulas by hand."""
    encoder, decoder = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
    quantizer = VectorQuantizer(5, 6, groups=groups, shared_codebook=shared)
    x, y = torch.randn(9, 4), torch.randn(9, 3)
    return Problem(VQNetwork(encoder, quantizer, decoder), squared_error, x, y, beta, 1.3)


FAMILIES = {"convolutional": convolutional, "classifier": classifier, "linear": linear}
GROUPS = {"one": (1, False), "three": (3, False), "two-shared": (2, True)}


def make(family: str, groups: str = "one", beta: float = 0.1, seed: int = 0) -> Problem:
    """A problem in float64, its codebook taken from its embeddings so that codes spread."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        problem = FAMILIES[family](*GROUPS[groups], beta)
        problem.network.initialize_codebook(problem.x)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        # Off the centres, where the codebook loss has a gradient.
        weight = problem.network.quantizer.codebook.weight
        weight += 0.05 * torch.randn_like(weight)
    return problem


def _selecting(**options: object) -> Callable[[int, int], Quantizer]:
    return lambda codes, dim: VectorQuantizer(codes, dim, **options)


def _stages(codes: int, dim: int) -> Quantizer:
    return ResidualQuantizer([VectorQuantizer(codes, dim) for _ in range(3)])


def _mapped_stages(codes: int, dim: int) -> Quantizer:
    return ResidualQuantizer(
        [VectorQuantizer(codes, dim, codebook=m) for m in (LinearMap(), Affine())]
    )


_HYPER_NETWORK = HyperNetwork(embedding_dim=3, width=4)

# Each kind of quantizer of D dimensions with K codes.
QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    "table": _selecting(),
    "groups": _selecting(groups=3),
    "shared groups": _selecting(groups=2, shared_codebook=True),
    "rotation": _selecting(estimator=Rotation()),
    "cosine": _selecting(distance=Cosine()),
    "cosine groups": _selecting(distance=Cosine(), groups=2),
    "affine": _selecting(codebook=Affine()),
    "affine groups": _selecting(codebook=Affine(), groups=3),
    "linear map": _selecting(codebook=LinearMap()),
    "linear map cosine": _selecting(codebook=LinearMap(), distance=Cosine()),
    "hyper-network": _selecting(codebook=_HYPER_NETWORK),
    "residual": _stages,
    "residual maps": _mapped_stages,
    "gumbel": lambda codes, dim: GumbelQuantizer(codes, dim),
    "none": lambda codes, dim: NoQuantizer(dim),
}


def make_with(
    family: str,
    quantizer: Callable[[int, int], Quantizer],
    beta: float = 0.1,
    seed: int = 0,
) -> Problem:
    """The problem in float64 with a quantizer of another kind in its place."""
    problem = make(family, beta=beta, seed=seed)
    network, own = problem.network, problem.network.quantizer
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        network.quantizer = quantizer(own.num_codes, own.dim)
    finally:
        torch.set_default_dtype(default)
    if not isinstance(network.quantizer, GumbelQuantizer):
        network.initialize_codebook(problem.x)
    with torch.no_grad():
        # Off where parameters start, from which a map does not move its codewords in all ways.
        for parameter in network.quantizer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return problem
