"""One rule lays settings over settings, whichever way they are given."""

import json
from functools import cache

import pytest
import yaml

from mqvae.config import Settings, from_arguments, load_preset
from mqvae.config.merging import put
from mqvae.errors import MqvaeError

META = {
    "class_path": "mqvae.Meta",
    "init_args": {
        "xi": 2.0,
        "commitment_weight": 0.7,
        "look_ahead": {"class_path": "mqvae.Undone"},
    },
}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "weight_decay": 0.5}}
UNUSED = {"class_path": "mqvae.ReplaceUnused", "init_args": {"after": 7}}
BASE = {
    "quantizer": {
        "class_path": "mqvae.VectorQuantizer",
        "init_args": {"num_codes": 8, "dim": 4, "replacement": UNUSED},
    },
    "update": META,
    "optimizer": {"codebook": SGD, "weight_decay": 0.25},
}

# What is said, as YAML and as options, and what is found at the place named.
CASES = {
    "an argument": (
        {"update": {"init_args": {"xi": 0.5}}},
        ["--update.xi", "0.5"],
        "update",
        {"class_path": "mqvae.Meta", "xi": 0.5, "commitment_weight": 0.7},
    ),
    "arguments alone": (
        {"update": {"xi": 0.5}},
        ["--update", "{xi: 0.5}"],
        "update",
        {"class_path": "mqvae.Meta", "xi": 0.5, "commitment_weight": 0.7},
    ),
    "the same class": (
        {"update": {"class_path": "mqvae.Meta", "init_args": {"xi": 0.5}}},
        ["--update", "mqvae.Meta", "--update.xi", "0.5"],
        "update",
        {"class_path": "mqvae.Meta", "xi": 0.5, "commitment_weight": 0.7},
    ),
    "the same class by its name": (
        {"update": "Meta"},
        ["--update", "Meta"],
        "update",
        {"class_path": "mqvae.Meta", "xi": 2.0, "commitment_weight": 0.7},
    ),
    "the same class by its module": (
        {"update": {"class_path": "mqvae.core.rules.Meta"}},
        ["--update=mqvae.core.rules.Meta"],
        "update",
        {"class_path": "mqvae.Meta", "xi": 2.0, "commitment_weight": 0.7},
    ),
    "another class": (
        {"update": {"class_path": "mqvae.Joint"}},
        ["--update", "Joint"],
        "update",
        {"class_path": "mqvae.Joint", "commitment_weight": 0.1},
    ),
    "another class and an argument": (
        {"update": {"class_path": "Joint", "init_args": {"codebook_weight": 0.5}}},
        ["--update.codebook_weight", "0.5", "--update", "Joint"],
        "update",
        {"class_path": "mqvae.Joint", "commitment_weight": 0.1, "codebook_weight": 0.5},
    ),
    "another optimizer": (
        {"optimizer": {"codebook": {"class_path": "torch.optim.Adam"}}},
        ["--optimizer.codebook", "Adam"],
        "optimizer.codebook",
        {"class_path": "torch.optim.Adam", "weight_decay": None, "eps": 1e-8},
    ),
    "an optimizer's argument": (
        {"optimizer": {"codebook": {"nesterov": True}}},
        ["--optimizer.codebook.nesterov", "true"],
        "optimizer.codebook",
        {"class_path": "torch.optim.SGD", "nesterov": True, "momentum": 0.9, "weight_decay": 0.5},
    ),
    "an argument of the usual optimizer": (
        {"optimizer": {"network": {"eps": 0.5}}},
        ["--optimizer.network.eps", "0.5"],
        "optimizer.network",
        {"class_path": "torch.optim.AdamW", "eps": 0.5},
    ),
    "the usual network": (
        {"network": {"width": 6}},
        ["--network.width", "6"],
        "network",
        {"class_path": "mqvae.VQVAE", "width": 6},
    ),
    "another component inside": (
        {"update": {"init_args": {"look_ahead": {"class_path": "mqvae.Kept"}}}},
        ["--update.look_ahead", "Kept"],
        "update.init_args.look_ahead",
        {"class_path": "mqvae.Kept", "preconditioned": False, "optimizer_step": None},
    ),
    "another component inside, by its name": (
        {"update": {"look_ahead": "Kept"}},
        ["--update.init_args.look_ahead=Kept"],
        "update.init_args.look_ahead",
        {"class_path": "mqvae.Kept", "preconditioned": False, "optimizer_step": None},
    ),
    "an argument of a component inside": (
        {"update": {"look_ahead": {"optimizer_step": False}}},
        ["--update.look_ahead.optimizer_step", "false"],
        "update.init_args.look_ahead",
        {"class_path": "mqvae.Undone", "optimizer_step": False},
    ),
    "an argument of a replacement": (
        {"quantizer": {"replacement": {"after": 9}}},
        ["--quantizer.replacement.after", "9"],
        "quantizer.init_args.replacement",
        {"class_path": "mqvae.ReplaceUnused", "after": 9},
    ),
    "another quantizer": (
        {"quantizer": {"class_path": "mqvae.NoQuantizer", "init_args": {"dim": 4}}},
        ["--quantizer", "NoQuantizer", "--quantizer.dim", "4"],
        "quantizer",
        {"class_path": "mqvae.NoQuantizer", "dim": 4, "num_codes": None},
    ),
    "no component": (
        {"quantizer": {"replacement": None}},
        ["--quantizer.replacement", "null"],
        "quantizer.init_args",
        {"replacement": None, "num_codes": 8},
    ),
}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"update": {"commitment_weight": None}}, "update.commitment_weight expects a value"),
        ({"quantizer": {"num_codes": None}}, "quantizer.num_codes expects a value, got none"),
        ({"optimizer": {"codebook": {"momentum": None}}}, "optimizer.codebook.momentum expects"),
        ({"update": {"look_ahead": {"optimizer_step": None}}}, "optimizer_step expects a value"),
        ({"update": {"a.b": 1}}, "there is no setting update.'a.b'"),
        ({"data": {"side.x": 1}}, "there is no setting data.'side.x'"),
        ({5: 1}, "there is no setting 5"),
        ({"trainer": 5, "trainer.parts": 8}, "trainer must hold settings as"),
    ],
)
def test_what_is_no_setting(said, message):
    with pytest.raises(MqvaeError) as raised:
        Settings.of(BASE, said)
    assert message in str(raised.value)


