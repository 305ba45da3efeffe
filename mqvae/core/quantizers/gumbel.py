"""The differentiable baseline: codes drawn from a predicted distribution."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest
from mqvae.core.passes import full, without_autocast
from mqvae.core.quantizers.base import Quantizer
from mqvae.core.quantizers.quantized import Quantized
from mqvae.errors import above_zero, at_least


def gumbel_noise(like: Tensor) -> Tensor:
    """Numbers of a standard Gumbel distribution, as many and of the type of `like`.

    They are −log(−log(1 − u)), the large ones from small u, which floats hold exactly enough: u is
    a whole number of 31 bits over 2³¹. Torch's `exponential_` takes over twice as long on a CPU.
    """
    u = torch.empty(like.shape, dtype=torch.int32, device=like.device).random_().to(like.dtype)
    return u.add_(0.5).mul_(-(2.0**-31)).log1p_().neg_().log_().neg_()


CACHED = 2**17  # numbers of a block on a CPU, all of whose passes stay in the cache
LARGE = 2**26  # and elsewhere


class _Relaxed(torch.autograd.Function):
    """Mixtures of codewords by a Gumbel-softmax sample, a block of embeddings at a time.

    With ℓ = W z + b, q = softmax ℓ and s = softmax((ℓ + noise) / τ) it gives s C, arg-max ℓ and
    KL(q ‖ uniform) of each. Going back,

        ∂/∂ℓ  =  s (C g − ⟨s, C g⟩) / τ  +  q (log q + log K − KL) g_KL

    Only s is held of all embeddings, N × K; the rest is made again where it is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, codebook: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, k = len(z), len(weight)
        dtype = torch.promote_types(z.dtype, torch.float32)
        z_q, codes = torch.empty_like(z), torch.empty(n, dtype=torch.int64, device=z.device)
        sample = torch.empty(n, k, dtype=dtype, device=z.device)
        divergence = torch.empty(n, dtype=dtype, device=z.device)
        for part in _blocks(n, k, z.device):
            logits = _logits(z[part], weight, bias)
            codes[part] = logits.argmax(-1)
            divergence[part] = _divergence(logits)
            noisy = logits.add_(gumbel_noise(logits)).div_(temperature)
            sample[part] = noisy.softmax(-1)
            z_q[part] = sample[part].to(codebook.dtype) @ codebook
        ctx.save_for_backward(z, weight, bias, codebook, sample, divergence, temperature)
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)  # the prior alone reaches no codeword
        return z_q, codes, divergence

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_mixed: Tensor | None, _: None, g_divergence: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        z, weight, bias, codebook, sample, divergence, temperature = ctx.saved_tensors
        n, k = sample.shape
        g_z = torch.empty_like(z)
        g_weight, g_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        g_codebook = None if g_mixed is None else torch.zeros_like(codebook)
        with without_autocast(z.device):
            for part in _blocks(n, k, z.device):
                s = sample[part]
                g_logits = torch.zeros_like(s)
                if g_mixed is not None and g_codebook is not None:
                    g = g_mixed[part]
                    g_codebook += s.to(codebook.dtype).T @ g
                    g_s = (g @ codebook.T).to(s.dtype)
                    g_s -= (s * g_s).sum(-1, keepdim=True)
                    g_logits.addcmul_(s * temperature.reciprocal().to(s.dtype), g_s)
                if g_divergence is not None:
                    log_q = _logits(z[part], weight, bias).log_softmax(-1)
                    g_q = log_q + (math.log(k) - divergence[part, None])
                    g_logits.addcmul_(log_q.exp_(), g_q.mul_(g_divergence[part, None]))
                g_head = g_logits.to(weight.dtype)
                g_z[part] = g_head @ weight
                g_weight += g_head.T @ z[part]
                g_bias += g_head.sum(0)
        return g_z, g_weight, g_bias, g_codebook, None


