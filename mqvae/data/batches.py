"""Batches from images in memory: shuffled and endless to train, in order to evaluate."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mqvae.data.images import Images
from mqvae.data.order import order_of


class Batches:
    """Endless shuffled batches in [0, 1], resumable to the batch.

    The order of epoch e follows from (seed, e) alone; PyTorch's global random state is neither
    read nor changed. Each epoch leaves out the last images that fill no batch of all processes.

    Args:
        images: What to draw from.
        batch_size: Images in a batch of this process, 1 to len(images) // world_size.
        seed: The same on all processes.
        device: Where batches go; bytes travel, floats are made there.
        rank: This process; ranks take disjoint parts.
        world_size: How many processes there are.

    Raises:
        ValueError: if `batch_size`, `rank` or `world_size` is out of range.

    Example:
        >>> from mqvae.data import Batches, load
        >>> x, y = Batches(load("digits", "train"), 32, seed=0).next()
        >>> x.shape, y.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 1 <= world_size <= len(images):
            raise ValueError(
                f"world_size is out of range: expected 1 to {len(images)} processes "
                f"(one image each), got {world_size}; start fewer processes"
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is out of range: expected 0 to {world_size - 1}, got {rank}; "
                "give each process its own"
            )
        largest = len(images) // world_size
        if not 1 <= batch_size <= largest:
            raise ValueError(
                f"batch_size is out of range: expected 1 to {largest} ({len(images)} images of "
                f"{images.name} on {world_size} process(es)), got {batch_size}; "
                "choose another batch size (batch_size=N, --data.batch_size N)"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._position = 0
        self._order: tuple[int, Tensor] | None = None

    @property
    def epoch(self) -> int:
        """Epochs completed so far; also the number of the one the next batch is from."""
        return self._epoch

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each process gets from one epoch."""
        return len(self.images) // (self.batch_size * self.world_size)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: x (B, C, H, W) float32 in [0, 1] and y (B,) int64, on the device."""
        start = (self._position * self.world_size + self.rank) * self.batch_size
        indices = self._permutation()[start : start + self.batch_size]  # (B,)
        self._position += 1
        if self._position == self.batches_per_epoch:
            self._epoch, self._position = self._epoch + 1, 0
        return _deliver(self.images, indices, self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        return self.next()

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is: its epoch, and its position in that epoch."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken; the same images, sizes and seed are the caller's part.

        Raises:
            ValueError: if `state` has other keys or lies outside the epoch.
        """
        if set(state) != {"epoch", "position"}:
            raise ValueError(
                "the state of the batches does not fit: expected the keys epoch and position, "
                f"got {', '.join(map(str, state)) or 'none'}; take it from Batches.state_dict()"
            )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < self.batches_per_epoch:
            raise ValueError(
                "the state of the batches is out of range: expected an epoch from 0 and a "
                f"position of 0 to {self.batches_per_epoch - 1}, got {epoch} and {position}; "
                "go on with the images, batch size and processes it was taken with"
            )
        self._epoch, self._position = epoch, position

    def _permutation(self) -> Tensor:
        """The order of the current epoch, (N,) int64."""
        if self._order is None or self._order[0] != self._epoch:
            key = f"{self.seed},{self._epoch}"
            self._order = self._epoch, order_of(len(self.images), key)
        return self._order[1]


def in_order(
    images: Images,
    batch_size: int,
    *,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order: x (B, C, H, W) float32 in [0, 1] and y (B,) int64.

    The last batch may be short. Several processes take whole batches by turns.

    Raises:
        ValueError: if `batch_size` is less than 1.
    """
    # Checked here and not in the generator, whose body runs only when the first batch is taken.
    if batch_size < 1:
        raise ValueError(f"batch_size is out of range: expected at least 1, got {batch_size}")
    parts = torch.split(torch.arange(len(images), device="cpu"), batch_size)[rank::world_size]
    return (_deliver(images, indices, torch.device(device)) for indices in parts)


def _deliver(images: Images, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gather bytes, move them, and make floats of them on the device."""
    if device.type == "cuda":
        # Gathered straight into pinned memory, so that the copy runs beside the computation;
        # PyTorch's pinned-memory cache keeps a buffer until the copy from it is done.
        x = torch.empty((len(indices), *images.shape), dtype=torch.uint8, pin_memory=True)
        y = torch.empty(len(indices), dtype=torch.int64, pin_memory=True)
        torch.index_select(images.pixels, 0, indices, out=x)
        torch.index_select(images.labels, 0, indices, out=y)
    else:
        x, y = images.take(indices)
    x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
    # Divided, not multiplied by 1/255: then bytes come back exactly from round(255 x).
    return x.to(torch.float32).div_(255), y
