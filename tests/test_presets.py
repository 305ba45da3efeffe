"""Every method that ships as a preset trains."""

import shutil
from typing import Any

import pytest
import torch

from mqvae.runs import Run
from mqvae.settings import Settings, load_preset, preset_names
from mqvae.trainer import begin, resume

METHODS = [name for name in preset_names() if name.startswith("methods/")]


def small(spec: Any) -> Any:
    """The same quantizers with few codes of few dimensions."""
    if isinstance(spec, list):
        return [small(item) for item in spec]
    if isinstance(spec, dict):
        sizes = {"num_codes": 32, "dim": 8}
        return {k: sizes.get(k, small(v)) for k, v in spec.items()}
    return spec


def test_there_is_a_preset_for_each_method_of_the_paper():
    paper = {"vq-vae", "gumbel", "mq-vae", "replace", "mq-vae-replace", "group", "mq-vae-group"}
    paper |= {"alt", "sync", "alt-sync", "ema", "mq-vae-dagger", "mq-vae-double-dagger"}
    assert paper <= {name.removeprefix("methods/") for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_goes_on(name, tmp_path):
    settings = load_preset(
        name,
        {
            "steps": 6,
            "data": {"name": "digits", "side": 8, "batch_size": 32},
            "network": {"width": 8, "residual_blocks": 1},
            "trainer": {"accelerator": "cpu", "checkpoint_every": 3, "loggers": []},
        },
    )
    settings["quantizer"] = small(settings["quantizer"])
    whole = begin(Settings.of(settings), tmp_path / "whole")
    network = whole.parts.network
    before = {k: v.clone() for k, v in network.state_dict().items()}

    # What a kill half-way leaves.
    def keep(training):
        if training.step == 3:
            shutil.copytree(tmp_path / "whole", tmp_path / "half")

    summary = whole.fit(after_step=keep)
    assert summary["warnings"] == []
    assert 0 < summary["mse"] < 0.5
    after = network.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.partition(".")[0] for k in moved} >= {"encoder", "decoder"}
    if any(True for _ in network.codebook_parameters()):
        assert any(k.startswith("quantizer") for k in moved)

    # Gone on with, the rule's own memory included.
    again = resume(Run(tmp_path / "half"))
    assert again.step == 3
    again.fit()
    for key, value in after.items():
        assert torch.equal(again.parts.network.state_dict()[key], value), key
