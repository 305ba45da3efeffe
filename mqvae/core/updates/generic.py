"""Meta around any module whose codebook is some of its parameters, by whole passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from mqvae.core.bilevel import Gradients, gradient, moved
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradient import Derivative, ForwardMode, Hypergradient, OneSided
from mqvae.core.hypergradient.derivative import along
from mqvae.core.passes import RandomState, fresh_casts
from mqvae.core.updates.lookahead import (
    Kept,
    LookAhead,
    Undone,
    adam_slopes,
    preview,
    require_adam,
)
from mqvae.core.updates.meta import norms
from mqvae.core.updates.update import apply

Buffers = list[dict[str, Tensor | None]]
"""The buffers of each of some modules."""


@dataclass(frozen=True)
class GenericStep:
    """What a step of `GenericMeta` reports.

    Attributes:
        loss: The total loss of the first pass, a scalar.
        direct_norm: Norm of the direct hypergradient.
        indirect_norm: Norm of the indirect hypergradient.
        cosine: Cosine between the two; 0 where one of them vanishes.
    """

    loss: Tensor
    direct_norm: Tensor
    indirect_norm: Tensor
    cosine: Tensor


class GenericMeta:
    """MQ-VAE around any module whose codebook C is some of its parameters (Algorithm 1, Eq. 13).

    All that is known of the module is its total loss L: straight-through estimator, commitment and
    codebook loss are its own. With φ all its other parameters, decoder included, one step is

        g, g_C   =  ∇L(φ, C)
        φ'       =  φ − ξ g                                           the look-ahead
        v, g_C'  =  ∇L(φ', C)
        C        ←  C − lr · (g_C' − ξ d/dτ g_C(φ + τ v, C))          by `upper`
        φ        ←  φ − lr · ∇L(φ, C)                                 by `lower`

    The derivative is a difference of g_C, whose centre the first pass has found already. The price
    is whole passes: three (two with the look-ahead kept) and one forward pass for the difference,
    by operation count 3.33 (2.33) times a plain step, where `Meta` takes 2.83 (2.0) because it
    knows what is zero. `Central` adds a forward pass more.

    Codes are free: the module looks them up by itself in every pass. An embedding that changes its
    code between the two ends of the difference costs an error of 1/ε, ε = radius / ‖v‖, so that a
    smaller radius is not a better one.

    The look-ahead leaves no trace in parameters, buffers (batch norm, usage counts, codewords that
    a pass replaces) and random state, also when a pass raises. What else a pass does, logging or
    counting in plain attributes, it does in every pass: keep it out of `loss`.

    Several processes average their gradients; all must use the same parameters. Hand in the
    module itself, not one wrapped in DistributedDataParallel.

    Args:
        module: Any module. Each parameter that is trained belongs to one of the two optimizers.
        loss: `loss(module, *batch)` → L, a scalar; it may call any method of the module.
        codebook: The parameters of C.
        lower: Optimizer of all the others.
        upper: Optimizer of `codebook`.
        xi: ξ, size of the virtual lower step.
        look_ahead: `Undone()` (Algorithm 1) or `Kept()`.
        derivative: How to differentiate g_C along v: `OneSided()` or `Central()`.

    Raises:
        ValueError: if `xi` is negative, `codebook` is empty or not the module's, an optimizer
            holds other parameters than its level's, or `derivative` is `ForwardMode()`, which
            stops at every `detach` that the codebook loss has.

    Example:
        >>> book = module.vq._codebook.embed
        >>> rest = [p for p in module.parameters() if p is not book]
        >>> update = GenericMeta(module, lambda module, x: module(x)[1], codebook=[book],
        ...                      lower=AdamW(rest, lr=3e-4), upper=AdamW([book], lr=6e-2))
        >>> step = update.step(x)
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Tensor],
        *,
        codebook: Sequence[nn.Parameter],
        lower: Optimizer,
        upper: Optimizer,
        xi: float = 1.0,
        look_ahead: LookAhead | None = None,
        derivative: Derivative | None = None,
    ) -> None:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "GenericMeta averages gradients by itself: pass the module inside "
                "DistributedDataParallel, module.module."
            )
        if not xi >= 0:
            raise ValueError(f"xi must be 0 or more, got {xi}.")
        if isinstance(derivative, ForwardMode):
            raise ValueError(
                "GenericMeta differentiates what backpropagation returns, through the module's own "
                "stop-gradients; forward mode takes a detached tensor for a constant, and would "
                "find an answer of zero. Use OneSided() or Central()."
            )
        above = {id(p) for p in codebook}
        self.codebook = [p for p in module.parameters() if id(p) in above]
        self.network = [p for p in module.parameters() if id(p) not in above]
        names = {id(p): name for name, p in module.named_parameters()}
        if not above or len(self.codebook) != len(above):
            raise ValueError(
                "codebook must be one or more parameters of the module, got "
                f"{len(above)} of which {len(self.codebook)} are. They are: "
                f"{', '.join(names.values())}."
            )
        _check_holds("lower", lower, self.network, "outside `codebook`", names)
        _check_holds("upper", upper, self.codebook, "in `codebook`", names)
        self.lower = lower
        self.upper = upper
        self.xi = xi
        self.look_ahead = Undone() if look_ahead is None else look_ahead
        self.derivative = OneSided() if derivative is None else derivative
        self.preconditioned = getattr(self.look_ahead, "preconditioned", False)
        if self.preconditioned:
            require_adam(lower)
        self._total = _Total(module, loss)
        own = {id(p): name for name, p in self._total.named_parameters()}
        self._names = [own[id(p)] for p in [*self.network, *self.codebook]]

    @fresh_casts()
    def step(self, *batch: Any, above: tuple[Any, ...] | None = None) -> GenericStep:
        """Change the parameters by one batch.

        If a pass raises, buffers and the random state are as they were before it, and so are
        parameters that no optimizer has stepped yet.

        Args:
            batch: What `loss` takes after the module.
            above: A second batch for the upper level; None uses the same on both, as the paper
                does.

        Raises:
            ValueError: if what `loss` returns is no scalar with a gradient.
        """
        start = _Start(self._total, self.codebook[0].device)
        phi, table = _copies(self.network), _copies(self.codebook)
        if isinstance(self.look_ahead, Kept):
            total, g, g_c = self._pass_for_real(start, batch)
        else:
            total, g, g_c = self._pass(start, phi, table, batch)
        g = mean_across_processes(g)
        slopes = adam_slopes(self.lower, self.network, g) if self.preconditioned else None
        ahead = self._look_ahead(phi, g)

        _, v, direct = self._pass(start, ahead, table, batch if above is None else above)
        v = mean_across_processes(v)
        if slopes is not None:
            v = [None if a is None or s is None else a * s for a, s in zip(v, slopes, strict=True)]

        def codebook_gradient(point: list[Tensor]) -> Tensor:
            # Modules route gradients by whether their input requires one: φ must, as in training.
            for p, own in zip(point, self.network, strict=True):
                p.requires_grad_(own.requires_grad)
            _, _, found = self._pass(start, point, table, batch, codebook_only=True)
            return self._flat(found)

        change = along(self.derivative, codebook_gradient, phi, v, self._flat(g_c))
        hyper = Hypergradient(*mean_across_processes([self._flat(direct), -self.xi * change]))
        apply(self.upper, self.codebook, self._parts(hyper.direct + hyper.indirect, direct))
        if not isinstance(self.look_ahead, Kept):
            _, g, _ = self._pass_for_real(start, batch)
            apply(self.lower, self.network, mean_across_processes(g))
        return GenericStep(total, **norms(hyper))

    def _pass(
        self,
        start: "_Start",
        phi: Sequence[Tensor],
        codebook: Sequence[Tensor],
        batch: tuple[Any, ...],
        *,
        codebook_only: bool = False,
    ) -> tuple[Tensor, Gradients, Gradients]:
        """(L, ∂L/∂φ, ∂L/∂C) at (φ, C), from where the step started and without a trace."""
        table = _copies(codebook)  # a pass may replace codewords
        tensors = dict(zip(self._names, [*phi, *table], strict=True))
        with start.again(), torch.enable_grad():
            total = _scalar(functional_call(self._total, tensors, batch))
            found = gradient(total, table if codebook_only else [*phi, *table])
        cut = len(found) - len(table)
        return total.detach(), found[:cut], found[cut:]

    def _pass_for_real(
        self, start: "_Start", batch: tuple[Any, ...]
    ) -> tuple[Tensor, Gradients, Gradients]:
        """The same at the module's own parameters, as ordinary training makes it."""
        with start.put_back_if_raised(self.codebook):
            total = _scalar(self._total(*batch))
            found = gradient(total, [*self.network, *self.codebook])
        return total.detach(), found[: len(self.network)], found[len(self.network) :]

    def _look_ahead(self, phi: list[Tensor], g: Gradients) -> list[Tensor]:
        """φ'."""
        if isinstance(self.look_ahead, Kept):
            apply(self.lower, self.network, g)
            return _copies(self.network)
        if isinstance(self.look_ahead, Undone) and self.look_ahead.optimizer_step:
            return preview(self.lower, self.network, g)
        return moved(phi, g, -self.xi)

    def _flat(self, gradients: Gradients) -> Tensor:
        """Gradients of the codebook as one vector."""
        parts = zip(gradients, self.codebook, strict=True)
        return torch.cat([(torch.zeros_like(c) if g is None else g).flatten() for g, c in parts])

    def _parts(self, flat: Tensor, like: Gradients) -> Gradients:
        """The vector as gradients of the codebook, None where `like` has none."""
        parts = flat.split([c.numel() for c in self.codebook])
        return [
            None if g is None else part.view_as(c).to(c.dtype)
            for part, c, g in zip(parts, self.codebook, like, strict=True)
        ]