def test_dotted_names_are_those_of_options():
    dotted = {"update.xi": 0.5, "data.side": 12, "data": {"name": "digits"}}
    plain = {"update": {"xi": 0.5}, "data": {"side": 12, "name": "digits"}}
    assert Settings.of(BASE, dotted) == Settings.of(BASE, plain)


def found_at(settings, place):
    level = settings.config()
    for part in place.split("."):
        level = level[part]
    return {"class_path": level.get("class_path"), **level.get("init_args", level)}


@cache
def base_in_full():
    return Settings.of(BASE).config()


@pytest.mark.parametrize("case", CASES)
def test_every_way_of_saying_it_means_the_same(tmp_path, case):
    said, options, place, expected = CASES[case]
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(yaml.safe_dump(BASE))
    over.write_text(yaml.safe_dump(said))
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump({"base": "base.yaml", **said}))
    ways = {
        "base": lambda: from_arguments([str(file)])[0],
        "config": lambda: from_arguments([str(base), "--config", str(over)])[0],
        "preset": lambda: Settings.of(load_preset(str(base), said)),
        "twice": lambda: Settings.of(base_in_full(), said, said),
    }
    # Of each case, as options and in Python; in files and over a whole config by turns.
    by_turns = list(ways)[list(CASES).index(case) % len(ways)]
    python = Settings.of(BASE, said)
    found = {"python": python, "options": from_arguments([str(base), *options])[0]}
    found[by_turns] = ways[by_turns]()
    for way, settings in found.items():
        level = found_at(settings, place)
        for name, value in expected.items():
            assert level.get(name) == value, (way, name)
        if way != "twice":  # whose base has every default written out
            assert settings == python, way


def test_a_level_of_another_class_takes_the_weight_decay_of_both():
    for kind, decay in (("Adam", 0.25), ("SGD", 0.5)):
        made = Settings.of(BASE, {"optimizer": {"codebook": kind}}).components()
        assert made.codebook_optimizer.keywords["weight_decay"] == decay


