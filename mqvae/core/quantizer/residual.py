"""Quantizers in stages."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.distance import Euclidean
from mqvae.core.estimator import Estimator, StraightThrough
from mqvae.core.passes import full
from mqvae.core.quantizer.base import CodebookQuantizer
from mqvae.core.quantizer.vector import VectorQuantizer
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError


class ResidualQuantizer(CodebookQuantizer):
    """Stages that quantize what the stages before left over; z_q is the sum of their codewords.

    The codebook loss is the sum of the stages' losses, each on its own residual. The commitment
    loss is one term, mean ‖z_e − sg(z_q)‖² with the sum of all stages, as for every quantizer here
    and as the hypergradients differentiate it. The source instead sums such terms over the stages,
    each with the codewords up to it: there the errors of early stages pull the encoder as well.

    Args:
        stages: Quantizers of the same sizes, Euclidean and without groups or replacement.

    Raises:
        ValueError: if there is no stage, two share a codebook, or they do not fit together.

    Example:
        >>> quantizer = ResidualQuantizer([VectorQuantizer(256, 64) for _ in range(4)])
        >>> quantizer(torch.randn(8, 7, 7, 64)).codes.shape
        torch.Size([8, 7, 7, 4])

    Source: Lee et al. 2022, "Autoregressive image generation using residual quantization".
    """

    def __init__(
        self, stages: Sequence[VectorQuantizer], *, estimator: Estimator | None = None
    ) -> None:
        super().__init__()
        if not stages:
            raise MqvaeError("a residual quantizer needs one stage or more, got none.")
        first = stages[0]
        for stage in stages:
            if (stage.num_codes, stage.dim, stage.groups) != (first.num_codes, first.dim, 1):
                raise MqvaeError(
                    "the stages of a residual quantizer must have the same num_codes and dim, and "
                    f"groups=1; got {stage} beside {first}."
                )
            if not isinstance(stage.distance, Euclidean) or stage.replacement is not None:
                raise MqvaeError(
                    "the stages of a residual quantizer must be Euclidean and without replacement: "
                    "what is left over has no place on a sphere, and its spread is the stage's own."
                )
            if not isinstance(stage.estimator, StraightThrough):
                raise MqvaeError(
                    "gradients pass a residual quantizer as a whole: give the estimator to "
                    f"ResidualQuantizer, not to its stages; got {type(stage.estimator).__name__}()."
                )
        owners: dict[int, int] = {}
        for number, stage in enumerate(stages):
            for tensor in [*stage.parameters(), *stage.buffers()]:
                other = owners.setdefault(id(tensor), number)
                if other != number:
                    raise MqvaeError(
                        f"stages {other} and {number} of a residual quantizer share a codebook: "
                        "each quantizes what the ones before left over, with codewords of its own. "
                        "Make a VectorQuantizer for each: [VectorQuantizer(…) for _ in range(4)], "
                        "not [VectorQuantizer(…)] * 4."
                    )
        self.num_codes = first.num_codes
        self.dim = first.dim
        self.groups = len(stages)
        self.stages = nn.ModuleList(stages)
        self.estimator = StraightThrough() if estimator is None else estimator

    def table(self) -> Tensor:
        return torch.cat([stage.table() for stage in self._stages()])  # (stages · K, D)

    def _stages(self) -> list[VectorQuantizer]:
        return [stage for stage in self.stages if isinstance(stage, VectorQuantizer)]

    @torch.no_grad()
    def nearest_codes(self, z_e: Tensor, table: Tensor) -> Tensor:
        self.check_width(z_e)
        left = z_e.to(torch.promote_types(z_e.dtype, torch.float32))
        codes = []
        for stage, book in zip(self._stages(), table.chunk(self.groups), strict=True):
            codes.append(stage.nearest_codes(left, book))
            left = left - stage.lookup(codes[-1], book)
        return torch.stack(codes, -1) if self.groups > 1 else codes[0]

    def _columns(self, codes: Tensor) -> Sequence[Tensor]:
        """The codes of each stage."""
        return codes.unbind(-1) if self.groups > 1 else (codes,)

    def _selected(self, codes: Tensor, table: Tensor) -> list[Tensor]:
        pairs = zip(self._columns(codes), table.chunk(self.groups), strict=True)
        return [nn.functional.embedding(chosen, book) for chosen, book in pairs]

    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        return torch.stack(self._selected(codes, table)).sum(0)

    @torch.no_grad()
    def transported(
        self, transport: Transport, codes: Tensor, z_e: Tensor, change: Tensor
    ) -> Tensor:
        """A stage goes with what the stages before leave of the change."""
        found = []
        for stage, chosen in zip(self._stages(), self._columns(codes), strict=True):
            found.append(stage.transported(transport, chosen, z_e, change))
            z_e = z_e - stage.lookup(chosen, stage.table())
            change = change - stage.lookup(chosen, found[-1])
        return torch.cat(found)

    def translated(self, by: Tensor) -> Tensor:
        return self.table() + by

    def translate(self, by: Tensor) -> None:
        for stage, own in zip(self._stages(), by.chunk(self.groups), strict=True):
            stage.translate(own)

    def codebook_loss(self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor) -> Tensor:
        total = z_e.new_zeros(())
        left = z_e
        for selected in self._selected(codes, table):
            total = total + (left - selected).square().mean()
            left = left - selected.detach()
        return total

    def forget_use(self) -> None:
        for stage in self._stages():
            stage.forget_use()

    def discard(self) -> None:
        for stage in self._stages():
            stage.discard()

    @torch.no_grad()
    def record(self, z_e: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        if not any(stage.updates for stage in self._stages()):
            return
        left = full(z_e)
        for stage, chosen in zip(self._stages(), self._columns(codes), strict=True):
            stage.record(left, chosen, mask)
            left = left - stage.lookup(chosen, stage.table())

    @torch.no_grad()
    def update(
        self,
        optimizer: Optimizer | None = None,
        *,
        task_gradient: Tensor | None = None,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for stage in self._stages():
            stage.update(optimizer)

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        self.check_width(z_e)
        left = z_e.detach()
        for stage in self._stages():
            stage.initialize(left, generator=generator)
            left = left - stage.decode(stage.encode(left))