def _written_out(
    z: Tensor, weight: Tensor, bias: Tensor, codebook: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_Relaxed`, for a compiler, which fuses by itself and holds what it likes."""
    logits = _logits(z, weight, bias)
    u = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
    sample = ((logits - (-u.log()).log()) / temperature.to(logits.dtype)).softmax(-1)
    return sample.to(codebook.dtype) @ codebook, logits.argmax(-1), _divergence(logits)


def _logits(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # A softmax over many codes in half precision loses the rare ones.
    return full(nn.functional.linear(z, weight, bias))


def _divergence(logits: Tensor) -> Tensor:
    """KL(softmax ‖ uniform) of logits (..., K)."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


def _blocks(n: int, k: int, device: torch.device) -> Iterator[slice]:
    if torch.compiler.is_exporting():  # a program takes any number of embeddings, and has no loops
        yield slice(None)
        return
    rows = max(1, (CACHED if device.type == "cpu" else LARGE) // k)
    yield from (slice(at, at + rows) for at in range(0, max(n, 1), rows))


class GumbelQuantizer(Quantizer):
    """Gumbel-VQ: a linear head gives logits of codes, a relaxed sample of them mixes codewords.

    In training z_q is the mixture of a Gumbel-softmax sample, through which the task loss trains
    codebook, head and encoder; in eval it is the codeword of the largest logit. There are no
    commitment and codebook losses; the divergence of the codes from uniform is `auxiliary_loss`.
    The temperature falls as a cosine over the updates.

    Args:
        num_codes: Number of codewords K.
        dim: Dimensions D of an embedding and of a codeword.
        kl_weight: Weight of KL(q(k|x) ‖ uniform), mean over embeddings.
        temperature: Temperature at the first update.
        final_temperature: Temperature after `anneal_steps` updates.
        anneal_steps: Updates over which it falls.
        channel_axis: The axis of the channels; None for the last.

    Raises:
        ValueError: if a size or a temperature is not positive, or `kl_weight` is negative.

    Source: Jang et al. 2016, "Categorical reparameterization with Gumbel-softmax"; the weight of
    the divergence and the temperatures are those of Karpathy 2021, deep-vector-quantization, which
    differs: logits come from all channels of the encoder, without k-means; the decoder sees one
    codeword, by a straight-through sample, in evaluation too; the temperature falls as
    1 − cos(πt/2), over 50 of 200 epochs; and the squared error is divided by twice the variance of
    CIFAR-10's pixels, 0.127, so that beside a plain one the divergence has a weight of 6.3e-5.
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
        channel_axis: int | None = None,
    ) -> None:
        super().__init__(num_codes, dim, channel_axis=channel_axis)
        at_least(1, anneal_steps=anneal_steps)
        above_zero(temperature=temperature, final_temperature=final_temperature)
        at_least(0, kl_weight=kl_weight)
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
        return float(self._temperature())

    def _temperature(self) -> Tensor:
        """The same where the quantizer is: a GPU would have to be waited for to know it."""
        done = (self.steps.double() / self.anneal_steps).clamp(max=1)
        fall = 0.5 * (1 + (math.pi * done).cos())
        return self.final_temperature + (self.first_temperature - self.final_temperature) * fall

    def quantize(self, z_e: Tensor, *, mask: Tensor | None = None) -> Quantized:
        self.check_width(z_e)
        if self.training:
            relaxed = _written_out if torch.compiler.is_compiling() else _Relaxed.apply
            with without_autocast(z_e.device):
                mixed, codes, divergences = relaxed(
                    z_e.reshape(-1, self.dim).to(self.codebook.dtype),
                    *(self.head.weight, self.head.bias, self.codebook, self._temperature()),
                )
            z_q, codes = mixed.view_as(z_e), codes.view(z_e.shape[:-1])
        else:
            parts = [(b.argmax(-1), _divergence(b)) for b in self._logits(z_e)]
            codes, divergences = (torch.cat(each) for each in zip(*parts, strict=True))
            codes = codes.view(z_e.shape[:-1])
            z_q = nn.functional.embedding(codes, self.codebook)
        if mask is None:
            divergence = divergences.mean()
        else:
            kept = divergences.where(mask.flatten(), 0)
            divergence = kept.sum() / mask.sum().clamp(min=1)
        zero = divergence.new_zeros(())
        z_q = self.passed_on(z_e, z_q.to(z_e.dtype))
        return Quantized(z_q, codes, zero, zero, divergence, self.kl_weight)

    def _encode(self, z_e: Tensor) -> Tensor:
        return torch.cat([b.argmax(-1) for b in self._logits(z_e)]).view(z_e.shape[:-1])

    def _logits(self, z_e: Tensor) -> Iterator[Tensor]:
        z = z_e.reshape(-1, self.dim).to(self.codebook.dtype)
        for part in _blocks(z.shape[0], self.num_codes, z.device):
            with without_autocast(z_e.device):
                logits = _logits(z[part], self.head.weight, self.head.bias)
            yield logits

    def _decode(self, codes: Tensor) -> Tensor:
        return nn.functional.embedding(codes, self.codebook)

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """k-means centres as codewords, and logits that prefer the nearest one.

        With e_k the centres, the head becomes 2 s z·e_k − s ‖e_k‖² = −s ‖z − e_k‖² + const, s the
        inverse of the embeddings' mean squared distance to their centre.
        """
        self.check_width(z_e)
        samples = z_e.detach().reshape(-1, self.dim).to(self.codebook.dtype)
        centres = kmeans(samples, self.num_codes, generator=generator)
        error = (samples - centres[nearest(samples, centres)]).square().sum(1).mean()
        scale = 1 / error.clamp(min=1e-6)
        self.codebook.copy_(centres)
        self.head.weight.copy_(2 * scale * centres)
        self.head.bias.copy_(-scale * centres.square().sum(1))

    @torch.no_grad()
    def update(self, optimizer: Optimizer | None = None) -> None:
        if self.training:
            self.steps.add_(1)
