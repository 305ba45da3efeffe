"""Where the weights begin: another run's, and which of them are held still."""

from collections.abc import Sequence

from torch import nn

from mqvae.core.network import VQNetwork
from mqvae.runs import Run
from mqvae.settings import Start


def parts_of(network: VQNetwork) -> dict[str, nn.Module]:
    """The parts of a network, by their names in settings."""
    return {
        "encoder": network.encoder,
        "codebook": network.quantizer,
        "decoder": network.decoder,
    }


def start_from(start: Start, network: VQNetwork) -> None:
    """Give parts of a network the weights that a run ended with.

    Raises:
        ValueError: if the run has none, or its parts are of other shapes: it names each.
    """
    weights = Run(start.run).load("last", training=False).weights
    unfit: list[str] = []
    for name in start.parts:
        part = parts_of(network)[name]
        prefix = "quantizer." if name == "codebook" else f"{name}."
        there = {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}
        here = part.state_dict()
        for key in sorted(here.keys() | there.keys()):
            shapes = [tuple(of[key].shape) if key in of else None for of in (there, here)]
            if shapes[0] != shapes[1]:
                has, wants = ("nothing" if shape is None else str(shape) for shape in shapes)
                unfit.append(f"  {prefix}{key}: {has} there, {wants} here")
        if not unfit:
            part.load_state_dict(there)
    if unfit:
        shown = unfit[:10] + [f"  and {len(unfit) - 10} more"] * (len(unfit) > 10)
        raise ValueError(
            f"the weights of {start.run} do not fit this network:\n"
            + "\n".join(shown)
            + "\nGive the network the same sizes, or take fewer parts: --from.parts encoder,decoder"
        )


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