def test_files_then_options_however_they_are_typed(tmp_path):
    for name, steps in (("one", 11), ("two", 12)):
        (tmp_path / f"{name}.yaml").write_text(f"steps: {steps}\nseed: {steps}\n")
    one, two = (str(tmp_path / f"{name}.yaml") for name in ("one", "two"))
    for typed in (["--steps", "9", "--config", one], ["--config", one, "--steps", "9"]):
        settings = from_arguments(["digits-tiny", *typed])[0]
        assert (settings.steps, settings.seed) == (9, 11)
    settings = from_arguments(["digits-tiny", "--config", one, "--config", two])[0]
    assert settings.steps == 12
    (tmp_path / "based.yaml").write_text("base: paper\n")
    with pytest.raises(MqvaeError, match="has a base, so it is a preset of its own"):
        from_arguments(["digits-tiny", "--config", str(tmp_path / "based.yaml")])


def test_lr_is_the_networks():
    assert from_arguments(["digits-tiny", "--lr", "1e-5"])[0].optimizer.network_lr == 1e-5
    assert from_arguments(["digits-tiny", "--lr=1e-5"])[0].optimizer.codebook_lr == 6e-2


@pytest.mark.parametrize("name", ["SparseAdam", "LBFGS", "torch.optim.LBFGS"])
def test_optimizers_that_fit_no_level(name, capsys):
    for level in ("network", "codebook"):
        with pytest.raises(MqvaeError, match=rf"^--optimizer.{level} cannot be .*AdamW") as raised:
            from_arguments(["digits-tiny", f"--optimizer.{level}", name])
        listed = str(raised.value).partition("Choices: ")[2]
        assert "SGD" in listed and "SparseAdam" not in listed and "LBFGS" not in listed
        with pytest.raises(MqvaeError, match="cannot be"):
            Settings.of(load_preset("digits-tiny"), {"optimizer": {level: {"class_path": name}}})
    with pytest.raises(SystemExit):
        from_arguments(["--help-all"])
    out = capsys.readouterr().out
    assert "Adagrad" in out and "LBFGS" not in out and "SparseAdam" not in out


def test_options_in_any_order_are_one_layer():
    pairs = [
        ("update", "Meta"),
        ("update.hypergradient", "Exact"),
        ("update.hypergradient.curvature", "ForwardMode"),
        ("update.init_args.xi", "0.5"),
        ("optimizer.codebook.momentum", "0.9"),
        ("optimizer.codebook.class_path", "SGD"),
        ("data.side", "8"),
    ]
    expected = None
    for order in (pairs, pairs[::-1], pairs[3:] + pairs[:3]):
        options = {}
        for name, value in order:
            put(options, name, value)
        found = json.dumps(options, sort_keys=True)
        expected = expected or found
        assert found == expected
    inner = options["update"]["init_args"]["hypergradient"]
    assert inner == {"class_path": "Exact", "init_args": {"curvature": "ForwardMode"}}
    assert options["optimizer"]["codebook"]["class_path"] == "SGD"


@pytest.mark.parametrize("name", ["ReplaceUnused", "LeastRecentlyUsed"])
@pytest.mark.parametrize("path", ["{}", "mqvae.{}", "mqvae.core.replacement.{}"])
def test_a_class_is_read_by_each_of_its_names(name, path):
    said = path.format(name)
    unused = {"class_path": "mqvae.ReplaceUnused", "init_args": {"after": 50}}
    for option in ("--quantizer.replacement", "--quantizer.replacement.class_path"):
        settings = from_arguments(["digits-tiny", option, said])[0]
        assert settings.quantizer["init_args"]["replacement"] == unused
    stage = {"num_codes": 4, "dim": 4, "replacement": said}
    stages = [{"class_path": "VectorQuantizer", "init_args": stage}] * 2
    quantizer = {"class_path": "mqvae.ResidualQuantizer", "init_args": {"stages": stages}}
    read = Settings.of(BASE, {"quantizer": quantizer}).quantizer["init_args"]["stages"]
    paths = [stage["init_args"]["replacement"]["class_path"] for stage in read]
    assert paths == ["mqvae.ReplaceUnused"] * 2


def test_a_choice_is_listed_once():
    for option, value in (("quantizer.replacement", "Unused"), ("update.upper_loss", "L1")):
        with pytest.raises(MqvaeError, match="no choice") as raised:
            from_arguments(["digits-tiny", f"--{option}", value])
        names = str(raised.value).rpartition("Choices: ")[2].rstrip(".").split(", ")
        assert len(set(names)) == len(names)
    with pytest.raises(MqvaeError, match="Options: none"):
        from_arguments(["digits-tiny", "--task.loss", "L1"])
