"""Codebooks initialized by k-means of the first embeddings."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.distributed import agree, from_all_processes, sums_across_processes
from mqvae.core.quantizers.selecting import CodebookQuantizer
from mqvae.errors import MqvaeError

WANTED = 10  # embeddings a codeword that k-means begins with
LONGEST = 50  # updates after which it begins with those that there are


class BeginningQuantizer(CodebookQuantizer):
    """A quantizer whose codebook may wait for the first embeddings (`initialize="kmeans"`).

    Until then z_q is the embeddings as they are, in training: a decoder that has seen random
    codewords has something to unlearn.
    """

    awaits: bool = False  # whether the codebook has yet to begin
    initialized: Tensor
    _heard: tuple[Tensor, Tensor | None] | None = None

    def await_embeddings(self, how: str | None) -> None:
        """Begin as an argument `initialize` says."""
        if how not in (None, "kmeans"):
            raise MqvaeError(f'initialize must be "kmeans" or None, got {how!r}.')
        if how is not None:
            self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
            self.awaits = True
            self._seen: list[Tensor] = []
            self._updates = 0

    def hear(self, z_e: Tensor, mask: Tensor | None) -> None:
        """Keep the placed embeddings of a pass, (..., D), for the beginning."""
        if self.awaits:
            self._heard = z_e, mask

    def discard(self) -> None:
        self._heard = None

    @torch.no_grad()
    def update(self, optimizer: Optimizer | None = None) -> None:
        if self.awaits:
            self._begin()
            self.discard()
        else:
            self._learn(optimizer)

    def _begin(self) -> None:
        """Take the last pass's embeddings; begin, in all processes at once, if there are enough."""
        if self._heard is not None:
            z_e, mask = self._heard
            self._seen.append(z_e.flatten(0, -2) if mask is None else z_e[mask])
        found = torch.cat(self._seen) if self._seen else self.table().new_zeros(0, self.dim)
        self._updates += 1
        # Counting waits for a GPU, in the first steps alone.
        (total,) = sums_across_processes([torch.tensor(len(found), device=found.device)])
        enough = int(total) >= WANTED * self.num_codes or self._updates >= LONGEST
        if int(total) and enough:
            self.initialize(from_all_processes(found))
            agree([self])

    @abstractmethod
    def _learn(self, optimizer: Optimizer | None) -> None:
        """What `update` does once the codebook has begun."""

    def begun(self) -> None:
        """The codebook has been set: nothing is awaited any more."""
        if self.awaits:
            self.awaits = False
            self._seen = []
            self.initialized.fill_(True)

    def _unquantized(self, z_e: Tensor) -> Tensor | None:
        if self.awaits and self.training:
            return torch.ones((), dtype=torch.bool, device=z_e.device)
        return super()._unquantized(z_e)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        begins = hasattr(self, "initialized")
        if begins:  # what was saved without it has a codebook all the same
            state_dict.setdefault(f"{prefix}initialized", torch.ones((), dtype=torch.bool))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if begins:
            self.awaits = not bool(self.initialized)
