"""mqvae.config: presets, YAML files and the command line to objects and back."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.optim import SGD, AdamW

import mqvae
from mqvae import ImageData, RowwiseAdam
from mqvae.config import (
    Optimizer,
    Settings,
    Start,
    Trainer,
    from_arguments,
    load_preset,
    preset_names,
    presets_in_words,
)
from mqvae.config.command_line import SHORT
from mqvae.networks.architecture import Architecture, Inputs
from mqvae.networks.vqvae import VQVAE
from mqvae.runs import Run


def settings_of(*arguments):
    return from_arguments(list(arguments))[0]


def written_and_read(config):
    return yaml.safe_load(yaml.safe_dump(config))


def made_of(settings):
    """Network, update rule and optimizers of settings."""
    made = settings.components()
    network = made.network.build(Inputs(channels=1, side=8), made.quantizer)
    lower = made.network_optimizer(network.network_parameters())
    codebook = list(network.codebook_parameters())
    upper = made.codebook_optimizer(codebook) if codebook else None
    update = mqvae.Update(network, made.task, made.rule, lower=lower, upper=upper)
    return network, update, lower, upper


SMALL = [
    *["--network.width", "4", "--network.residual_blocks", "1"],
    *["--quantizer.num_codes", "6", "--quantizer.dim", "4"],
]


# -- presets ---------------------------------------------------------------------------------------


def test_the_presets_that_are_promised_are_there():
    assert {"digits-tiny", "fashion-mnist-demo", "paper"} <= set(preset_names())
    assert "digits-tiny" in presets_in_words()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_becomes_settings_and_back(name):
    settings = settings_of(name)
    assert Settings.of(written_and_read(settings.config())) == settings
    with torch.device("meta"):  # shapes without the memory
        made = settings.components()
        side = 0 if name == "vectors" else settings.data.side or 28
        inputs = Inputs(channels=1, side=side, classes=10)
        network = made.network.build(inputs, made.quantizer)
    assert settings.quantizer["class_path"] == f"mqvae.{type(network.quantizer).__name__}"
    assert settings.update["class_path"] == f"mqvae.{type(made.rule).__name__}"
    assert settings.task["class_path"] == f"mqvae.{type(made.task).__name__}"
    assert settings.network == {
        "class_path": f"mqvae.{type(made.network).__name__}",
        "init_args": json.loads(json.dumps(dataclasses.asdict(made.network))),  # lists for tuples
    }


def test_the_papers_settings():
    settings = settings_of("paper")
    assert settings.steps == 20000
    assert settings.data == ImageData()
    optimizer = settings.optimizer
    assert (optimizer.network_lr, optimizer.codebook_lr) == (3e-4, 6e-2)
    assert (optimizer.weight_decay, optimizer.warmup) == (1e-4, 0.1)
    sizes = settings.quantizer["init_args"]
    assert (sizes["num_codes"], sizes["dim"]) == (1024, 512)
    update = settings.update["init_args"]
    assert settings.update["class_path"] == "mqvae.Meta"
    assert (update["xi"], update["commitment_weight"]) == (1.0, 0.1)
    assert update["hypergradient"]["class_path"] == "mqvae.FiniteDifference"
    assert update["look_ahead"]["class_path"] == "mqvae.Undone"
    assert (settings.start, settings.freeze, settings.trainer) == (None, (), Trainer())


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


@pytest.mark.parametrize("network", [{"width": 8}, {"init_args": {"width": 8}}])
def test_a_file_over_a_preset(tmp_path, network):
    path = write(tmp_path, "mine.yaml", base="digits-tiny", steps=7, network=network)
    base, mine = settings_of("digits-tiny"), settings_of(path)
    assert mine.steps == 7
    assert mine.network["init_args"] == {**base.network["init_args"], "width": 8}
    assert mine.config() == base.config() | {"steps": 7, "network": mine.network}
    assert Settings.of(load_preset("digits-tiny", {"steps": 7}, {"network": network})) == mine


def test_options_win_over_files(tmp_path):
    path = write(tmp_path, "mine.yaml", base="digits-tiny", steps=7, seed=3)
    assert settings_of(path, "--steps", "9").steps == 9
    assert settings_of(path, "--steps=9").seed == 3
    other = write(tmp_path, "other.yaml", steps=11, network={"width": 6})
    for options in (["--config", other], [f"--config={other}"]):
        settings = settings_of("digits-tiny", *options)
        assert (settings.steps, settings.network["init_args"]["width"]) == (11, 6)


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


def test_layers_keep_what_belongs_to_the_same_class():
    changed = {"xi": 2.0, "codebook_weight": 0.75}
    base = load_preset("digits-tiny", {"update": {"init_args": changed}})
    same = {"class_path": "mqvae.Meta", "init_args": {"commitment_weight": 0.5}}
    found = Settings.of(base, {"update": same}).update["init_args"]
    assert (found["xi"], found["commitment_weight"]) == (2.0, 0.5)
    # Another rule takes nothing from the old one's arguments.
    found = Settings.of(base, {"update": {"class_path": "mqvae.Joint"}}).update
    assert found["init_args"] == {"commitment_weight": 0.1, "codebook_weight": 1.0}
    # Nor does another network or optimizer take what the usual one would have been given.
    usual = {
        "network": mqvae.VQGAN().width,
        "optimizer": inspect.signature(torch.optim.Adagrad).parameters["eps"].default,
    }
    deltas = {
        "network": {"class_path": "mqvae.VQGAN"},
        "optimizer": {"codebook": {"class_path": "torch.optim.Adagrad"}},
    }
    settings = Settings.of(base, deltas)
    assert settings.network["init_args"]["width"] == usual["network"] != mqvae.VQVAE().width
    assert settings.optimizer.codebook["init_args"]["eps"] == usual["optimizer"] != 1e-8
    # Options are one layer, in whichever order they come.
    for typed in (
        ["--update.codebook_weight", "0.75", "--update", "Joint"],
        ["--update", "Joint", "--update.codebook_weight", "0.75"],
    ):
        found = settings_of("digits-tiny", *typed).update["init_args"]
        assert found == {"commitment_weight": 0.1, "codebook_weight": 0.75}
    kept = {"init_args": {"look_ahead": {"class_path": "mqvae.Kept"}}}
    ahead = Settings.of(base, {"update": kept}).update["init_args"]["look_ahead"]
    assert ahead["class_path"] == "mqvae.Kept" and "optimizer_step" not in ahead["init_args"]


def test_a_runs_config_that_is_wrong_is_named(tmp_path):
    config = settings_of("digits-tiny", *SMALL).config()
    for number, (change, said) in enumerate(
        [
            ({"steps": "x"}, "steps expects int, got 'x'"),
            ({"network": {"class_path": "mqvae.VQVAE", "init_args": {"width": 7}}}, "even number"),
            ({"quantizer": {"class_path": "os.system"}}, "quantizer has no choice 'os.system'"),
        ]
    ):
        run = Run.create(tmp_path / str(number), config | change)
        with pytest.raises(ValueError) as raised:
            Settings.of_run(run)
        assert str(raised.value).startswith(f"{run.folder / 'config.yaml'}: ")
        assert said in str(raised.value)


def test_a_run_is_read_again_without_what_was_done_to_its_settings(tmp_path):
    run = Run.create(tmp_path / "run", settings_of("digits-tiny", *SMALL).config())
    state = torch.get_rng_state()
    first = Settings.of_run(run)
    assert torch.equal(torch.get_rng_state(), state)  # it is tried out, and nobody notices
    codes = first.quantizer["init_args"]["num_codes"]
    first.quantizer["init_args"]["num_codes"] = 5
    assert Settings.of_run(run).quantizer["init_args"]["num_codes"] == codes
    # A run at the same place is another.
    Run.create(tmp_path / "run", Settings.of_run(run).config() | {"seed": 7}, overwrite=True)
    assert Settings.of_run(Run(tmp_path / "run")).seed == 7


# -- components ------------------------------------------------------------------------------------


def test_a_rule_by_name_and_its_arguments():
    settings = settings_of(
        *["digits-tiny", *SMALL, "--update", "Meta", "--update.xi", "0.5"],
        *["--update.hypergradient", "Exact"],
        *["--update.hypergradient.curvature", "ForwardMode"],
        *["--update.hypergradient.tangent.radius", "0.2"],
        *["--update.look_ahead", "Kept"],
    )
    _, update, _, _ = made_of(settings)
    assert isinstance(update.rule, mqvae.Meta)
    assert update.rule.xi == 0.5
    assert update.rule.hypergradient == mqvae.Exact(
        tangent=mqvae.OneSided(radius=0.2), curvature=mqvae.ForwardMode()
    )
    assert update.rule.look_ahead == mqvae.Kept()
    written = written_and_read(settings.config())["update"]["init_args"]
    assert written["hypergradient"]["init_args"]["curvature"]["class_path"] == "mqvae.ForwardMode"
    assert written["look_ahead"]["class_path"] == "mqvae.Kept"


@pytest.mark.parametrize("rule", ["Joint", "Alternated", "Ema", "MetaBoth"])
def test_a_rule_without_the_presets_arguments(rule):
    options = ["--update", rule, "--update.commitment_weight", "0.25"]
    settings = settings_of("digits-tiny", *SMALL, *options)
    _, update, _, _ = made_of(settings)
    assert type(update.rule).__name__ == rule
    assert update.weights.commitment == 0.25


def test_a_run_is_named_after_its_rule():
    joint = settings_of("digits-tiny", "--update", "Joint")
    assert joint.name == getattr(mqvae.Joint, "method", "Joint")
    assert settings_of("digits-tiny", "--name", "mine").name == "mine"
    assert settings_of("methods/sync").name == "VQ-VAE + sync"


def test_what_a_class_chose_by_itself_is_written_out():
    bare = {"class_path": "mqvae.Meta", "init_args": {"xi": 0.5}}
    config = settings_of("digits-tiny", *SMALL).config()
    settings = Settings.of(config | {"update": bare})
    assert settings.update["init_args"]["hypergradient"] is None
    network, update, _, _ = made_of(settings)
    resolved = settings.resolved(network, update.rule, channels=1, side=8, validation=100)
    assert dataclasses.asdict(resolved.data) == dataclasses.asdict(settings.data) | {
        "channels": 1,
        "side": 8,
        "validation": 100,
    }
    chosen = resolved.update["init_args"]
    assert chosen["xi"] == 0.5
    assert chosen["hypergradient"]["class_path"] == "mqvae.FiniteDifference"
    assert chosen["look_ahead"]["class_path"] == "mqvae.Undone"
    assert resolved.quantizer["init_args"]["distance"]["class_path"] == "mqvae.Euclidean"
    again = Settings.of(written_and_read(resolved.config()))
    assert again == resolved
    _, second, _, _ = made_of(again)
    assert second.rule == update.rule


def test_only_the_quantizer_draws():
    settings = settings_of("digits-tiny", *SMALL)
    torch.manual_seed(1)
    made = settings.components()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    alone = mqvae.VectorQuantizer(6, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(made.quantizer.table(), alone.table())


class Gentle(mqvae.DirectOnly):
    """A rule of a user's own."""


