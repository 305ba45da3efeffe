"""The processes that train together, on one machine or several, and the device of this one."""

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mqvae.settings import Trainer
from mqvae.trainer.stopping import ProcessLost


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; known before the others are met."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


class Processes:
    """All processes of a run, met and ready; alone where there is one.

    `mqvae train` with `trainer.devices` above 1 starts the others by itself; `torchrun` has started
    all of them, and its numbers count.

    Args:
        options: The run's `trainer` settings.

    Raises:
        ValueError: if this machine has no such accelerator, or not as many.
    """

    def __init__(self, options: Trainer) -> None:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies.ddp import DDPStrategy
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        here, machines = options.devices, 1
        if dist.is_available() and dist.is_torchelastic_launched():
            here = int(os.environ["LOCAL_WORLD_SIZE"])
            machines = int(os.environ["WORLD_SIZE"]) // here
        together = here * machines > 1
        cuda = options.accelerator in ("auto", "cuda") and torch.cuda.is_available()
        # Figures are summed where they are kept, which is not always on the device.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        try:
            self._fabric = Fabric(
                accelerator=options.accelerator,
                devices=here,
                num_nodes=machines,
                strategy=DDPStrategy(process_group_backend=backend) if together else "auto",
                precision=options.precision,
            )
        except (RuntimeError, MisconfigurationException) as error:
            raise ValueError(
                f"trainer.accelerator is {options.accelerator} and trainer.devices "
                f"{options.devices}, which this machine does not have: leave them out, or take cpu."
            ) from error
        if together and not dist.is_initialized():
            _speak_of_lost_children()
            if restarted() and machines == 1:
                _meet_anew(backend)
            atexit.register(_part)
        self._fabric.launch()
        self.device = self._fabric.device
        self.rank = self._fabric.global_rank
        self.count = self._fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, passes run in the run's precision."""
        return self._fabric.autocast()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return number
        all_of_them = torch.tensor([number], device=self.device)
        dist.all_reduce(all_of_them, dist.ReduceOp.MAX)
        return int(all_of_them)

    @contextmanager
    def noticing_losses(self) -> Iterator[None]:
        """What torch.distributed says when a process is gone becomes `ProcessLost`."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self.count == 1 or not lost:
                raise
            raise ProcessLost(
                f"another of the {self.count} processes has ended, so process {self.rank} ends too."
            ) from error


def restarted() -> bool:
    """Whether torchrun has started this process again, after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _meet_anew(backend: str) -> None:
    """Meet where nobody has met before.

    torchrun may start processes again beside the store that their predecessors met in, whose
    addresses, those of the dead among them, are still there.
    """
    store, rank, count = next(rendezvous("env://"))
    fresh = PrefixStore(f"again-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=count)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _speak_of_lost_children() -> None:
    """Lightning ends this process where one that it started has failed; that should be said."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Forcefully terminating" in record.getMessage():
                print(
                    "mqvae: error: another of the processes has ended, so this one ends too.",
                    file=sys.stderr,
                    flush=True,
                )

    logger = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    logger.addHandler(Said())
    logger.setLevel(logging.INFO)
    logger.propagate = False
