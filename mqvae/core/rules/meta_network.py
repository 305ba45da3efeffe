"""The hypergradient on encoder and decoder: MQ-VAE† and MQ-VAE‡ (Table 7)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mqvae.core.bilevel import Batch, averaged, gradient
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradients import Hypergradient
from mqvae.core.hypergradients.rule import codebook_gradient, require_straight_through, selecting
from mqvae.core.look_ahead import Undone
from mqvae.core.optimizer import Gradients
from mqvae.core.quantizers import Quantized
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.meta import LookingAhead
from mqvae.core.rules.rule import Rule
from mqvae.core.rules.step import Step
from mqvae.errors import MqvaeError, at_least


@dataclass(frozen=True, kw_only=True)
class MetaNetwork(Rule):
    """MQ-VAE†: φ and θ descend the loss after the codebook has answered to them.

    One step, Algorithm 1 with the levels exchanged:

        C'      =  C − ξ g_C(φ, C)                                  the look-ahead
        φ, θ    ←  φ, θ − lr · dL(φ, θ, C'(φ))/d(φ, θ)              by `lower`
        C       ←  C − lr · g_C(φ, C)                               by `upper`, with the new φ

    g_C does not depend on θ, so only φ has an indirect term: with v_C = g_C(φ, C') it is
    ξ (2/ND) J_φᵀ v_C[k], one more summand of the gradient at z_e. Codes are frozen in it.

    Args:
        xi: ξ, size of the virtual step of the codebook.
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if `xi` is negative, the quantizer does not select or has another estimator
            than the straight-through one, or for what `Update` refuses.
    """

    method = "MQ-VAE†"

    xi: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, xi=self.xi)

    def check(self, update: Levels) -> None:
        require_straight_through(selecting(update.network), "MetaNetwork")

    def step(self, update: Levels, batch: Batch, above: object) -> Step:
        z_e = batch.embed_for_real()
        (g_c,) = mean_across_processes([codebook_gradient(batch, z_e.detach())])
        task, quantized, g_phi, g_theta = network_hypergradient(batch, z_e, g_c, self.xi)
        update.descend_network(mean_across_processes([*g_phi, *g_theta]))
        with torch.no_grad():
            answered = batch.embed(list(batch.network.encoder_parameters()))
        (g_c,) = mean_across_processes([codebook_gradient(batch, answered)])
        update.descend_codebook(g_c)
        return update.finish(batch, task, quantized, z_e)


@dataclass(frozen=True, kw_only=True)
class MetaBoth(LookingAhead):
    """MQ-VAE‡: both levels descend the loss after the other has answered, from the same point.

    Policy prediction: C steps along `hypergradient` as in `Meta`, φ and θ as in `MetaNetwork`.

    Args:
        hypergradient: How dL'/dC is estimated.
        look_ahead: How φ and θ answer to C. It is always undone: both start from where they were.
        xi: ξ, size of both virtual steps.
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: as `Meta` and `MetaNetwork`.
    """

    method = "MQ-VAE‡"

    look_ahead: Undone | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chosen[1].kept:
            raise MqvaeError(
                "MetaBoth undoes its look-ahead, since both levels start from the same point: give "
                "it look_ahead=Undone(…)."
            )

    def check(self, update: Levels) -> None:
        super().check(update)
        require_straight_through(selecting(update.network), "MetaBoth")

    def step(self, update: Levels, batch: Batch, above: object) -> Step:
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=False)
        g_c = codebook_gradient(batch, z_e.detach())
        g_phi, g_theta, (g_c,) = averaged(here.g_phi, here.g_theta, [g_c])
        here = replace(here, g_phi=g_phi, g_theta=g_theta)
        hypergradient, look_ahead = self.chosen
        ahead = look_ahead.ahead(update.lower, batch, batch, here, self.xi, update.max_norm)
        hyper = hypergradient(ahead)
        *_, g_phi, g_theta = network_hypergradient(batch, z_e, g_c, self.xi)
        g_phi, g_theta, terms = averaged(g_phi, g_theta, hyper.terms())
        hyper = Hypergradient(*terms)
        update.descend_codebook(hyper.total())
        update.descend_network([*g_phi, *g_theta])
        return update.finish(batch, here.task, here.quantized, z_e, hyper.norms())


def network_hypergradient(
    batch: Batch, z_e: Tensor, g_c: Tensor, xi: float
) -> tuple[Tensor, Quantized, Gradients, Gradients]:
    """dL(φ, θ, C'(φ))/d(φ, θ) with C' = C − ξ g_C(φ, C), by the real pass of the decoder.

    From embeddings with the encoder's graph, (..., D), and g_C of all processes, (K, D): L_task,
    the quantization under C', and the gradients of φ and θ, this process's share.
    """
    network = batch.network
    quantizer = selecting(network)
    table = quantizer.table().detach()
    codes = quantizer.nearest_codes(z_e, table)
    ahead = (table - xi * g_c).requires_grad_()
    quantized = quantizer.quantize(z_e, ahead)
    task = batch.task_for_real(quantized.z_q)
    (v_c,) = gradient(batch.weights.codebook * quantized.codebook_loss, [ahead], retain_graph=True)
    (v_c,) = mean_across_processes([torch.zeros_like(table) if v_c is None else v_c])
    # C' gives way to z_e by ξ (2/ND) of the embedding's own motion.
    scale = xi * 2 * batch.weights.codebook / z_e.numel()
    answer = scale * (z_e * quantizer.lookup(codes, v_c)).sum()
    phi: list[Tensor] = list(network.encoder_parameters())
    theta: list[Tensor] = list(network.decoder_parameters())
    total = batch.weights.total(task, quantized) + answer
    found = gradient(total, [*phi, *theta])
    return task.detach(), quantized, found[: len(phi)], found[len(phi) :]
