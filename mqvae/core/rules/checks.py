"""What an update is refused for."""

import torch
from torch import nn
from torch.optim import Optimizer

from mqvae.core.network import VQNetwork, codebook_parameters, network_parameters
from mqvae.core.optimizer import check_holds
from mqvae.core.rules.rule import Rule
from mqvae.errors import MqvaeError


def refuse_wrapped(network: nn.Module, name: str = "network") -> None:
    """Refuse, by a ValueError, a module whose gradients something else averages."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        raise MqvaeError(
            "update rules average gradients by themselves: pass the module inside "
            f"DistributedDataParallel, {name}.module."
        )


def check_levels(network: nn.Module, lower: Optimizer, upper: Optimizer | None, rule: Rule) -> None:
    """Refuse, by a ValueError, optimizers that hold others than their level's parameters."""
    name = type(rule).__name__
    if isinstance(network, VQNetwork):
        network.require_apart()  # weights may have been tied since it was built
    elif not rule.any_module:
        raise MqvaeError(
            f"{name} makes passes of encoder and decoder apart: it needs a VQNetwork(encoder, "
            f"quantizer, decoder), got a {type(network).__name__}. Joint, Synchronous and "
            "Alternated train any module with quantizers inside, and GenericMeta looks ahead "
            "around a closure."
        )
    names = {id(p): n for n, p in network.named_parameters()}
    codebook = codebook_parameters(network)
    for level, optimizer, parameters, function in (
        ("lower", lower, network_parameters(network), "network_parameters"),
        ("upper", upper, codebook, "codebook_parameters"),
    ):
        if optimizer is not None:
            build = f"Build it with mqvae.{function}(network)."
            check_holds(level, optimizer, parameters, "of its level", names, build)
    if upper is None and rule.steps_codebook and any(p.requires_grad for p in codebook):
        raise MqvaeError(
            f"{name} trains the codebook: pass upper=an optimizer of "
            "mqvae.codebook_parameters(network), or freeze them."
        )


def require_gradients(what: str) -> None:
    """Refuse, by a ValueError, to train where autograd records nothing."""
    if not torch.is_grad_enabled():
        where = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise MqvaeError(
            f"{what} trains by gradients, which are off here: expected a call outside "
            f"torch.{where}(). Move it out, or wrap it in `with torch."
            + ("inference_mode(False):`." if where == "inference_mode" else "enable_grad():`.")
        )