class MyUpdate(mqvae.Joint):
    """An update rule of a user's own."""

    method = "mine"


class MyNetwork(VQVAE):
    """A network of a user's own."""


class MyTask(mqvae.Reconstruction):
    """A task of a user's own."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight


class MyQuantizer(mqvae.VectorQuantizer):
    """A quantizer of a user's own."""


class MyOptimizer(SGD):
    """An optimizer of a user's own."""


def test_a_users_own_classes():
    mine = {
        "network": {"class_path": f"{__name__}.MyNetwork", "init_args": {"width": 6}},
        "quantizer": {
            "class_path": f"{__name__}.MyQuantizer",
            "init_args": {"num_codes": 6, "dim": 4},
        },
        "task": {"class_path": f"{__name__}.MyTask", "init_args": {"weight": 2}},
        "update": {"class_path": f"{__name__}.MyUpdate"},
        "optimizer": {"codebook": {"class_path": f"{__name__}.MyOptimizer"}},
    }
    settings = Settings.of(mine)
    assert settings.name == "mine"
    assert Settings.of(written_and_read(settings.config())) == settings
    made = settings.components()
    assert made.network == MyNetwork(width=6) and isinstance(made.network, Architecture)
    assert type(made.quantizer) is MyQuantizer
    assert type(made.task) is MyTask and made.task.weight == 2
    assert type(made.rule) is MyUpdate
    assert made.codebook_optimizer.func is MyOptimizer
    rule = settings_of("digits-tiny", "--update.hypergradient", f"{__name__}.Gentle", *SMALL)
    network, update, _, _ = made_of(rule)
    assert type(update.rule.hypergradient) is Gentle
    assert Settings.of(rule.resolved(network, update.rule).config()).update == rule.update


