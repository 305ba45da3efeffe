"""Meta around any module whose codebook is some of its parameters, by whole passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from mqvae.core.bilevel import gradient, scaled
from mqvae.core.distributed import ProcessGroup, agree, mean_across_processes, within, world_size
from mqvae.core.hypergradients import Derivative, ForwardMode, Hypergradient, OneSided
from mqvae.core.hypergradients.derivative import along
from mqvae.core.look_ahead import LookAhead, Undone
from mqvae.core.optimizer import Gradients, apply, check_holds, only_finite
from mqvae.core.passes import Snapshot, fresh_casts
from mqvae.core.quantizers import unrecorded
from mqvae.core.rules.checks import refuse_wrapped, require_gradients
from mqvae.errors import MqvaeError, at_least
from mqvae.shown import Shown


@dataclass(frozen=True, repr=False)
class GenericStep(Shown):
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

    The derivative is a difference of g_C, whose centre the first pass has found already, in the
    parameters' own type, float32 or wider: half precision rounds so short a step away. By operation
    count a step takes 3.33 plain ones (2.33 with the look-ahead kept), where `Meta` takes 2.83
    (2.0) because it knows what is zero. `Central` adds a forward pass more.

    Codes are free: the module looks them up in every pass. An embedding that changes its code
    between the two ends of the difference costs an error of 1/ε, ε = radius / ‖v‖.

    The look-ahead leaves no trace in parameters, buffers (batch norm, usage counts, codewords that
    a pass replaces) and random state, also when a pass raises. What else a pass does, logging or
    counting in plain attributes, it does in every pass: keep it out of `loss`. Several processes
    train as in `Update`.

    Args:
        module: Any module. Each parameter that is trained belongs to one of the two optimizers.
        loss: `loss(module, *batch)` → L, a scalar; it may call any method of the module.
        codebook: The parameters of C.
        lower: Optimizer of all the others.
        upper: Optimizer of `codebook`.
        xi: ξ, size of the virtual lower step.
        look_ahead: `Undone()` (Algorithm 1) or `Kept()`.
        derivative: How to differentiate g_C along v: `OneSided()` or `Central()`.
        process_group: The processes that train together; None for all that there are.

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
        process_group: ProcessGroup | None = None,
    ) -> None:
        refuse_wrapped(module, "module")
        at_least(0, xi=xi)
        if isinstance(derivative, ForwardMode):
            raise MqvaeError(
                "GenericMeta differentiates what backpropagation returns, through the module's own "
                "stop-gradients; forward mode takes a detached tensor for a constant, and would "
                "find an answer of zero. Use OneSided() or Central()."
            )
        above = {id(p) for p in codebook}
        self.codebook = [p for p in module.parameters() if id(p) in above]
        self.network = [p for p in module.parameters() if id(p) not in above]
        names = {id(p): name for name, p in module.named_parameters()}
        if not above or len(self.codebook) != len(above):
            raise MqvaeError(
                "codebook must be one or more parameters of the module, got "
                f"{len(above)} of which {len(self.codebook)} are. They are: "
                f"{', '.join(names.values())}."
            )
        alone = "Build it with those alone; freeze what is not to be trained."
        check_holds("lower", lower, self.network, "outside `codebook`", names, alone)
        check_holds("upper", upper, self.codebook, "in `codebook`", names, alone)
        self.lower = lower
        self.upper = upper
        self.xi = xi
        self.look_ahead = Undone() if look_ahead is None else look_ahead
        self.derivative = OneSided() if derivative is None else derivative
        self.look_ahead.check(lower, xi)
        self._total = _Total(module, loss)
        self.process_group = process_group
        self._agreed = False
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
            ValueError: if what `loss` returns is no scalar with a gradient, or gradients are off.
        """
        require_gradients("GenericMeta.step")
        with within(self.process_group):
            if world_size() > 1 and not self._agreed:
                agree([self._total])
                self._agreed = True
            return self._step(batch, above)

    def _step(self, batch: tuple[Any, ...], above: tuple[Any, ...] | None) -> GenericStep:
        kept = self.look_ahead.kept
        start = Snapshot([self._total], self.codebook[0].device)
        table = [_copy(t) for t in self.codebook]
        if kept:
            total, g, g_c = self._pass_for_real(start, batch)
        else:
            phi = [_copy(t) for t in self.network]
            total, g, g_c = self._pass(start, phi, table, batch)
        here, after, slopes = self.look_ahead.answer(
            self.lower, self.network, mean_across_processes(g), self.xi
        )
        phi = here if kept else phi
        # A pass must not see the module's own, which it might change.
        originals = {id(p) for p in self.network}
        ahead = [_copy(a) if id(a) in originals else a for a in after]
        _, v, direct = self._pass(start, ahead, table, batch if above is None else above)
        v = scaled(mean_across_processes(v), slopes)

        def codebook_gradient(point: list[Tensor]) -> Tensor:
            # Modules route gradients by whether their input requires one: φ must, as in training.
            for p, own in zip(point, self.network, strict=True):
                p.requires_grad_(own.requires_grad)
            _, _, found = self._pass(start, point, table, batch, codebook_only=True)
            return self._flat(found)

        change = along(self.derivative, codebook_gradient, phi, v, self._flat(g_c), widen=False)
        hyper = Hypergradient(*mean_across_processes([self._flat(direct), -self.xi * change]))
        found = self._parts(hyper.total(), direct)
        apply(self.upper, self.codebook, only_finite(found))
        if not kept:
            _, g, _ = self._pass_for_real(start, batch)
            apply(self.lower, self.network, mean_across_processes(g))
        return GenericStep(total, **hyper.norms())

    def _pass(
        self,
        start: Snapshot,
        phi: Sequence[Tensor],
        codebook: Sequence[Tensor],
        batch: tuple[Any, ...],
        *,
        codebook_only: bool = False,
    ) -> tuple[Tensor, Gradients, Gradients]:
        """(L, ∂L/∂φ, ∂L/∂C) at (φ, C), from where the step started and without a trace."""
        table = [_copy(t) for t in codebook]  # a pass may replace codewords
        tensors = dict(zip(self._names, [*phi, *table], strict=True))
        with start.again(), unrecorded(self._total), torch.enable_grad():
            total = _scalar(functional_call(self._total, tensors, batch))
            found = gradient(total, table if codebook_only else [*phi, *table])
        cut = len(found) - len(table)
        return total.detach(), found[:cut], found[cut:]

    def _pass_for_real(
        self, start: Snapshot, batch: tuple[Any, ...]
    ) -> tuple[Tensor, Gradients, Gradients]:
        """The same at the module's own parameters, as ordinary training makes it."""
        with start.put_back_if_raised(self.codebook):
            total = _scalar(self._total(*batch))
            found = gradient(total, [*self.network, *self.codebook])
        return total.detach(), found[: len(self.network)], found[len(self.network) :]

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


def _copy(tensor: Tensor) -> Tensor:
    """The tensor as a new leaf."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _scalar(total: Tensor) -> Tensor:
    if not (torch.is_tensor(total) and total.ndim == 0 and total.requires_grad):
        got = f"a {type(total).__name__}"
        if torch.is_tensor(total):
            got = f"a tensor {tuple(total.shape)} with requires_grad={total.requires_grad}"
        raise MqvaeError(
            f"loss(module, *batch) must return a scalar tensor with a gradient, got {got}: reduce "
            "it to a mean over the batch of what the module's parameters lead to."
        )
    return total
