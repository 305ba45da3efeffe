"""The same in Hugging Face's Trainer: its loop, schedule and logs; the step is `mqvae.Meta`'s."""

import argparse
from typing import Any

import torch
from plain_loop import build
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW, Optimizer
from transformers import Trainer, TrainingArguments

import mqvae
from mqvae.data import load


class CodebookTrainer(Trainer):
    """A Trainer whose step is `mqvae.Meta`'s.

    Its own optimizer is the lower level's, so that the schedule is too. The rule has stepped it
    when Trainer does so, and leaves no gradient behind to be stepped along again.
    """

    def create_optimizer(self, *rest: Any) -> Optimizer:
        network = self.model
        self.optimizer = AdamW(network.network_parameters(), lr=self.args.learning_rate)
        upper = AdamW(network.codebook_parameters(), lr=1e-2)
        self.update = mqvae.Meta(network, mse_loss, lower=self.optimizer, upper=upper)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any) -> Tensor:
        model.train()
        x = inputs["x"].to(self.args.device)
        self.last = self.update.step(x, x)
        return self.last.task

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Trainer's figures, and how many codewords the batch has used."""
        if "loss" in logs:
            logs["codes"] = len(self.last.codes.unique())
        super().log(logs, *rest)


def train(steps: int, folder: str = "runs/trainer") -> Trainer:
    images = load("digits", "train").pixels / 255
    network = build()
    network.initialize_codebook(images[:500])
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        warmup_steps=steps // 10,
        lr_scheduler_type="cosine",
        logging_steps=max(1, steps // 10),
        max_grad_norm=0,  # gradients are the rule's, and gone when Trainer would clip them
        save_strategy="no",  # the codebook's optimizer would be left out
        report_to="none",
        use_cpu=True,
    )
    trainer = CodebookTrainer(network, arguments, train_dataset=[{"x": x} for x in images])
    trainer.train()
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is not worth two
    train(options.steps)