class _Total(nn.Module):
    """The closure as a module, whose tensors `functional_call` can exchange."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, *batch: Any) -> Tensor:
        return self.loss(self.module, *batch)


class _Start:
    """Buffers and random state as a step finds them."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._modules = list(module.modules())
        self._buffers = _clones([m._buffers for m in self._modules])
        self._random = RandomState(device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside they are what they were; outside, what happens inside has not happened."""
        now = [m._buffers for m in self._modules]
        # Whole dictionaries: a pass may register a buffer anew.
        self._register(_clones(self._buffers))
        try:
            with self._random.replayed():
                yield
        finally:
            self._register(now)

    @contextmanager
    def put_back_if_raised(self, codebook: Sequence[Tensor]) -> Iterator[None]:
        """If the block raises they become what they were, and codewords what they are now."""
        registered = [dict(m._buffers) for m in self._modules]
        now = [*_tensors(registered), *codebook]
        before = [*_tensors(self._buffers), *_copies(codebook)]
        try:
            yield
        except BaseException:
            self._register(registered)
            self._random.restore()
            with torch.no_grad():
                for tensor, value in zip(now, before, strict=True):
                    tensor.copy_(value)
            raise

    def _register(self, buffers: Buffers) -> None:
        for module, own in zip(self._modules, buffers, strict=True):
            module._buffers = own


def _tensors(buffers: Buffers) -> list[Tensor]:
    return [b for own in buffers for b in own.values() if b is not None]


def _clones(buffers: Buffers) -> Buffers:
    """The buffers of modules, copied; what two of them share they share again."""
    copies = {id(b): b.detach().clone() for b in _tensors(buffers)}
    return [
        {name: None if b is None else copies[id(b)] for name, b in own.items()} for own in buffers
    ]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as new leaves."""
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]


def _scalar(total: Tensor) -> Tensor:
    if not (torch.is_tensor(total) and total.ndim == 0 and total.requires_grad):
        got = (
            f"a tensor {tuple(total.shape)} with requires_grad={total.requires_grad}"
            if torch.is_tensor(total)
            else f"a {type(total).__name__}"
        )
        raise ValueError(
            f"loss(module, *batch) must return a scalar tensor with a gradient, got {got}: reduce "
            "it to a mean over the batch, and do not call step under torch.no_grad()."
        )
    return total


def _check_holds(
    name: str,
    optimizer: Optimizer,
    level: Sequence[Tensor],
    which: str,
    names: dict[int, str],
) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = held - {id(p) for p in level}
    missing = {id(p) for p in level if p.requires_grad} - held
    if foreign or missing:
        listed = sorted(names.get(p, "one that is not the module's") for p in foreign)
        raise ValueError(
            f"the {name} optimizer must hold the parameters {which}. "
            + (f"It also holds: {', '.join(listed)}. " if foreign else "")
            + (f"It lacks: {', '.join(sorted(names[p] for p in missing))}. " if missing else "")
            + "Build it with those alone; freeze what is not to be trained."
        )
