"""Two processes that stay: a start of torch in each takes longer than most of what they are asked.

The fixture `pair` of conftest.py calls a function in both, `pair(function, *arguments)`: each gets
its rank and the arguments, and what they return comes back as a list.
"""

import io
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240  # seconds for what two processes are asked once


class Pair:
    """Two processes, started by the first call, and again after one that fails."""

    def __init__(self) -> None:
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []

    def start(self) -> None:
        for rank in range(2):
            here, there = multiprocessing.Pipe()
            self.processes.append(self.started(_serve, rank, there))
            there.close()
            self.pipes.append(here)

    def started(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A process that calls a function: a fork of one that has imported what takes long.

        That one has done nothing else; both processes are forks of it as well.
        """
        methods = multiprocessing.get_all_start_methods()
        start = "forkserver" if "forkserver" in methods else "spawn"
        context: Any = multiprocessing.get_context(start)
        if start == "forkserver":
            context.set_forkserver_preload(["preloaded"])
        process = context.Process(target=function, args=arguments, daemon=True)
        process.start()
        return process

    def stop(self) -> None:
        for pipe, process in zip(self.pipes, self.processes):
            pipe.close()
            process.kill()
            process.join()
        self.pipes, self.processes = [], []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not self.pipes:
            self.start()
        asked = _packed((function, arguments, free_port()))
        for pipe in self.pipes:
            pipe.send_bytes(asked)
        found: dict[int, Any] = {}
        deadline = time.monotonic() + PATIENCE
        try:
            while len(found) < 2:
                waiting = [p for rank, p in enumerate(self.pipes) if rank not in found]
                ready = wait(waiting, max(0.1, deadline - time.monotonic()))
                assert ready, f"not done after {PATIENCE} s: one process waits for ever"
                for pipe in ready:
                    failure, value = _unpacked(pipe.recv_bytes())
                    assert failure is None, failure
                    found[self.pipes.index(pipe)] = value
        except BaseException:
            self.stop()  # the other one may wait for ever
            raise
        return [found[0], found[1]]


def typed(said: str, *arguments: Any) -> None:
    """The program in such a process; what it says to its user goes into a file."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    from mqvae.cli import main

    sys.exit(main([*map(str, arguments)]))


def meet(rank: int, folder: str | Path) -> None:
    """Makes a process group of both, which ends with the call."""
    store = dist.FileStore(str(Path(folder, "rendezvous")), 2)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)


def as_torchrun_has_them(rank: int, port: int) -> dict[str, str]:
    """What torchrun says to a process, for those who look there for the others."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "pair"}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return {**shared, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _serve(rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    before = dict(os.environ)
    while True:
        try:
            function, arguments, port = _unpacked(pipe.recv_bytes())
        except EOFError:
            return
        os.environ.update(as_torchrun_has_them(rank, port))
        try:
            answer = (None, function(rank, *arguments))
        except BaseException:
            answer = (f"in process {rank}:\n{traceback.format_exc()}", None)
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
        pipe.send_bytes(_packed(answer))


def _packed(value: Any) -> bytes:
    """By torch, since multiprocessing would share the memory of tensors."""
    file = io.BytesIO()
    torch.save(value, file, pickle_module=pickle)
    return file.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
