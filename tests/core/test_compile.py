"""`torch.compile(fullgraph=True)` and `torch.export` of the layer: no break, the same results."""

import copy
import os
import shutil

import pytest
import torch
from torch import nn

from mqvae import (
    Affine,
    Cosine,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    LookupFreeQuantizer,
    MovingAverage,
    NoQuantizer,
    RateAware,
    ReplaceUnused,
    ResidualQuantizer,
    Rotation,
    VectorQuantizer,
)

CODES, DIM = 16, 8
QUANTIZERS = {
    "vector": lambda: VectorQuantizer(CODES, DIM),
    "everything": lambda: VectorQuantizer(
        CODES,
        DIM,
        codebook=MovingAverage(0.9),
        replacement=ReplaceUnused(2),
        rate=RateAware(bits=3.0, after=1),
        groups=2,
        distance=Cosine(),
        estimator=Rotation(),
    ),
    "projected": lambda: VectorQuantizer(CODES, DIM, codebook_dim=4, channel_axis=-1),
    "affine": lambda: VectorQuantizer(CODES, DIM, codebook=Affine()),
    "residual": lambda: ResidualQuantizer([VectorQuantizer(CODES, DIM) for _ in range(2)]),
    "gumbel": lambda: GumbelQuantizer(CODES, DIM),
    "fsq": lambda: FiniteScalarQuantizer((3,) * DIM),
    "lfq": lambda: LookupFreeQuantizer(2**DIM),
    "bsq": lambda: LookupFreeQuantizer(2**DIM, distance=Cosine()),
    "none": lambda: NoQuantizer(DIM),
}


def step(layer, quantizer, z_e, mask):
    """A pass, its gradients, and an update."""
    torch.manual_seed(1)
    out = layer(z_e) if mask is None else layer(z_e, mask)
    loss = out.z_q.square().sum() + out.commitment_loss + out.codebook_loss
    if out.auxiliary_loss is not None:
        loss = loss + out.auxiliary_loss
    trained = [z_e, *(p for p in quantizer.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    quantizer.update()
    return out, [g for g in found if g is not None]


def compare(quantizer, backend, masked, *, training):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    eager = quantizer.train(training)
    own = copy.deepcopy(eager)
    layer = torch.compile(own, fullgraph=True, backend=backend)
    drawn = training and isinstance(quantizer, GumbelQuantizer)  # noise of another kind
    for _ in range(2):
        z_e = torch.randn(3, 7, DIM, requires_grad=True)
        mask = torch.rand(3, 7) > 0.3 if masked else None
        found, g = step(layer, own, z_e, mask)
        expected, wanted = step(eager, eager, z_e, mask)
        assert torch.equal(found.codes, expected.codes)
        assert torch.isfinite(found.z_q).all() and found.z_q.shape == z_e.shape
        if not drawn:
            torch.testing.assert_close(found.z_q, expected.z_q, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(g, wanted, rtol=1e-4, atol=1e-5)
        for name in ("commitment_loss", "codebook_loss", "auxiliary_loss"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5
            )
        assert found.usage == expected.usage
    for one, other in zip(own.state_dict().values(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_compiled_is_eager(name):
    torch.manual_seed(0)
    # Dynamo finds the breaks; what compiles its graph is the same for all.
    backend = "aot_eager" if name == "projected" else "eager"
    compare(QUANTIZERS[name](), backend, name == "everything", training=True)


@pytest.mark.parametrize("name", ["everything", "gumbel"])
def test_evaluation_compiled_is_eager(name):
    torch.manual_seed(0)
    compare(QUANTIZERS[name](), "eager", False, training=False)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no compiler")
def test_compiled_to_machine_code_is_eager(monkeypatch):
    from torch._inductor import config

    # Its compiler takes what the processor says it can do, without a program that tries it, and
    # works in this process.
    monkeypatch.setattr(config.cpp, "vec_isa_ok", True)
    monkeypatch.setattr(config, "compile_threads", 1)
    torch.manual_seed(0)
    compare(QUANTIZERS["vector"](), "inductor", False, training=True)


# The others are exported below, as what they encode and decode by.
@pytest.mark.parametrize("name", ["vector", "projected", "affine", "fsq", "none"])
def test_an_exported_layer_is_eager(name):
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name]().eval()
    batch = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(quantizer, (torch.randn(5, 7, DIM),), dynamic_shapes=(batch,))
    z_e = torch.randn(3, 7, DIM)
    found, expected = program.module()(z_e), quantizer(z_e)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.z_q, expected.z_q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.commitment_loss, expected.commitment_loss, rtol=1e-4, atol=1e-5
    )
    assert found.usage == expected.usage


class Coding(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z_e):
        return self.quantizer.encode(z_e)


class Decoding(Coding):
    def forward(self, codes):
        return self.quantizer.decode(codes)


@pytest.mark.parametrize("name", ["everything", "residual", "gumbel", "lfq"])
def test_exported_programs_encode_and_decode(name):
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name]().eval()
    z_e = torch.randn(5, 7, DIM)
    batch = {0: torch.export.Dim("batch", min=2)}
    encode = torch.export.export(Coding(quantizer), (z_e,), dynamic_shapes=(batch,)).module()
    other = torch.randn(3, 7, DIM)
    codes = quantizer.encode(other)
    assert torch.equal(encode(other), codes)
    decode = torch.export.export(Decoding(quantizer), (quantizer.encode(z_e),)).module()
    codes = quantizer.encode(z_e)
    torch.testing.assert_close(decode(codes), quantizer.decode(codes))
