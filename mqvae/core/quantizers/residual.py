"""Quantizers in stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.distance import Euclidean
from mqvae.core.estimator import Estimator, StraightThrough
from mqvae.core.passes import full
from mqvae.core.quantizers.beginning import BeginningQuantizer
from mqvae.core.quantizers.quantized import mean_square
from mqvae.core.quantizers.vector import VectorQuantizer
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError


class ResidualQuantizer(BeginningQuantizer):
    """Stages that quantize what the stages before left over; z_q is the sum of their codewords.

    The codebook loss is the sum of the stages' losses, each on its own residual. The commitment
    loss is one term, mean ‖z_e − sg(z_q)‖² with the sum of all stages, as for every quantizer here
    and as the hypergradients differentiate it. The source instead sums such terms over the stages,
    each with the codewords up to it: there the errors of early stages pull the encoder as well.

    Args:
        stages: Quantizers of the same sizes, Euclidean and without groups. Each has replacement,
            EMA and rate of its own.
        estimator: How gradients pass the whole: `StraightThrough()` or `Rotation()`.
        shared_codebook: All stages choose from one codebook: `[VectorQuantizer(…)] * 4`.
        dropout: Probability that a sample is quantized by its first stages alone in training, as
            many as chance says, so that a prefix of the codes is worth something. Codes of the
            others are −1, which `decode` takes too. For plain loops and `Joint`.
        channel_axis: The axis of the channels, 1 for feature maps (B, D, H, W); None for the last,
            and to refuse embeddings whose axis 1 could be them.
        initialize: "kmeans" sets the codebooks from the embeddings of the first updates, each stage
            from what the ones before left over; until then z_q is the embeddings.

    Raises:
        ValueError: if there is no stage, two share a codebook unasked, they do not fit together, or
            `dropout` is not in [0, 1].

    Example:
        >>> quantizer = ResidualQuantizer([VectorQuantizer(256, 64) for _ in range(4)])
        >>> quantizer(torch.randn(8, 7, 7, 64)).codes.shape
        torch.Size([8, 7, 7, 4])

    Source: Lee et al. 2022, "Autoregressive image generation using residual quantization";
    Zeghidour et al. 2021, "SoundStream", for dropout.
    """

    def __init__(
        self,
        stages: Sequence[VectorQuantizer],
        *,
        estimator: Estimator | None = None,
        shared_codebook: bool = False,
        dropout: float = 0.0,
        channel_axis: int | None = None,
        initialize: str | None = None,
    ) -> None:
        if not stages:
            raise MqvaeError("a residual quantizer needs one stage or more, got none.")
        if not 0 <= dropout <= 1:
            raise MqvaeError(f"dropout must lie in [0, 1], got {dropout}.")
        for stage in stages:
            _check_fits(stage, stages[0])
        _check_sharing(stages, shared_codebook)
        super().__init__(
            stages[0].num_codes, stages[0].dim, groups=len(stages), channel_axis=channel_axis
        )
        self.shared_codebook = shared_codebook
        self.dropout = dropout
        self.least_code = -1 if dropout else 0
        self.stages = nn.ModuleList(stages[:1] if shared_codebook else stages)
        self.estimator = StraightThrough() if estimator is None else estimator
        self.await_embeddings(initialize)

    def table(self) -> Tensor:
        # (stages · K, D), or (K, D) where all share it
        return torch.cat([stage.table() for stage in self._own()])

    def _own(self) -> list[VectorQuantizer]:
        """Each quantizer once."""
        return [stage for stage in self.stages if isinstance(stage, VectorQuantizer)]

    def _stages(self) -> list[VectorQuantizer]:
        return self._own() * (self.groups if self.shared_codebook else 1)

    def _books(self, table: Tensor) -> Sequence[Tensor]:
        """The codebook of each stage, (K, D)."""
        return [table] * self.groups if self.shared_codebook else table.chunk(self.groups)

    @torch.no_grad()
    def nearest_codes(self, z_e: Tensor, table: Tensor) -> Tensor:
        self.check_width(z_e)
        left = full(z_e)
        codes = []
        for stage, book in zip(self._stages(), self._books(table), strict=True):
            codes.append(stage.nearest_codes(left, book))
            left = left - stage.lookup(codes[-1], book)
        return torch.stack(codes, -1) if self.groups > 1 else codes[0]

    def choose(self, z_e: Tensor, table: Tensor) -> Tensor:
        codes = self.nearest_codes(z_e, table)
        if not (self.dropout and self.training and self.groups > 1):
            return codes
        samples = (len(codes), *[1] * (codes.ndim - 1))
        chance = torch.rand(2, *samples, device=codes.device)
        stays = (chance[0] * self.groups).long() + 1  # at least the first stage
        stays = stays.where(chance[1] < self.dropout, self.groups)
        return codes.masked_fill(torch.arange(self.groups, device=codes.device) >= stays, -1)

    def _columns(self, codes: Tensor) -> Sequence[Tensor]:
        """The codes of each stage."""
        return codes.unbind(-1) if self.groups > 1 else (codes,)

    def _selected(self, codes: Tensor, table: Tensor) -> list[Tensor]:
        return list(map(self._words, self._columns(codes), self._books(table)))

    def _words(self, codes: Tensor, book: Tensor) -> Tensor:
        """Codewords of a stage; nothing where it is left out."""
        if not self.dropout:
            return nn.functional.embedding(codes, book)
        found = nn.functional.embedding(codes.clamp(min=0), book)
        return found.where(codes[..., None] >= 0, 0)

    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        return torch.stack(self._selected(codes, table)).sum(0)

    @torch.no_grad()
    def scatter(self, codes: Tensor, values: Tensor) -> Tensor:
        flat = values.reshape(-1, self.dim)
        found = []
        for chosen in self._columns(codes):
            sums = flat.new_zeros(self.num_codes, self.dim)
            found.append(sums.index_add_(0, chosen.flatten(), flat))
        return torch.stack(found).sum(0) if self.shared_codebook else torch.cat(found)

    def _taking_part(self, codes: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which embeddings a stage quantizes, of those of a mask."""
        if not self.dropout:
            return mask
        return codes >= 0 if mask is None else mask & (codes >= 0)

    @torch.no_grad()
    def transported(
        self, transport: Transport, codes: Tensor, z_e: Tensor, change: Tensor
    ) -> Tensor:
        """A stage goes with what the stages before leave of the change."""
        self.require_movable()
        found = []
        for stage, chosen in zip(self._stages(), self._columns(codes), strict=True):
            found.append(stage.transported(transport, chosen, z_e, change))
            z_e = z_e - stage.lookup(chosen, stage.table())
            change = change - stage.lookup(chosen, found[-1])
        return torch.cat(found)

    def translated(self, by: Tensor) -> Tensor:
        return self.table() + by

    def require_movable(self) -> None:
        if self.shared_codebook:
            raise MqvaeError(
                "a codeword that all stages share cannot go with the embeddings of one: give each "
                "stage a codebook of its own, or train by Joint."
            )
        for stage in self._own():
            stage.require_movable()

    def translate(self, by: Tensor) -> None:
        self.require_movable()
        for stage, own in zip(self._stages(), by.chunk(self.groups), strict=True):
            stage.translate(own)

    def codebook_loss(
        self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        total, left = z_e.new_zeros(()), z_e
        for chosen, selected in zip(
            self._columns(codes), self._selected(codes, table), strict=True
        ):
            total = total + mean_square(left - selected, self._taking_part(chosen, mask))
            left = left - selected.detach()
        return total

    def forget_use(self) -> None:
        for stage in self._own():
            stage.forget_use()

    def discard(self) -> None:
        super().discard()
        for stage in self._own():
            stage.discard()

    @torch.no_grad()
    def record(self, z_e: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        self.hear(z_e, mask)
        if not any(stage.updates for stage in self._own()):
            return
        left = full(z_e)
        for stage, chosen in zip(self._stages(), self._columns(codes), strict=True):
            stage.record(left, chosen.clamp(min=0), self._taking_part(chosen, mask))
            left = left - self._words(chosen, stage.table())

    def _learn(self, optimizer: Optimizer | None) -> None:
        for stage in self._own():
            stage.update(optimizer)

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        self.check_width(z_e)
        left = z_e.detach()
        for stage in self._own():
            stage.initialize(left, generator=generator)
            left = left - stage.decode(stage.encode(left))
        self.begun()


def _check_fits(stage: VectorQuantizer, first: VectorQuantizer) -> None:
    """Refuse, by a ValueError, a stage that does not fit the first."""
    if (stage.num_codes, stage.dim, stage.groups) != (first.num_codes, first.dim, 1):
        raise MqvaeError(
            "the stages of a residual quantizer must have the same num_codes and dim, and "
            f"groups=1; got {stage} beside {first}."
        )
    if not isinstance(stage.distance, Euclidean):
        raise MqvaeError(
            "the stages of a residual quantizer must be Euclidean: what is left over has no place "
            "on a sphere, and its length is what the next stage is for."
        )
    if not stage.estimator.straight:
        raise MqvaeError(
            "gradients pass a residual quantizer as a whole: give the estimator to "
            f"ResidualQuantizer, not to its stages; got {type(stage.estimator).__name__}()."
        )
    if stage.awaits or stage.channel_axis is not None or stage.project_in is not None:
        raise MqvaeError(
            "a residual quantizer begins and is laid out as a whole: give initialize and "
            "channel_axis to ResidualQuantizer, and codebook_dim to nobody."
        )


def _check_sharing(stages: Sequence[VectorQuantizer], wanted: bool) -> None:
    """Refuse, by a ValueError, stages that share a codebook unasked, or do not as asked."""
    if wanted:
        if any(stage is not stages[0] for stage in stages):
            raise MqvaeError(
                "shared_codebook=True takes one quantizer for all stages: [VectorQuantizer(…)] * 4."
            )
        return
    owners: dict[int, int] = {}
    for number, stage in enumerate(stages):
        for tensor in [*stage.parameters(), *stage.buffers()]:
            other = owners.setdefault(id(tensor), number)
            if other != number:
                raise MqvaeError(
                    f"stages {other} and {number} of a residual quantizer share a codebook: "
                    "each quantizes what the ones before left over, with codewords of its own. "
                    "Make a VectorQuantizer for each: [VectorQuantizer(…) for _ in range(4)], "
                    "not [VectorQuantizer(…)] * 4, unless with shared_codebook=True."
                )
