"""A codebook of vector-quantize-pytorch in a model of one's own, learned by hypergradient."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import AdamW
from vector_quantize_pytorch import VectorQuantize

import mqvae


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        down, up = nn.Conv2d(1, 32, 4, 2, 1), nn.ConvTranspose2d(32, 1, 4, 2, 1)
        self.encoder = nn.Sequential(down, nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.decoder = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), up)
        # Theirs rotates gradients unless told not to; the paper's estimator does not.
        self.vq = VectorQuantize(dim=16, codebook_size=64, accept_image_fmap=True,
                                 learnable_codebook=True, ema_update=False,
                                 rotation_trick=False)  # fmt: skip


def loss(model: Model, x: Tensor) -> Tensor:
    z_q, _, vq_loss = model.vq(model.encoder(x))
    return nn.functional.mse_loss(model.decoder(z_q), x) + vq_loss


def levels(model: Model) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Encoder and decoder below, the codebook above."""
    codebook = [model.vq._codebook.embed]
    return [p for p in model.parameters() if p is not codebook[0]], codebook


def train(model: Model, x: Tensor, steps: int) -> list[float]:
    network, codebook = levels(model)
    update = mqvae.GenericMeta(model, loss, codebook=codebook,
                               lower=AdamW(network, lr=1e-3),
                               upper=AdamW(codebook, lr=1e-2))  # fmt: skip
    return [update.step(x[torch.randint(len(x), (64,))]).loss.item() for _ in range(steps)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is not worth two
    digits = torch.tensor(load_digits().images).float()[:, None] / 16
    losses = train(Model(), digits, options.steps)
    print("\n".join(f"step {n:4}: loss {losses[n]:.4f}" for n in range(0, options.steps, 50)))
