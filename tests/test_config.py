"""mqvae.config: presets, YAML files and the command line to objects and back."""

from dataclasses import dataclass

import pytest
import torch
import yaml
from torch.optim import AdamW

import mqvae
from mqvae.cli.train import train_settings
from mqvae.config import (
    DataOptions,
    NetworkOptions,
    OptimizerOptions,
    TrainerOptions,
    check_types,
    instantiate,
    load_preset,
    merged,
    plain,
    preset_names,
    spec_of,
    with_defaults,
)
from mqvae.trainer import Settings, build_network


def settings_of(*arguments):
    return train_settings(list(arguments))[0]


# -- presets ---------------------------------------------------------------------------------------


def test_the_presets_that_are_promised_are_there():
    assert {"digits-tiny", "fashion-mnist-demo", "paper"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_becomes_settings(name):
    settings = settings_of(name)
    assert settings.steps > 0
    # Written out and read in again, nothing is lost.
    assert Settings.of(yaml.safe_load(yaml.safe_dump(settings.config()))) == settings
    channels = plain(settings.data) | {"channels": 1}
    sized = Settings.of(settings.config() | {"data": channels})
    with torch.device("meta"):  # shapes without the memory
        network = build_network(sized)
    assert settings.quantizer["class_path"] == f"mqvae.{type(network.quantizer).__name__}"


def test_the_papers_settings():
    settings = settings_of("paper")
    assert settings.data.batch_size == 512
    assert settings.optimizer == OptimizerOptions(3e-4, 6e-2, 1e-4, 0.1)
    sizes = settings.quantizer["init_args"]
    assert (sizes["num_codes"], sizes["dim"]) == (1024, 512)
    update = settings.update["init_args"]
    assert settings.update["class_path"] == "mqvae.Meta"
    assert (update["xi"], update["commitment_weight"]) == (1.0, 0.1)
    assert update["hypergradient"]["class_path"] == "mqvae.FiniteDifference"
    assert update["look_ahead"]["class_path"] == "mqvae.Undone"


def test_presets_stand_on_each_other():
    paper, demo = load_preset("paper"), load_preset("fashion-mnist-demo")
    assert "base" not in demo
    assert demo["update"] == paper["update"]
    assert demo["steps"] < paper["steps"]
    assert demo["quantizer"]["class_path"] == "mqvae.VectorQuantizer"


# -- a user's own YAML -----------------------------------------------------------------------------


def write(folder, file, /, **content):
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_file_over_a_preset(tmp_path):
    path = write(tmp_path, "mine.yaml", base="digits-tiny", steps=7, network={"width": 8})
    base, mine = settings_of("digits-tiny"), settings_of(path)
    assert mine.steps == 7
    assert mine.network == NetworkOptions(8, base.network.residual_blocks)
    assert mine.config() == base.config() | {"steps": 7, "network": plain(mine.network)}


def test_options_win_over_files(tmp_path):
    path = write(tmp_path, "mine.yaml", base="digits-tiny", steps=7, seed=3)
    assert settings_of(path, "--steps", "9").steps == 9
    assert settings_of(path, "--steps=9").seed == 3
    other = write(tmp_path, "other.yaml", steps=11)
    assert settings_of("digits-tiny", "--config", other).steps == 11


def test_bases_chain_from_the_file_that_names_them(tmp_path, monkeypatch):
    write(tmp_path, "parts/near.yaml", base="digits-tiny", seed=5, steps=5)
    write(tmp_path, "parts/middle.yml", base="near.yaml", steps=6)
    write(tmp_path, "top.yaml", base="parts/middle.yml", name="mine")
    monkeypatch.chdir(tmp_path)
    found = load_preset("top.yaml")
    assert (found["name"], found["steps"], found["seed"]) == ("mine", 6, 5)
    monkeypatch.chdir("/")
    assert load_preset(str(tmp_path / "top.yaml")) == found


@pytest.mark.parametrize("first", ["a.yaml", "./a.yaml"])
def test_bases_in_a_circle(tmp_path, first, monkeypatch):
    write(tmp_path, "a.yaml", base="b.yaml")
    write(tmp_path, "b.yaml", base="./a.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"circle.*a\.yaml → b\.yaml → a\.yaml"):
        load_preset(first)


def test_merging():
    base = {"a": 1, "b": {"c": 2, "d": 3}}
    assert merged(base, {"b": {"c": 9}, "e": 4}) == {"a": 1, "b": {"c": 9, "d": 3}, "e": 4}
    assert base == {"a": 1, "b": {"c": 2, "d": 3}}
    meta = {"update": {"class_path": "mqvae.Meta", "init_args": {"xi": 2.0}}}
    same = {"update": {"class_path": "mqvae.Meta", "init_args": {"commitment_weight": 0.5}}}
    joint = {"update": {"class_path": "mqvae.Joint"}}
    assert merged(meta, same)["update"]["init_args"] == {"xi": 2.0, "commitment_weight": 0.5}
    assert merged(meta, {"update": {"init_args": {"xi": 3.0}}})["update"] == {
        "class_path": "mqvae.Meta",
        "init_args": {"xi": 3.0},
    }
    # Another rule takes nothing from the old one's arguments.
    assert merged(meta, joint) == joint


# -- rules by name ---------------------------------------------------------------------------------


def test_a_rule_by_name_and_its_arguments():
    settings = settings_of(
        *["digits-tiny", "--update", "Meta", "--update.xi", "0.5"],
        *["--update.hypergradient", "Exact"],
        *["--update.hypergradient.curvature", "ForwardMode"],
        *["--update.hypergradient.tangent.radius", "0.2"],
        *["--update.look_ahead", "Kept"],
    )
    update = instantiate_update(settings)
    assert isinstance(update, mqvae.Meta)
    assert update.xi == 0.5
    assert update.hypergradient == mqvae.Exact(
        tangent=mqvae.OneSided(radius=0.2), curvature=mqvae.ForwardMode()
    )
    assert update.look_ahead == mqvae.Kept()
    written = yaml.safe_load(yaml.safe_dump(settings.config()))["update"]["init_args"]
    assert written["hypergradient"]["init_args"]["curvature"]["class_path"] == "mqvae.ForwardMode"
    assert written["look_ahead"]["class_path"] == "mqvae.Kept"


@pytest.mark.parametrize("rule", ["Joint", "Alternated"])
def test_a_rule_without_the_presets_arguments(rule):
    settings = settings_of("digits-tiny", "--update", rule, "--update.commitment_weight", "0.25")
    update = instantiate_update(settings)
    assert type(update).__name__ == rule
    assert update.weights.commitment == 0.25
    assert "xi" not in settings.update["init_args"]


def instantiate_update(settings):
    network = mqvae.vqvae(1, num_codes=4, dim=4, width=4)
    return instantiate(
        settings.update,
        network=network,
        loss=lambda output, y: (output - y).square().mean(),
        lower=AdamW(network.network_parameters()),
        upper=AdamW(network.codebook_parameters()),
    )


def test_what_a_class_chose_by_itself_is_written_out():
    settings = settings_of("digits-tiny")
    bare = {"class_path": "mqvae.Meta", "init_args": {"xi": 0.5}}
    update = instantiate_update(Settings.of(settings.config() | {"update": bare}))
    full = with_defaults(bare, update)
    assert full["init_args"]["xi"] == 0.5
    assert full["init_args"]["hypergradient"] == spec_of(update.hypergradient)
    assert instantiate(full["init_args"]["hypergradient"]) == update.hypergradient
    assert instantiate(full["init_args"]["look_ahead"]) == update.look_ahead
    assert bare["init_args"] == {"xi": 0.5}


def test_specs_of_nested_parts():
    part = mqvae.Exact(tangent=mqvae.Central(0.5), curvature=mqvae.ForwardMode())
    assert instantiate(yaml.safe_load(yaml.safe_dump(spec_of(part)))) == part


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"class_path": "mqvae.VectorQuantiser"}, "Did you mean 'mqvae.VectorQuantizer'"),
        ({"class_path": "nowhere.Thing"}, "'nowhere.Thing' is no part of mqvae"),
        ({"class_path": "Meta"}, "'Meta' is no part of mqvae"),
        ({"class_path": 5}, "'5' is no part of mqvae"),
        ({"class_path": "mqvae.VectorQuantizer", "init_args": {"num_code": 4}}, "'num_codes'"),
        ({"class_path": "mqvae.VectorQuantizer", "init_args": {"num_codes": 4}}, "'dim'"),
        (
            {"class_path": "mqvae.VectorQuantizer", "init_args": {"num_codes": "x", "dim": 4}},
            "mqvae.VectorQuantizer does not take its init_args",
        ),
    ],
)
def test_specs_that_do_not_do(spec, said):
    with pytest.raises(ValueError) as raised:
        instantiate(spec)
    assert said in str(raised.value)


