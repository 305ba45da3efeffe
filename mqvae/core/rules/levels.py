"""What rules are made of: the two levels of a network, and how they are stepped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.averages import Averages
from mqvae.core.bilevel import Batch, gradient
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradients.rule import selecting
from mqvae.core.network import VQNetwork, codebook_parameters, network_parameters, quantizers
from mqvae.core.optimizer import Gradients, apply, forget_rows, only_finite
from mqvae.core.passes import Snapshot, finite_rows
from mqvae.core.quantizers import Quantized
from mqvae.core.rules.step import Found, Step, step_of


@dataclass(eq=False, repr=False)
class Levels:
    """Encoder and decoder below, the codebook above, each with its optimizer.

    A rule gets it as its `update`: it finds gradients, averages them over processes by
    `mean_across_processes`, and steps along them here.

    Args:
        network: What is trained.
        lower: Optimizer of φ and θ.
        upper: Optimizer of C; None where none steps it.
        steps_codebook: Whether the rule steps C along gradients.
        max_norm: The norm that each optimizer's gradients are clipped to; None for not at all.
        scaler: Of float16; None without.

    Example:
        >>> z_e = batch.embed_for_real()                                       # (..., D)
        >>> here = batch.lower_pass(z_e, for_real=True).everywhere()
        >>> update.descend_network([*here.g_phi, *here.g_theta])
        >>> return update.finish(batch, here.task, here.quantized, z_e)
    """

    network: nn.Module
    lower: Optimizer
    upper: Optimizer | None
    steps_codebook: bool
    max_norm: float | None
    scaler: torch.amp.GradScaler | None
    averages: Averages | None = field(default=None, init=False)

    _largest: Tensor | None = field(default=None, init=False)  # of C's gradient in a step
    _held: Found | None = field(default=None, init=False)  # of batches before, for one step
    _batches: int = field(default=0, init=False)
    _snapshot: Snapshot | None = field(default=None, init=False)

    def keep(self) -> None:
        """What has been stepped so far stays, whatever raises later in this step."""
        assert self._snapshot is not None
        self._snapshot.retake()

    @property
    def lower_parameters(self) -> list[Tensor]:
        """φ and θ."""
        return list(network_parameters(self.network))

    @property
    def upper_parameters(self) -> list[Tensor]:
        """The parameters of C, as far as the rule steps them."""
        return list(codebook_parameters(self.network)) if self.steps_codebook else []

    def descend(self, found: Found) -> Step:
        """Step all levels along what one pass found, and let the quantizers learn from it."""
        whole, number = found.added_to(self._held), self._batches + 1
        self._held, self._batches = None, 0
        g: Gradients = [*whole.lower, *whole.upper]
        if number > 1:
            g = [None if one is None else one / number for one in g]
        g, cut = mean_across_processes(g), len(whole.lower)
        self.descend_network(g[:cut])
        if whole.of_table:
            (g_c,) = g[cut:]
            assert g_c is not None
            self.descend_codebook(g_c)
        elif whole.upper:
            self.step_codebook(self.upper_parameters, g[cut:])
        self._record(found.z_e, found.codes)
        if found.learns:
            self._learn()
        return found.step

    def descend_network(self, gradients: Gradients) -> None:
        """Step φ and θ along [*g_φ, *g_θ] of all processes."""
        self._apply(self.lower, self.lower_parameters, gradients)

    def descend_codebook(self, gradient_of_table: Tensor) -> None:
        """Step C's parameters along a gradient of the codebook itself, (K, D)."""
        parameters = [p for p in self.upper_parameters if p.requires_grad]
        if parameters:
            with torch.enable_grad():
                table = selecting(self.network).table()
            g = gradient_of_table.detach().to(table.dtype)
            plain = table is parameters[0]  # and torch has nothing to differentiate
            self.step_codebook(
                parameters, [g] if plain else gradient(table, parameters, cotangent=g)
            )

    def step_codebook(self, parameters: Sequence[Tensor], gradients: Gradients) -> None:
        """Step C's parameters along their gradients, but for numbers that are not finite.

        A network that has diverged is trained anew from a checkpoint; a codebook that it has been
        carried away by, and an optimizer's memory of it, should not be what is left.
        """
        if self.scaler is None:
            found = [g for g in gradients if g is not None]
            if found:
                largest = torch._foreach_norm(found, math.inf)
                self._largest = torch.stack([number.float() for number in largest]).amax()
            gradients = only_finite(gradients)
        self._apply(self.upper, parameters, gradients)

    def _apply(
        self, optimizer: Optimizer | None, parameters: Sequence[Tensor], g: Gradients
    ) -> None:
        apply(optimizer, parameters, g, max_norm=self.max_norm, scaler=self.scaler)

    def translate_codebook(self, shift: Tensor | None) -> None:
        """Move codewords outside any optimizer, by (K, D); a frozen codebook stays.

        So does a codeword whose shift is not finite.
        """
        if shift is not None and any(p.requires_grad for p in self.upper_parameters):
            selecting(self.network).translate(finite_rows(shift))

    def finish(
        self,
        batch: Batch,
        task: Tensor,
        quantized: Quantized,
        z_e: Tensor,
        norms: dict[str, Tensor] | None = None,
    ) -> Step:
        """Once all has been stepped: the quantizer learns from embeddings, (..., D), placed."""
        self._record(z_e, quantized.codes)
        self._learn()
        return step_of(task, [quantized], batch.output, **(norms or {}))

    def _record(self, z_e: Tensor | None, codes: Tensor | None) -> None:
        if z_e is not None and codes is not None:
            assert isinstance(self.network, VQNetwork)
            self.network.quantizer.record(z_e.detach(), codes)

    def _learn(self) -> None:
        for quantizer in quantizers(self.network).values():
            quantizer.update(self.upper)

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Forget what is remembered of rows of the codebook: the optimizer's moments."""
        if self.upper is None:
            return
        for parameter in codebook_parameters(self.network):
            here = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
            forget_rows(self.upper, parameter, here.index_fill(0, rows.to(here.device), True))
