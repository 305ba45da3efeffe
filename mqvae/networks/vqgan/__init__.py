"""The VQ-GAN (Esser et al. 2021): its network, and the names others have for its tensors."""

from mqvae.networks.vqgan.network import VQGAN as VQGAN
