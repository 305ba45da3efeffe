"""What losses of the output ask of the decoder's last layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call


class LastLayer:
    """∂L/∂W of the layer that gives the output, from ∂L/∂output alone.

    It notes what the layer is given, pass by pass, without graphs: the layer is linear, and that is
    all its gradient needs. Passes at other weights, as look-aheads make them, are noted too.

    Args:
        layer: The layer, whose output is the decoder's.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        self.layer = layer
        self._inputs: list[Tensor] = []
        self._handle = layer.register_forward_pre_hook(self._note)

    def release(self) -> None:
        """Note nothing any more."""
        self._handle.remove()
        self.forget()

    def forget(self) -> None:
        """Hold on to nothing that has been noted."""
        self._inputs.clear()

    def weight_gradients(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """∂L/∂W of losses, in the pass that was made last.

        Args:
            gradients: ∂L/∂output of each loss, (B, ...).

        Raises:
            ValueError: if the layer has not made that output.
        """
        # The parts that a batch was taken in are the last ones.
        parts: list[Tensor] = []
        while self._inputs and sum(map(len, parts)) < len(gradients[0]):
            parts.insert(0, self._inputs.pop())
        if sum(map(len, parts)) != len(gradients[0]):
            raise ValueError(
                f"an output of {len(gradients[0])} images is judged that the decoder has not just "
                "made: call `attend` with the network that is trained, and the task after each of "
                "its passes."
            )
        inputs = parts[0] if len(parts) == 1 else torch.cat(parts)
        with torch.enable_grad():
            weight = self.layer.weight.detach().requires_grad_()
            output = functional_call(self.layer, {"weight": weight}, (inputs,))
        found = [
            torch.autograd.grad(output, weight, g.to(output.dtype), retain_graph=True)[0]
            for g in gradients
        ]
        self.forget()
        return found

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():  # otherwise nobody asks
            self._inputs.append(without_graph(inputs[0]))


def without_graph(tensor: Tensor) -> Tensor:
    """The tensor detached, with its tangent of forward mode, which `detach` would drop."""
    primal, tangent = forward_ad.unpack_dual(tensor)
    if tangent is None:
        return primal.detach()
    return forward_ad.make_dual(primal.detach(), tangent.detach())
