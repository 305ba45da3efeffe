"""The metrics of a trained network, each with the protocol it was computed by."""

from mqvae.metrics.evaluation import BATCH_SIZE as BATCH_SIZE
from mqvae.metrics.evaluation import CODES as CODES
from mqvae.metrics.evaluation import Evaluation as Evaluation
from mqvae.metrics.evaluation import evaluate as evaluate
from mqvae.metrics.evaluation import evaluating as evaluating
from mqvae.metrics.registry import METRICS as METRICS
