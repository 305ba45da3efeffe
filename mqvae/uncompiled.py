"""torch's optimizers without its compiler, whose import takes longer than that of torch itself."""

import functools
import sys
from collections.abc import Callable
from typing import Any


def uncompiled_optimizers() -> None:
    """Keep torch.optim from importing torch._dynamo, unless it is there already.

    Its optimizers import it as they are made and as they step, to keep it out of their code; the
    program compiles nothing. A torch that does it in another way is left as it is.
    """
    import torch
    from torch.optim import Optimizer

    if "torch._dynamo" in sys.modules:
        return
    for function in vars(Optimizer).values():
        original = getattr(function, "__wrapped__", None)
        if original is not None and _is(function, "inner"):
            # Where torch._compile looks first for what the compiler made of a function.
            original.__dynamo_disable = original
    for kind in vars(torch.optim).values():
        step = vars(kind).get("step") if isinstance(kind, type) else None
        if step is not None and _is(step, "_use_grad"):
            kind.step = _use_grad(step.__wrapped__)


def _is(function: Any, name: str) -> bool:
    """Whether it is the wrapper that torch calls so; a wrapper has the name of what it wraps."""
    return getattr(getattr(function, "__code__", None), "co_name", None) == name


def _use_grad(step: Callable[..., Any]) -> Callable[..., Any]:
    """torch's wrapper of that name, less what it tells the compiler."""
    import torch

    @functools.wraps(step)
    def with_gradients_as_asked(self: Any, *arguments: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **named)

    return with_gradients_as_asked
