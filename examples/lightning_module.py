"""The same in a LightningModule: manual optimization, Lightning's own loop and optimizers."""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from their_codebook import Model, levels, loss
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

import mqvae


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step is more than one backward pass
        self.model = Model()

    def configure_optimizers(self) -> list[Optimizer]:
        network, codebook = levels(self.model)
        return [AdamW(network, lr=1e-3), AdamW(codebook, lr=1e-2)]

    def on_train_start(self) -> None:
        _, codebook = levels(self.model)
        lower, upper = self.optimizers()
        self.update = mqvae.GenericMeta(
            self.model, loss, codebook=codebook, lower=lower, upper=upper
        )

    def training_step(self, x: Tensor, index: int) -> None:
        step = self.update.step(x)
        # Here, not in the loss, which runs in every look-ahead too.
        self.log_dict({"loss": step.loss, "indirect": step.indirect_norm}, prog_bar=True)


def train(module: Digits, x: Tensor, epochs: int, *, progress: bool = True) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=progress,
    )
    trainer.fit(module, DataLoader(x, 64, shuffle=True))
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = torch.tensor(load_digits().images).float()[:, None] / 16
    train(Digits(), digits, options.epochs)
