"""Whose fault an error is, and what a file from elsewhere can make the program do."""

import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import mqvae
from mqvae.cli import main
from mqvae.config import Settings, from_arguments, load_preset
from mqvae.errors import MqvaeError, refused
from mqvae.files import read_json, read_yaml
from mqvae.runs import Run
from mqvae.training import warmup_cosine

SMALL = [
    *["--data.side", "8", "--data.batch_size", "100", "--network.width", "4"],
    *["--network.residual_blocks", "1", "--quantizer.num_codes", "8", "--quantizer.dim", "4"],
    *["--trainer.accelerator", "cpu", "--steps", "2", "--trainer.loggers", "[]"],
]

# -- modules from elsewhere ------------------------------------------------------------------------

EVIL = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
import mqvae
import torch

class Rule(mqvae.Joint):
    pass

class Net(mqvae.VQVAE):
    pass

class Codes(mqvae.VectorQuantizer):
    pass

class Aim(mqvae.Reconstruction):
    pass

class Stepper(torch.optim.SGD):
    pass

class Ahead(mqvae.Kept):
    pass
"""
CLASSES = {
    "network": "Net",
    "quantizer": "Codes",
    "task": "Aim",
    "update": "Rule",
    "optimizer.network": "Stepper",
    "optimizer.codebook": "Stepper",
    "update.look_ahead": "Ahead",
    "update.upper_loss": "Aim",
}


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module where Python finds it, that leaves a file when it is imported."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("evil", "pack"):
        sys.modules.pop(name, None)


def was_imported(folder):
    return any(folder.rglob("imported")) or {"evil", "pack"} & sys.modules.keys()


def with_class(slot, spec):
    """Settings of digits-tiny with a component of this class."""
    config = yaml.safe_load(yaml.safe_dump(load_preset("digits-tiny")))
    *groups, name = slot.split(".")
    level = config
    for group in groups:
        level = level[group]
        level = level["init_args"] if group == "update" else level
    level[name] = spec
    return config


@pytest.mark.parametrize(
    ("slot", "module"), [*zip(CLASSES, 4 * ["evil", "pack.evil", "pack"], strict=False)]
)
def test_settings_import_nothing(evil, slot, module):
    path = f"{module}.{CLASSES[slot]}"
    spec = {"class_path": path, "init_args": {"x": 1}}
    for said in (path, spec):
        with pytest.raises(MqvaeError) as raised:
            Settings.of(with_class(slot, said))
    (evil / "new.yaml").write_text(yaml.safe_dump(with_class(slot, spec)))
    (evil / "over.yaml").write_text("base: new.yaml\n")
    for typed in (
        ["over.yaml"],
        ["digits-tiny", "--config", "new.yaml"],
        ["digits-tiny", f"--{slot}", json.dumps(spec)],
        ["digits-tiny", f"--{slot}", path],
    ):
        with pytest.raises(MqvaeError) as raised:
            from_arguments(typed)
    assert f"--import {module}" in str(raised.value)
    if "." not in slot:
        with pytest.raises(MqvaeError):
            from_arguments([f"--{slot}.help", path])
        settings = Settings.of(load_preset("digits-tiny"))
        with pytest.raises(MqvaeError):
            replace(settings, **{slot: {"class_path": path, "init_args": {}}}).components()
    assert not was_imported(evil)


def test_nothing_of_mqvae_runs_the_program(evil):
    for path in (
        "mqvae.__main__.X",
        "mqvae.__main__.main",
        "mqvae.cli.main",
        "mqvae.cli.os.system",
    ):
        with pytest.raises(MqvaeError):
            Settings.of(with_class("update", path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and what `save_pretrained` makes of it."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", "digits-tiny", *SMALL, "--out", str(folder / "run")]) == 0
    mqvae.Tokenizer.from_run(folder / "run").save_pretrained(folder / "shared")
    return folder


@pytest.mark.parametrize("slot", ["network", "update", "optimizer.codebook"])
def test_a_run_or_a_tokenizer_from_elsewhere_imports_nothing(evil, trained, capsys, slot):
    for name in ("run", "shared"):
        shutil.copytree(trained / name, evil / name)
    config = yaml.safe_load((evil / "run" / "config.yaml").read_text())
    level = config["optimizer"] if "." in slot else config
    level[slot.rpartition(".")[2]] = {"class_path": f"evil.{CLASSES[slot]}", "init_args": {}}
    (evil / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    shared = json.loads((evil / "shared" / "config.json").read_text())
    (evil / "shared" / "config.json").write_text(json.dumps({**shared, "settings": config}))
    for command in (
        ["train", "--resume", "run"],
        ["train", "run/config.yaml", "--out", "again"],
        ["evaluate", "run"],
        ["encode", "run", "test", "--out", "codes.npz"],
        ["diagnose", "run"],
        ["prior", "run"],
        ["export", "run"],
    ):
        assert main(command) == 2, command
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert "--import evil" in err, command
    with pytest.raises(MqvaeError):
        mqvae.Tokenizer.from_pretrained(evil / "shared")
    assert not was_imported(evil)


def test_a_function_in_settings_is_not_imported_to_say_what_is_wrong(evil):
    for name, value in (("distance_function", "evil.Net"), ("margin", "evil.Net")):
        loss = {"class_path": "torch.nn.TripletMarginWithDistanceLoss", "init_args": {name: value}}
        with pytest.raises(ValueError):
            Settings.of(with_class("update.upper_loss", loss)).components()
        assert not was_imported(evil)


def test_a_module_that_is_named_is_imported(evil, capsys):
    options = ["--network", "evil.Net", "--update", "evil.Rule", *SMALL, "--out", "run"]
    assert main(["train", "digits-tiny", "--import", "evil", *options]) == 0
    assert Run("run").config["network"]["class_path"] == "evil.Net"
    (evil / "imported").unlink()
    del sys.modules["evil"]  # as in another process
    assert main(["evaluate", "run"]) == 2
    assert "add --import evil" in capsys.readouterr().err
    assert not was_imported(evil)
    assert main(["evaluate", "run", "--import=evil"]) == 0
    # In Python the module is imported by whoever calls.
    assert type(mqvae.Tokenizer.from_run("run").settings.components().network).__name__ == "Net"


def test_a_module_that_cannot_be_imported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for module, said in (
        ("nowhere", "there is no such module"),
        ("broken", "failed with ZeroDivisionError"),
        ("../broken", "takes a module's name"),
        ("", "takes a module's name"),
    ):
        assert main(["evaluate", "run", f"--import={module}"]) == 2
        assert said in capsys.readouterr().err
    assert str(tmp_path) not in sys.path


def test_what_another_program_sets_for_jsonargparse_stays():
    import jsonargparse

    class Thing:
        pass

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=type)
    from_arguments(["digits-tiny"])
    assert parser.parse_args(["--x", "fractions.Fraction"]).x.__name__ == "Fraction"


# -- files that may come from anybody --------------------------------------------------------------

HOSTILE = {
    "python object": "update: !!python/object/apply:os.system ['touch ran']",
    "python name": "update: !!python/name:os.system",
    "python module": "update: !!python/module:evil",
    "python new": "update: !!python/object/new:subprocess.Popen [['touch', 'ran']]",
    "laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    ),
    "a circle": "update: &a {class_path: *a}",
    "a circle of lists": "freeze: &a [*a]",
    "deep": "freeze: " + "[" * 3000 + "]" * 3000,
    "a date": "name: 2001-01-01",
    "no date": "name: 2001-99-99",
    "bytes": "name: !!binary aGVsbG8=",
    "a set": "name: !!set {a}",
    "an int of a word": "steps: !!int word",
    "an int of many digits": "steps: " + "9" * 5000,
    "a list as a key": "? [a]\n: b",
    "two documents": "a: 1\n---\nb: 2",
    "not utf-8": b"name: \xff\xfe",
    "nul": b"name: \x00",
    "utf-16": "name: a".encode("utf-16"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_yaml(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    content = content.encode() if isinstance(content, str) else content
    Path("new.yaml").write_bytes(content)
    Path("run").mkdir()
    Path("run/config.yaml").write_bytes(content)
    with pytest.raises(MqvaeError, match="valid YAML"):
        read_yaml(Path("new.yaml"))
    for command in (
        ["train", "new.yaml", "--out", "new"],
        ["train", "digits-tiny", "--config", "new.yaml", "--out", "new"],
        ["train", "--resume", "run"],
        ["evaluate", "run"],
    ):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err and err.count("\n") == 1 and len(err) < 1500
    assert sorted(os.listdir()) == ["new.yaml", "run"]


def test_a_file_that_is_no_file_of_settings(tmp_path):
    (tmp_path / "large.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(MqvaeError, match="is no file of settings"):
        read_yaml(tmp_path / "large.yaml")
    with pytest.raises(MqvaeError, match="is no file of settings"):
        from_arguments(["digits-tiny", "--config", "/dev/zero"])
    for content in ("{", "[" * 100_000, b"\xff".decode("latin-1"), ""):
        (tmp_path / "a.json").write_text(content, encoding="latin-1")
        with pytest.raises(MqvaeError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")


def test_a_settings_value_reads_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("secret.yaml").write_text("class_path: mqvae.NoQuantizer\ninit_args: {dim: 4}\n")
    for slot in ("quantizer", "update", "network", "task", "optimizer.codebook"):
        with pytest.raises(MqvaeError, match=f"{slot} has no choice"):
            from_arguments(["digits-tiny", f"--{slot}", "secret.yaml"])


# -- what the program says -------------------------------------------------------------------------


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def test_a_terminal_that_knows_few_letters(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = str(trained / "run")
    for command in (
        ["--help"],
        ["train", "--help"],
        ["train", "digits-tiny", *SMALL, "--name", "é×φ", "--out", "φ"],
        ["train", "--resume", "φ"],
        ["evaluate", run],
        ["encode", run, "test", "--out", "codes.npz"],
        ["decode", run, "codes.npz", "--out", "images"],
        ["doctor"],
    ):
        monkeypatch.setattr(sys, "stdout", ascii_only())
        monkeypatch.setattr(sys, "stderr", ascii_only())
        assert main(command) == 0, command
        if command[0] == "encode":
            sys.stdout.flush()
            assert b"2 ? 2 codes each" in sys.stdout.buffer.getvalue()
    monkeypatch.setattr(sys, "stderr", ascii_only())
    assert main(["train", "×"]) == 2
    sys.stderr.flush()
    assert b"there is no preset '?'" in sys.stderr.buffer.getvalue()


def raising(error):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MqvaeError("mend it"), 2, r"^mqvae: error: mend it\n$"),
        (FileNotFoundError("no such thing: make one"), 2, r"^mqvae: error: no such thing"),
        (PermissionError(13, "Permission denied", "a"), 2, r"^mqvae: error: a: Permission denied"),
        (OSError(28, "No space left on device", "a"), 2, r"^mqvae: error: a: No space .*Make room"),
        (ValueError("deep inside"), 1, r"^mqvae: unexpected ValueError at mqvae/\S+:\d+: deep"),
        (TypeError("x"), 1, "please report"),
        (RuntimeError("x"), 1, "please report"),
        (KeyError("x"), 1, "please report"),
        (AssertionError(), 1, "please report"),
        (SystemExit("words"), 1, ""),
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=repr,
)
def test_exit_codes(capsys, monkeypatch, error, code, said):
    monkeypatch.setattr("mqvae.cli.report.report", raising(error))
    assert main(["report", "x"]) == code
    err = capsys.readouterr().err
    assert re.search(said, err) and "Traceback" not in err


def test_the_place_of_a_fault_is_named(capsys, monkeypatch):
    monkeypatch.setattr("mqvae.cli.report.report", lambda arguments: warmup_cosine("a", 1))
    assert main(["report", "x"]) == 1
    assert re.search(r" at mqvae/training/schedule\.py:\d+: ", capsys.readouterr().err)


def test_an_error_in_a_module_of_ones_own_is_said_to_be_there(evil, capsys):
    (evil / "evil.py").write_text(
        "import mqvae\n\nclass Rule(mqvae.Joint):\n    def step(self, *a, **k): return 1 / 0\n"
    )
    options = [*SMALL, "--import", "evil", "--update", "evil.Rule", "--out", "run"]
    assert main(["train", "digits-tiny", *options]) == 1
    err = capsys.readouterr().err
    assert re.search(r"ZeroDivisionError at \S*evil\.py:4", err)
    assert "module of your own" in err and "please report" not in err


REFUSED = {
    "Invalid beta": ["--optimizer.network.betas", "[2, 3]"],
    "Invalid epsilon": ["--optimizer.codebook.eps", "-1"],
    "optimizer.codebook: Invalid momentum": [
        *["--optimizer.codebook", "SGD", "--optimizer.codebook.momentum", "-1"],
    ],
    "optimizer.network: Muon only": ["--optimizer.network", "Muon"],
    "num_codes": ["--quantizer.num_codes", "9" * 18],
    "levels": ["--quantizer", "FiniteScalarQuantizer", "--quantizer.levels", "[]"],
}


@pytest.mark.parametrize(("said", "options"), REFUSED.items())
def test_what_torch_refuses_is_the_users(tmp_path, monkeypatch, capsys, said, options):
    monkeypatch.chdir(tmp_path)
    others = [*SMALL[:8], *SMALL[12:]] if "--quantizer.levels" in options else SMALL
    assert main(["train", "digits-tiny", *others, "--out", "new", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mqvae: error: ") and err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_refused_tells_whose_fault_it_is():
    import torch

    with pytest.raises(MqvaeError, match=r"^lr: Invalid learning rate"), refused("lr"):
        torch.optim.SGD([torch.zeros(1)], lr=-1)
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = MqvaeError("as it is")
    with pytest.raises(MqvaeError, match=r"^as it is$"), refused("x"):
        raise wrapped
    # A line of mqvae that raises, or an error of another kind, is a fault of mqvae's.
    with pytest.raises(TypeError), refused("x"):
        warmup_cosine("a", 1)
    with pytest.raises(KeyError), refused("x"):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["sample", "RUN", "--out", "new", "--seed", "9" * 30],
            "--seed must lie in 0 … 4294967295",
        ),
        (["sample", "RUN", "--out", "new", "--seed", "-1"], "--seed must lie in 0 … 4294967295"),
        (["prior", "RUN", "--seed", str(2**32)], "seed must lie in 0 … 4294967295"),
        (["prior", "RUN", "--width", "9" * 19], "the prior's width, layers, kernel and heads: "),
        (["prior", "RUN", "--layers", "9" * 19], "layers must be 1,000 or less"),
        (["train", "digits-tiny", "--network.residual_blocks", "9" * 9], "must be 1,000 or less"),
        (
            ["train", "digits-tiny", "--network", "VQGAN", "--network.residual_blocks", "9" * 9],
            "must be 1,000 or less",
        ),
    ],
)
def test_sizes_without_sense(trained, tmp_path, monkeypatch, capsys, command, said):
    monkeypatch.chdir(tmp_path)
    assert main([str(trained / "run") if word == "RUN" else word for word in command]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_metrics_file(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    for content in (b"\xff\xfe", b"step,task\nx,y\n", b"task\n1\n"):
        (tmp_path / "run" / "metrics.csv").write_bytes(content)
        assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "3"]) == 2
        assert "metrics.csv is damaged" in capsys.readouterr().err
    (tmp_path / "run" / "metrics.csv").unlink()
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "3"]) == 0


@pytest.mark.parametrize("content", ["[]", '{"steps": "x"}'])
def test_a_summary_of_something_else_is_measured_anew(trained, tmp_path, content):
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(content)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
