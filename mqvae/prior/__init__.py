"""A prior over the codes of a trained tokenizer: what its images are drawn from."""

from mqvae.prior.runs import begin_prior as begin_prior
from mqvae.prior.runs import resume_prior as resume_prior
from mqvae.prior.sampling import load_prior as load_prior
from mqvae.prior.sampling import sample_images as sample_images
from mqvae.prior.settings import PriorSettings as PriorSettings
