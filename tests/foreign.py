"""Tokenizers as other projects write them, and what they make of images, by their own names.

Written from the papers and the projects' descriptions alone; nothing here uses mqvae.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

WIDTH, Z, DIM, CODES = 32, 6, 5, 11
MULTIPLIERS = (1, 2, 1)
BLOCKS = 2


class Writer:
    """Fills a state dict."""

    def __init__(self) -> None:
        self.state: State = {}

    def conv(self, name: str, channels: int, width: int, kernel: int) -> None:
        scale = 1.5 / math.sqrt(channels * kernel**2)
        self.state[f"{name}.weight"] = scale * torch.randn(width, channels, kernel, kernel)
        self.state[f"{name}.bias"] = 0.1 * torch.randn(width)

    def norm(self, name: str, width: int) -> None:
        self.state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width)
        self.state[f"{name}.bias"] = 0.2 * torch.randn(width)

    def residual(self, name: str, channels: int, width: int) -> None:
        self.norm(f"{name}.norm1", channels)
        self.conv(f"{name}.conv1", channels, width, 3)
        self.norm(f"{name}.norm2", width)
        self.conv(f"{name}.conv2", width, width, 3)
        if channels != width:
            self.conv(f"{name}.nin_shortcut", channels, width, 1)

    def attention(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)


def taming(attends: tuple[int, ...] = (1,)) -> State:
    """taming-transformers: `up.0` is the decoder's last level."""
    w, levels = Writer(), len(MULTIPLIERS)
    w.conv("encoder.conv_in", 3, WIDTH, 3)
    now = WIDTH
    for level, m in enumerate(MULTIPLIERS):
        for block in range(BLOCKS):
            w.residual(f"encoder.down.{level}.block.{block}", now, WIDTH * m)
            now = WIDTH * m
            if level in attends:
                w.attention(f"encoder.down.{level}.attn.{block}", now)
        if level < levels - 1:
            w.conv(f"encoder.down.{level}.downsample.conv", now, now, 3)
    for part in ("encoder", "decoder"):
        w.residual(f"{part}.mid.block_1", now, now)
        w.attention(f"{part}.mid.attn_1", now)
        w.residual(f"{part}.mid.block_2", now, now)
    w.norm("encoder.norm_out", now)
    w.conv("encoder.conv_out", now, Z, 3)
    w.conv("decoder.conv_in", Z, now, 3)
    for level in reversed(range(levels)):
        for block in range(BLOCKS + 1):
            w.residual(f"decoder.up.{level}.block.{block}", now, WIDTH * MULTIPLIERS[level])
            now = WIDTH * MULTIPLIERS[level]
            if level in attends:
                w.attention(f"decoder.up.{level}.attn.{block}", now)
        if level:
            w.conv(f"decoder.up.{level}.upsample.conv", now, now, 3)
    w.norm("decoder.norm_out", now)
    w.conv("decoder.conv_out", now, 3, 3)
    w.conv("quant_conv", Z, DIM, 1)
    w.conv("post_quant_conv", DIM, Z, 1)
    w.state["quantize.embedding.weight"] = torch.randn(CODES, DIM)
    # What training leaves beside: a discriminator, a perceptual network.
    w.conv("loss.discriminator.main.0", 3, 4, 4)
    w.conv("loss.perceptual_loss.net.slice1.0", 3, 4, 3)
    return w.state


def llamagen() -> State:
    """LlamaGen: `conv_blocks.0` is the decoder's first level; attention on the smallest level."""
    w, levels = Writer(), len(MULTIPLIERS)
    w.conv("encoder.conv_in", 3, WIDTH, 3)
    now = WIDTH
    for level, m in enumerate(MULTIPLIERS):
        for block in range(BLOCKS):
            w.residual(f"encoder.conv_blocks.{level}.res.{block}", now, WIDTH * m)
            now = WIDTH * m
            if level == levels - 1:
                w.attention(f"encoder.conv_blocks.{level}.attn.{block}", now)
        if level < levels - 1:
            w.conv(f"encoder.conv_blocks.{level}.downsample.conv", now, now, 3)
    for part in ("encoder", "decoder"):
        w.residual(f"{part}.mid.0", now, now)
        w.attention(f"{part}.mid.1", now)
        w.residual(f"{part}.mid.2", now, now)
    w.norm("encoder.norm_out", now)
    w.conv("encoder.conv_out", now, Z, 3)
    w.conv("decoder.conv_in", Z, now, 3)
    for position, m in enumerate(reversed(MULTIPLIERS)):
        for block in range(BLOCKS + 1):
            w.residual(f"decoder.conv_blocks.{position}.res.{block}", now, WIDTH * m)
            now = WIDTH * m
            if position == 0:
                w.attention(f"decoder.conv_blocks.{position}.attn.{block}", now)
        if position < levels - 1:
            w.conv(f"decoder.conv_blocks.{position}.upsample.conv", now, now, 3)
    w.norm("decoder.norm_out", now)
    w.conv("decoder.conv_out", now, 3, 3)
    w.conv("quant_conv", Z, DIM, 1)
    w.conv("post_quant_conv", DIM, Z, 1)
    w.state["quantize.embedding.weight"] = torch.randn(CODES, DIM)
    w.state["quantize.codebook_used"] = torch.zeros(65536)
    return w.state


