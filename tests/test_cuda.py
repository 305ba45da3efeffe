"""A GPU does what a CPU does: each test runs on both, where there is one.

`python -m benchmarks gpu` runs those of CUDA. Tolerances are for float32; convolutions and products
in TF32 would not be within them.
"""

import copy

import pytest
import torch

import mqvae
from mqvae.cli import main
from mqvae.core.nearest import nearest
from mqvae.data import Batches, in_order, load
from mqvae.networks.vqvae import vqvae

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
RULES = {
    "joint": mqvae.Joint(),
    "ema": mqvae.Ema(decay=0.9),
    "paper": mqvae.Meta(),
    "amortized": mqvae.Meta(hypergradient=mqvae.Amortized(), look_ahead=mqvae.Kept()),
}


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def update_of(rule, device, network=None):
    network = copy.deepcopy(network or vqvae(num_codes=16, dim=8, width=8)).to(device)
    upper = torch.optim.SGD(mqvae.codebook_parameters(network), lr=1e-2)
    return mqvae.Update(
        network,
        torch.nn.functional.mse_loss,
        RULES[rule],
        lower=torch.optim.SGD(mqvae.network_parameters(network), lr=1e-2),
        upper=None if rule == "ema" else upper,
    )


@each_device
@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_a_rule_is_that_of_the_cpu(rule, device):
    network, x = vqvae(num_codes=16, dim=8, width=8), torch.rand(4, 1, 16, 16)
    here, there = update_of(rule, "cpu", network), update_of(rule, device, network)
    for _ in range(3):
        one, other = here(x, x), there(x.to(device), x.to(device))
    assert torch.equal(one.codes, other.codes.cpu())
    for (name, mine), yours in zip(
        here.network.state_dict().items(), there.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(yours.cpu(), mine, rtol=1e-3, atol=1e-5, msg=name)


@each_device
@pytest.mark.parametrize("rule", RULES)
def test_a_step_never_waits_for_the_device(rule, device):
    update, x = update_of(rule, device), torch.rand(4, 1, 16, 16, device=device)
    update(x, x)  # what is made once may wait
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        update(x, x)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@each_device
@pytest.mark.parametrize("shape", [(500, 70, 8), (3000, 5000, 16)])
def test_codes_are_of_the_nearest_codewords(shape, device):
    count, codes, dim = shape
    z, table = torch.randn(count, dim, device=device), torch.randn(codes, dim, device=device)
    found = nearest(z, table)
    distances = torch.cdist(z.double(), table.double()).square()
    excess = distances.gather(1, found[:, None])[:, 0] - distances.min(1).values
    assert excess.max() < 1e-4  # of distances around `dim`, summed in float32


@each_device
def test_batches_are_the_same(device):
    images = load("digits", "train")
    here, there = Batches(images, 64, seed=0), Batches(images, 64, seed=0, device=device)
    for _ in range(30):  # more than an epoch
        (x, y), (moved, labels) = here.next(), there.next()
        assert moved.device.type == labels.device.type == device
        assert torch.equal(moved.cpu(), x) and torch.equal(labels.cpu(), y)
    whole = torch.cat([x for x, _ in in_order(images, 64, device=device)]).cpu()
    assert torch.equal(whole, torch.cat([x for x, _ in in_order(images, 64)]))


@each_device
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_resumes_and_is_used(precision, device, tmp_path):
    run = tmp_path / "run"
    options = ["--trainer.accelerator", device, "--trainer.precision", precision]
    options += ["--trainer.loggers", "[]", "--network.width", "8", "--steps", "4"]
    options += ["--data.batch_size", "32", "--data.side", "8", "--network.residual_blocks", "1"]
    assert main(["train", "digits-tiny", "--out", str(run), *options]) == 0
    assert main(["train", "--resume", str(run), "--steps", "8"]) == 0
    assert main(["evaluate", str(run), "--accelerator", device]) == 0
    images = torch.rand(8, 1, 8, 8)
    codes = [mqvae.Tokenizer.from_run(run, device=each).encode(images) for each in ("cpu", device)]
    assert (codes[0] == codes[1].cpu()).float().mean() > 0.9  # two near codewords may change place
