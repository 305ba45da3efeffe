"""mqvae.metrics against numpy and autograd by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mqvae import NoQuantizer, VectorQuantizer, VQNetwork, vqvae
from mqvae.data import InMemory
from mqvae.metrics import evaluate, evaluating, evaluation
from mqvae.metrics.bits import BITS
from mqvae.tasks import Reconstruction


def pictures(count, channels=1, side=8):
    pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    return InMemory(
        "made", "test", pixels, torch.zeros(count, dtype=torch.int64), "made by the test"
    )


def network_for(images, **sizes):
    """A network whose codes spread and whose outputs leave [0, 1], so that clamping shows."""
    sizes = {"num_codes": 12, "dim": 4, "width": 6, "residual_blocks": 1, **sizes}
    network = vqvae(images.shape[0], **sizes)
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.mul_(4)
    network.initialize_codebook(images.pixels / 255)
    return network


def batch_norm_network(images):
    encoder = nn.Sequential(nn.Conv2d(1, 6, 4, 4), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))
    decoder = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 4), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 1))
    network = VQNetwork(encoder, VectorQuantizer(12, 4), decoder)
    network(images.pixels / 255)  # statistics other than the first ones
    network.initialize_codebook(images.pixels / 255)
    return network


def by_hand(network, images, batch_size):
    """The figures again, in numpy from one pass over everything."""
    x = images.pixels / 255
    with torch.no_grad():
        result = network(x)
    target, output = x.numpy().astype(float), result.output.numpy().astype(float)
    errors = ((np.clip(output, 0, 1) - target) ** 2).reshape(len(x), -1).mean(1)
    codes = result.quantized.codes.numpy().reshape(-1, network.quantizer.groups)
    groups = [np.unique(column, return_counts=True)[1] for column in codes.T]
    shares = [counts / counts.sum() for counts in groups]
    columns = result.quantized.codes.numpy().reshape(len(x), -1, network.quantizer.groups)
    each = [np.unique(c, return_counts=True)[1] for c in columns.reshape(len(x), -1).T]
    positions = columns.shape[1]
    entropy = -sum((p * np.log2(p)).sum() for p in shares)
    gaps = []
    for i in range(0, len(x) - batch_size + 1, batch_size):
        part = x[i : i + batch_size]
        gradients = []
        for z in (network.embed(part), network.quantizer(network.embed(part)).z_q):
            z = z.movedim(-1, 1).detach().requires_grad_()
            gradients.append(torch.autograd.grad((network.decoder(z) - part).square().mean(), z)[0])
        gaps.append((gradients[0] - gradients[1]).square().sum().sqrt().item())
    return {
        "mse": ((output - target) ** 2).mean(),
        "psnr": np.mean(10 * np.log10(1 / errors)),
        "perplexity": np.mean([math.exp(-(p * np.log(p)).sum()) for p in shares]),
        "usage": np.mean([len(counts) for counts in groups]) / network.quantizer.num_codes,
        "gradient_gap": np.mean(gaps),
        "nominal_bits": network.quantizer.groups * math.log2(network.quantizer.num_codes),
        "entropy": entropy,
        "position_entropy": sum(
            min(
                -(n / len(x) * np.log2(n / len(x))).sum()
                + (len(n) - 1) / (2 * len(x) * math.log(2)),
                math.log2(network.quantizer.num_codes),
            )
            for n in each
        )
        / positions,
        "bits_per_pixel": entropy * positions / (x.shape[2] * x.shape[3]),
    }


@pytest.mark.parametrize(
    ("count", "batch_size"),
    [(100, 32), (96, 32), (33, 32), (20, 20), (20, 512)],
    ids=["rest", "even", "rest-of-one", "exact", "small"],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_metrics_are_those_of_numpy(count, batch_size, groups, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH_SIZE", batch_size)
    images = pictures(count)
    network = network_for(images, groups=groups).eval()
    expected = by_hand(network, images, min(batch_size, count))
    assert 0.2 < expected["usage"] <= 1
    found = evaluate(network, Reconstruction(), images)
    assert found.metrics == pytest.approx(expected, rel=1e-5)
    assert found.protocol["images"] == count
    assert found.protocol["batch_size"] == min(batch_size, count)
    assert found.protocol["gradient_gap_batches"] == max(1, count // batch_size)
    assert (found.code_counts.groups, found.code_counts.num_codes) == (groups, 12)
    assert found.code_counts.table()[:, 2].sum() == count * 4 * groups


def test_outputs_beyond_the_range_count_for_mse_and_not_for_psnr():
    images = pictures(10)
    network = network_for(images)
    with torch.no_grad():
        network.decoder.layers[-1].weight.zero_()
        network.decoder.layers[-1].bias.fill_(3.0)
    figures = evaluate(network, Reconstruction(), images).metrics
    x = images.pixels.double() / 255
    assert figures["mse"] == pytest.approx((3 - x).square().mean().item(), rel=1e-6)
    expected = -10 * (1 - x).square().flatten(1).mean(1).log10().mean().item()
    assert figures["psnr"] == pytest.approx(expected, rel=1e-6)


def test_without_codes_there_are_no_metrics_of_them():
    images = pictures(10)
    network = network_for(images)
    network.quantizer = NoQuantizer(network.quantizer.dim)
    found = evaluate(network, Reconstruction(), images)
    assert found.metrics.keys() == found.described.keys() == {"mse", "psnr"}
    assert "gradient_gap_batches" not in found.protocol


def test_colour():
    images = pictures(9, channels=3)
    network = network_for(images).eval()
    figures = evaluate(network, Reconstruction(), images).metrics
    assert figures == pytest.approx(by_hand(network, images, 9), rel=1e-5)


def test_large_images_need_the_gradients_of_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 12)
    images = pictures(30, side=32)
    network = network_for(images).eval()
    taken = []

    def note(_, inputs):
        if torch.is_grad_enabled():
            taken.append(len(inputs[0]))

    expected = by_hand(network, images, 12)
    network.decoder.register_forward_pre_hook(note)
    figures = evaluate(network, Reconstruction(), images).metrics
    assert figures == pytest.approx(expected, rel=1e-5)
    assert taken == [3] * 16  # of two batches of 12, at z_e and at z_q


def test_the_network_comes_back_as_it_was():
    images = pictures(40)
    network = batch_norm_network(images)
    network.encoder[1].eval()  # a part that its owner froze
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    random = torch.get_rng_state()
    found = evaluate(network, Reconstruction(), images)
    assert [m.training for m in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    # Measured in eval mode all the same.
    expected = by_hand(network.eval(), images, 40)
    assert found.metrics == pytest.approx(expected, rel=1e-5)


def test_the_mode_comes_back_when_a_pass_raises():
    network = network_for(pictures(4)).train()
    with pytest.raises(ValueError, match="channels"):
        evaluate(network, Reconstruction(), pictures(4, channels=3))
    assert all(m.training for m in network.modules())


def test_evaluating_is_eval_inside():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    network[0].eval()
    with evaluating(network):
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == [True, False, True]


def test_protocol_says_what_was_measured():
    images = pictures(12)
    found = evaluate(network_for(images), Reconstruction(), images)
    protocol = found.protocol
    assert protocol["dataset"] == "made"
    assert protocol["split"] == "test"
    assert protocol["precision"] == "float32"
    assert list(found.described) == list(found.metrics)
    assert all(figure.protocol for figure in found.described.values())
    # Of bits neither end is good.
    neither = {name for name, figure in found.described.items() if not figure.better}
    assert neither == set(BITS) - {"prior_bits"}


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        evaluate(network_for(pictures(4)), Reconstruction(), pictures(0))