class Gentle(mqvae.DirectOnly):
    """A rule of a user's own."""


def test_a_users_own_class():
    spec = {"class_path": f"{__name__}.Gentle"}
    assert isinstance(instantiate(spec), Gentle)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "pathlib.Path"])
def test_a_config_from_elsewhere_runs_nothing(path, tmp_path):
    touched = tmp_path / "touched"
    spec = {"class_path": path, "init_args": {"command": f"touch {touched}", "args": []}}
    with pytest.raises(ValueError, match=f"'{path}' is no"):
        instantiate(spec)
    with pytest.raises(ValueError, match=f"'{path}' is no"):
        instantiate({"class_path": "mqvae.Meta", "init_args": {"hypergradient": spec}})
    assert not touched.exists()


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (DataOptions, {"batch_size": 0}, "data.batch_size must be 1 or more, got 0"),
        (DataOptions, {"batch_size": "64"}, "data.batch_size expects int, got '64'"),
        (DataOptions, {"batch_size": True}, "data.batch_size expects int, got True"),
        (DataOptions, {"name": 5}, "data.name expects str, got 5"),
        (DataOptions, {"side": 0}, "data.side must be 1 or more, got 0"),
        (DataOptions, {"side": 8.0}, "data.side expects int or none, got 8.0"),
        (DataOptions, {"channels": 2}, "data.channels must be 1 or 3, got 2"),
        (NetworkOptions, {"width": None}, "network.width expects int, got None"),
        (OptimizerOptions, {"network_lr": -1}, "optimizer.network_lr must be 0 or more"),
        (OptimizerOptions, {"codebook_lr": float("nan")}, "0 or more and finite, got nan"),
        (OptimizerOptions, {"weight_decay": float("inf")}, "0 or more and finite, got inf"),
        (OptimizerOptions, {"warmup": 1.01}, "optimizer.warmup must lie in 0 … 1, got 1.01"),
        (OptimizerOptions, {"warmup": -0.1}, "optimizer.warmup must lie in 0 … 1"),
        (OptimizerOptions, {"warmup": "a"}, "optimizer.warmup expects float, got 'a'"),
        (TrainerOptions, {"precision": "bf16"}, "Did you mean 'bf16-mixed'"),
        (TrainerOptions, {"accelerator": "gpu"}, "one of auto, cpu, cuda, mps, got 'gpu'"),
        (TrainerOptions, {"devices": 2}, "trainer.devices must be 1, got 2"),
        (TrainerOptions, {"log_every": 0}, "trainer.log_every must be 1 or more, got 0"),
        (TrainerOptions, {"checkpoint_every": -5}, "trainer.checkpoint_every must be 1 or more"),
    ],
)
def test_values_out_of_range(kind, values, said):
    with pytest.raises(ValueError) as raised:
        kind(**values)
    assert said in str(raised.value)


