"""Classification."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mqvae.core.passes import full
from mqvae.errors import MqvaeError
from mqvae.tasks.task import Matrix, Measurement, Metric, Task, metrics_of


class Classification(Task):
    """Cross-entropy between the output, a score for every class, and the label.

    Args:
        label_smoothing: Share of the target that all classes have alike, 0 to 1.

    Raises:
        ValueError: if `label_smoothing` is not from 0 to 1.
    """

    metrics: ClassVar[Mapping[str, Metric]] = metrics_of("classification")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise MqvaeError(f"label_smoothing must be from 0 to 1, got {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """−mean log p(label), over the batch; p is the softmax of the output.

        Written out, in what forward-over-reverse differentiates in every version of torch.

        Raises:
            ValueError: if the output is no score for every class.
        """
        if output.ndim != 2:
            raise MqvaeError(
                "Classification expects outputs (B, classes), got "
                f"{tuple(output.shape)}: take a network that classifies, such as ResNet18."
            )
        log_p = full(output).log_softmax(1)  # (B, classes)
        loss = -log_p.gather(1, target[:, None]).mean()
        if self.label_smoothing:
            loss = torch.lerp(loss, -log_p.mean(), self.label_smoothing)
        return loss

    def measurement(self) -> Measurement:
        return _Confusion()


class _Confusion(Measurement):
    """Counts of labels by predictions, and the sum of cross-entropies in float64."""

    def __init__(self) -> None:
        # As many as the output has classes, which the first batch tells.
        self.counts = torch.zeros(0, 0, dtype=torch.int64)  # (labels, predictions)
        self.cross_entropy = torch.zeros((), dtype=torch.float64)

    def update(self, output: Tensor, target: Tensor) -> None:
        output, target = output.cpu().double(), target.cpu()  # not every device has float64
        classes = output.shape[1]
        if not self.counts.numel():
            self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        pairs = target * classes + output.argmax(1)  # (B,)
        self.counts += pairs.bincount(minlength=classes**2).view(classes, classes)
        self.cross_entropy -= output.log_softmax(1).gather(1, target[:, None]).sum()

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        # A process without a batch has not learned how many classes there are.
        widths, seen = total(torch.tensor([len(self.counts), len(self.counts) > 0])).tolist()
        classes = widths // seen
        if not self.counts.numel():
            self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.counts = total(self.counts)
        hits = self.counts.diagonal()
        occurrences = self.counts.sum(0) + self.counts.sum(1)  # 2 TP + FP + FN
        images = self.counts.sum().item()
        there = occurrences > 0
        f1 = 2 * hits[there].double() / occurrences[there]
        return {
            "accuracy": hits.sum().item() / images,
            "f1": f1.mean().item(),
            "cross_entropy": total(self.cross_entropy).item() / images,
        }

    def show(self, x: Tensor, output: Tensor) -> list[Matrix]:
        return [Matrix("confusion", "Confusion matrix", self.counts, "label", "prediction")]
