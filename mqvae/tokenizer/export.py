"""Encoder and decoder as programs that run without mqvae."""

import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mqvae.core.network import VQNetwork
from mqvae.errors import MqvaeError
from mqvae.optional import require
from mqvae.tokenizer.tokenizer import Tokenizer

FORMATS = ("pt2", "onnx")
OPSET = 18  # of December 2022: what runs ONNX today knows it


class _Encoder(nn.Module):
    """(B, C, H, W) in [0, 1] → codes."""

    def __init__(self, network: VQNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.encode(images)


class _Decoder(nn.Module):
    """Codes → (B, C, H, W)."""

    def __init__(self, network: VQNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)


def export(
    tokenizer: Tokenizer, folder: str | Path, *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write encoder and decoder as files that run without mqvae.

    `encoder` takes `images`, (B, C, H, W) float32 in [0, 1] whose sides are multiples of the
    stride, and gives `codes`; `decoder` takes `codes`, int64, and gives `images` as they come. What
    they give is what the tokenizer gives, to rounding, and asks for no gradients. Sizes may change
    from call to call where the network lets them, down to two codes a side. Nothing is checked:
    what does not fit is an error of the program, or nonsense.

    Args:
        tokenizer: Whose; the programs stay on its device.
        folder: Where the files go.
        formats: "pt2" for programs that `torch.export.load` reads, "onnx" for ONNX.

    Returns:
        The files: encoder.pt2, decoder.pt2, encoder.onnx, decoder.onnx.

    Raises:
        ValueError: if a format is another one, or the network does not quantize.
        ExtraMissing: if a package that ONNX needs is not installed.
    """
    if not formats or not set(formats) <= set(FORMATS):
        raise MqvaeError(
            f"formats are {' and '.join(FORMATS)}, got {', '.join(formats) or 'none'}."
        )
    if "onnx" in formats:
        require("onnx")
        require("onnxscript")
    folder = Path(folder)
    programs = _programs(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, program in programs.items():
        if "pt2" in formats:
            written.append(folder / f"{name}.pt2")
            torch.export.save(program, written[-1])
        if "onnx" in formats:
            written.append(folder / f"{name}.onnx")
            _write_onnx(program, written[-1], decoder=name == "decoder")
    return written


@torch.no_grad()
def _programs(tokenizer: Tokenizer) -> dict[str, ExportedProgram]:
    data = tokenizer.settings.data
    # A copy, for evaluation and without gradients: what a program gives asks for none.
    network = deepcopy(tokenizer.network).eval().requires_grad_(False)
    weight = next(network.parameters())
    images = torch.rand(2, *(data.shape or (1, 1, 1))).to(tokenizer.device, weight.dtype)
    codes = torch.zeros(2, *tokenizer.code_shape, dtype=torch.int64, device=tokenizer.device)
    positions = range(1, codes.ndim - (network.quantizer.groups > 1))
    return {
        "encoder": _program(_Encoder(network), images, (0, *range(2, images.ndim))),
        "decoder": _program(_Decoder(network), codes, (0, *positions)),
    }


def _program(module: nn.Module, example: Tensor, changing: Sequence[int]) -> ExportedProgram:
    dynamic = (dict.fromkeys(changing, Dim.AUTO),)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=dynamic)
    # Without the regions in which autocast is off, which a file cannot hold.
    return program.run_decompositions({})


def _write_onnx(program: ExportedProgram, path: Path, *, decoder: bool) -> None:
    names = ["codes", "images"] if decoder else ["images", "codes"]
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)  # what could not be folded is no news to a user
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                input_names=names[:1],
                output_names=names[1:],
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert made is not None  # it is where nothing was left out
    made.save(path, external_data=False)
