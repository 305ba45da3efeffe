"""Weights from another run, and frozen parts of a network."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mqvae.config import Start
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import USE
from mqvae.errors import MqvaeError
from mqvae.runs import Run, beginning_with
from mqvae.weights.packaged import packaged, weights_of


def parts_of(network: VQNetwork) -> dict[str, nn.Module]:
    """The parts of a network, by their names in settings."""
    return {"encoder": network.encoder, "codebook": network.quantizer, "decoder": network.decoder}


def start_from(start: Start, network: VQNetwork) -> None:
    """Give parts of a network the weights that a run, or a tokenizer of the package, ended with."""
    if folder := packaged(start.run):
        weights = weights_of(folder)
    else:
        weights = Run(start.run).load("last", training=False).weights
    there: dict[str, dict[str, Tensor]] = {}
    unfit: dict[str, list[str]] = {}
    for name in start.parts:
        prefix = "quantizer." if name == "codebook" else f"{name}."
        there[name] = _learned(beginning_with(prefix, weights))
        own = _learned(parts_of(network)[name].state_dict())
        unfit[name] = _misfits(prefix, there[name], own)
    if any(unfit.values()):
        fits = [name for name in start.parts if not unfit[name]]
        raise MqvaeError(
            f"the weights of {start.run} do not fit this network:\n"
            + "\n".join(line for lines in unfit.values() for line in lines)
            + "\nGive the network the same sizes"
            + (f", or take what fits: --from.parts {','.join(fits)}." if fits else ".")
        )
    for name in start.parts:
        part = parts_of(network)[name]
        part.load_state_dict({**part.state_dict(), **there[name]})
    if "codebook" in start.parts:
        network.quantizer.forget_use()


def _learned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what counts the use of codes: it is forgotten, and only some quantizers count."""
    return {k: t for k, t in tensors.items() if not USE & set(k.split("."))}


def _misfits(prefix: str, there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """Every tensor that one has and the other lacks or has in another shape, a line each."""
    lines = []
    for key in sorted(here.keys() | there.keys()):
        has, wants = (str(tuple(of[key].shape)) if key in of else "nothing" for of in (there, here))
        if has != wants:
            lines.append(f"  {prefix}{key}: {has} there, {wants} here")
    return lines


def freeze(network: VQNetwork, names: Sequence[str]) -> None:
    """Hold parts of a network still: nothing steps their parameters."""
    for name in names:
        parts_of(network)[name].requires_grad_(False)


def set_training(network: VQNetwork, frozen: Sequence[str]) -> None:
    """Training mode, but for a frozen encoder or decoder, whose batch statistics stay as well."""
    network.train()
    for name in frozen:
        if name != "codebook":
            parts_of(network)[name].eval()