# -- what they compute -----------------------------------------------------------------------------


class Reference:
    """A tokenizer's passes in float64, step by step, on images in [−1, 1]."""

    def __init__(self, state: State) -> None:
        self.state = {key: tensor.double() for key, tensor in state.items()}

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        groups = x.reshape(b, 32, -1)
        mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
        x = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(b, c, h, w)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return x * weight[:, None, None] + bias[:, None, None]

    def residual(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm1", x)
        h = self.conv(f"{name}.conv1", h * torch.sigmoid(h))
        h = self.norm(f"{name}.norm2", h)
        h = self.conv(f"{name}.conv2", h * torch.sigmoid(h))
        shortcut = f"{name}.nin_shortcut"
        return h + (self.conv(shortcut, x) if self.has(shortcut) else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h) for part in "qkv")
        scores = torch.einsum("bcij,bckl->bijkl", q, k) / math.sqrt(x.shape[1])
        weights = scores.flatten(3).softmax(-1).view_as(scores)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bijkl,bckl->bcij", weights, v))

    def level(self, residual: str, attention: str, x: Tensor) -> Tensor:
        block = 0
        while self.has(f"{residual}.{block}.conv1"):
            x = self.residual(f"{residual}.{block}", x)
            if self.has(f"{attention}.{block}.q"):
                x = self.attention(f"{attention}.{block}", x)
            block += 1
        assert block in (BLOCKS, BLOCKS + 1)
        return x

    def down(self, name: str, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        padded = x.new_zeros(b, c, h + 1, w + 1)
        padded[:, :, :h, :w] = x
        return self.conv(name, padded, stride=2, padding=0)

    def up(self, name: str, x: Tensor) -> Tensor:
        return self.conv(name, x.repeat_interleave(2, -1).repeat_interleave(2, -2))

    def embeddings(self, images: Tensor, level: Callable[[str, int], str], middle: list[str]):
        """z_e, (B, DIM, h, w)."""
        x = self.conv("encoder.conv_in", images)
        for i in range(len(MULTIPLIERS)):
            x = self.level(level("residual", i), level("attention", i), x)
            if i < len(MULTIPLIERS) - 1:
                x = self.down(level("downsample", i), x)
        x = self.residual(f"encoder.mid.{middle[0]}", x)
        x = self.attention(f"encoder.mid.{middle[1]}", x)
        x = self.residual(f"encoder.mid.{middle[2]}", x)
        x = self.norm("encoder.norm_out", x)
        return self.conv("quant_conv", self.conv("encoder.conv_out", x * torch.sigmoid(x)))

    def images(self, z_q: Tensor, level: Callable[[str, int], str], middle: list[str]) -> Tensor:
        """The decoder's output; `level` counts from the codewords on."""
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z_q))
        x = self.residual(f"decoder.mid.{middle[0]}", x)
        x = self.attention(f"decoder.mid.{middle[1]}", x)
        x = self.residual(f"decoder.mid.{middle[2]}", x)
        for i in range(len(MULTIPLIERS)):
            x = self.level(level("residual", i), level("attention", i), x)
            if i < len(MULTIPLIERS) - 1:
                x = self.up(level("upsample", i), x)
        x = self.norm("decoder.norm_out", x)
        return self.conv("decoder.conv_out", x * torch.sigmoid(x))

    def quantized(self, z_e: Tensor, *, unit: bool) -> tuple[Tensor, Tensor]:
        """Codes (B, h, w), and their codewords (B, DIM, h, w)."""
        book = self.state["quantize.embedding.weight"]
        z = z_e.movedim(1, -1)
        if unit:
            book = book / book.norm(dim=-1, keepdim=True)
            z = z / z.norm(dim=-1, keepdim=True)
        codes = (z[..., None, :] - book).square().sum(-1).argmin(-1)
        return codes, book[codes].movedim(-1, 1)


def taming_pass(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions of images in [−1, 1]."""
    reference, middle = Reference(state), ["block_1", "attn_1", "block_2"]
    names = {"residual": "block", "attention": "attn"}
    z_e = reference.embeddings(
        images, lambda part, i: f"encoder.down.{i}.{names.get(part, part + '.conv')}", middle
    )
    codes, z_q = reference.quantized(z_e, unit=False)
    last = len(MULTIPLIERS) - 1
    return codes, reference.images(
        z_q, lambda part, i: f"decoder.up.{last - i}.{names.get(part, part + '.conv')}", middle
    )


def llamagen_pass(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions of images in [−1, 1]."""
    reference, middle = Reference(state), ["0", "1", "2"]
    names = {"residual": "res", "attention": "attn"}
    z_e = reference.embeddings(
        images, lambda part, i: f"encoder.conv_blocks.{i}.{names.get(part, part + '.conv')}", middle
    )
    codes, z_q = reference.quantized(z_e, unit=True)
    return codes, reference.images(
        z_q, lambda part, i: f"decoder.conv_blocks.{i}.{names.get(part, part + '.conv')}", middle
    )
