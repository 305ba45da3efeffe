"""Every method trains, and goes with every preset."""

import itertools
import json
import shutil
from functools import cache
from inspect import signature
from typing import Any

import pytest
import torch

from mqvae.config import (
    Settings,
    from_arguments,
    load_preset,
    method_names,
    preset_names,
)
from mqvae.config.classes import find
from mqvae.config.presets import GROUPS, METHODS, PRESETS, layers, listed
from mqvae.config.settings import _layered
from mqvae.errors import MqvaeError
from mqvae.networks.architecture import Inputs
from mqvae.runs import Run
from mqvae.training import begin, resume

METHOD_NAMES = method_names()


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
    assert paper <= set(METHOD_NAMES)


@cache
def quantizer_of(spec: str) -> Any:
    """A quantizer on "meta", of which only the shapes are there."""
    with torch.device("meta"):
        return component(json.loads(spec))


@cache
def cut_of(spec: str, side: int, dim: int) -> Any:
    """Encoder and decoder on "meta"."""
    inputs, network = Inputs(channels=1, side=side, classes=10), component(json.loads(spec))
    network.check(inputs)
    with torch.device("meta"):
        return network.cut(inputs, dim)


def component(spec: Any) -> Any:
    """What a spec describes, made by its class alone."""
    if isinstance(spec, list):
        return [component(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    arguments = {name: component(value) for name, value in spec.get("init_args", {}).items()}
    return find(spec["class_path"])(**arguments)


def test_every_method_goes_with_every_preset():
    settings = cache(lambda preset, method=None: _layered(layers(preset, method)))
    for preset, method in itertools.product(preset_names(), METHOD_NAMES):
        plain, found = settings(preset), settings(preset, method)
        for name in ("seed", "steps", "data", "task"):
            assert found.get(name) == plain.get(name), (preset, method, name)
        assert found["network"]["class_path"] == plain["network"]["class_path"]
        assert found["optimizer"]["network_lr"] == plain["optimizer"]["network_lr"]
        quantizer = quantizer_of(json.dumps(found["quantizer"]))
        dim, side = quantizer.dim, found["data"]["init_args"].get("side") or 28
        side = 0 if found["network"]["class_path"] == "mqvae.MLP" else side
        assert cut_of(json.dumps(found["network"]), side, dim)
        own = settings("fashion-mnist-demo", method)
        assert found["quantizer"]["class_path"] == own["quantizer"]["class_path"]
        assert found["update"] == own["update"]  # nothing of the preset's rule
        signature(find(found["update"]["class_path"])).bind_partial(**found["update"]["init_args"])
        if "dim" in plain["quantizer"]["init_args"] and method not in ("few-dimensions", "fsq"):
            fits = method in ("lfq", "bsq") or dim == plain["quantizer"]["init_args"]["dim"]
            assert fits, (preset, method)


@pytest.mark.parametrize("at", range(0, len(METHOD_NAMES), 7))
def test_a_method_is_an_option_and_an_argument(at):
    presets = preset_names()
    preset, method = presets[at % len(presets)], METHOD_NAMES[at]
    settings = Settings.of(load_preset(preset, method=method))
    assert from_arguments([preset, "--method", method])[0] == settings


def test_the_preset_keeps_its_sizes_and_the_method_is_whole():
    photos = load_preset("photos-64")
    found = load_preset("photos-64", method="mq-vae")
    assert found["update"] == load_preset("paper")["update"] != photos["update"]
    assert {k: v for k, v in found.items() if k != "update"} == {
        k: v for k, v in photos.items() if k != "update"
    }
    gumbel = load_preset("photos-64", method="gumbel")["quantizer"]["init_args"]
    assert [gumbel[k] for k in ("num_codes", "dim", "anneal_steps")] == [256, 8, 700]
    stages = load_preset("digits-tiny", method="residual")["quantizer"]["init_args"]["stages"]
    assert [stage["init_args"]["dim"] for stage in stages] == [16, 16]
    # A preset without quantization has sizes below it.
    ema = load_preset("classifier", method="ema")["quantizer"]["init_args"]
    assert (ema["num_codes"], ema["dim"]) == (1024, 32)
    settings = from_arguments(["digits-tiny", "--method", "recommended", "--steps", "7"])[0]
    assert (settings.name, settings.steps) == ("recommended", 7)


def test_a_method_in_the_place_of_a_preset_has_the_sizes_of_the_demo():
    for name in ("ema-replace", "recommended"):
        by_method = load_preset("fashion-mnist-demo", method=name)
        assert load_preset(f"methods/{name}") == by_method
    assert load_preset("recommended") == by_method
    assert load_preset("methods/sgd", method="ema") == load_preset("methods/ema")


def test_files_name_a_method_and_are_one(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: methods/ema\nupdate: {decay: 0.5}\n")
    found = load_preset("digits-tiny", method=str(mine))
    assert found["update"]["init_args"]["decay"] == 0.5
    preset = tmp_path / "preset.yaml"
    preset.write_text("base: digits-tiny\nmethod: ema\nquantizer: {groups: 2}\nsteps: 5\n")
    settings = load_preset(str(preset))
    assert settings["update"] == load_preset("methods/ema")["update"]
    assert settings["quantizer"]["init_args"]["groups"] == 2
    assert load_preset(str(preset), method="fsq")["quantizer"]["class_path"].endswith("Quantizer")
    mine.write_text(f"base: {mine}\n")
    for arguments, said in (
        (["--method", str(mine)], "goes in a circle"),
        (["--method", "emma"], "no method 'emma'. Did you mean 'ema'?"),
    ):
        with pytest.raises(MqvaeError, match=said):
            from_arguments(["digits-tiny", *arguments])
    with pytest.raises(MqvaeError, match="ema is a method: `mqvae train PRESET --method ema`"):
        from_arguments(["ema"])


def test_presets_and_methods_are_listed_with_a_line_each():
    for folder in (PRESETS, METHODS):
        lines = listed(folder)
        assert all(0 < len(line.title) <= 62 for line in lines)
        groups = [GROUPS.index(line.group) for line in lines]
        assert groups == sorted(groups)
    assert lines[0].name == "recommended" and lines[-1].group == "variants for comparison"


def kind_of(method: str) -> tuple[str, ...]:
    """The classes of a method's rule, quantizer and codebook optimizer."""
    found = _layered(layers("fashion-mnist-demo", method))
    parts = (found["update"], found["quantizer"], found["optimizer"].get("codebook", {}))
    return tuple(part.get("class_path", "") for part in parts)


FIRST_OF_THEIR_KIND = {kind_of(name): name for name in reversed(METHOD_NAMES)}.values()


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_method_trains_and_goes_on(name, tmp_path):
    first = name in FIRST_OF_THEIR_KIND
    settings = load_preset(
        "fashion-mnist-demo",
        {
            "steps": 2 if first else 1,
            "data": {"name": "digits", "side": 8, "batch_size": 32},
            "network": {"width": 8, "residual_blocks": 1},
            "trainer": {"accelerator": "cpu", "checkpoint_every": 1 if first else 9, "loggers": []},
        },
        method=name,
    )
    settings["quantizer"] = small(settings["quantizer"])
    whole = begin(Settings.of(settings), tmp_path / "whole")
    network = whole.parts.network
    before = {k: v.clone() for k, v in network.state_dict().items()}

    # What a kill half-way leaves.
    def keep(training):
        if first and training.step == 1:
            shutil.copytree(tmp_path / "whole", tmp_path / "half")

    summary = whole.fit(after_step=keep)
    assert summary["warnings"] == []
    assert 0 < summary["mse"] < 0.5
    after = network.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.partition(".")[0] for k in moved} >= {"encoder", "decoder"}
    if any(True for _ in network.codebook_parameters()):
        assert any(k.startswith("quantizer") for k in moved)

    # Resumed, the rule's own memory included: once for each kind of rule, quantizer and optimizer.
    if not first:
        return
    again = resume(Run(tmp_path / "half"))
    assert again.step == 1
    again.fit()
    for key, value in after.items():
        assert torch.equal(again.parts.network.state_dict()[key], value), key


def test_paths_in_a_file_start_at_the_file(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    (below / "first.yaml").write_text("base: digits-tiny\nmethod: method.yaml\n")
    (below / "method.yaml").write_text("base: ../other.yaml\nupdate: {commitment_weight: 0.3}\n")
    (tmp_path / "other.yaml").write_text("base: methods/ema\nupdate: {decay: 0.7}\n")
    (tmp_path / "second.yaml").write_text("base: below/first.yaml\nsteps: 3\n")
    for name, steps in (("below/first.yaml", 300), ("second.yaml", 3)):
        settings = from_arguments([str(tmp_path / name)])[0]
        arguments = settings.update["init_args"]
        assert (arguments["decay"], arguments["commitment_weight"]) == (0.7, 0.3)
        assert settings.steps == steps
