"""The parts of a run, put together."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from mqvae.config import Settings
from mqvae.config.settings import inputs_of
from mqvae.core.network import VQNetwork
from mqvae.core.rules import Rule, Step, Unquantized, Update
from mqvae.data import Batches, Images, fitting, these
from mqvae.errors import MqvaeError, refused
from mqvae.metrics import evaluating
from mqvae.runs.images import Splits
from mqvae.tasks import AuxiliaryOptimizer, Task
from mqvae.training.ema import averaged, towards
from mqvae.training.processes import Processes
from mqvae.training.schedule import learning_rate
from mqvae.training.start import freeze

INITIALIZATION_SAMPLES = 16  # embeddings per codeword that k-means starts from
INITIALIZATION_BATCH = 512  # images that are embedded at once
MANY_CODES = 4096  # whose k-means takes so long that it is spoken of


@dataclass(frozen=True)
class Parts:
    """The parts of a run: what is trained, and by what."""

    network: VQNetwork
    task: Task  # what it is trained for
    update: Update  # the rule by which a batch changes it
    batches: Batches  # the batches of this process
    levels: Mapping[str, Optimizer]  # the optimizers of the rule, "lower" and "upper"
    auxiliary: Mapping[str, AuxiliaryOptimizer]  # optimizers of the task's own networks
    schedules: Mapping[str, LRScheduler]  # of all learning rates, by the optimizer's name
    # The exponential average of the weights; None where there is none.
    average: AveragedModel | None
    before: Update  # what trains before quantization sets in
    # Those that the codebook is judged on; None where they are the same.
    above: Batches | None = None

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """All of them, by the names they have in a checkpoint."""
        auxiliary = {f"player-{name}": each.optimizer for name, each in self.auxiliary.items()}
        return {**self.levels, **auxiliary}

    @property
    def measured(self) -> VQNetwork:
        """The network that is measured and used: the average where there is one."""
        return self.network if self.average is None else averaged(self.average)

    def next_above(self) -> tuple[Tensor, Tensor] | None:
        """The next batch, images and labels, that the codebook is judged on; None for the same."""
        return None if self.above is None else self.above.next()

    def accumulate(
        self, x: Tensor, y: Tensor, *, in_parts: int = 1, quantized: bool = True
    ) -> None:
        """Add a batch, images and labels, to those that `train` steps along next."""
        rule = self.update if quantized else self.before
        rule.accumulate(x, self.task.target(x, y), parts=in_parts)

    def train(
        self,
        x: Tensor,
        y: Tensor,
        above: tuple[Tensor, Tensor] | None = None,
        *,
        in_parts: int = 1,
        quantized: bool = True,
    ) -> tuple[Step, Mapping[str, Tensor]]:
        """All that images and labels change: by the rule, the auxiliary networks, and the EMA.

        The codebook is judged on `above`, or on the same if it is None. `quantized` says whether
        quantization has set in. Gives what the rule found, and what the task logs.
        """
        target = self.task.target(x, y)
        if not quantized:
            result = self.before.step(x, target, parts=in_parts)
            if "upper" in self.levels:
                # Without gradients nothing is stepped, but a schedule wants its optimizer to be.
                self.levels["upper"].step()
        else:
            judged = None if above is None else (above[0], self.task.target(*above))
            result = self.update.step(x, target, parts=in_parts, above=judged)
        logged = self.task.step(self.auxiliary, x, y, result.output) if self.auxiliary else {}
        if self.average is not None:
            self.average.update_parameters(self.network)
        return result, logged

    def close(self) -> None:
        """Stop taking batches ahead."""
        self.batches.close()
        if self.above is not None:
            self.above.close()


def assemble(settings: Settings, splits: Splits, processes: Processes) -> tuple[Parts, Settings]:
    """The parts of a run, freshly initialized, and its settings with what the parts chose."""
    start, warm = settings.start, settings.warm_start
    if warm.unquantized and start is not None and "codebook" in start.parts:
        if processes.first:
            print(
                f"mqvae: all steps are quantized (warm_start.unquantized is 0, not "
                f"{warm.unquantized:g}): k-means would replace the codebook of {start.run}",
                file=sys.stderr,
            )
        settings = replace(settings, warm_start=replace(warm, unquantized=0.0))
    torch.manual_seed(settings.seed)
    device = processes.device
    components = settings.components()
    with refused("network and quantizer"):
        network = components.network.build(inputs_of(settings.data), components.quantizer)
        network = network.to(device)
        # Whatever the encoder cannot take is said before anything is written.
        x = torch.zeros(1, *splits.train.shape, device=device)
        with evaluating(network), torch.no_grad():
            network.embed(x)
        freeze(network, settings.freeze)
        task = components.task.to(device)

    with refused("optimizer.network"):
        levels = {"lower": components.network_optimizer(network.network_parameters())}
    codebook = list(network.codebook_parameters())
    if components.rule.steps_codebook and codebook:
        with refused("optimizer.codebook"):
            levels["upper"] = components.codebook_optimizer(codebook)
    rule, options = components.rule, settings.trainer
    frame: dict[str, Any] = {
        "lower": levels["lower"],
        "max_norm": options.gradient_clip_val,
        "scaler": processes.scaler(),
    }
    with refused("update"):
        update = Update(network, task, rule, upper=levels.get("upper"), **frame)
    if isinstance(loss := rule.loss_above(), nn.Module):
        loss.to(device)

    rates = settings.optimizer
    factor = learning_rate(settings.steps, rates.warmup, rates.schedule)
    schedules: dict[str, LRScheduler] = {
        name: LambdaLR(each, factor)
        for name, each in levels.items()
        if any(p.requires_grad for group in each.param_groups for p in group["params"])
    }
    auxiliary = task.auxiliary_optimizers(settings.steps)
    if options.accumulate_grad_batches > 1:
        _require_gathers(rule, task, has_networks=bool(auxiliary))
    for name, each in auxiliary.items():
        if each.schedule is not None:
            schedules[f"player-{name}"] = each.schedule
    share, rest = divmod(settings.data.batch_size, processes.count)
    if rest:
        raise MqvaeError(
            f"data.batch_size must be a multiple of the number of processes, {processes.count}, "
            f"got {settings.data.batch_size}: each takes an equal share of every batch."
        )
    batches = _batches(splits.train, share, settings, processes)
    above = _above(rule, splits, share, settings, processes)
    decay = options.ema_decay
    average = AveragedModel(network, multi_avg_fn=towards(decay)) if decay else None
    task.attend(network, x)  # after the average, a copy, is made
    before = Update(network, task, Unquantized(), **frame)
    parts = Parts(
        network, task, update, batches, levels, auxiliary, schedules, average, before, above
    )
    return parts, settings.resolved(network, rule)


def _require_gathers(rule: Rule, task: Task, *, has_networks: bool) -> None:
    """Refuse a rule, or a task with networks of its own, that takes no several batches a step."""
    instead = (
        "set data.batch_size to the whole batch and trainer.micro_batches to what it is cut into."
    )
    if not rule.gathers:
        raise MqvaeError(
            "trainer.accumulate_grad_batches needs a rule that makes one pass a step, as Joint, "
            f"Synchronous and Ema do, got {type(rule).__name__}: {instead}"
        )
    if has_networks:
        raise MqvaeError(
            "trainer.accumulate_grad_batches is for tasks without networks of their own, got "
            f"{type(task).__name__}: {instead}"
        )


def _batches(images: Images, size: int, settings: Settings, processes: Processes) -> Batches:
    return Batches(
        images,
        size,
        seed=settings.seed,
        device=processes.device,
        rank=processes.rank,
        world_size=processes.count,
        random_crop=settings.data.random_crop,
        random_flip=settings.data.random_flip,
    )


def _above(
    rule: Rule, splits: Splits, size: int, settings: Settings, processes: Processes
) -> Batches | None:
    """The batches that the codebook is judged on; None where they are those of the network."""
    which = rule.batch_above()
    if which == "same":
        return None
    if which == "next":
        # The same stream, one batch ahead: what is judged on now is what is stepped on next.
        above = _batches(splits.train, size, settings, processes)
        above.skip()
        return above
    largest = len(splits.validation) // processes.count
    if not largest:
        raise MqvaeError(
            "update.upper_batch is held-out, but there are no validation images for every process: "
            f"expected data.validation to be {processes.count} or more."
        )
    return _batches(splits.validation, min(size, largest), settings, processes)


def initialize_codebook(parts: Parts, images: Images, settings: Settings) -> None:
    """k-means on embeddings of the training set's first shuffled images, of all processes."""
    if settings.start is not None and "codebook" in settings.start.parts:
        return
    network, batches = parts.network, parts.batches
    if not list(network.codebook_parameters()):
        return
    with evaluating(network), torch.no_grad():
        probe = network.embed(torch.zeros(1, *images.shape, device=batches.device))
    positions = probe.numel() // network.quantizer.dim
    codes = network.quantizer.num_codes
    wanted = -(-INITIALIZATION_SAMPLES * codes // positions)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(images), generator=generator)[:wanted]
    if codes >= MANY_CODES and not batches.rank:
        said = f"k-means: {len(order) * positions:,} embeddings to {codes:,} codewords …"
        print(said, file=sys.stderr, flush=True)
    mine = order.tensor_split(batches.world_size)[batches.rank]
    parts_of_mine = mine.split(fitting(INITIALIZATION_BATCH, images.shape, side=32))
    taken = these(images, parts_of_mine, device=batches.device)
    network.initialize_codebook(x for x, _ in taken)
    if parts.average is not None:
        parts.measured.quantizer.load_state_dict(network.quantizer.state_dict())