# -- optimizers ------------------------------------------------------------------------------------


def test_the_optimizers_are_adamw_as_it_comes():
    settings = settings_of("digits-tiny", *SMALL, "--optimizer.weight_decay", "0.5")
    network, _, lower, upper = made_of(settings)
    for made, parameters, lr in (
        (lower, network.network_parameters(), 3e-4),
        (upper, network.codebook_parameters(), 6e-2),
    ):
        plain = AdamW(parameters, lr=lr, weight_decay=0.5)
        assert type(made) is AdamW
        assert made.defaults == plain.defaults
        assert repr(made) == repr(plain)
    written = settings.config()["optimizer"]["network"]["init_args"]
    assert (written["betas"], written["eps"]) == ([0.9, 0.999], 1e-8)
    # A run's config as a preset takes another weight decay of both.
    again = Settings.of(settings.config(), {"optimizer": {"weight_decay": 0.25}})
    assert again.components().network_optimizer.keywords["weight_decay"] == 0.25


def test_optimizers_of_each_level():
    settings = settings_of(
        *["digits-tiny", *SMALL, "--optimizer.codebook", "SGD"],
        *["--optimizer.codebook.momentum", "0.9", "--optimizer.codebook.weight_decay", "0.01"],
        *["--optimizer.network.betas", "[0.9, 0.95]", "--optimizer.network.eps", "1e-6"],
    )
    _, _, lower, upper = made_of(settings)
    group = upper.param_groups[0]
    assert type(upper) is SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (6e-2, 0.9, 0.01)
    group = lower.param_groups[0]
    assert type(lower) is AdamW
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-6, 1e-4)
    assert Settings.of(written_and_read(settings.config())) == settings


