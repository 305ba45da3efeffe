"""The processes that train together, on one machine or several, and the device of this one."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mqvae.config import Trainer
from mqvae.errors import MqvaeError, at_least
from mqvae.training.stopping import ProcessLost, Signals

AGREE_EVERY = 1.0  # seconds between two looks of all processes at whether they are asked to stop
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Processes:
    """All processes of a run, met and ready; alone where there is one.

    `mqvae train` with `trainer.devices` above 1 starts the others by itself; `torchrun` has started
    all of them, and its numbers count.

    Raises:
        ValueError: if this machine has no such accelerator, or not as many, or none are asked for.
    """

    def __init__(self, options: Trainer) -> None:
        at_least(1, devices=options.devices)
        here, machines = options.devices, 1
        if dist.is_available() and dist.is_torchelastic_launched():
            here = int(os.environ["LOCAL_WORLD_SIZE"])
            machines = int(os.environ["WORLD_SIZE"]) // here
        self._half = HALF.get(options.precision)
        self.rank, self.count = 0, here * machines
        if self.count == 1:
            # Without Lightning, whose import would be half of the time to the first step.
            self.device = _device(options.accelerator)
        else:
            self._meet(options.accelerator, here, machines)

    def _meet(self, accelerator: str, here: int, machines: int) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        # It announces each process; what there is to say the run says itself.
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        cuda = accelerator in ("auto", "cuda") and torch.cuda.is_available()
        # Figures are summed where they are kept, which is not always on the device.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        try:
            fabric = Fabric(
                accelerator=accelerator,
                devices=here,
                num_nodes=machines,
                strategy=DDPStrategy(process_group_backend=backend),
            )
        except (RuntimeError, MisconfigurationException) as error:
            raise _absent(f"{here} of accelerator {accelerator}") from error
        if not dist.is_initialized():
            _speak_of_lost_children()
            if restarted() and machines == 1:
                _meet_anew(backend)
            atexit.register(_part)
        fabric.launch()
        self.device, self.rank = fabric.device, fabric.global_rank

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Inside, passes run in the run's precision."""
        half = self._half or torch.bfloat16
        return torch.autocast(self.device.type, half, enabled=self._half is not None)

    def scaler(self) -> torch.amp.GradScaler | None:
        """Scaler of losses where passes run in float16; None elsewhere."""
        return torch.amp.GradScaler(self.device.type) if self._half is torch.float16 else None

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
        """Inside, errors of torch.distributed about a lost process become `ProcessLost`."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self.count == 1 or not lost:
                raise
            raise ProcessLost(
                f"another of the {self.count} processes has ended, so process {self.rank} ends too."
            ) from error


class Agreement:
    """Whether all processes stop, since one of them is asked to.

    They agree every second or two, after `most` steps at the latest.
    """

    def __init__(self, processes: Processes, most: int) -> None:
        self._processes, self._most = processes, most
        self._last = (0, 0.0)  # the step and the time of the last one
        self._next = 1  # step

    def stops(self, step: int, asked: Signals) -> bool:
        """Whether they stop after this step. All of them call it."""
        if step < self._next:
            return False
        if self._processes.count > 1:
            now, (then, began) = time.monotonic(), self._last
            per_step = (now - began) / (step - then) if then else AGREE_EVERY
            milliseconds = self._processes.largest(1 + int(1000 * per_step))
            self._last = step, now
            steps = int(1000 * AGREE_EVERY) // milliseconds
            self._next = step + max(1, min(self._most, steps))
        return self._processes.largest(asked.number or 0) > 0


def _device(accelerator: str) -> torch.device:
    """The device of a run in one process."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = {"cuda": cuda, "mps": mps, "cpu": True}
    name = accelerator if accelerator != "auto" else next(n for n in there if there[n])
    if not there[name]:
        raise _absent(f"accelerator is {name}")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def _absent(what: str) -> MqvaeError:
    return MqvaeError(
        f"{what}, which this machine does not have: leave accelerator and devices out, or take cpu."
    )


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
                said = "mqvae: error: another of the processes has ended, so this one ends too."
                print(said, file=sys.stderr, flush=True)

    logger = logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script")
    logger.addHandler(Said())
    logger.setLevel(logging.INFO)
    logger.propagate = False
