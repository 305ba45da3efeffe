"""The paper's gradient gap: what quantization does to the gradient of the task loss."""

import torch
from torch import Tensor

from mqvae.core.bilevel import Loss
from mqvae.core.network import VQNetwork
from mqvae.core.passes import RandomState, call, traceless


def gradient_gap(network: VQNetwork, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """‖∂L_task(G_θ(z_e))/∂z_e − ∂L_task(G_θ(z_q))/∂z_q‖ on one batch (Section 5.2); a scalar.

    What the straight-through estimator gets wrong. A mean loss makes it scale with the batch size.
    Buffers and random state are left as they were, and both passes draw the same random numbers.
    """
    start = RandomState(x.device)

    def task_gradient(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        with start.replayed(), torch.enable_grad():
            output = call(network.decoder, None, network.channels_back(z))
            task = traceless(loss, output, y)
        return torch.autograd.grad(task, z)[0]

    with torch.no_grad(), start.replayed():
        z_e = network.placed(call(network.encoder, None, x))
        z_q = network.quantizer.quantize(z_e).z_q
    return (task_gradient(z_e) - task_gradient(z_q)).norm()
