"""What a network is trained for: the task loss L_task and its target."""

from torch import Tensor


class Reconstruction:
    """Mean squared error between the output and the input itself."""

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        """What the output is compared with, given images and labels."""
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """mean (output − target)² over all numbers.

        Written out: `mse_loss` fails under forward-over-reverse in some versions of torch.
        """
        return (output - target).square().mean()