def test_an_optimizer_without_weight_decay():
    settings = settings_of("digits-tiny", *SMALL, "--optimizer.codebook", "Rprop")
    _, _, _, upper = made_of(settings)
    assert type(upper) is torch.optim.Rprop
    assert "weight_decay" not in upper.param_groups[0]


@pytest.mark.parametrize(
    ("preset", "kind", "rate", "decay"),
    [
        ("vq-vae", AdamW, 6e-2, 1e-4),
        ("sgd", SGD, 50, 0.0),
        ("adagrad", torch.optim.Adagrad, 6e-2, 0.0),
        ("rowwise-adam", RowwiseAdam, 6e-2, None),
    ],
)
def test_optimizers_of_presets_are_the_codebooks_alone(preset, kind, rate, decay):
    settings = settings_of(f"methods/{preset}", "--network.width", "8")
    _, _, lower, upper = made_of(settings)
    assert type(upper) is kind and type(lower) is AdamW
    group = upper.param_groups[0]
    assert (group["lr"], group.get("weight_decay")) == (rate, decay)
    assert (lower.param_groups[0]["lr"], lower.param_groups[0]["weight_decay"]) == (3e-4, 1e-4)
    written = written_and_read(settings.config())
    assert Settings.of(written) == settings
    own = settings_of(
        *["methods/vq-vae", "--optimizer.codebook", "RowwiseAdam"],
        *["--optimizer.codebook.betas", "[0.5, 0.8]"],
    )
    assert own.components().codebook_optimizer.func is RowwiseAdam


# -- starting from a run ---------------------------------------------------------------------------


def test_from_and_freeze(tmp_path):
    every = ("encoder", "codebook", "decoder")
    for options in (["--from", "a run"], ["--from=a run"], ["--from.run", "a run"]):
        assert settings_of("digits-tiny", *options).start == Start("a run", every)
    path = write(tmp_path, "mine.yaml", **{"base": "digits-tiny", "from": "a run"})
    assert settings_of(path).start == Start("a run", every)
    some = ["--from.parts", "encoder,codebook", "--freeze", "encoder"]
    settings = settings_of(path, *some)
    assert settings.start == Start("a run", ("encoder", "codebook"))
    assert settings.freeze == ("encoder",)
    assert settings_of("digits-tiny", "--from", "b", *some).start == Start(
        "b", ("encoder", "codebook")
    )
    assert settings.config()["from"] == {"run": "a run", "parts": ["encoder", "codebook"]}
    assert settings.config()["freeze"] == ["encoder"]
    assert Settings.of(written_and_read(settings.config())) == settings
    content = {"base": "digits-tiny", "from": {"run": "b", "parts": ["decoder"]}}
    path = write(tmp_path, "mine.yaml", **content, freeze=["encoder", "decoder"])
    settings = settings_of(path)
    assert (settings.start, settings.freeze) == (Start("b", ("decoder",)), ("encoder", "decoder"))
    assert settings_of("digits-tiny", "--freeze=[encoder, codebook]").freeze == every[:2]


def test_out_and_overwrite():
    assert from_arguments(["digits-tiny"])[1:] == (None, False)
    assert from_arguments(["digits-tiny", "--out", "a", "--overwrite"])[1:] == (Path("a"), True)


# -- what a config from elsewhere may call ---------------------------------------------------------

CALLED = []


def quantizer_of_mine(num_codes: int = 4) -> mqvae.VectorQuantizer:
    """A function where a class belongs."""
    CALLED.append("function")
    return mqvae.VectorQuantizer(num_codes, 4)


def optimizer_of_mine() -> AdamW:
    """A function where a class belongs."""
    CALLED.append("function")
    raise AssertionError


SLOTS = ["network", "quantizer", "task", "update", "optimizer.network", "optimizer.codebook"]
RUN_IT = ["os.system", "subprocess.Popen"]
ELSEWHERE = [
    *[
        *RUN_IT,
        "builtins.eval",
        "mqvae.vqvae",
        "mqvae.Kept",
        f"{__name__}.quantizer_of_mine",
        f"{__name__}.optimizer_of_mine",
    ],
    *["mqvae.Tokenizer.load", "mqvae.Quantizer"],
]


