"""Images that stay on the disk, decoded as they are asked for."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mqvae.data.decoding import decode, guarded, head
from mqvae.data.files import Files, Reading
from mqvae.data.images import Images, Indices, InMemory, check_memory, fits_memory
from mqvae.errors import MqvaeError

_RESIZE = "give a side to resize to (side=N, --size N)"
_MOST_WORKERS = 8
_MOST_IN_A_TASK = 16  # so that the first bad file is soon said
_PATIENCE = 1_000  # images in a row that cannot be read


class Stored(Images):
    """Images on the disk; other arguments as the attributes of `Images`.

    Args:
        files: Where they are.
        labels: (N,) int64.
        reading: How they become images; side and channels have to be settled.
    """

    ahead = 2
    files: Files

    def __init__(
        self,
        files: Files,
        labels: Tensor,
        reading: Reading,
        *,
        name: str,
        split: str,
        source: str,
        remarks: tuple[str, ...] = (),
    ) -> None:
        assert reading.side is not None and reading.channels is not None
        self.files = files
        self.labels = labels
        self.name = name
        self.split = split
        self.source = source
        self.names = files.names
        self.remarks = remarks
        self.workers = workers_of(reading)
        self._shape = reading.channels, reading.side, reading.side
        self._skip = reading.on_error == "skip"
        self._resize = reading.resize
        self._bad: set[int] = set()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def skipped(self) -> Sequence[str]:
        with self._lock:
            return [self.names[index] for index in sorted(self._bad)]

    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"expected indices of 0 to {len(self) - 1}")
        if out is None:
            out = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        rows, wanted = out.numpy(), indices.tolist()
        where = [0.5] * len(wanted) if offsets is None else offsets.tolist()

        def read(i: int) -> int:
            return self._read(wanted[i], where[i], rows[i])

        if self._pool is None:  # Pillow decodes without holding Python's lock
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        used = in_order_of(self._pool, read, len(wanted), self.workers)
        return out, self.labels.index_select(0, torch.tensor(used, dtype=torch.int64))

    def in_memory(self) -> InMemory:
        """The same, decoded."""
        check_memory(self.name, len(self), *self.shape[:2], may_stay=True)
        pixels, labels = self.take(torch.arange(len(self)))
        return InMemory(
            name=self.name,
            split=self.split,
            pixels=pixels,
            labels=labels,
            source=self.source,
            names=tuple(self.names),
            skipped=tuple(self.skipped),
            files=self.files,
            remarks=self.remarks,
        )

    def _read(self, index: int, offset: float, row: np.ndarray) -> int:
        """Decode one into `row`; returns which one it was in the end."""
        for tried in range(min(len(self), _PATIENCE)):
            at = (index + tried) % len(self)
            if at in self._bad:
                continue
            try:
                row[:] = guarded(
                    lambda at=at: decode(  # type: ignore[misc]
                        *(self.files.open(at), self._shape[1], self._shape[0]),
                        offset=offset,
                        resize=self._resize,
                    ),
                    partial(self.files.where, at),
                )
                return at
            except (ValueError, FileNotFoundError):
                if not self._skip:
                    raise
                with self._lock:
                    self._bad.add(at)
        raise MqvaeError(
            f"{self.files.where(index)} cannot be read, nor can those after it: expected one of "
            f"{min(len(self), _PATIENCE):,} images in a row to be one; check {self.source}, and "
            "leave out --data.on_error skip to see what is wrong"
        )


def in_order_of(
    pool: ThreadPoolExecutor, function: Callable[[int], int], count: int, workers: int
) -> list[int]:
    """`function` of 0 … count − 1, in order; the first error ends it."""
    each = max(1, min(_MOST_IN_A_TASK, count // (4 * workers)))

    def some(start: int) -> list[int]:
        return [function(i) for i in range(start, min(start + each, count))]

    tasks: list[Future[list[int]]] = [pool.submit(some, i) for i in range(0, count, each)]
    try:
        return [value for task in tasks for value in task.result()]
    except BaseException:
        # Do not make the user wait for a hundred thousand files after the first bad one.
        for task in tasks:
            task.cancel()
        raise


def images_of(
    files: Files,
    labels: np.ndarray,
    reading: Reading,
    *,
    name: str,
    split: str,
    source: str,
    remarks: Iterable[str] = (),
) -> Images:
    """Images of files, in memory or not; side and channels have to be settled.

    Raises:
        ValueError: if they are to be in memory, and one cannot be read or they do not fit.
    """
    numbers = torch.from_numpy(labels.astype(np.int64))
    stored = Stored(
        files, numbers, reading, name=name, split=split, source=source, remarks=tuple(remarks)
    )
    fits = fits_memory(len(files), *stored.shape[:2])
    return stored.in_memory() if (fits if reading.memory is None else reading.memory) else stored


def workers_of(reading: Reading) -> int:
    """How many threads decode."""
    if reading.workers is not None:
        return reading.workers
    linux = hasattr(os, "sched_getaffinity")
    return min(_MOST_WORKERS, (len(os.sched_getaffinity(0)) if linux else os.cpu_count()) or 1)


def settle(files: Files, reading: Reading) -> Reading:
    """With side and channels, taken from the images where not given.

    Raises:
        ValueError: if they have several sizes, are not square, or cannot be read.
    """
    if reading.side is not None and reading.channels is not None:
        return reading
    heads = np.zeros((len(files), 3), dtype=np.int64)  # grey, width, height; zeros if unreadable

    def look(i: int) -> int:
        try:
            heads[i] = guarded(lambda: head(files.open(i)), partial(files.where, i))
        except (ValueError, FileNotFoundError):
            if reading.on_error != "skip":
                raise
        return i

    workers = workers_of(reading)
    with ThreadPoolExecutor(workers) as pool:
        in_order_of(pool, look, len(files), workers)
    readable = heads[:, 1].nonzero()[0]
    if not len(readable):
        raise MqvaeError(f"{files.where(0)} cannot be read, nor can any other: expected images")
    channels = reading.channels or (1 if heads[readable, 0].all() else 3)
    if reading.side is not None:
        return replace(reading, channels=channels)
    first = int(readable[0])
    side, height = (int(n) for n in heads[first, 1:])
    if side != height:
        raise MqvaeError(
            f"{files.where(first)} is not square: expected square images of one size, got "
            f"{side} × {height}; {_RESIZE}"
        )
    others = readable[(heads[readable, 1:] != side).any(1)]
    if len(others):
        odd = int(others[0])
        raise MqvaeError(
            f"{files.where(odd)} has another size: expected {side} × {side}, as "
            f"{files.where(first)} has, got {heads[odd, 1]} × {heads[odd, 2]}; {_RESIZE}"
        )
    return replace(reading, side=side, channels=channels)
