"""The differentiable baseline: codes drawn from a predicted distribution."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest
from mqvae.core.quantizer import Quantized, Quantizer


def gumbel_noise(like: Tensor) -> Tensor:
    """Numbers of a standard Gumbel distribution, as many and of the type of `like`.

    They are −log(−log(1 − u)), the large ones from small u, which floats hold exactly enough: u is
    a whole number of 31 bits over 2³¹. Torch's `exponential_` takes over twice as long on a CPU.
    """
    u = torch.empty(like.shape, dtype=torch.int32, device=like.device).random_().to(like.dtype)
    return u.add_(0.5).mul_(-(2.0**-31)).log1p_().neg_().log_().neg_()


class GumbelQuantizer(Quantizer):
    """Gumbel-VQ: a linear head gives logits of codes, a relaxed sample of them mixes codewords.

    In training z_q is the mixture of a Gumbel-softmax sample, through which the task loss trains
    codebook, head and encoder; in eval it is the codeword of the largest logit. There are no
    commitment and codebook losses; the divergence of the codes from uniform is `prior_loss`.
    The temperature falls as a cosine over the updates.

    Args:
        num_codes: Number of codewords K.
        dim: Dimensions D of an embedding and of a codeword.
        kl_weight: Weight of KL(q(k|x) ‖ uniform), mean over embeddings.
        temperature: Temperature at the first update.
        final_temperature: Temperature after `anneal_steps` updates.
        anneal_steps: Updates over which it falls.

    Raises:
        ValueError: if a size or a temperature is not positive, or `kl_weight` is negative.

    Source: Jang et al. 2016, "Categorical reparameterization with Gumbel-softmax"; the weights
    and the schedule are those of Karpathy 2021, deep-vector-quantization.
    """

    steps: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        kl_weight: float = 5e-4,
        temperature: float = 1.0,
        final_temperature: float = 1 / 16,
        anneal_steps: int = 150_000,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_codes", num_codes),
            ("dim", dim),
            ("anneal_steps", anneal_steps),
        ):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        for name, number in (
            ("temperature", temperature),
            ("final_temperature", final_temperature),
        ):
            if not number > 0:
                raise ValueError(f"{name} must be above 0, got {number}.")
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight must be 0 or more, got {kl_weight}.")
        self.num_codes = num_codes
        self.dim = dim
        self.groups = 1
        self.kl_weight = kl_weight
        self.first_temperature = temperature
        self.final_temperature = final_temperature
        self.anneal_steps = anneal_steps
        self.head = nn.Linear(dim, num_codes)
        self.codebook = nn.Parameter(torch.randn(num_codes, dim) / dim**0.5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def temperature(self) -> float:
        """The temperature of the next update."""
        done = min(1.0, int(self.steps) / self.anneal_steps)
        fall = 0.5 * (1 + math.cos(math.pi * done))
        return self.final_temperature + (self.first_temperature - self.final_temperature) * fall

    def quantize(self, z_e: Tensor) -> Quantized:
        logits = self._logits(z_e)  # (..., K)
        codes = logits.argmax(-1)
        with torch.autocast(z_e.device.type, enabled=False):
            if self.training:
                scale = 1 / self.temperature
                noise = gumbel_noise(logits).mul_(scale)
                sample = torch.add(noise, logits, alpha=scale).softmax(-1)
                z_q = sample.to(self.codebook.dtype) @ self.codebook
            else:
                z_q = nn.functional.embedding(codes, self.codebook)
            log_q = logits.log_softmax(-1)
            divergence = (log_q.exp() * (log_q + math.log(self.num_codes))).sum(-1).mean()
        zero = logits.new_zeros(())
        z_q = self.passed_on(z_e, z_q.to(z_e.dtype))
        return Quantized(z_q, codes, zero, zero, self.kl_weight * divergence)

    @torch.no_grad()
    def encode(self, z_e: Tensor) -> Tensor:
        self._check_width(z_e)
        return self._logits(z_e).argmax(-1)

    def _logits(self, z_e: Tensor) -> Tensor:
        with torch.autocast(z_e.device.type, enabled=False):
            logits = self.head(z_e.to(self.codebook.dtype))
            # A softmax over many codes in half precision loses the rare ones.
            return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes back to codewords, (..., D).

        Raises:
            ValueError: if the codes are not integers in [0, num_codes).
        """
        return nn.functional.embedding(self._check_codes(codes), self.codebook)

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """k-means centres as codewords, and logits that prefer the nearest one.

        With e_k the centres, the head becomes 2 s z·e_k − s ‖e_k‖² = −s ‖z − e_k‖² + const, s the
        inverse of the embeddings' mean squared distance to their centre.
        """
        self._check_width(z_e)
        samples = z_e.detach().reshape(-1, self.dim).to(self.codebook.dtype)
        centres = kmeans(samples, self.num_codes, generator=generator)
        error = (samples - centres[nearest(samples, centres)]).square().sum(1).mean()
        scale = 1 / error.clamp(min=1e-6)
        self.codebook.copy_(centres)
        self.head.weight.copy_(2 * scale * centres)
        self.head.bias.copy_(-scale * centres.square().sum(1))

    @torch.no_grad()
    def after_step(
        self,
        z_e: Tensor,
        codes: Tensor,
        forget: Callable[[Tensor], None],
        task_gradient: Tensor | None = None,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if self.training:
            self.steps.add_(1)
