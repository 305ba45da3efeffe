"""mqvae.core.usage and gap against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mqvae import VectorQuantizer, VQNetwork
from mqvae.core import usage as of_usage
from mqvae.core.gap import gradient_gap
from mqvae.core.usage import CodeCounts, count_codes, perplexity, usage


def squared_error(output, y):
    return (output - y).square().mean()


@pytest.mark.parametrize("groups", [1, 3])
def test_counts_are_those_of_numpy(groups):
    codes = torch.randint(0, 5, (4, 2, 3, groups))
    counts = count_codes(codes if groups > 1 else codes.squeeze(-1), 7, groups=groups)
    assert counts.dtype == torch.int64
    expected = [np.bincount(codes[..., g].numpy().ravel(), minlength=7) for g in range(groups)]
    np.testing.assert_array_equal(counts.numpy(), expected)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[3, 3, 3, 3]], 4.0),
        ([[9, 0, 0, 0]], 1.0),
        ([[1, 1, 0, 0]], 2.0),
        # Averaged after the exponential: exp of the mean entropy would be 2.
        ([[5, 5, 5, 5], [8, 0, 0, 0]], 2.5),
        ([[1, 3]], math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))),
    ],
)
def test_perplexity(counts, expected):
    assert perplexity(torch.tensor(counts)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([[3, 0, 1, 0]], 0.5), ([[1, 1], [0, 9]], 0.75), ([[0, 0, 0, 2]], 0.25)],
)
def test_usage(counts, expected):
    assert usage(torch.tensor(counts)).item() == expected


@pytest.mark.parametrize("groups", [1, 3])
def test_code_counts_are_those_of_all_codes_together(groups, monkeypatch):
    monkeypatch.setattr(of_usage, "PENDING", 40)  # some are counted on the way
    parts = [torch.randint(0, 9, (4, 2, n, groups)) for n in (1, 3, 2)]
    counts, again = CodeCounts(12, groups), CodeCounts(12, groups)
    for part in parts:
        counts.add(part if groups > 1 else part.squeeze(-1))
    dense = count_codes(torch.cat([p.flatten(0, -2) for p in parts]).squeeze(-1), 12, groups=groups)
    table = counts.table()
    assert table.dtype == torch.int64
    expected = [[g, k, int(dense[g, k])] for g, k in dense.nonzero().tolist()]
    assert table.tolist() == expected
    assert counts.used == len(expected)
    assert counts.usage == pytest.approx(usage(dense).item(), rel=1e-12)
    assert counts.perplexity == pytest.approx(perplexity(dense).item(), rel=1e-12)
    again.add_table(table)
    again.add_table(table)
    assert again.table()[:, 2].tolist() == (2 * table[:, 2]).tolist()
    assert counts.of_all_processes().table().equal(table)


def test_code_counts_of_nothing():
    counts = CodeCounts(7, 2)
    assert (counts.used, counts.usage, counts.perplexity) == (0, 0, 1)
    assert counts.table().shape == (0, 3)


def test_code_counts_hold_nothing_of_the_number_of_codes():
    counts = CodeCounts(2**62)
    codes = torch.tensor([2**62 - 1, 5, 5, 2**40])
    counts.add(codes)
    assert counts.table().tolist() == [[0, 5, 2], [0, 2**40, 1], [0, 2**62 - 1, 1]]
    assert counts.used == 3 and counts.usage == 3 / 2**62


def linear_network(channel_axis=-1):
    encoder = nn.Linear(4, 6, bias=False, dtype=torch.float64)
    decoder = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    quantizer = VectorQuantizer(5, 6).double()
    network = VQNetwork(encoder, quantizer, decoder, channel_axis=channel_axis)
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    network.initialize_codebook(x)
    return network, x, y


def test_gradient_gap_of_a_linear_decoder():
    # ∂/∂z mean (B z − y)² = 2/27 Bᵀ (B z − y), so the gap is 2/27 ‖Bᵀ B (z_e − z_q)‖.
    network, x, y = linear_network()
    with torch.no_grad():
        z_e = network.encoder(x)
        z_q = network.quantizer(z_e).z_q
        b = network.decoder.weight
        expected = 2 / 27 * ((z_e - z_q) @ b.T @ b).norm()
    assert expected > 0.01
    torch.testing.assert_close(gradient_gap(network, squared_error, x, y), expected)


def test_gradient_gap_vanishes_on_codewords():
    network, x, y = linear_network()
    far = gradient_gap(network, squared_error, x[:5], y[:5])
    with torch.no_grad():
        network.quantizer.codebook.assign(network.encoder(x)[:5])
    # Not zero to the bit: a batch of five may round otherwise than five of a larger batch.
    assert gradient_gap(network, squared_error, x[:5], y[:5]) < 1e-12 * far


def test_gradient_gap_of_feature_maps():
    encoder, decoder = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(4, 1, 2, 2)
    network = VQNetwork(encoder, VectorQuantizer(3, 4), decoder)
    x = torch.rand(5, 1, 6, 6)
    network.initialize_codebook(x)

    def by_hand(z):
        z = z.detach().requires_grad_()
        squared_error(decoder(z), x).backward()
        return z.grad

    z_q = network.quantizer(network.embed(x)).z_q.movedim(-1, 1)
    expected = (by_hand(encoder(x)) - by_hand(z_q)).norm()
    network.zero_grad()
    with torch.no_grad():  # as an evaluation may call it
        torch.testing.assert_close(gradient_gap(network, squared_error, x, x), expected)
    assert all(p.grad is None for p in network.parameters())