def config_with(key, value):
    """Small settings with this value at a dotted key."""
    sizes = {"num_codes": 4, "dim": 4}
    config = {
        "quantizer": {"class_path": "mqvae.VectorQuantizer", "init_args": sizes},
        "update": {"class_path": "mqvae.Meta", "init_args": {}},
        "optimizer": {"network": {"class_path": "torch.optim.AdamW", "init_args": {}}},
    }
    *groups, name = key.split(".")
    level = config
    for group in groups:
        level = level[group]
    level[name] = value
    return config


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_config_from_elsewhere_runs_nothing(path, tmp_path):
    touched = tmp_path / "touched"
    arguments = {"args": f"touch {touched}", "command": f"touch {touched}"}
    parts = ["update.init_args.hypergradient", "quantizer.init_args.codebook"]
    for slot in [*SLOTS, *parts]:
        spec = {"class_path": path, **({"init_args": arguments} if path in RUN_IT else {})}
        with pytest.raises(ValueError):
            Settings.of(config_with(slot, spec)).components()
    betas = config_with("optimizer.network.init_args.betas", [{"class_path": path}, 0.9])
    with pytest.raises(ValueError):
        Settings.of(betas).components()
    with pytest.raises(ValueError):
        settings_of("digits-tiny", "--update.hypergradient", path)
    # Nor where settings are changed in Python.
    settings = Settings.of(config_with("steps", 3))
    with pytest.raises(ValueError):
        dataclasses.replace(settings, quantizer={"class_path": path}).components()
    assert not touched.exists()
    assert CALLED == []


# -- messages --------------------------------------------------------------------------------------

META = ["--update", "Meta"]
EXACT = [*META, "--update.hypergradient", "Exact"]

