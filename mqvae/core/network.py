"""Encoder, quantizer, decoder: y = G_θ(h_C(F_φ(x))), Eq. 1."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from mqvae.core.distributed import ProcessGroup, agree, from_all_processes, within
from mqvae.core.passes import RandomState, call
from mqvae.core.quantizers import Quantized, Quantizer
from mqvae.errors import MqvaeError
from mqvae.shown import Shown


@dataclass(frozen=True, repr=False)
class NetworkOutput(Shown):
    """What a pass gives.

    Attributes:
        output: The decoder's output.
        quantized: What the quantizer made of the embeddings.
    """

    output: Tensor
    quantized: Quantized


class VQNetwork(nn.Module):
    """A vector-quantized network, its parameters in three named groups φ, C, θ.

    Args:
        encoder: F_φ. Its output holds the D embedding dimensions on axis `channel_axis`.
        quantizer: h_C.
        decoder: G_θ. Gets codewords laid out as the encoder's output was.
        channel_axis: 1 for convolutions, -1 for transformers.

    Raises:
        ValueError: if two of the three share a parameter.

    Example:
        >>> network = VQNetwork(nn.Conv2d(1, 64, 4, 4), VectorQuantizer(num_codes=512, dim=64),
        ...                     nn.ConvTranspose2d(64, 1, 4, 4))
        >>> network(torch.rand(8, 1, 28, 28)).output.shape
        torch.Size([8, 1, 28, 28])
    """

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, *, channel_axis: int = 1
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self.channel_axis = channel_axis
        if quantizer.channel_axis not in (None, -1):
            raise MqvaeError(
                "the network moves the channels: give channel_axis to VQNetwork, and none to its "
                f"quantizer, got {quantizer.channel_axis} there."
            )
        if quantizer.project_in is not None:
            raise MqvaeError(
                "codebook_dim= has projections of the quantizer's own, which no level trains: let "
                f"the encoder end and the decoder begin with {quantizer.dim} channels instead, and "
                "leave codebook_dim out."
            )
        quantizer.channel_axis = -1  # as the network hands embeddings over
        self.require_apart()

    def require_apart(self) -> None:
        """Refuse, by a ValueError, a parameter that two of φ, C, θ share."""
        seen: dict[int, tuple[str, str]] = {}
        for part in ("encoder", "quantizer", "decoder"):
            for name, parameter in getattr(self, part).named_parameters(prefix=part):
                other, known = seen.setdefault(id(parameter), (part, name))
                if other != part:
                    raise MqvaeError(
                        f"{known} and {name} are the same parameter, but encoder, quantizer and "
                        "decoder are trained apart, each by gradients of its own. Give each its "
                        "own parameter (weights may be tied within one of the three), or train "
                        "the module with GenericMeta, which knows no encoder and decoder."
                    )

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of any module; codewords by EMA, which are no parameters, are held still as well."""
        self.quantizer.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """φ."""
        return self.encoder.parameters()

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """θ."""
        return self.decoder.parameters()

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """φ and θ, the lower level."""
        return chain(self.encoder.parameters(), self.decoder.parameters())

    def codebook_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of C, the upper level."""
        return self.quantizer.parameters()

    def channels_last(self, features: Tensor) -> Tensor:
        """The encoder's layout → (..., D)."""
        return features.movedim(self.channel_axis, -1).contiguous()

    def channels_back(self, z: Tensor) -> Tensor:
        """(..., D) → the encoder's layout."""
        return z.movedim(-1, self.channel_axis)

    def placed(self, features: Tensor) -> Tensor:
        """Project the encoder's output to z_e, (..., D), where it is compared with codewords."""
        z_e = self.channels_last(features)
        self.quantizer.check_width(z_e)
        return self.quantizer.place(z_e)

    def embed(self, x: Tensor) -> Tensor:
        """z_e = F_φ(x), channels last and placed, (..., D)."""
        return self.placed(self.encoder(x))

    def forward(self, x: Tensor) -> NetworkOutput:
        """A whole pass, y = G_θ(h_C(F_φ(x)))."""
        quantized = self.quantizer(self.channels_last(self.encoder(x)))
        return NetworkOutput(self.decoder(self.channels_back(quantized.z_q)), quantized)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of inputs."""
        return self.quantizer.encode(self.channels_last(self.encoder(x)))

    def decode(self, codes: Tensor) -> Tensor:
        """The decoder's output for codes."""
        return self.decoded(self.quantizer.decode(codes))

    def decoded(self, z_q: Tensor) -> Tensor:
        """The decoder's output for vectors (B, ..., D), which come to it in its own type."""
        types = (p.dtype for p in self.decoder.parameters() if p.is_floating_point())
        return self.decoder(self.channels_back(z_q.to(next(types, z_q.dtype))))

    @torch.no_grad()
    def initialize_codebook(
        self,
        x: Tensor | Iterable[Tensor],
        *,
        generator: torch.Generator | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Set the codebook to the k-means centres of the embeddings of `x`.

        Leaves everything but the codebook as it was, batch-norm statistics included; how long the
        old codewords went unused is forgotten with them, and `Ema` begins its averages anew. An
        optimizer's moments stay: `update.forget(torch.arange(rows))` clears them. Several
        processes pool their embeddings and end with the same codebook.

        Args:
            x: Inputs, or batches of them; some ten embeddings per codeword are plenty.
            generator: Source of k-means' randomness; the global one if None.
            process_group: The processes that pool them; None for all that there are.

        Raises:
            ValueError: if an embedding is not finite.
        """
        found = []
        for batch in [x] if isinstance(x, Tensor) else x:
            with RandomState(batch.device).replayed():
                z_e = self.channels_last(call(self.encoder, None, batch))
            found.append(z_e.flatten(0, -2))
        with within(process_group):
            pooled = from_all_processes(torch.cat(found))
            self.quantizer.initialize(pooled, generator=generator)
            agree([self.quantizer])


def quantizers(module: nn.Module) -> dict[str, Quantizer]:
    """The quantizers inside a module by their names there; stages inside one are its own."""
    found: dict[str, Quantizer] = {}
    for name, part in module.named_modules():
        inside = any(not other or name.startswith(f"{other}.") for other in found)
        if isinstance(part, Quantizer) and not inside:
            found[name] = part
    return found


def codebook_parameters(module: nn.Module) -> list[nn.Parameter]:
    """C, the upper level: what the quantizers inside a module train, their projections aside."""
    if isinstance(module, VQNetwork):
        return list(module.codebook_parameters())
    found: dict[int, nn.Parameter] = {}
    for quantizer in quantizers(module).values():
        found |= {
            id(p): p
            for name, p in quantizer.named_parameters()
            if not name.startswith(("project_in.", "project_out."))
        }
    return list(found.values())


def network_parameters(module: nn.Module) -> list[nn.Parameter]:
    """φ and θ, the lower level: all parameters of a module but those of its codebooks."""
    if isinstance(module, VQNetwork):
        return list(module.network_parameters())
    above = {id(p) for p in codebook_parameters(module)}
    return [p for p in module.parameters() if id(p) not in above]
