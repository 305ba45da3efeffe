"""A step at one and at two processes, what it sends, and what that makes of many GPUs."""

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import model
from benchmarks.presets import PRESET, RULES, on_noise, settings_of, step_on_noise
from benchmarks.table import Cell, Table
from benchmarks.timing import alternate
from mqvae.errors import MqvaeError
from mqvae.training.assembly import assemble
from mqvae.training.processes import Processes

PLAIN = "plain, DistributedDataParallel"
ROUNDS = 15
PATIENCE = 1800.0  # seconds that one step may take
COLLECTIVES = ("all_reduce", "all_gather", "broadcast")


def run(*, device: str, rounds: int | None, only: str, preset: str | None = None) -> list[Table]:
    """Two tables: measured at one and two processes of this machine, and by the model.

    Raises:
        ValueError: if the device is not the CPU.
    """
    if device != "cpu":
        raise MqvaeError("the section 'processes' is measured on CPUs: leave out --accelerator.")
    preset, rounds = preset or PRESET, rounds or ROUNDS
    wanted = [rule for rule in RULES if only in rule]
    if not wanted:
        return []
    batch = settings_of(preset, "Joint", device).data.batch_size
    rows: list[dict[str, Cell]] = []
    counts: dict[str, model.Count] = {}
    with ExitStack() as inside:
        one, two = (inside.enter_context(together(count, preset)) for count in (1, 2))
        for rule in dict.fromkeys([PLAIN, "Joint", *wanted]):
            flops, (sent, reductions) = one.ask("flops", rule), two.ask("sent", rule)
            counts[rule] = model.Count(flops / batch, sent, reductions, hidden=rule == PLAIN)
            groups = {"1": one, "2": two}
            timings = alternate(
                {name: partial(group.ask, "step", rule) for name, group in groups.items()},
                rounds=rounds,
            )
            alone, both = timings["1"], timings["2"]
            rows.append(
                {
                    "step": rule,
                    "1 process, ms": alone.seconds * 1e3,
                    "2 processes, ms": both.seconds * 1e3,
                    "efficiency": 1 / both.ratio,
                    "lower quartile": 1 / both.high,
                    "upper quartile": 1 / both.low,
                    "reductions": reductions,
                    "MB sent": sent / 1e6,
                    "of plain's": sent / counts[PLAIN].sent,
                }
            )
    conditions: dict[str, Cell] = {"preset": preset, "images a process": batch}
    return [
        Table(
            "processes",
            "A step at one process and at two, each with as much work",
            {**conditions, "talking by": "gloo", "threads a process": 1, "rounds": rounds},
            rows,
            [
                "Efficiency is the time at one process over that at two. *Plain* is the same "
                "network, loss and optimizer with PyTorch's DistributedDataParallel, which reduces "
                "while it goes backward; the rules' reductions wait. MB are what a process gives "
                "to its reductions."
            ],
        ),
        Table(
            "processes-model",
            "Many GPUs, by the model of docs/processes-cost.md: not measured",
            conditions,
            model.rows(counts, batch),
        ),
    ]


class Group:
    """Processes that make steps when they are asked to. `together` starts and ends them.

    Args:
        pipes: One to each of them.
    """

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes = pipes

    def ask(self, what: str, rule: str) -> Any:
        """What the first of them answers, when all have.

        Raises:
            RuntimeError: if one of them fails, with what it said.
        """
        answers = []
        try:
            for pipe in self.pipes:
                pipe.send((what, rule))
            for pipe in self.pipes:
                if not pipe.poll(PATIENCE):
                    raise RuntimeError(f"{rule}: no answer within {PATIENCE:.0f} s.")
                answers.append(pipe.recv())
        except (EOFError, OSError):
            raise RuntimeError(f"{rule}: a process has ended.") from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise RuntimeError(f"{rule} could not be measured: {answer}") from answer
        return answers[0]


