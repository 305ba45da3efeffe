"""Detection of numbers that are not finite, at the training step where they first occur."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mqvae.core.distributed import from_all_processes
from mqvae.core.rules import Step
from mqvae.training.assembly import Parts
from mqvae.training.processes import Processes
from mqvae.training.start import parts_of
from mqvae.training.stopping import NotFinite

NEVER = 2**62  # no run has as many steps
TERMS = {
    "task": "the task loss",
    "commitment": "the commitment loss",
    "codebook": "the codebook loss",
    "auxiliary": "the auxiliary loss",
    "direct_norm": "the norm of the direct hypergradient",
    "indirect_norm": "the norm of the indirect hypergradient",
    "cosine": "the cosine of the hypergradients",
    "codebook_gradient": "the codebook's gradient",
}


class Finite:
    """Looks at the numbers of every step on their device, which nothing waits for until `found`.

    `kept` is a sentence on what is kept where a number is not finite.
    """

    def __init__(self, parts: Parts, processes: Processes, kept: str) -> None:
        self._processes, self._kept = processes, kept
        self._logs = list(parts.task.logs)
        weights: dict[str, list[Tensor]] = {
            f"the {name}": list(m.parameters()) for name, m in parts_of(parts.network).items()
        }
        weights["the task's networks"] = [p for p in parts.task.parameters() if p.requires_grad]
        filled = {name: [t for t in tensors if t.numel()] for name, tensors in weights.items()}
        self._weights = {name: tensors for name, tensors in filled.items() if tensors}
        self._named = [
            *TERMS.values(),
            *(f"{name} of the task" for name in self._logs),
            *(f"a weight of {name}" for name in self._weights),
        ]
        self.forget()

    def forget(self) -> None:
        """Look for the first one anew."""
        device = self._processes.device
        self._first = torch.full((len(self._named),), NEVER, device=device)
        self._values = torch.zeros(len(self._named), device=device)

    @torch.no_grad()
    def look(self, step: int, result: Step, logged: Mapping[str, Tensor]) -> None:
        """Look at what a step gave, and at the weights after it."""
        given = [*(getattr(result, name) for name in TERMS), *map(logged.get, self._logs)]
        nothing = torch.zeros((), device=self._processes.device)
        # The largest of each tensor is not finite where one of its numbers is not.
        largest = [
            torch.stack([n.float() for n in torch._foreach_norm(tensors, math.inf)]).amax()
            for tensors in self._weights.values()
        ]
        told = [nothing if v is None else v.detach().float() for v in given]
        values = torch.stack(told + largest)
        new = ~torch.isfinite(values) & (self._first == NEVER)
        self._first = torch.where(new, step, self._first)
        self._values = torch.where(new, values, self._values)

    def found(self) -> tuple[str, int] | None:
        """The first number that is not finite, in words, and its step. All processes take part."""
        steps = from_all_processes(self._first[None]).amin(0).tolist()
        step = min(steps)
        if step == NEVER:
            return None
        which = steps.index(step)
        value = self._values[which].item()
        said = "not finite in another process" if math.isfinite(value) else str(value)
        return f"{self._named[which]} is {said}", step

    def require(self) -> None:
        """Refuse what is not finite. All processes take part. Raises NotFinite if something is."""
        if found := self.found():
            raise self.error(*found)

    def error(self, what: str, step: int) -> NotFinite:
        """The error about a number that is not finite at a step."""
        return NotFinite(
            f"{what} at step {step}. {self._kept} Try a lower optimizer.network_lr or "
            "optimizer.codebook_lr, or a smaller update.xi."
        )
