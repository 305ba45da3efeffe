"""A prior over the codes of a trained tokenizer: what its images are drawn from."""

from mqvae.prior.runs import begin_prior, resume_prior
from mqvae.prior.sampling import load_prior, sample_images
from mqvae.prior.settings import PriorSettings
from mqvae.prior.training import PriorTraining

__all__ = [
    "PriorSettings",
    "PriorTraining",
    "begin_prior",
    "load_prior",
    "resume_prior",
    "sample_images",
]
