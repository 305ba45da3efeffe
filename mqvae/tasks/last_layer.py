"""Gradients of losses by the weights of the decoder's last layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from mqvae.core.network import VQNetwork
from mqvae.core.passes import RandomState, call
from mqvae.errors import MqvaeError


class LastLayer:
    """∂L/∂W of the layer that gives the output, from ∂L/∂output alone.

    It notes what the layer is given, pass by pass, without graphs: the layer is linear, and that is
    all its gradient needs. Passes at other weights, as look-aheads make them, are noted too. A
    decoder without `last_layer`, or that does more than to scale and shift what it gives, is
    refused.
    """

    def __init__(self, network: VQNetwork, x: Tensor) -> None:
        layer = getattr(network.decoder, "last_layer", None)
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            raise _unfit(network, f"is {layer!r}")
        self.layer = layer
        self._scale = _scale_after(layer, network, x[:1])
        self._inputs: list[Tensor] = []
        self._handle = layer.register_forward_pre_hook(self._note)

    def release(self) -> None:
        """Stop recording."""
        self._handle.remove()
        self.forget()

    def forget(self) -> None:
        """Clear the record."""
        self._inputs.clear()

    def weight_gradients(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """∂L/∂W of losses in the pass that was made last, from ∂L/∂output of each, (B, ...)."""
        # The parts that a batch was taken in are the last ones.
        parts: list[Tensor] = []
        while self._inputs and sum(map(len, parts)) < len(gradients[0]):
            parts.insert(0, self._inputs.pop())
        if sum(map(len, parts)) != len(gradients[0]):
            raise MqvaeError(
                f"an output of {len(gradients[0])} images is judged that the decoder has not just "
                "made: call `attend` with the network that is trained, and the task after each of "
                "its passes."
            )
        inputs = parts[0] if len(parts) == 1 else torch.cat(parts)
        with torch.enable_grad():
            weight = self.layer.weight.detach().requires_grad_()
            output = functional_call(self.layer, {"weight": weight}, (inputs,))
        self.forget()
        cotangents = [(self._scale * g).to(output.dtype) for g in gradients]
        return [torch.autograd.grad(output, weight, g, retain_graph=True)[0] for g in cotangents]

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():  # otherwise nobody asks
            self._inputs.append(without_graph(inputs[0]))


def _scale_after(layer: nn.Module, network: VQNetwork, x: Tensor) -> float:
    """s in: output = s · (what the layer gives) + c. A network on [−1, 1] has ½ there."""
    given: list[Tensor] = []

    def spread(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # On what an untrained layer gives, close to a constant, a sigmoid is a line too.
        generator = torch.Generator().manual_seed(0)
        given.append(4 * torch.randn(output.shape, generator=generator).to(output))
        return given[-1].clone()  # what follows may work in place

    handle = layer.register_forward_hook(spread)
    try:
        with torch.no_grad(), RandomState(x.device).replayed():
            z = network.placed(call(network.encoder, None, x))
            output = call(network.decoder, None, network.channels_back(z))
    finally:
        handle.remove()
    if len(given) != 1 or given[0].shape != output.shape:
        raise _unfit(network, f"gives {[tuple(g.shape) for g in given]}, not {tuple(output.shape)}")
    a, b = (t.cpu().double() - t.cpu().double().mean() for t in (given[0], output))
    scale = (a * b).sum() / a.square().sum()
    if not torch.allclose(b, scale * a, rtol=0, atol=1e-4 * b.abs().max().item()):
        raise _unfit(network, "is followed by more than a scale and a shift")
    return scale.item()


def _unfit(network: VQNetwork, what: str) -> MqvaeError:
    return MqvaeError(
        "the adaptive weight of the discriminator comes from the decoder's last layer: expected "
        "the decoder to have `last_layer`, a Conv2d or ConvTranspose2d whose output is the "
        f"decoder's up to a scale and a shift, but {type(network.decoder).__name__}'s {what}. Take "
        "mqvae.VQVAE, change yours, or set adversarial_weight to 0."
    )


def without_graph(tensor: Tensor) -> Tensor:
    """The tensor detached, with its tangent of forward mode, which `detach` would drop."""
    primal, tangent = forward_ad.unpack_dual(tensor)
    if tangent is None:
        return primal.detach()
    return forward_ad.make_dual(primal.detach(), tangent.detach())
