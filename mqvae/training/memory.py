"""Errors about memory and full disks, with settings that would fit."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from mqvae.config import Settings
from mqvae.config.classes import find
from mqvae.errors import MqvaeError
from mqvae.training.stopping import OutOfMemory

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What allocators say; only CUDA's has a class of its own.
_SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def what_to_lower(settings: Settings, processes: int) -> str:
    """The settings that make a step smaller; those first that change least of what it does."""
    options, ways = settings.trainer, []
    share = settings.data.batch_size // processes
    if options.micro_batches < share:
        number = min(2 * options.micro_batches, share)
        ways.append(f"--trainer.micro_batches {number} (the same batch, in smaller parts)")
    network = settings.network
    described: Any = find(network["class_path"])
    on = network.get("init_args", {}).get("checkpointing", False)
    if "checkpointing" in signature(described).parameters and not on:
        ways.append("--network.checkpointing true (the same, computed twice)")
    if options.precision == "32-true":
        ways.append("--trainer.precision bf16-mixed")
    if share > 1:
        ways.append(f"--batch-size {processes * (share // 2)} (now {share * processes})")
    return ", ".join(ways) or "a smaller --size or a smaller network"


@contextmanager
def noticing_shortage(
    settings: Settings, processes: int, where: Callable[[], str]
) -> Iterator[None]:
    """Inside, errors of allocators become `OutOfMemory`, which says what to lower.

    `where` says when it happened and what is kept: a sentence's end, and a sentence.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory {where()} Lower what a step takes, in this order: "
            f"{what_to_lower(settings, processes)}. They are settings of a new run, which "
            "--from RUN gives the weights of this one."
        ) from error


@contextmanager
def noticing_full_disks(folder: Path, where: Callable[[], str]) -> Iterator[None]:
    """Inside, a full or read-only disk is reported, with `where` as in `noticing_shortage`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        after, _, kept = where().partition(". ")
        raise MqvaeError(
            f"{folder} cannot be written to {after}: {os.strerror(error.errno)}. {kept} When there "
            f"is room, and leave to write, resume by `mqvae train --resume {folder}`."
        ) from error
