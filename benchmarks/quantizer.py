"""The quantizer by itself, beside the bare matrix product and vector-quantize-pytorch."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.resident import FORGET, forget, most_resident, resident
from benchmarks.table import Cell, Table
from benchmarks.timing import alternate
from mqvae.core.quantizers import VectorQuantizer

# (N, K, D): embeddings of a batch, codewords, dimensions; and the usual number of rounds.
SHAPES = {
    (6272, 1024, 64): 100,
    (25088, 1024, 512): 15,
    (4096, 16384, 32): 15,
    (65536, 262144, 16): 2,
}
TRAINING_AT_MOST, EVAL_AT_MOST = 2.0, 1.5  # times the matrix product, at the first three
PRODUCT_WHOLE = 4 * 2**30  # bytes of scores that the bare product holds at once
PRODUCT_AT_ONCE = 2**20  # scores of the bare product where N × K of them do not fit


def our_quantizer(table: Tensor) -> tuple[nn.Module, peers.Quantizer, nn.Parameter]:
    """`VectorQuantizer` with the table as its codebook."""
    ours = VectorQuantizer(*table.shape).to(table.device)
    ours.codebook.assign(table)

    def quantize(z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = ours(z_e)
        loss = peers.BETA * found.commitment_loss + found.codebook_loss
        return found.z_q, found.codes, loss

    (codebook,) = ours.parameters()
    return ours, quantize, codebook


MAKERS = {"mqvae": our_quantizer, "vector-quantize-pytorch": peers.their_quantizer}


def product(z_e: Tensor, table: Tensor) -> Callable[[], Any]:
    """The bare scores z_e · Cᵀ; in pieces, each thrown away, where they would take over 4 GiB."""
    if len(z_e) * len(table) * 4 <= PRODUCT_WHOLE:
        return lambda: z_e @ table.T
    columns = 2**14

    def pieces() -> None:
        for chunk in z_e.split(PRODUCT_AT_ONCE // columns):
            for words in table.split(columns):
                chunk @ words.T

    return pieces


def training(quantize: peers.Quantizer, z_e: Tensor, codebook: nn.Parameter) -> Callable[[], Any]:
    """Forward and backward, with a gradient that comes from a decoder."""
    z_e = z_e.detach().requires_grad_()
    from_decoder, one = torch.randn_like(z_e), torch.ones((), device=z_e.device)

    def step() -> tuple[Tensor, ...]:
        z_q, codes, loss = quantize(z_e)
        return z_q, codes, *torch.autograd.grad([z_q, loss], [z_e, codebook], [from_decoder, one])

    return step


def evaluation(module: nn.Module, quantize: peers.Quantizer, z_e: Tensor) -> Callable[[], Any]:
    """Forward without gradients, in eval mode."""

    @torch.no_grad()
    def step() -> tuple[Tensor, ...]:
        module.eval()
        return quantize(z_e)[:2]

    return step


def inputs(n: int, k: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and a table (K, D)."""
    generator = torch.Generator().manual_seed(0)
    z_e = torch.randn(n, d, generator=generator)
    return z_e.to(device), torch.randn(k, d, generator=generator).to(device)


def run(*, device: str, rounds: int | None, only: str) -> list[Table]:
    """One table; shapes whose name does not hold `only`, as in "6272", are left out."""
    rows: list[dict[str, Cell]] = []
    notes: list[str] = []
    for shape, usual in SHAPES.items():
        label = " × ".join(map(str, shape))
        if only not in label:
            continue
        first_three = shape[0] * shape[1] * 4 <= PRODUCT_WHOLE
        z_e, table = inputs(*shape, device)
        contestants = {"matrix product": product(z_e, table)}
        for name, make in MAKERS.items():
            if name != "mqvae" and not first_three:
                size = shape[0] * shape[1] * 4 / 2**30
                notes.append(f"{label}: {name} holds N × K distances, {size:.0f} GiB; left out.")
                continue
            try:
                module, quantize, codebook = make(table)
            except peers.NotHere as reason:
                notes.append(f"{reason}.")
                continue
            contestants[f"{name}, training"] = training(quantize, z_e, codebook)
            module, quantize, codebook = make(table)
            contestants[f"{name}, eval"] = evaluation(module, quantize, z_e)
        timings = alternate(contestants, rounds=rounds or usual, device=device)
        for name, timing in timings.items():
            at_most = None
            if name.startswith("mqvae") and first_three:
                at_most = TRAINING_AT_MOST if "training" in name else EVAL_AT_MOST
            memory = None
            if name != "matrix product":
                memory = working_memory(name, shape, device)
            rows.append(
                {
                    "N × K × D": label,
                    "what": name,
                    **timing.columns(),
                    "at most": at_most,
                    "held": None
                    if at_most is None
                    else ("yes" if timing.ratio <= at_most else "no"),
                    "working memory, MiB": memory,
                }
            )
    return [
        Table(
            "quantizer",
            "The quantizer, relative to the matrix product of embeddings and codebook",
            {"dtype": "float32", "rounds": rounds or ", ".join(map(str, SHAPES.values()))},
            rows,
            [
                "Training is forward, losses and backward to embeddings and codebook; eval is "
                "codes and codewords. Working memory is the peak beyond inputs and outputs.",
                *dict.fromkeys(notes),
            ],
        )
    ]


def working_memory(name: str, shape: tuple[int, int, int], device: str) -> float | None:
    """MiB beyond inputs and outputs, in a fresh process; None where it cannot be read."""
    if device == "cpu" and not FORGET.exists():
        return None
    code = f"from benchmarks.quantizer import peak; print(peak({name!r}, {shape!r}, {device!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def peak(name: str, shape: tuple[int, int, int], device: str) -> float:
    """What `working_memory` prints, measured here: MiB."""
    maker, what = name.rsplit(", ", 1)

    def contestant(n: int, k: int, d: int) -> Callable[[], Any]:
        z_e, table = inputs(n, k, d, device)
        module, quantize, codebook = MAKERS[maker](table)
        if what == "training":
            return training(quantize, z_e, codebook)
        return evaluation(module, quantize, z_e)

    # Everything is loaded, and threads have their stacks, before it counts.
    contestant(256, 64, shape[2])()
    step = contestant(*shape)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = float(torch.cuda.memory_allocated())
        results = step()
        most = float(torch.cuda.max_memory_allocated())
    else:
        forget()
        before = resident()
        results = step()
        most = most_resident()
    own = sum(r.numel() * r.element_size() for r in results)
    return max(0.0, (most - before - own) / 2**20)