@contextmanager
def together(count: int, preset: str) -> Iterator[Group]:
    """So many processes, one thread each, that have met."""
    # Forks of a process that has imported what takes long, where there are such.
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload([__name__, "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        try:
            for rank in range(count):
                here, there = context.Pipe()
                process = context.Process(
                    target=work, args=(there, rank, count, preset, folder), daemon=True
                )
                process.start()
                there.close()
                pipes.append(here)
                processes.append(process)
            yield Group(pipes)
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
                    process.join()


def work(pipe: Connection, rank: int, count: int, preset: str, folder: str) -> None:
    """What each process does until its pipe is closed or None comes."""
    torch.set_num_threads(1)
    # What DistributedDataParallel says to who writes it: an argument's new name, layouts.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    if count > 1:
        dist.init_process_group(
            "gloo",
            init_method=Path(folder, "meeting").as_uri(),
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=PATIENCE),
        )
    made: dict[str, Step] = {}
    try:
        while (asked := pipe.recv()) is not None:
            what, rule = asked
            try:
                if rule not in made:
                    made.clear()  # one network at a time
                    ours = partial(step_on_noise, preset, rule, "cpu")
                    made[rule] = Step(plain(preset) if rule == PLAIN else ours())
                pipe.send(getattr(made[rule], what)())
            except Exception as error:
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    except (EOFError, OSError):
        pass
    finally:
        if count > 1:
            dist.destroy_process_group()


class Step:
    """A step, and what there is to count of it."""

    def __init__(self, make: Callable[[], None]) -> None:
        self.make = make

    def step(self) -> None:
        self.make()

    def flops(self) -> int:
        """Operations of its convolutions and matrix products, by PyTorch's formulas."""
        with Flops() as counter:
            self.make()
        return counter.total

    def sent(self) -> tuple[int, int]:
        """Bytes given to reductions by a step, and how many there are."""
        self.make()  # DistributedDataParallel sorts its buckets anew after the first
        with collectives() as made:
            self.make()
        return sum(made), len(made)


class Flops(TorchDispatchMode):
    """Counts inside; PyTorch's own counter does not take `torch.autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += int(formula(*args, **(kwargs or {}), out_val=found))
        return found


@contextmanager
def collectives() -> Iterator[list[int]]:
    """Bytes of each that is made inside."""
    own = {name: getattr(dist, name) for name in COLLECTIVES}
    made: list[int] = []

    def noting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(sum(t.nbytes for t in arguments if isinstance(t, Tensor)))
            return own[name](*arguments, **options)

        return call

    for name in own:
        setattr(dist, name, noting(name))
    try:
        yield made
    finally:
        for name, function in own.items():
            setattr(dist, name, function)


class Loss(nn.Module):
    """Network and loss of Eq. 6 as one module, for DistributedDataParallel to wrap."""

    def __init__(self, network: nn.Module, task: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.task = (task,)  # no part of the module: what it owns is not trained by this loss

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(x)
        of_task, of_codes = self.task[0](found.output, target), found.quantized
        loss = of_task + 0.25 * of_codes.commitment_loss + of_codes.codebook_loss
        return loss, found.output


def plain(preset: str) -> Callable[[], None]:
    """What one would write without this library: autograd, one optimizer, DDP."""
    splits, settings = on_noise(settings_of(preset, "Joint", "cpu"))
    processes = Processes(settings.trainer)
    parts, _ = assemble(settings, splits, processes)
    parts.task.train()
    x, y = parts.batches.next()
    module: nn.Module = Loss(parts.network, parts.task)
    optimizer = torch.optim.AdamW(module.parameters())
    if dist.is_initialized():
        wrapped = DistributedDataParallel(module, broadcast_buffers=False)
        wrapped.register_comm_hook(None, _mean)
        module = wrapped

    def make() -> None:
        optimizer.zero_grad()
        with processes.autocast():
            loss, output = module(x, parts.task.target(x, y))
            loss.backward()
            optimizer.step()
            if parts.auxiliary:
                parts.task.step(parts.auxiliary, x, y, output.detach())

    return make


def _mean(
    state: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's own reduction, made from Python, where it can be counted."""
    buffer = bucket.buffer().div_(dist.get_world_size())
    future = dist.all_reduce(buffer, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