BAD_OPTIONS = {
    # Presets and options, with the nearest name.
    "preset": (["digits-tyni"], "no preset 'digits-tyni'. Did you mean 'digits-tiny'?"),
    "preset without near one": (["zzz"], "no preset 'zzz'. Presets: celeba-hq-256, classification"),
    "no preset": ([], "train needs a preset"),
    "no preset but options": (["--steps", "3"], "train needs a preset"),
    "second preset": (["digits-tiny", "paper"], "an argument too many: 'paper'"),
    "option": (
        ["--optimizer.netwrok_lr", "1"],
        "no option --optimizer.netwrok_lr. Did you mean '--optimizer.network_lr'?",
    ),
    "option with =": (["--sede=1"], "no option --sede. Did you mean '--seed'?"),
    "abbreviation": (["--overwr"], "no option --overwr. Did you mean '--overwrite'?"),
    "value missing": (["--steps"], "--steps: expected one argument"),
    "value of from missing": (["--from"], "--from: expected one argument"),
    "rule": (["--update", "Mta"], "--update has no choice 'Mta'. Did you mean 'Meta'?"),
    "network": (["--network", "VQVEA"], "--network has no choice 'VQVEA'. Did you mean 'VQVAE'?"),
    "task": (["--task", "Reconstruct"], "no choice 'Reconstruct'. Did you mean 'Reconstruction'?"),
    "optimizer": (
        ["--optimizer.codebook", "SDG"],
        "--optimizer.codebook has no choice 'SDG'. Did you mean 'SGD'? Choices: ",
    ),
    "optimizer's option": (
        ["--optimizer.codebook", "SGD", "--optimizer.codebook.momentun", "0.9"],
        "no option --optimizer.codebook.momentun of SGD. Did you mean 'momentum'?",
    ),
    "optimizer's rate": (
        ["--optimizer.network.lr", "1"],
        "no option --optimizer.network.lr of AdamW. The learning rate is --optimizer.network_lr.",
    ),
    "betas": (["--optimizer.network.betas", "[0.9, x]"], "network.betas expects float, got 'x'"),
    "rule's option": ([*META, "--update.xo", "1"], "no option --update.xo of Meta."),
    "rule's option, near": ([*META, "--update.lookahead", "Kept"], "Did you mean 'look_ahead'?"),
    "rule's argument that is no option": (
        [*META, "--update.lower", "1"],
        "no option --update.lower of Meta. Options: commitment_weight, codebook_weight, hyper",
    ),
    "another rule's option": (
        ["--update", "Joint", "--update.xi", "1"],
        "no option --update.xi of Joint",
    ),
    "hypergradient": (
        [*META, "--update.hypergradient", "Exct"],
        "--update.hypergradient has no choice 'Exct'. Did you mean 'Exact'?",
    ),
    "hypergradient's option": (
        [*EXACT, "--update.hypergradient.curvatur", "ForwardMode"],
        "no option --update.hypergradient.curvatur of Exact. Did you mean 'curvature'?",
    ),
    "derivative": (
        [*EXACT, "--update.hypergradient.curvature", "FowardMode"],
        "--update.hypergradient.curvature has no choice 'FowardMode'. Did you mean 'ForwardMode'?",
    ),
    "look-ahead": ([*META, "--update.look_ahead", "Kep"], "Did you mean 'Kept'?"),
    "network's option": (
        ["--network.wdith", "5"],
        "no option --network.wdith of VQVAE. Did you mean 'width'?",
    ),
    "quantizer's option": (
        ["--quantizer.num_code", "5"],
        "no option --quantizer.num_code of VectorQuantizer. Did you mean 'num_codes'?",
    ),
    # Values out of range, with the range, and of the wrong type.
    "steps": (["--steps", "0"], "--steps must be 1 or more, got 0."),
    "batch_size": (["--data.batch_size", "0"], "--data.batch_size must be 1 or more, got 0."),
    "side": (["--data.side", "0"], "--data.side must be 1 or more, got 0."),
    "classes": (["--data.classes", "0"], "--data.classes must be 1 or more, got 0."),
    "validation": (["--data.validation", "-1"], "--data.validation must be 0 or more, got -1."),
    "warmup": (["--optimizer.warmup", "2"], "--optimizer.warmup must lie in 0 … 1, got 2."),
    "warmup below": (["--optimizer.warmup", "-0.1"], "warmup must lie in 0 … 1, got -0.1."),
    "rate": (["--optimizer.network_lr", "-1"], "network_lr must be 0 or more and finite, got -1."),
    "rate nan": (["--optimizer.network_lr", "nan"], "0 or more and finite, got nan."),
    "rate word": (["--optimizer.network_lr", "high"], "network_lr expects float, got 'high'."),
    "decay": (["--optimizer.weight_decay", "inf"], "0 or more and finite, got inf."),
    "average": (
        ["--trainer.ema_decay", "1"],
        "ema_decay must be 0 or more and less than 1, got 1.",
    ),
    "devices": (["--trainer.devices", "0"], "--trainer.devices must be 1 or more, got 0."),
    "log_every": (["--trainer.log_every", "0"], "--trainer.log_every must be 1 or more, got 0."),
    "parts": (
        ["--trainer.micro_batches", "0"],
        "--trainer.micro_batches must be 1 or more, got 0.",
    ),
    "clipping": (
        ["--trainer.gradient_clip_val", "0"],
        "gradient_clip_val must be above 0 and finite, got 0.",
    ),
    "precision": (["--trainer.precision", "16"], "one of 32-true, bf16-mixed, 16-mixed, got '16'."),
    "precision, near": (["--trainer.precision", "bf16"], "Did you mean 'bf16-mixed'?"),
    "accelerator": (
        ["--trainer.accelerator", "gpu"],
        "--trainer.accelerator must be one of auto, cpu, cuda, mps, got 'gpu'. "
        "Did you mean 'cuda'?",
    ),
    "channels": (["--data.channels", "2"], "--data.channels must be one of 1, 3, got '2'."),
    "seed": (["--seed", "-1"], "--seed must lie in 0 … 4294967295, got -1."),
    "seed, large": (["--seed", str(2**32)], "--seed must lie in 0 … 4294967295, got 4294967296."),
    "type": (["--steps", "many"], "--steps expects int, got 'many'."),
    "type of a fraction": (["--steps", "1.5"], "--steps expects int, got '1.5'."),
    "type, optional": (["--data.side", "big"], "--data.side expects int, got 'big'."),
    "type, nested": (
        [*EXACT, "--update.hypergradient.tangent.radius", "wide"],
        "--update.hypergradient.tangent.radius expects float, got 'wide'.",
    ),
    "group as a value": (
        ["--trainer", "cpu"],
        "trainer takes settings of its own, no class or value: accelerator, devices,",
    ),
    "group as a class": (
        ["--optimizer", "torch.optim.SGD"],
        "optimizer takes settings of its own, no class or value: network_lr, codebook_lr,",
    ),
    "freeze": (
        ["--freeze", "encodr"],
        "--freeze must be one of encoder, codebook, decoder, got 'encodr'. Did you mean 'encoder'?",
    ),
    "parts of a start": (
        ["--from", "a", "--from.parts", "encoder,codebok"],
        "--from.parts must be one of encoder, codebook, decoder, got 'codebok'. Did you mean",
    ),
    "parts of no start": (["--from.parts", "encoder"], "--from.run must be set."),
    "config": (["--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
}


def is_clear(text):
    # No class names of other libraries, no leftovers of theirs.
    for word in ("jsonargparse", "Namespace", "NoneType", "Errno", "class '", "Parser key"):
        assert word not in text
    assert "\n" not in text


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options(options, said):
    presets = [] if said.startswith(("no preset", "train needs")) else ["digits-tiny"]
    if options[:1] == ["digits-tiny"]:
        presets = []
    with pytest.raises(ValueError) as raised:
        from_arguments([*presets, *options])
    is_clear(str(raised.value))
    assert said in str(raised.value)


YAML_FILES = {
    "missing": (None, "there is no file new.yaml"),
    "broken": ("a: [1\nb: }", "new.yaml is not valid YAML"),
    "binary": ("\x80\x81\x00", "new.yaml is not valid YAML"),
    "list": ("- 1", "new.yaml must hold settings as 'name: value', got [1]"),
    "word": ("hello", "new.yaml must hold settings as 'name: value', got 'hello'"),
    "numbers": ("1: 2", "new.yaml must hold settings as 'name: value'"),
    "empty": ("", "new.yaml: quantizer, update must be set"),
    "base": ("base: digits-tyn", "no preset 'digits-tyn'. Did you mean 'digits-tiny'?"),
    "base missing": ("base: more.yaml", "there is no file more.yaml"),
    "base number": ("base: 5", "new.yaml: base must name a preset or a YAML file, got 5"),
    "circle": ("base: new.yaml", "base goes in a circle"),
    "setting": ("base: paper\nstpes: 1", "no setting 'stpes'. Did you mean 'steps'?"),
    "group": ("base: paper\ndta: {side: 8}", "no setting 'dta.side'. Did you mean 'data.side'?"),
    "setting in a group": (
        "base: paper\noptimizer: {network_rl: 1}",
        "no setting 'optimizer.network_rl'. Did you mean 'optimizer.network_lr'?",
    ),
    "type": ("base: paper\nsteps: many", "new.yaml: steps expects int, got 'many'"),
    "truth": ("base: paper\nsteps: true", "new.yaml: steps expects int, got 'True'"),
    "word expected": ("base: paper\ndata: {name: 5}", "data.name expects str, got '5'"),
    "nothing": ("base: paper\nsteps:", "new.yaml: steps expects a value, got none"),
    "nothing in a group": ("base: paper\ndata: {name: null}", "data.name expects a value"),
    "group as a value": (
        "base: paper\ntrainer: 5",
        "trainer takes settings of its own, no class or value: accelerator",
    ),
    "group as a class": (
        "base: paper\noptimizer: {class_path: torch.optim.SGD}",
        "optimizer takes settings of its own, no class or value: network_lr, codebook_lr,",
    ),
    "start as a class": (
        "base: paper\nfrom: {class_path: torch.optim.SGD}",
        "no class or value: run, parts.",
    ),
    "group of nothing": ("base: paper\noptimizer:", "optimizer takes settings of its own"),
    "class": ("base: paper\nupdate: {class_path: mqvae.Mta}", "no choice 'Mta'. Did you mean 'Me"),
    "class of another kind": (
        "base: paper\nupdate: {class_path: mqvae.VectorQuantizer}",
        "update has no choice 'VectorQuantizer'",
    ),
    "class nowhere": ("base: paper\nupdate: {class_path: nowhere.It}", "no choice 'nowhere.It'"),
    "class number": ("base: paper\nupdate: {class_path: 5}", "update has no choice"),
    "class of nothing": (
        "base: paper\ntask: {class_path: null}",
        "task.class_path must name a class. Choices: Adversarial, ",
    ),
    "component in words": ("base: paper\nupdate: 'a: b'", "update has no choice '"),
    "component as a value": ("base: paper\nupdate: 5", "update has no choice '5'"),
    "argument": ("base: paper\nupdate: {init_args: {x: 1}}", "of Meta. Did you mean 'xi'?"),
    "rate": (
        "base: paper\noptimizer: {network: {init_args: {lr: 1}}}",
        "no option optimizer.network.lr of AdamW. The learning rate is optimizer.network_lr.",
    ),
    "range": ("base: paper\noptimizer: {warmup: 2}", "optimizer.warmup must lie in 0 … 1, got 2"),
    "argument left out": (
        "base: paper\nquantizer: {class_path: mqvae.NoQuantizer}",
        "new.yaml: quantizer.dim must be set.",
    ),
    "width": ("base: paper\nnetwork: {wdith: 2}", "no option network.wdith of VQVAE. Did you mean"),
    "freeze": ("base: paper\nfreeze: [encodr]", "freeze must be one of encoder, codebook, decoder"),
    "start as a value": ("base: paper\nfrom: true", "from takes settings of its own, no"),
    "start": ("base: paper\nfrom: {parts: [encoder]}", "from.run must be set"),
}


@pytest.mark.parametrize(("content", "said"), YAML_FILES.values(), ids=YAML_FILES.keys())
def test_bad_yaml(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("new.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError) as raised:
        from_arguments(["new.yaml"])
    if "valid YAML" not in said:
        is_clear(str(raised.value))
    assert said in str(raised.value)
    if content is not None and "base: paper" in content and "must hold" not in said:
        assert str(raised.value).startswith("new.yaml: ")


def test_bad_settings_in_python():
    base = load_preset("digits-tiny")
    for change, said in (
        ({"steps": 0}, "steps must be 1 or more, got 0."),
        ({"stpes": 1}, "there is no setting 'stpes'. Did you mean 'steps'?"),
        ({"update": {"init_args": {"x": 1}}}, "there is no option update.x of Meta."),
        ({"quantizer": None}, "quantizer must be set"),
    ):
        with pytest.raises(ValueError) as raised:
            Settings.of(base, change)
        assert str(raised.value).startswith(said)


def test_an_option_over_a_file_is_told_as_typed(tmp_path):
    path = write(tmp_path, "mine.yaml", base="digits-tiny", steps=7)
    with pytest.raises(ValueError, match=r"^--steps must be 1 or more, got 0\."):
        from_arguments([path, "--steps", "0"])
    # What a file leaves open, options may say.
    bare = write(tmp_path, "bare.yaml", update={"class_path": "mqvae.Joint"})
    options = ["--quantizer", "NoQuantizer", "--quantizer.dim", "4"]
    assert settings_of(bare, *options).quantizer["init_args"]["dim"] == 4
    with pytest.raises(ValueError, match="quantizer must be set"):
        from_arguments([bare])


def test_the_ends_of_the_ranges_will_do():
    options = ["--data.batch_size", "1", "--data.side", "1", "--data.channels", "3"]
    options += ["--data.validation", "0", "--seed", str(2**32 - 1), "--steps", "1"]
    options += ["--optimizer.network_lr", "0", "--optimizer.warmup", "1"]
    options += ["--trainer.ema_decay", "0.999", "--optimizer.weight_decay", "0"]
    settings = settings_of("digits-tiny", *options)
    assert settings.data.channels == 3 and settings.data.validation == 0
    assert settings.seed == 2**32 - 1
    assert (settings.optimizer.warmup, settings.trainer.ema_decay) == (1, 0.999)
    assert type(settings.steps) is int


# -- help ------------------------------------------------------------------------------------------


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        from_arguments(list(arguments))
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_everyday_help_is_one_screen(capsys):
    with pytest.raises(SystemExit):
        from_arguments(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    for option in (*SHORT, "--method", "--steps", "--seed", "--out", "--resume", "--sweep"):
        assert any(line.startswith(f"  {option} ") for line in lines) or option == "--from"
    assert any("--help-all" in line for line in lines)


def test_help_all_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        from_arguments(["digits-tiny", "--help-all"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    entries = dict(re.findall(r"^  (-\S.*)\n((?:        .*\n)+)", text, re.MULTILINE))
    said = {
        option: words
        for head, words in entries.items()
        for option in re.findall("--[\\w.-]+", head)
    }
    kinds = {"data": ImageData, "optimizer": Optimizer, "trainer": Trainer}
    for name, kind in kinds.items():
        for field in dataclasses.fields(kind):
            assert "(default" in said[f"--{name}.{field.name}"]
    assert {"--out", "--overwrite", "--steps", "--from", "--freeze", "--name", "--config"} <= set(
        said
    )
    for choice in ("VQVAE", "GumbelQuantizer", "Reconstruction", "MetaBoth", "SGD"):
        assert choice in text
    # No names of types, of classes that only say what others must be, nor of what cannot be taken.
    for word in ("Optional", "Literal", "Rate ", "Union", "<class", "Architecture", "LBFGS"):
        assert word not in text


def test_help_of_a_component(capsys):
    out = shown(capsys, "digits-tiny", "--update.help", "Meta")
    assert "--update.xi X" in out and "(default: 1.0)" in out and ".lower" not in out
    out = shown(capsys, "digits-tiny", "--optimizer.network.help=SGD")
    assert "--optimizer.network.momentum" in out and "--optimizer.network.lr" not in out
    assert "It takes no options" in shown(capsys, "--task.help", "Reconstruction")
    with pytest.raises(ValueError, match="Did you mean 'Meta'"):
        from_arguments(["--update.help", "Mta"])


def test_everyday_options_are_settings():
    values = {"--data": "digits", "--root": "there", "--size": "12", "--batch-size": "7"}
    values |= {"--lr": "0.5", "--devices": "2", "--accelerator": "cpu", "--from": "a run"}
    assert values.keys() == SHORT.keys()
    plain = [part for option, value in values.items() for part in (option, value)]
    dotted = [part for option, value in values.items() for part in (f"--{SHORT[option]}", value)]
    assert settings_of("digits-tiny", *plain) == settings_of("digits-tiny", *dotted)
    for option, said in (("--size", "expects int"), ("--lr", "expects float")):
        with pytest.raises(ValueError, match=f"^{option} {said}, got 'x'"):
            from_arguments(["digits-tiny", option, "x"])


def test_a_text_that_looks_like_a_number_stays_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: digits-tiny\ndata: {root: 1e-3}\n")
    settings, _, _ = from_arguments([str(tmp_path / "mine.yaml"), "--data.name", "2e-3"])
    assert (settings.data.root, settings.data.name) == ("1e-3", "2e-3")
    assert Settings.of(settings.config()).data == settings.data
