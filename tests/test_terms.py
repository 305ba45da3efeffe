"""Every loss term that is optimized is reported, and their weighted sum is what is optimized."""

import csv

import pytest
import torch
from problems import QUANTIZERS, squared_error
from torch import Tensor, nn
from torch.optim import SGD

from mqvae import Cosine, FiniteScalarQuantizer, Joint, LookupFreeQuantizer, VQNetwork
from mqvae.core import bilevel

KINDS = {
    **QUANTIZERS,
    "lookup-free": lambda codes, dim: LookupFreeQuantizer(2**dim, entropy_weight=0.3),
    "spherical": lambda codes, dim: LookupFreeQuantizer(2**dim, distance=Cosine()),
    "finite scalar": lambda codes, dim: FiniteScalarQuantizer((4,) * dim),
}
OWN_TERM = ("gumbel", "lookup-free", "spherical")


@pytest.mark.parametrize("kind", KINDS)
def test_the_reported_terms_add_up_to_the_loss_that_is_differentiated(kind, monkeypatch):
    seen: list[Tensor] = []
    gradient = bilevel.gradient

    def noting(scalar: Tensor, *args: object, **options: object) -> list[Tensor | None]:
        seen.append(scalar.detach().clone())
        return gradient(scalar, *args, **options)

    monkeypatch.setattr(bilevel, "gradient", noting)
    quantizer = KINDS[kind](7, 6)
    network = VQNetwork(nn.Linear(4, 6), quantizer, nn.Linear(6, 4), channel_axis=-1).double()
    codebook = list(network.codebook_parameters())
    update = Joint(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), 0.1),
        upper=SGD(codebook, 0.1) if codebook else None,
        commitment_weight=0.7,
        codebook_weight=1.3,
    )
    x = torch.randn(9, 4, dtype=torch.float64)
    step = update.step(x, x)
    total = step.task + 0.7 * step.commitment + 1.3 * step.codebook
    assert (step.auxiliary is not None) == (kind in OWN_TERM)
    if step.auxiliary is not None:
        weight = {"gumbel": 5e-4, "lookup-free": 0.3, "spherical": 0.1}[kind]
        assert step.auxiliary.abs() > 1e-3
        total = total + weight * step.auxiliary
    torch.testing.assert_close(total, seen[0], rtol=1e-12, atol=0)


def test_metrics_have_the_quantizers_own_term(trained):
    quantizer = {"class_path": "mqvae.LookupFreeQuantizer", "init_args": {"num_codes": 16}}
    small = {
        "steps": 2,
        "data": {"name": "digits", "side": 8, "batch_size": 100},
        "network": {"init_args": {"width": 8, "residual_blocks": 1}},
        "update": {"class_path": "mqvae.Joint"},
        "trainer": {"accelerator": "cpu", "log_every": 1},
    }
    folder = trained("lookup-free", {**small, "quantizer": quantizer})
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # The entropies of 4 bits, in nats: between −log 16 and log 16.
    assert all(0 < abs(float(row["auxiliary"])) < 2.8 for row in rows)
