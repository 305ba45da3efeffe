"""Every method that ships as a preset trains."""

from typing import Any

import pytest
import torch

from mqvae.config import load_preset, merged, preset_names
from mqvae.trainer import Settings, Training

METHODS = [name for name in preset_names() if name.startswith("methods/")]


def small(spec: Any) -> Any:
    """The same quantizers with few codes of few dimensions."""
    if isinstance(spec, list):
        return [small(item) for item in spec]
    if isinstance(spec, dict):
        sizes = {"num_codes": 24, "dim": 8}
        return {k: sizes.get(k, small(v)) for k, v in spec.items()}
    return spec


def test_there_is_a_preset_for_each_method_of_the_paper():
    paper = {"vq-vae", "gumbel", "mq-vae", "replace", "mq-vae-replace", "group", "mq-vae-group"}
    paper |= {"alt", "sync", "alt-sync", "ema", "mq-vae-dagger", "mq-vae-double-dagger"}
    assert paper <= {name.removeprefix("methods/") for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_goes_on(name, tmp_path):
    settings = merged(
        load_preset(name),
        {
            "steps": 6,
            "data": {"name": "digits", "side": 8, "batch_size": 32},
            "network": {"width": 8, "residual_blocks": 1},
            "trainer": {"accelerator": "cpu", "checkpoint_every": 3},
        },
    )
    settings["quantizer"] = small(settings["quantizer"])
    whole = Training(Settings.of(settings), tmp_path / "whole")
    before = {k: v.clone() for k, v in whole.network.state_dict().items()}
    summary = whole.fit()
    assert summary["warnings"] == []
    assert 0 < summary["mse"] < 0.5
    after = whole.network.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.partition(".")[0] for k in moved} >= {"encoder", "decoder"}
    if name != "methods/no-quantization":
        assert any(k.startswith("quantizer") for k in moved)

    # Stopped half-way and gone on with, the rule's own memory included.
    half = Training(Settings.of({**settings}), tmp_path / "half")
    while half.step < 3:
        x, y = half.batches.next()
        half.network.train()
        half.update.step(x, half.task.target(x, y))
        for schedule in half.schedules:
            schedule.step()
        half.step += 1
    half._save("last")
    again = Training(half.settings, resume=half.run)
    again.fit()
    for key, value in after.items():
        assert torch.equal(again.network.state_dict()[key], value), key
