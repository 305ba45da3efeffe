"""The state of a run, from which it resumes bit for bit."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from mqvae.core.distributed import from_all_processes
from mqvae.core.passes import RandomState
from mqvae.errors import MqvaeError
from mqvae.provenance import code
from mqvae.runs import Checkpoint, Run, beginning_with, optimizer_state, restore_optimizer
from mqvae.training.assembly import Parts
from mqvae.training.ema import averaged
from mqvae.training.logs import Log
from mqvae.training.processes import Processes


def capture(parts: Parts, log: Log, processes: Processes, progress: dict[str, Any]) -> Checkpoint:
    """Everything that changes in training; `progress` is where the loop is. All take part."""
    training: dict[str, Tensor] = {
        **{f"rule.{key}": value for key, value in parts.update.state_dict().items()},
        **{f"task.{key}": value for key, value in _trained(parts).items()},
        "code_counts": log.counts.of_all_processes().table(),
    }
    groups: dict[str, Any] = {}
    for name, optimizer in parts.optimizers.items():
        tensors, groups[name] = optimizer_state(name, optimizer)
        training.update(tensors)
    training.update(_random_states(processes))
    return Checkpoint(
        model=parts.network.state_dict(),
        average=None if parts.average is None else averaged(parts.average).state_dict(),
        training=training,
        state={
            **progress,
            "batches": parts.batches.state_dict(),
            "above": None if parts.above is None else parts.above.state_dict(),
            "optimizers": groups,
            # Those of the rule's own levels follow from the step.
            "schedules": {
                name: _plain(schedule.state_dict())
                for name, schedule in parts.schedules.items()
                if name not in parts.levels
            },
            "scaler": None if parts.update.scaler is None else parts.update.scaler.state_dict(),
            "averaged": 0 if parts.average is None else int(parts.average.n_averaged),
            "processes": processes.count,
            "collapsed_steps": log.collapsed_steps,
            "troubled_rows": log.troubled_rows,
            "skipped": sorted(log.skipped),
            "skipped_steps": [log.skipped_steps, log.skipped_in_a_row],
            "warnings": log.warnings,
            "version": code().version,
        },
    )


def restore(
    checkpoint: Checkpoint,
    run: Run,
    parts: Parts,
    log: Log,
    processes: Processes,
    *,
    stretched: bool = False,
) -> None:
    """Put the state of a checkpoint of a run back.

    `stretched` says that the number of training steps is another than before: learning rates are
    those of the new schedule. One of another network or version, or imported, is refused.
    """
    if "imported" in checkpoint.state:
        raise MqvaeError(
            f"{run.folder} was imported, so there is no training to resume: begin one from it, "
            f"as in `mqvae train {run.folder}/config.yaml --from {run.folder} --out runs/tuned`."
        )
    try:
        _take_over(checkpoint, parts, log, processes, stretched)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise MqvaeError(
            f"the checkpoint of {run.folder} does not fit its config.yaml, or is of "
            f"another version (mqvae {checkpoint.state.get('version')}, this is "
            f"{code().version}): {error}\n"
            "Has config.yaml been changed? A run keeps the sizes it was trained with."
        ) from error


class Before:
    """All that a step changes, as it is now, to take the step back."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        found = (parts.network, parts.average, parts.update, *parts.optimizers.values())
        self._stateful = [each for each in found if each is not None]
        self._states = [deepcopy(each.state_dict()) for each in self._stateful]
        self._task = deepcopy(_trained(parts))
        self._random = RandomState(parts.batches.device)

    def restore(self) -> None:
        """Put all of it back."""
        for each, state in zip(self._stateful, self._states, strict=True):
            each.load_state_dict(state)
        _give(_trained(self._parts), self._task)
        self._random.restore()


@torch.no_grad()
def _give(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(values[name])


def _take_over(
    checkpoint: Checkpoint, parts: Parts, log: Log, processes: Processes, stretched: bool
) -> None:
    state, training = checkpoint.state, checkpoint.training
    parts.network.load_state_dict(checkpoint.model)
    if parts.average is not None and checkpoint.average is not None:
        averaged(parts.average).load_state_dict(checkpoint.average)
        parts.average.n_averaged.fill_(state["averaged"])
    task = beginning_with("task.", training)
    own = _trained(parts)
    if task.keys() != own.keys():
        raise KeyError(f"the task has {sorted(own)}, the checkpoint {sorted(task)}")
    _give(own, task)
    of_task = state.get("schedules", {})
    rates: dict[str, list[float]] = {}
    for name, schedule in parts.schedules.items():
        saved = of_task.get(name)
        if stretched:
            rates[name] = _advanced(schedule, (saved or {"last_epoch": state["step"]}))
        elif saved is not None:
            schedule.load_state_dict(saved)
        else:
            # They count on from here; the rates themselves come with the optimizers' groups.
            schedule.last_epoch = state["step"]
    for name, optimizer in parts.optimizers.items():
        restore_optimizer(name, optimizer, training, state["optimizers"][name])
        for group, rate in zip(optimizer.param_groups, rates.get(name, ()), strict=False):
            group["lr"] = rate
    parts.update.load_state_dict(beginning_with("rule.", training))
    if parts.update.scaler is not None and state.get("scaler"):
        parts.update.scaler.load_state_dict(state["scaler"])
    parts.batches.load_state_dict(state["batches"])
    if parts.above is not None:
        parts.above.load_state_dict(state["above"])
    log.collapsed_steps = state["collapsed_steps"]
    log.troubled_rows = state.get("troubled_rows", {})
    log.skipped = set(state.get("skipped", ()))
    log.skipped_steps, log.skipped_in_a_row = state.get("skipped_steps", (0, 0))
    log.warnings = state["warnings"]
    if processes.first:  # what all have counted; the others count on from nothing
        log.counts.add_table(training["code_counts"])
    if processes.first or state.get("processes") == processes.count:
        random = RandomState(processes.device)
        for kind in _kinds(random):
            mine = _random_name(kind, processes.rank)
            setattr(random, kind, training.get(mine, getattr(random, kind)))
        random.restore()


def _advanced(schedule: LRScheduler, state: Mapping[str, Any]) -> list[float]:
    """A new schedule's learning rates after as many steps as an old one had made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped yet
        while schedule.last_epoch < state["last_epoch"]:
            schedule.step()
    return [group["lr"] for group in schedule.optimizer.param_groups]


def _trained(parts: Parts) -> dict[str, Tensor]:
    """Trained tensors of the task's own networks; a frozen one comes with the task itself."""
    frozen = {name for name, p in parts.task.named_parameters() if not p.requires_grad}
    return {name: t for name, t in parts.task.state_dict().items() if name not in frozen}


def _random_states(processes: Processes) -> dict[str, Tensor]:
    """The random state of every process."""
    random = RandomState(processes.device)
    return {
        _random_name(kind, rank): state
        for kind in _kinds(random)
        for rank, state in enumerate(from_all_processes(getattr(random, kind)[None]))
    }


def _kinds(random: RandomState) -> list[str]:
    return [kind for kind in ("cpu", "cuda") if getattr(random, kind) is not None]


def _random_name(kind: str, rank: int) -> str:
    return f"random.{kind}" + (f".{rank}" if rank else "")


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state, without what its constructor gives it."""
    kinds = (int, float, str, bool, type(None))
    parts = {k: v if isinstance(v, list) else [v] for k, v in state.items()}
    return {k: state[k] for k, part in parts.items() if all(isinstance(i, kinds) for i in part)}
