"""What a user would otherwise do: other packages and plain PyTorch, as steps to be timed."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from torch.optim import AdamW

from mqvae.core.network import VQNetwork

BETA = 0.1


class NotHere(Exception):
    """A package to compare with is not installed, or does not run here."""


def plain_loss(
    encode: Callable[[Tensor], Tensor], table: Tensor, decode: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """L of Eq. 6, as it is usually written."""
    features = encode(x)
    z_e = features.movedim(1, -1)
    with torch.no_grad():
        codes = torch.cdist(z_e.flatten(0, -2), table).argmin(1).view(z_e.shape[:-1])
    z_q = table[codes]
    commitment, codebook = mse_loss(z_e, z_q.detach()), mse_loss(z_q, z_e.detach())
    z = z_e + (z_q - z_e).detach()
    return mse_loss(decode(z.movedim(-1, 1)), x) + BETA * commitment + codebook


def optimizers(network: VQNetwork) -> dict[str, AdamW]:
    """The two optimizers of all contestants."""
    return {
        "lower": AdamW(network.network_parameters(), lr=3e-4, weight_decay=1e-4),
        "upper": AdamW(network.codebook_parameters(), lr=6e-2, weight_decay=1e-4),
    }


def double_backward(network: VQNetwork, x: Tensor) -> Callable[[], None]:
    """Algorithm 1 with `create_graph=True` through the virtual step of the usual loss, ξ = 1.

    What it finds is the direct term alone: all that φ' knows of C has come through a `detach`.
    Reverse mode that finds the indirect term too is `Unrolled(1)`.
    """
    (table,) = network.codebook_parameters()
    levels = optimizers(network)
    encoder, decoder = network.encoder, network.decoder
    names = [n for n, _ in encoder.named_parameters()], [n for n, _ in decoder.named_parameters()]
    weights = list(network.network_parameters())

    def loss(at: Sequence[Tensor]) -> Tensor:
        phi = dict(zip(names[0], at, strict=False))
        theta = dict(zip(names[1], at[len(phi) :], strict=True))
        return plain_loss(
            lambda x: functional_call(encoder, phi, (x,)),
            table,
            lambda z: functional_call(decoder, theta, (z,)),
            x,
        )

    def step() -> None:
        here = torch.autograd.grad(loss(weights), weights, create_graph=True)
        ahead = [w - g for w, g in zip(weights, here, strict=True)]
        (table.grad,) = torch.autograd.grad(loss(ahead), [table])
        levels["upper"].step()
        for weight, g in zip(weights, torch.autograd.grad(loss(weights), weights), strict=True):
            weight.grad = g
        levels["lower"].step()

    return step


def betty(network: VQNetwork, x: Tensor, *, roll_back: bool) -> Callable[[], None]:
    """The same with the package betty-ml: Eq. 13, looking ahead by AdamW's own step.

    It runs unchanged, but of two faults of version 0.1.1 the first is mended here: its roll-back
    keeps references and so rolls nothing back, and its difference leaves the weights displaced by
    the radius.

    Raises:
        NotHere: if betty-ml is not installed.
    """
    try:
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.logging.logger_base import get_logger
        from betty.problems import ImplicitProblem
    except ImportError as error:
        raise NotHere("betty-ml is not installed: see benchmarks/notes.md") from error
    get_logger().setLevel(logging.ERROR)

    class Below(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            encoder, decoder = self.module
            return plain_loss(encoder, self.codebook.module.weight, decoder, batch[0])

        def cache_states(self) -> None:
            # Theirs keeps references, which change with the weights: nothing is rolled back.
            super().cache_states()
            for cache in ("module_state_dict_cache", "opitmizer_state_dict_cache"):
                setattr(self, cache, deepcopy(getattr(self, cache)))

    class Above(ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            encoder, decoder = self.network.module
            return plain_loss(encoder, self.module.weight, decoder, batch[0])

    class Forever:
        def __iter__(self) -> Iterator[tuple[Tensor]]:
            return itertools.repeat((x,))

    device, levels = str(x.device), optimizers(network)
    below = Below(
        "network",
        Config(type="darts", unroll_steps=1),
        nn.ModuleList([network.encoder, network.decoder]),
        levels["lower"],
        train_data_loader=Forever(),
        device=device,
    )
    above = Above(
        "codebook",
        Config(type="darts", retain_graph=True),
        network.quantizer.codebook,
        levels["upper"],
        train_data_loader=Forever(),
        device=device,
    )
    engine = Engine(
        [below, above],
        EngineConfig(roll_back=roll_back),
        dependencies={"l2u": {below: [above]}, "u2l": {above: [below]}},
    )

    def step() -> None:
        engine.global_step += 1
        engine.train_step()

    return step


Quantizer = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Embeddings (N, D) → (ẑ, codes, the weighted losses)."""


def their_quantizer(table: Tensor) -> tuple[nn.Module, Quantizer, nn.Parameter]:
    """`VectorQuantize` of vector-quantize-pytorch with the table as its codebook, (K, D).

    Its codebook learned by gradient, gradients passed by the identity, as here.

    Raises:
        NotHere: if vector-quantize-pytorch is not installed.
    """
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise NotHere(
            "vector-quantize-pytorch is not installed: pip install vector-quantize-pytorch"
        ) from error
    theirs = VectorQuantize(
        dim=table.shape[1],
        codebook_size=len(table),
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=False,
        commitment_weight=BETA,
    ).to(table.device)
    codebook: nn.Parameter = theirs._codebook.embed  # (1, K, D)
    with torch.no_grad():
        codebook.copy_(table[None])

    def quantize(z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, codes, loss = theirs(z_e[None])
        return z_q[0], codes[0], loss.sum()

    return theirs, quantize, codebook
