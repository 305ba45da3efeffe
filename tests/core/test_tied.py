"""Weights under two names: kept once within a part of the network, refused between parts."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

import mqvae
from mqvae import Joint, MqvaeError, ResidualQuantizer, VectorQuantizer, VQNetwork
from mqvae.config import Settings, load_preset
from mqvae.files import packed, unpacked
from mqvae.networks.architecture import Architecture
from mqvae.runs import Run
from mqvae.training import begin, resume


class Tied(Architecture):
    """Two layers of the encoder with the same weight."""

    def cut(self, inputs, dim):
        encoder = nn.Sequential(
            nn.Conv2d(inputs.channels, dim, 4, 4), nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        )
        encoder[2].weight = encoder[1].weight
        return encoder, nn.ConvTranspose2d(dim, inputs.channels, 4, 4)


SETTINGS = {
    "steps": 4,
    "data": {"name": "digits", "side": 8, "batch_size": 50},
    "network": {"class_path": f"{__name__}.Tied", "init_args": {}},
    "quantizer": {"init_args": {"num_codes": 8, "dim": 4}},
    "trainer": {"accelerator": "cpu", "checkpoint_every": 2},
}


def test_a_run_with_tied_weights_is_saved_once_and_resumes_tied(tmp_path):
    settings = Settings.of(load_preset("digits-tiny", SETTINGS))
    training = begin(settings, tmp_path / "run")
    training.fit()
    straight = training.parts.network.state_dict()
    assert torch.equal(straight["encoder.1.weight"], straight["encoder.2.weight"])
    content = (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").read_bytes()
    from safetensors.torch import load

    assert sorted(load(content).keys() ^ straight.keys()) == ["encoder.2.weight"]
    found = resume(Run(tmp_path / "run")).parts.network
    assert found.encoder[2].weight is found.encoder[1].weight
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, straight[name]), name
    tokenizer = mqvae.Tokenizer.from_run(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "shared")
    again = mqvae.Tokenizer.from_pretrained(str(tmp_path / "shared"))
    assert torch.equal(again.network.encoder[2].weight, found.encoder[1].weight)


def test_tensors_that_share_memory_come_back_alike():
    whole = torch.arange(12.0)
    given = {"a": whole, "b": whole, "part": whole[2:5], "c": whole.clone(), "none": whole[:0]}
    found = unpacked(packed(given))
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert len(packed(given)) < len(packed({**given, "b": whole.clone()}))


def tied_between(part: str) -> VQNetwork:
    quantizer = VectorQuantizer(4, 4)
    encoder, decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    if part == "quantizer":
        encoder.weight = quantizer.codebook.weight
    elif part == "decoder":
        decoder.weight = encoder.weight
    elif part == "module":
        return VQNetwork(nn.Sequential(encoder, quantizer), quantizer, decoder)
    return VQNetwork(encoder, quantizer, decoder)


@pytest.mark.parametrize("part", ["quantizer", "decoder", "module"])
def test_what_two_parts_share_is_refused(part):
    with pytest.raises(MqvaeError, match="are the same parameter"):
        tied_between(part)


def test_weights_tied_after_construction_are_refused_by_the_rule():
    network = tied_between("none")
    network.decoder.weight = network.encoder.weight
    with pytest.raises(MqvaeError, match=r"encoder\.weight and decoder\.weight are the same"):
        Joint(
            network,
            nn.functional.mse_loss,
            lower=SGD(network.encoder.parameters(), 0.1),
            upper=SGD(network.codebook_parameters(), 0.1),
        )


def test_stages_that_share_a_codebook_are_refused():
    quantizer = VectorQuantizer(4, 3)
    with pytest.raises(MqvaeError, match="stages 0 and 1 of a residual quantizer share"):
        ResidualQuantizer([quantizer, quantizer])
    other = VectorQuantizer(4, 3)
    other.codebook = quantizer.codebook
    with pytest.raises(MqvaeError, match="stages 0 and 2"):
        ResidualQuantizer([quantizer, VectorQuantizer(4, 3), other])
