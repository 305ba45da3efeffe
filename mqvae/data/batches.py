"""Batches from images: shuffled and endless to train, in order to evaluate."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from mqvae.data.ahead import ahead
from mqvae.data.images import Images, InMemory, nothing_to_cut
from mqvae.data.order import draws_of, order_of
from mqvae.errors import MqvaeError

Place = tuple[int, int]  # an epoch, and a position in it


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
        random_crop: Cut each square at a place of its own along the longer side, not at the centre.
        random_flip: Mirror every other image, as chance has it. Both follow from the seed, the
            epoch and the image's position in it alone.

    Raises:
        ValueError: if `batch_size`, `rank` or `world_size` is out of range, or nothing can be cut.

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
        random_crop: bool = False,
        random_flip: bool = False,
    ) -> None:
        if not 1 <= world_size <= len(images):
            raise MqvaeError(
                f"world_size is out of range: expected 1 to {len(images)} processes "
                f"(one image each), got {world_size}; start fewer processes"
            )
        if not 0 <= rank < world_size:
            raise MqvaeError(
                f"rank is out of range: expected 0 to {world_size - 1}, got {rank}; "
                "give each process its own"
            )
        largest = len(images) // world_size
        if not 1 <= batch_size <= largest:
            raise MqvaeError(
                f"batch_size is out of range: expected 1 to {largest} ({len(images)} images of "
                f"{images.name} on {world_size} process(es)), got {batch_size}; "
                "choose another batch size (batch_size=N, --batch-size N)"
            )
        whole = getattr(images, "whole", images)
        if random_crop and isinstance(whole, InMemory):
            raise MqvaeError(f"{nothing_to_cut(images.name)} (random_crop=False)")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.random_crop = random_crop
        self.random_flip = random_flip
        self._epoch = 0
        self._position = 0
        self._order: tuple[int, Tensor, Tensor | None] | None = None
        self._coming: Iterator[tuple[Tensor, Tensor, Tensor | None]] | None = None

    @property
    def epoch(self) -> int:
        """Epochs completed so far; also the number of the one the next batch is from."""
        return self._epoch

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each process gets from one epoch."""
        return len(self.images) // (self.batch_size * self.world_size)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: x (B, C, H, W) or (B, D) float32 and y (B,) int64, on the device."""
        if self._coming is None:
            places = self._places((self._epoch, self._position))
            self._coming = ahead(self._gather, places, self.images.ahead)
        try:
            x, y, mirrored = next(self._coming)
        except BaseException:
            self._coming = None  # a generator that has raised is at its end
            raise
        self._epoch, self._position = self._after((self._epoch, self._position))
        x, y = _deliver(x, y, self.device)
        if mirrored is not None:
            x = torch.where(mirrored.to(self.device)[:, None, None, None], x.flip(-1), x)
        return x, y

    def skip(self) -> None:
        """Skip the next batch."""
        self.close()
        self._epoch, self._position = self._after((self._epoch, self._position))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        return self.next()

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is: its epoch, and its position in that epoch."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken, given the same images, sizes and seed.

        Raises:
            ValueError: if `state` has other keys or lies outside the epoch.
        """
        if set(state) != {"epoch", "position"}:
            raise MqvaeError(
                "the state of the batches does not fit: expected the keys epoch and position, "
                f"got {', '.join(map(str, state)) or 'none'}; take it from Batches.state_dict()"
            )
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < self.batches_per_epoch:
            raise MqvaeError(
                "the state of the batches is out of range: expected an epoch from 0 and a "
                f"position of 0 to {self.batches_per_epoch - 1}, got {epoch} and {position}; "
                "resume with the images, batch size and processes it was taken with"
            )
        self.close()
        self._epoch, self._position = epoch, position

    def close(self) -> None:
        """Stop prefetching; `next` still works."""
        if self._coming is not None:
            self._coming.close()  # type: ignore[attr-defined]
        self._coming = None

    def _places(self, place: Place) -> Iterator[Place]:
        while True:
            yield place
            place = self._after(place)

    def _after(self, place: Place) -> Place:
        epoch, position = place
        return (epoch, position + 1) if position + 1 < self.batches_per_epoch else (epoch + 1, 0)

    def _gather(self, place: Place) -> tuple[Tensor, Tensor, Tensor | None]:
        """The bytes of a batch, its labels, and which of them are mirrored."""
        epoch, position = place
        order, draws = self._of_epoch(epoch)
        start = (position * self.world_size + self.rank) * self.batch_size
        mine = slice(start, start + self.batch_size)
        offsets = mirrored = None
        if draws is not None:
            offsets = draws[mine, 0] if self.random_crop else None
            mirrored = draws[mine, 1] < 0.5 if self.random_flip else None
        x, y = _gather(self.images, order[mine], self.device, offsets)
        return x, y, mirrored

    def _of_epoch(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """The order of an epoch, (N,) int64, and what is drawn for each position, (N, 2)."""
        if self._order is None or self._order[0] != epoch:
            key = f"{self.seed},{epoch}"
            order, draws = order_of(len(self.images), key), None
            if self.random_crop or self.random_flip:
                draws = draws_of((len(self.images), 2), f"{key},crop and flip")
            self._order = epoch, order, draws
        return self._order[1:]


def fitting(most: int, shape: Sequence[int], *, side: int = 64) -> int:
    """As many images as have the pixels of `most` of side × side; no more, and one at least.

    Small images are taken in large batches, which at 256 × 256 no memory would hold.

    Args:
        most: At most so many.
        shape: Of an image, (C, H, W), or of a vector, (D,).
        side: The smaller, the less memory it takes.
    """
    return max(1, min(most, most * side * side // math.prod(shape[1:])))


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
        raise MqvaeError(f"batch_size is out of range: expected at least 1, got {batch_size}")
    parts = torch.split(torch.arange(len(images), device="cpu"), batch_size)[rank::world_size]
    return these(images, parts, device=device)


def these(
    images: Images, parts: Iterable[Tensor], *, device: str | torch.device = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch for each of some indices (n,), in order; as `in_order` gives them."""
    where = torch.device(device)
    taken = ahead(partial(_gather, images, device=where), parts, images.ahead)
    return (_deliver(x, y, where) for x, y in taken)


def _gather(
    images: Images, indices: Tensor, device: torch.device, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bytes and labels, where they can be moved to the device from."""
    if device.type != "cuda":
        return images.take(indices, offsets=offsets)
    # Gathered straight into pinned memory, so that the copy runs beside the computation;
    # PyTorch's pinned-memory cache keeps a buffer until the copy from it is done. The device is
    # said because a thread that takes ahead begins with the first one.
    with torch.cuda.device(device) if device.index is not None else nullcontext():
        out = torch.empty((len(indices), *images.shape), dtype=images.dtype, pin_memory=True)
        x, y = images.take(indices, offsets=offsets, out=out)
        return x, y.pin_memory()


def _deliver(x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Move bytes, and make floats of them on the device; floats stay what they are."""
    x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
    if x.is_floating_point():
        return x, y
    # Divided, not multiplied by 1/255: then bytes come back exactly from round(255 x).
    return x.to(torch.float32).div_(255), y
