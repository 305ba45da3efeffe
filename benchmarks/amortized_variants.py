"""Other ways to get a hypergradient for the price of one encoder pass, and what they reach.

    python -m benchmarks.amortized_variants [--steps 1500] [--seeds 1] [--only pipelined]

All cost what `Amortized` costs. What came out is in notes.md.
"""

import argparse
import contextlib
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mqvae import DirectOnly, Kept, Meta, OneSided, Step
from mqvae.core.bilevel import Batch, gradient
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradient import Hypergradient
from mqvae.core.hypergradient.rule import (
    codebook_gradient,
    embedding_tangent,
    scatter,
    selecting,
)
from mqvae.core.passes import Snapshot
from mqvae.core.updates.update import step_of
from mqvae.settings import Settings, load_preset
from mqvae.trainer import begin


class Pipelined(Meta):
    """The upper pass of one iteration is the lower pass of the next, on the next batch.

    The difference is taken on the batch before, around the weights before.
    """

    _before: tuple[Batch, list[Tensor], Tensor, Tensor] | None = None

    def _meta_step(self, lower: Batch, upper: Batch, snapshot: Snapshot) -> Step:
        network, quantizer = self.network, selecting(self.network)
        z_e = lower.embed_for_real()
        phi: list[Tensor] = list(network.encoder_parameters())
        theta: list[Tensor] = list(network.decoder_parameters())
        table = quantizer.table().detach().requires_grad_()
        quantized = quantizer.quantize(z_e, table)
        task = lower.task_for_real(quantized.z_q)
        direct, *g = gradient(self.weights.total(task, quantized), [table, *phi, *theta])
        assert direct is not None
        g = mean_across_processes(g)
        indirect = torch.zeros_like(direct)
        if self._before is not None:
            batch, start, z_start, codes = self._before
            with torch.no_grad():
                delta = OneSided()(batch.embed, start, g[: len(phi)], z_start)
            scale = self.xi * 2 * self.weights.codebook / delta.numel()
            indirect = scale * scatter(batch, codes, delta)
        copies = [p.detach().clone() for p in phi]
        self._before = lower, copies, z_e.detach(), quantized.codes
        hyper = Hypergradient(direct, indirect)
        self._descend_codebook(direct + indirect)
        self._descend_network(g[: len(phi)], g[len(phi) :])
        self._after_step(z_e, quantized.codes)
        return step_of(lower, task, quantized, hyper.norms())


class Local(Meta):
    """The lower pass is the upper pass: g_C and v at φ instead of φ', the tangent along v."""

    def _meta_step(self, lower: Batch, upper: Batch, snapshot: Snapshot) -> Step:
        z_e = lower.embed_for_real()
        here = lower.lower_pass(z_e, for_real=True).everywhere()
        codes = here.quantized.codes
        direct = codebook_gradient(lower, z_e.detach(), codes)
        delta = embedding_tangent(OneSided(), lower, here, here.g_phi)
        scale = self.xi * 2 * self.weights.codebook / delta.numel()
        hyper = Hypergradient(direct, scale * scatter(lower, codes, delta))
        self._descend_codebook(hyper.direct + hyper.indirect)
        self._descend_network(here.g_phi, here.g_theta)
        self._after_step(z_e, codes)
        return step_of(lower, here.task, here.quantized, hyper.norms())


class EveryFourth(Meta):
    """The whole hypergradient every fourth step, its direct term alone in between."""

    _steps = 0

    def _meta_step(self, lower: Batch, upper: Batch, snapshot: Snapshot) -> Step:
        whole = self.hypergradient
        self._steps += 1
        if self._steps % 4:
            self.hypergradient = DirectOnly()
        try:
            return super()._meta_step(lower, upper, snapshot)
        finally:
            self.hypergradient = whole


VARIANTS = {"pipelined": Pipelined, "local": Local, "every fourth step": EveryFourth}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="variants whose name holds this")
    options = parser.parse_args()
    print(f"{'variant':<20}{'seed':>5}{'MSE e-3':>9}{'perplexity':>12}{'ms':>7}")
    for seed in range(options.seeds):
        for name, kind in VARIANTS.items():
            if options.only not in name:
                continue
            settings = load_preset(
                "methods/mq-vae-kept", {"name": name, "steps": options.steps, "seed": seed}
            )
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                training = begin(Settings.of(settings), Path(folder) / "run")
                parts = training.parts
                update = kind(parts.network, parts.task, **parts.levels, look_ahead=Kept())
                training.parts = replace(parts, update=update)
                summary = training.fit()
            print(
                f"{name:<20}{seed:>5}{summary['mse'] * 1e3:>9.2f}{summary['perplexity']:>12.0f}"
                f"{summary['seconds_per_step'] * 1e3:>7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
