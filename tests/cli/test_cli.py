"""mqvae.cli: what a person types, what comes back, and what bad input meets."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from pairs import typed
from PIL import Image

import mqvae
from mqvae.cli import main
from mqvae.cli.parser import text_of
from mqvae.runs import Run
from mqvae.tokenizer import Codes

SMALL = [
    *["--data.side", "8", "--data.batch_size", "100", "--network.width", "8"],
    *["--network.residual_blocks", "1", "--quantizer.num_codes", "16", "--quantizer.dim", "4"],
    *["--trainer.accelerator", "cpu", "--steps", "4", "--optimizer.codebook_lr", "1e-3"],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its codes, another run and a few images; never written to."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["train", "digits-tiny", *SMALL, "--out", str(folder / "run")]) == 0
    other = ["--quantizer.num_codes", "20", "--out", str(folder / "other")]
    assert main(["train", "digits-tiny", *SMALL, *other]) == 0
    assert main(["encode", str(folder / "run"), "test", "--out", str(folder / "codes.npz")]) == 0
    picture(folder / "images" / "a.png", 8)
    picture(folder / "images" / "b" / "c.png", 8)
    picture(folder / "nine.png", 9)
    picture(folder / "colour.png", 8, channels=3)
    (folder / "broken.png").write_bytes(b"hello")
    (folder / "empty").mkdir()
    (folder / "cut").mkdir()
    for split in ("train", "t10k"):
        (folder / "cut" / f"{split}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0]))
        (folder / "cut" / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0]))
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """A copy of it, as the working folder."""
    shutil.copytree(made, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there"


def picture(path, side, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side) if channels == 1 else (side, side, channels)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8)).save(path)


def everything(folder):
    """Every path under a folder with its contents and time of change."""
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else None
        for p in folder.rglob("*")
    }


def refused(folder, arguments, capsys, code=2):
    """What the program says when it leaves everything as it was."""
    before = everything(folder)
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    assert everything(folder) == before
    out, err = capsys.readouterr()
    assert out == ""
    return err


# -- bad input -------------------------------------------------------------------------------------

TRAIN = ["train", "digits-tiny", *SMALL, "--out", "new"]
UPDATE = [*TRAIN, "--update"]
META = [*UPDATE, "Meta"]
EXACT = [*META, "--update.hypergradient", "Exact"]

BAD_INPUT = {
    # Commands, presets and options, with the nearest name.
    "command": (["trian"], "there is no command 'trian'. Did you mean 'train'?"),
    "command far off": (["fly"], "Commands: train, presets"),
    "no preset": (["train"], "train needs a preset"),
    "preset": (["train", "digits-tyni"], "no preset 'digits-tyni'. Did you mean 'digits-tiny'?"),
    "option": (
        [*TRAIN, "--optimizer.netwrok_lr", "1"],
        "no option --optimizer.netwrok_lr. Did you mean '--optimizer.network_lr'?",
    ),
    "data set": ([*TRAIN, "--data.name", "digts"], "Did you mean 'digits'?"),
    "rule": ([*UPDATE, "Mta"], "--update has no choice 'Mta'. Did you mean 'Meta'?"),
    "resume with options": (["train", "--resume", "run", "--seed", "5"], "leave out --seed 5"),
    "resume with fewer steps": (
        ["train", "--resume", "run", "--steps", "3"],
        "expected 4 or more, got 3",
    ),
    "evaluate's option": (["evaluate", "run", "--splt", "test"], "Did you mean '--split'?"),
    "encode's option": (
        ["encode", "run", "test", "--out", "new.npz", "--overwrit"],
        "Did you mean '--overwrite'?",
    ),
    "encode without --out": (["encode", "run", "test"], "required: --out"),
    "checkpoint": (["evaluate", "run", "--checkpoint", "first"], "'first' (choose from"),
    # Values out of range, with the range, and of the wrong type.
    "xi": ([*META, "--update.xi", "-1"], "xi must be 0 or more, got -1.0"),
    "beta": ([*META, "--update.commitment_weight", "-1"], "commitment_weight must be 0 or more"),
    "batch_size large": ([*TRAIN, "--data.batch_size", "1501"], "expected 1 to 1350"),
    "width": ([*TRAIN, "--network.width", "7"], "width must be an even number of 2 or more, got 7"),
    "blocks": ([*TRAIN, "--network.residual_blocks", "-1"], "residual_blocks must be 0 or more"),
    "groups": ([*TRAIN, "--quantizer.groups", "3"], "groups must divide dim: got groups=3, dim=4"),
    "num_codes": ([*TRAIN, "--quantizer.num_codes", "0"], "num_codes must be 1 or more, got 0"),
    "side": ([*TRAIN, "--data.side", "10"], "got 10 × 10: 8 × 8 or 12 × 12 would do"),
    # Data.
    "data root": (
        ["train", "fashion-mnist-demo", "--out", "new", "--data.root", "empty"],
        "fashion-mnist is not in",
    ),
    "data file cut short": (
        ["train", "fashion-mnist-demo", "--out", "new", "--data.root", "cut"],
        "train-images-idx3-ubyte",
    ),
    "folder without images": ([*TRAIN, "--data.name", "empty"], "holds no images"),
    "folder with one image": ([*TRAIN, "--data.name", "images/b"], "too few images"),
    # Run folders.
    "run exists": (["train", "digits-tiny", "--out", "run"], "run exists already: choose another"),
    "not a run to overwrite": (
        [*TRAIN, "--out", "images", "--overwrite"],
        "images is not a run, so --overwrite leaves it alone",
    ),
    "out is a file": ([*TRAIN, "--out", "nine.png"], "nine.png is a file: --out takes a folder"),
    "a file to overwrite": ([*TRAIN, "--out", "nine.png", "--overwrite"], "nine.png is a file"),
    "out inside a file": ([*TRAIN, "--out", "nine.png/run"], "Not a directory"),
    "a run for a preset": (["train", "./run"], "`mqvae train --resume ./run` resumes it"),
    **{
        f"{name} of nothing": ([*arguments], "nowhere is not a run: there is no such folder")
        for name, arguments in {
            "resume": ["train", "--resume", "nowhere"],
            "evaluate": ["evaluate", "nowhere"],
            "encode": ["encode", "nowhere", "test", "--out", "new.npz"],
            "decode": ["decode", "nowhere", "codes.npz", "--out", "new"],
        }.items()
    },
    "resume no run": (["train", "--resume", "images"], "images is not a run: it has no config"),
    "evaluate no run": (["evaluate", "images"], "images is not a run: it has no config.yaml"),
    "no processes": (["evaluate", "run", "--devices", "0"], "devices must be 1 or more, got 0."),
    # Images.
    "no such image": (
        ["encode", "run", "nowhere.png", "--out", "new.npz"],
        "there is no 'nowhere.png'",
    ),
    "unreadable": (
        ["encode", "run", "broken.png", "--out", "new.npz"],
        "got: none that is known; replace",
    ),
    "channels of images": (
        ["encode", "run", "colour.png", "--out", "new.npz"],
        "colour.png has images of 3 channels, the run was trained on 1: --fit",
    ),
    "side of images": (
        ["encode", "run", "nine.png", "--out", "new.npz"],
        "got 9 × 9: 8 × 8 or 12 × 12 would do. --fit",
    ),
    "no images": (["encode", "run", "empty", "--out", "new.npz"], "empty holds no images"),
    "no image": (["encode", "run", "codes.npz", "--out", "new.npz"], "is not an image by its name"),
    # Codes.
    "codes exist": (["encode", "run", "test", "--out", "codes.npz"], "codes.npz exists already"),
    "codes into a folder": (["encode", "run", "test", "--out", "images"], "images is a folder"),
    "no codes": (["decode", "run", "none.npz", "--out", "new"], "there is no file none.npz"),
    "an image as codes": (["decode", "run", "nine.png", "--out", "new"], "does not hold codes"),
    "codes of another run": (
        ["decode", "other", "codes.npz", "--out", "new"],
        "the codes index 16 codewords, the run has 20",
    ),
    "images exist": (["decode", "run", "codes.npz", "--out", "images"], "images exists already"),
    "images into a file": (["decode", "run", "codes.npz", "--out", "nine.png"], "is a file"),
}


def is_clear(err):
    assert err.startswith("mqvae: error: ")
    assert "Traceback" not in err
    assert "fault of mqvae" not in err
    # One message: no class names of other libraries, no leftovers of theirs.
    assert not re.search(r"jsonargparse|Namespace|NoneType|Errno|class '|Parser key", err)


@pytest.mark.parametrize(("arguments", "said"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(there, capsys, arguments, said):
    err = refused(there, arguments, capsys)
    is_clear(err)
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("written", ["r.html", "r.html.partial", "r.html.9.partial"])
def test_what_cannot_be_written_is_called_by_its_own_name(written):
    error = PermissionError(errno.EACCES, "Permission denied", f"a.b/{written}")
    assert text_of(error).startswith("a.b/r.html: Permission denied. Take another path")


@pytest.mark.parametrize(
    "arguments",
    [
        [*TRAIN, "--steps", "0"],
        [*TRAIN, "--sede", "1"],
        ["encode", "run", "nine.png", "--out", "new.npz"],
        ["evaluate", "nowhere"],
    ],
)
def test_debug_shows_the_traceback(there, capsys, arguments):
    plain = refused(there, arguments, capsys)
    shown = refused(there, [*arguments, "--debug"], capsys)
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith(plain)


YAML_FILES = {
    "missing": (None, "there is no file new.yaml"),
    "nothing": ("base: paper\nsteps:", "steps expects a value, got none"),
    "base": ("base: digits-tyni", "new.yaml: there is no preset 'digits-tyni'. Did you mean"),
    "class": ("base: paper\nupdate: {class_path: mqvae.Mta}", "no choice 'Mta'. Did you mean 'Me"),
}


@pytest.mark.parametrize(("content", "said"), YAML_FILES.values(), ids=YAML_FILES.keys())
def test_bad_yaml(tmp_path, capsys, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "new.yaml").write_bytes(content.encode("latin-1"))
    err = refused(tmp_path, ["train", "new.yaml", "--out", "new"], capsys)
    is_clear(err)
    assert said in err


def edited(change):
    def edit(folder):
        path = folder / "run" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        change(config)
        path.write_text(yaml.safe_dump(config))

    return edit


def written(content):
    return lambda folder: (folder / "run" / "config.yaml").write_bytes(content)


def flipped(folder):
    for path in folder.glob("run/checkpoints/last*/model.safetensors"):  # the one before it as well
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content)


DAMAGED_RUNS = {
    "config broken": (written(b"a: [1"), "config.yaml is not valid YAML"),
    "config binary": (written(b"\x80\xff"), "config.yaml is not valid YAML"),
    "config empty": (written(b""), "config.yaml holds no settings"),
    "no quantizer": (edited(lambda c: c.pop("quantizer")), "config.yaml: quantizer must be set"),
    "no width": (
        edited(lambda c: c["network"]["init_args"].update(wdith=4)),
        "there is no option network.wdith of VQVAE. Did you mean 'width'?",
    ),
    "not a component": (
        edited(lambda c: c["network"].update(wdith=4)),
        "config.yaml: network has a class_path and init_args, but also wdith",
    ),
    "steps": (edited(lambda c: c.update(steps="x")), "config.yaml: steps expects int, got 'x'"),
    "class": (
        edited(lambda c: c["quantizer"].update(class_path="os.system")),
        "config.yaml: quantizer has no choice 'os.system'",
    ),
    "class of another kind": (
        edited(lambda c: c["quantizer"].update(class_path="mqvae.Kept", init_args={})),
        "config.yaml: quantizer has no choice 'Kept'",
    ),
    "argument": (
        edited(lambda c: c["quantizer"]["init_args"].update(num_code=4)),
        "there is no option quantizer.num_code of VectorQuantizer. Did you mean 'num_codes'?",
    ),
    "another width": (
        edited(lambda c: c["network"]["init_args"].update(width=10)),
        "the checkpoint of run does not fit its config.yaml",
    ),
    "weights": (flipped, "the checkpoint run/checkpoints/last is damaged"),
    "no checkpoint": (
        lambda folder: [shutil.rmtree(p) for p in folder.glob("run/checkpoints/last*")],
        "run has no checkpoint 'last'",
    ),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize(("damage", "said"), DAMAGED_RUNS.values(), ids=DAMAGED_RUNS.keys())
@pytest.mark.parametrize("command", ["resume", "evaluate", "decode"])
def test_damaged_runs(there, capsys, damage, said, command):
    damage(there)
    arguments = {
        "resume": ["train", "--resume", "run"],
        "evaluate": ["evaluate", "run"],
        "decode": ["decode", "run", "codes.npz", "--out", "new"],
    }[command]
    err = refused(there, arguments, capsys)
    is_clear(err)
    assert said in err


def test_a_fault_of_the_program_is_owned_up_to(capsys, monkeypatch):
    def failing(arguments):
        raise ZeroDivisionError("0 / 0")

    monkeypatch.setattr("mqvae.cli.report.report", failing)
    assert main(["report", "x"]) == 1
    err = capsys.readouterr().err
    assert re.search(r"unexpected ZeroDivisionError at mqvae/cli/__init__.py:\d+: 0 / 0", err)
    assert "please report" in err and "--debug" in err
    assert "Traceback" not in err
    assert main(["report", "x", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# -- train -----------------------------------------------------------------------------------------


def test_train_says_where_the_run_is_and_what_is_next(tmp_path, capsys):
    out = tmp_path / "a b" / "run"
    assert main(["train", "digits-tiny", *SMALL, "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert f"mqvae report '{out}' --out" in printed
    for name in ("mse", "psnr", "perplexity", "usage", "gradient_gap"):
        assert re.search(rf"^{name} +[\d.e-]+$", printed, re.MULTILINE)
    assert "MQ-VAE: digits, 1,350 images, 4 steps" in err
    assert json.loads((out / "summary.json").read_text())["steps"] == 4


def test_train_without_out_names_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-tiny", *SMALL, "--update", "Joint", "--seed", "3"]) == 0
    assert (tmp_path / "runs" / "digits-joint-seed3" / "summary.json").is_file()


def test_train_from_a_file_and_nested_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: digits-tiny\nname: mine\nnetwork:\n  width: 6\n")
    options = [
        *["--update", "Meta", "--update.hypergradient", "Exact"],
        *["--update.hypergradient.curvature", "ForwardMode", "--update.look_ahead", "Kept"],
    ]
    at = SMALL.index("--network.width")
    sizes = [*SMALL[:at], *SMALL[at + 2 :], "--steps", "1"]
    assert main(["train", "mine.yaml", *sizes, *options, "--out", "run"]) == 0
    config = Run("run").config
    assert config["name"] == "mine"
    assert config["network"]["init_args"]["width"] == 6
    arguments = config["update"]["init_args"]
    assert arguments["hypergradient"]["class_path"] == "mqvae.Exact"
    curvature = arguments["hypergradient"]["init_args"]["curvature"]
    assert curvature["class_path"] == "mqvae.ForwardMode"
    assert arguments["look_ahead"]["class_path"] == "mqvae.Kept"


def test_overwrite_replaces_a_run(there, capsys):
    assert main(["train", "digits-tiny", *SMALL, "--out", "run", "--seed", "5", "--overwrite"]) == 0
    assert Run("run").config["seed"] == 5


def test_a_finished_run_is_complete(there, capsys):
    before = everything(there)
    assert main(["train", "--resume", "run"]) == 0
    assert "run is complete: all 4 steps are done" in capsys.readouterr().out
    after = everything(there)
    changed = {p.name for p in after if after[p] != before.get(p)}
    assert changed <= {"metrics.csv", "run"}
    assert all(after[p][0] == before[p][0] for p in before if p.is_file())


def test_a_run_that_was_trained_and_not_measured(there, capsys):
    summary = json.loads((there / "run" / "summary.json").read_text())
    (there / "run" / "summary.json").unlink()
    assert main(["train", "--resume=run"]) == 0
    again = json.loads((there / "run" / "summary.json").read_text())
    assert again.keys() == summary.keys()
    assert again["mse"] == summary["mse"]
    assert again["wall_seconds"] == summary["wall_seconds"]
    assert again["seconds_per_step"] == pytest.approx(summary["wall_seconds"] / 4)


def test_a_loss_that_is_not_finite(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "digits-tiny", *SMALL, "--out", str(out)]
    assert main([*arguments, "--optimizer.network_lr", "1e30"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert re.match(r"mqvae: .+ is (nan|inf|-inf|not finite) at step 1\.", last)
    assert str(out / "checkpoints" / "last") in last
    assert "lower optimizer.network_lr" in last
    assert Run(out).load("last").state["step"] == 0
    assert not (out / "summary.json").exists()
    failure = json.loads((out / "failure.json").read_text())
    assert failure["step"] == 1 and last.endswith(failure["reason"])
    assert re.fullmatch(r".+ is (nan|inf|-inf|not finite) at step 1\.", failure["cause"])
    assert main(["train", "--resume", str(out)]) == 1  # nothing has changed
    assert main([*arguments, "--overwrite"]) == 0
    assert not (out / "failure.json").exists()


def test_a_signal_stops_it(pair, tmp_path):
    """That it resumes to the bit then is in test_training.py."""
    run, said = tmp_path / "a run", tmp_path / "said"
    options = [*SMALL, "--steps", "500", "--update", "Joint"]
    process = pair.started(typed, said, "train", "digits-tiny", *options, "--out", run)
    while process.is_alive() and not (said.exists() and "1/500" in said.read_text()):
        time.sleep(0.01)
    process.terminate()
    process.join(timeout=60)
    err = said.read_text()
    assert process.exitcode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    stopped = re.search(r"stopped after step (\d+) of 500; resume with\n  (.*)\n", err)
    assert Run(run).load("last").state["step"] == int(stopped[1]) < 500
    assert stopped[2] == f"mqvae train --resume '{run}'"
    assert not (run / "summary.json").exists()


def test_a_second_interruption_acts_at_once(tmp_path, capsys, monkeypatch):
    from mqvae.core.rules import Update

    def twice(self, x, y, **options):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Update, "step", twice)
    out = tmp_path / "run"
    arguments = ["train", "digits-tiny", *SMALL, "--update", "Joint", "--out", str(out)]
    assert main(arguments) == 130
    err = capsys.readouterr().err
    said = "stopped at once; resume from the last checkpoint with\n  mqvae train --resume"
    assert f"{said} {out}" in err
    assert Run(out).load("last").state["step"] == 0


def test_interrupted_before_there_is_a_run(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(mqvae.ImageData, "load", interrupted)
    assert main(["train", "digits-tiny", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "mqvae: stopped\n"
    assert not (tmp_path / "run").exists()


# -- evaluate, encode, decode ----------------------------------------------------------------------


def test_evaluate(there, capsys):
    summary = json.loads((there / "run" / "summary.json").read_text())
    assert main(["evaluate", "run"]) == 0
    out = capsys.readouterr().out
    assert "written: run/evaluations/test-last.json" in out
    assert out.startswith("297 test images of digits, checkpoint last (step 4)\n")
    last = there / "run" / "evaluations" / "test-last.json"
    found = json.loads(last.read_text())
    for name in ("mse", "psnr", "perplexity", "usage", "gradient_gap"):
        assert found[name] == pytest.approx(summary[name], rel=1e-6)
    assert found["protocol"] == summary["protocol"]
    assert (found["checkpoint"], found["step"]) == ("last", 4)
    assert set(found) >= {"device", "versions"}
    before = last.read_bytes()
    assert main(["evaluate", "run", "--split", "train", "--checkpoint", "best"]) == 0
    found = json.loads((there / "run" / "evaluations" / "train-best.json").read_text())
    # Without the 150 that are held out for validation.
    assert (found["protocol"]["split"], found["protocol"]["images"]) == ("train", 1350)
    assert found["checkpoint"] == "best"
    assert main(["evaluate", "run", "--split", "validation"]) == 0
    found = json.loads((there / "run" / "evaluations" / "validation-last.json").read_text())
    assert (found["protocol"]["split"], found["protocol"]["images"]) == ("validation", 150)
    assert found["mse"] == pytest.approx(summary["validation"], rel=1e-5)
    assert last.read_bytes() == before


def test_encode_and_decode(there, capsys):
    assert main(["encode", "run", "images", "--out", "new/deep/codes.npz"]) == 0
    out = capsys.readouterr().out
    assert "2 images, 2 × 2 codes each, of 16" in out
    back = re.search(r"mqvae (decode .*) --out DIR", out)[1].split()
    codes = Codes.load("new/deep/codes.npz")
    assert codes.names == ("a.png", "b/c.png")
    assert main([*back, "--out", "new/images"]) == 0
    names = {p.relative_to("new/images").as_posix() for p in Path("new/images").rglob("*.png")}
    assert names == {"a.png", "b/c.png"}
    # Both replace what is there only when told.
    assert main(["encode", "run", "test", "--out", "new/deep/codes.npz", "--overwrite"]) == 0
    assert len(Codes.load("new/deep/codes.npz").codes) == 297
    assert main([*back, "--out", "new/images"]) == 2
    assert main([*back, "--out", "new/images", "--overwrite"]) == 0
    assert len(list(Path("new/images").glob("*.png"))) == 298


def test_encode_fits_images_when_told(there, capsys):
    for name in ("nine.png", "colour.png"):
        assert main(["encode", "run", name, "--fit", "--out", f"{name}.npz"]) == 0
        assert Codes.load(f"{name}.npz").codes.shape == (1, 2, 2)


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["--version"]])
def test_help_imports_nothing_slow(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mqvae", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(main.__code__.co_filename).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(("usage: mqvae", "mqvae "))
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mqvae.cli" in names
    assert not names & {"torch", "numpy", "jsonargparse", "lightning", "yaml"}


def test_no_command_shows_the_usage(capsys):
    assert main([]) == 2
    assert "usage: mqvae COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "encode", "decode", "report", "doctor", "import", "weights"]
)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: mqvae {command}" in capsys.readouterr().out


def test_train_help_lists_options(capsys):
    assert main(["train", "--help-all"]) == 0
    out = capsys.readouterr().out
    for option in ("--out", "--steps", "--optimizer.network_lr", "--update", "--data.name"):
        assert option in out
    assert main(["train", "digits-tiny", "--update.help", "Meta"]) == 0
    assert "--update.xi" in capsys.readouterr().out


def test_presets_and_methods_are_listed(capsys):
    assert main(["presets"]) == 0
    assert "\ndigits-tiny              8 × 8 digits" in capsys.readouterr().out
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("to begin with:\n  recommended ")
    assert out.index("variants for comparison:") > out.index("  mq-vae-exact ")
