"""What taming-transformers and LlamaGen call the tensors of a VQ-GAN, and its sizes by them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mqvae.core.distance import Cosine, Distance, Euclidean
from mqvae.core.quantizers import VectorQuantizer
from mqvae.errors import MqvaeError
from mqvae.networks.architecture import Inputs
from mqvae.networks.vqgan.network import VQGAN

# Here, in taming-transformers, in LlamaGen. L counts levels as the data goes through them, R the
# decoder's the other way round.
_FILE = Path(__file__).with_name("keys.txt")
NAMES = tuple(tuple(line.split()) for line in _FILE.read_text(encoding="utf-8").splitlines())

# Inside a block, in both.
IN_BLOCKS = {
    "shortcut": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}

# What only training there needs: discriminator and perceptual network, averages, statistics.
IGNORED = (
    "loss.",
    "model_ema.",
    "quantize.codebook_used",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
)

SHOWN = 8  # names that a message lists


@dataclass(frozen=True)
class Form:
    """How a project names the tensors of its tokenizers."""

    name: str
    column: int  # which of `NAMES` are its names
    levels: str  # how the names of the encoder's levels begin
    residual: str  # what the residual blocks of a level are called
    distance: Distance  # what is near in its tokenizers, which their tensors do not say

    def name_of(self, key: str, levels: int) -> str:
        """What it calls one of our tensors, in a network of so many levels."""
        for row in NAMES:
            found = re.match(row[0].replace(".", r"\.").replace("L", r"(\d+)") + r"\.", key)
            if found:
                rest = key[found.end() :].split(".")
                words = [IN_BLOCKS.get(word, word) for word in rest]
                level = int(found[1]) if found.groups() else 0
                theirs = row[self.column].split(".")
                numbers = {"L": str(level), "R": str(levels - 1 - level)}
                return ".".join([*(numbers.get(word, word) for word in theirs), *words])
        raise KeyError(key)


FORMS = (
    Form("taming-transformers", 1, "encoder.down.", "block", Euclidean()),
    Form("LlamaGen", 2, "encoder.conv_blocks.", "res", Cosine()),
)


@dataclass(frozen=True)
class Imported:
    """A tokenizer of another project."""

    form: Form  # whose it is
    network: VQGAN  # the sizes of its network
    inputs: Inputs
    num_codes: int  # number of codewords K
    dim: int  # dimensions D of a codeword
    weights: dict[str, Tensor]  # its tensors by our names, in float32


def imported(tensors: Mapping[str, Tensor], *, side: int = 256) -> Imported:
    """A tokenizer of taming-transformers or LlamaGen, recognized by the names of its tensors.

    The levels with attention are named by the side of the images that it was trained on, in pixels.
    Tensors that are missing, too many, or of sizes that do not fit each other are named.
    """
    form = _recognized(tensors)
    network = _sizes(form, tensors, side)
    num_codes, dim = _shape("quantize.embedding.weight", tensors, 2)
    inputs = Inputs(_shape("encoder.conv_in.weight", tensors, 4)[1], side)
    with torch.device("meta"):  # no memory: what there must be
        expected = network.build(inputs, VectorQuantizer(num_codes, dim)).state_dict()
    names = {key: form.name_of(key, len(network.multipliers)) for key in expected}
    _check(form, {names[key]: tensor for key, tensor in expected.items()}, tensors)
    weights = {key: tensors[names[key]].detach().float() for key in expected}
    return Imported(form, network, inputs, num_codes, dim, weights)


def _recognized(tensors: Mapping[str, Tensor]) -> Form:
    for form in FORMS:
        if any(key.startswith(form.levels) for key in tensors):
            return form
    raise MqvaeError(
        "expected the tokenizer of "
        + " or ".join(f"{form.name}, with tensors '{form.levels}…'" for form in FORMS)
        + f", got {_listed(list(tensors))}."
    )


def _sizes(form: Form, tensors: Mapping[str, Tensor], side: int) -> VQGAN:
    width = _shape("encoder.conv_in.weight", tensors, 4)[0]
    levels = _count(form.levels, tensors) or 1  # without any, what the first lacks is named
    multipliers = []
    for level in range(levels):
        key = f"{form.levels}{level}.{form.residual}.0.conv1.weight"
        channels = _shape(key, tensors, 4)[0]
        if channels % width or not channels:
            raise MqvaeError(
                f"{key} has {channels} channels, expected a multiple of the {width} of "
                "encoder.conv_in.weight."
            )
        multipliers.append(channels // width)
    stride = 2 ** (levels - 1)
    if side < stride or side % stride:
        raise MqvaeError(
            f"this tokenizer has {levels} levels, so sides are multiples of {stride}, got {side}: "
            "say the side of the images that it was trained on."
        )
    attends = [_count(f"{form.levels}{level}.attn.", tensors) > 0 for level in range(levels)]
    return VQGAN(
        width=width,
        multipliers=tuple(multipliers),
        residual_blocks=_count(f"{form.levels}0.{form.residual}.", tensors),
        attention_at=tuple(side // 2**level for level in range(levels) if attends[level]),
        z_channels=_shape("encoder.conv_out.weight", tensors, 4)[0],
        group_channels=1,  # theirs are 32 groups whatever the width
    )


def _shape(key: str, tensors: Mapping[str, Tensor], dimensions: int) -> Sequence[int]:
    if key not in tensors:
        raise MqvaeError(f"the tensor {key} is missing, which says how large the tokenizer is.")
    shape = tensors[key].shape
    if len(shape) != dimensions or not min(shape):
        raise MqvaeError(f"{key} must have {dimensions} dimensions, got shape {tuple(shape)}.")
    return shape


def _count(beginning: str, tensors: Mapping[str, Tensor]) -> int:
    """How many numbers, from 0 on, follow this beginning in names."""
    after = (key.removeprefix(beginning) for key in tensors if key.startswith(beginning))
    found = {rest.split(".")[0] for rest in after}
    return next(n for n in range(len(found) + 1) if str(n) not in found)


def _check(form: Form, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    lines = []
    if missing := [key for key in expected if key not in tensors]:
        lines.append(f"missing: {_listed(missing)}")
    if more := [key for key in tensors if key not in expected and not key.startswith(IGNORED)]:
        lines.append(f"not known: {_listed(more)}")
    for key, tensor in expected.items():
        if key in tensors and tensors[key].shape != tensor.shape:
            got, wanted = tuple(tensors[key].shape), tuple(tensor.shape)
            lines.append(f"{key}: shape {got}, expected {wanted}")
    if len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise MqvaeError(f"this is not a VQ-GAN as {form.name} has it:{listed}")


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
