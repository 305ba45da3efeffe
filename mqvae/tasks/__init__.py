"""What a network is trained for: targets, losses, metrics, pictures, auxiliary networks."""

from mqvae.tasks.adversarial import Adversarial as Adversarial
from mqvae.tasks.classification import Classification as Classification
from mqvae.tasks.reconstruction import Reconstruction as Reconstruction
from mqvae.tasks.reconstruction import VectorReconstruction as VectorReconstruction
from mqvae.tasks.task import AuxiliaryOptimizer as AuxiliaryOptimizer
from mqvae.tasks.task import Matrix as Matrix
from mqvae.tasks.task import Measurement as Measurement
from mqvae.tasks.task import Metric as Metric
from mqvae.tasks.task import Picture as Picture
from mqvae.tasks.task import Strip as Strip
from mqvae.tasks.task import Task as Task
from mqvae.tasks.task import metrics_of as metrics_of
from mqvae.tasks.task import rows_of as rows_of
