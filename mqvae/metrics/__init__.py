"""The metrics of a trained network, each with the protocol it was computed by."""

from mqvae.metrics.evaluation import BATCH_SIZE, CODES, Evaluation, evaluate, evaluating
from mqvae.metrics.registry import METRICS

__all__ = ["BATCH_SIZE", "CODES", "METRICS", "Evaluation", "evaluate", "evaluating"]