def test_the_ends_of_the_ranges_will_do():
    assert DataOptions(batch_size=1, side=1, channels=3).channels == 3
    assert OptimizerOptions(network_lr=0, codebook_lr=1, weight_decay=0, warmup=1).warmup == 1
    assert OptimizerOptions(warmup=0).warmup == 0
    assert TrainerOptions(log_every=1, checkpoint_every=1).log_every == 1


def test_types_are_checked_as_declared():
    @dataclass
    class Thing:
        number: float
        word: str | None

    check_types(Thing(1.5, "a"))
    check_types(Thing(1, None))
    for thing in (Thing("1", None), Thing(True, None), Thing(1.0, 2)):
        with pytest.raises(ValueError, match=r"top\.(number|word) expects"):
            check_types(thing, "top.")


def without(config, *keys):
    config = yaml.safe_load(yaml.safe_dump(config))
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: without(c, "quantizer"), "quantizer"),
        (lambda c: without(c, "update", "class_path"), "update needs a class_path"),
        (lambda c: c | {"update": "Meta"}, "update expects Mapping, got 'Meta'"),
        (lambda c: c | {"steps": "many"}, "steps expects int, got 'many'"),
        (lambda c: c | {"steps": 0}, "steps must be 1 or more"),
        (lambda c: c | {"seed": -1}, "seed must lie in 0 …"),
        (lambda c: c | {"seed": 2**32}, "seed must lie in 0 …"),
        (lambda c: c | {"seed": None}, "seed expects int, got None"),
        (lambda c: c | {"name": None}, "name expects str, got None"),
        (lambda c: c | {"data": 5}, "not the settings of a run"),
        (lambda c: c | {"network": {"wdith": 5}}, "wdith"),
        (lambda c: c | {"optimizer": {"warmup": 3}}, "warmup must lie in"),
    ],
)
def test_settings_that_are_none(change, said):
    config = settings_of("digits-tiny").config()
    with pytest.raises(ValueError) as raised:
        Settings.of(change(config))
    assert said in str(raised.value)
