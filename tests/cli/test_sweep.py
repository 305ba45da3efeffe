"""`mqvae train --sweep`."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from mqvae.cli import main
from mqvae.cli.sweep import taken_apart

TINY = [
    *["train", "digits-tiny", "--steps", "3", "--network.width", "8", "--quantizer.num_codes", "8"],
    *["--network.residual_blocks", "1", "--data.batch_size", "50", "--trainer.accelerator", "cpu"],
    *["--trainer.loggers", "[]", "--data.side", "8"],
]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_what_is_typed():
    found = taken_apart(
        [
            "my.yaml",
            "--sweep",
            "seed=0,1",
            "optimizer.network.betas=[0.9,0.95],[0.8,0.9]",
            "--out=a",
        ]
    )
    assert (found.out, found.overwrite, found.fixed) == (Path("a"), False, ["my.yaml"])
    assert found.swept == {
        "seed": ["0", "1"],
        "optimizer.network.betas": ["[0.9,0.95]", "[0.8,0.9]"],
    }
    runs = found.runs()
    assert len(runs) == 4
    assert runs[Path("a/seed=0,optimizer.network.betas=-0.9,0.95-")] == [
        *["--seed", "0", "--optimizer.network.betas", "[0.9,0.95]"],
    ]
    assert taken_apart(["some/my.yaml", "--sweep", "seed=0"]).out == Path("runs/sweep-my")
    everyday = taken_apart(["digits-tiny", "--sweep", "method=ema,vq-vae", "batch-size=8"]).runs()
    assert everyday[Path("runs/sweep-digits-tiny/method=vq-vae,batch-size=8")] == [
        *["--method", "vq-vae", "--batch-size", "8"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep"], "--sweep takes settings and their values"),
        (["--sweep", "seed=0,"], "--sweep takes settings and their values"),
        (["--sweep", "seed=0,one"], "seed"),
        (["--sweep", "sed=0"], "--sed"),
        (["--sweep", "seed=0", "--trainer.devices", "2"], "leave trainer.devices out"),
        # What only the parts know, of a combination that is not the first.
        (
            ["--sweep", "quantizer.dim=16,15", "quantizer.groups=4"],
            "quantizer.dim=15,quantizer.groups=4: groups must divide dim",
        ),
        (["--sweep", "network.width=8,7"], "network.width=7: width must be an even number"),
        (["--sweep", "data.batch_size=50,5000"], "data.batch_size=5000: "),
        (["--sweep", "optimizer.codebook=Adam,LBFGS"], "optimizer.codebook=LBFGS: "),
        (["--sweep", "optimizer.network.betas=[0.9,0.95],[2,3]"], "Invalid beta"),
        (
            ["--sweep", "update.upper_batch=same,held-out", "data.validation=0"],
            "no validation images",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_first(arguments, said, tmp_path, capsys):
    assert main([*TINY, *arguments, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and "run 1 of" not in err
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_plain_runs_and_one_report(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    swept = ["--sweep", "optimizer.codebook_lr=1e-3,1e-2", "seed=0", "--out", str(out)]
    assert main([*TINY, *swept]) == 0
    said = capsys.readouterr().out
    names = ["optimizer.codebook_lr=1e-3,seed=0", "optimizer.codebook_lr=1e-2,seed=0"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(names)
    assert all(re.search(rf"^{name} +mse [\d.]+", said, re.MULTILINE) for name in names)
    page = (out / "report.html").read_text()
    assert all(name in page for name in names)

    # Each is what the plain command makes.
    plain = [
        *TINY,
        "--optimizer.codebook_lr",
        "1e-2",
        "--seed",
        "0",
        "--out",
        str(tmp_path / "one"),
    ]
    assert main(plain) == 0
    assert summary(tmp_path / "one")["mse"] == summary(out / names[1])["mse"]
    assert summary(out / names[0])["mse"] != summary(out / names[1])["mse"]

    # What is finished stays, what is missing comes, and other settings go elsewhere.
    written = (out / names[0] / "summary.json").stat().st_mtime_ns
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*TINY, *swept, "--sweep", "seed=0,1"]) == 0
    assert (out / names[0] / "summary.json").stat().st_mtime_ns == written
    assert summary(out / "optimizer.codebook_lr=1e-2,seed=1")["seed"] == 1
    assert "pip install 'mqvae[report]'" in capsys.readouterr().err
    assert main([*TINY, *swept, "--steps", "4"]) == 2
    assert "with other settings: choose another --out" in capsys.readouterr().err


@pytest.mark.usefixtures("uncharted")
def test_a_run_that_fails_leaves_the_others(tmp_path, capsys):
    out = tmp_path / "out"
    swept = ["--sweep", "optimizer.network_lr=1e30,1e-3", "--optimizer.warmup", "0"]
    assert main([*TINY, *swept, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert re.search(r" is (nan|inf) at step|is not finite at step", said.err)
    assert "optimizer.network_lr=1e-3" in said.out
    assert not (out / "optimizer.network_lr=1e30" / "summary.json").exists()


@pytest.mark.usefixtures("uncharted")
def test_a_sweep_that_is_stopped_goes_on(tmp_path, capsys, monkeypatch):
    from mqvae.training.loop import Training

    out, fit = tmp_path / "out", Training.fit

    def stop(training):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "fit", lambda self: fit(self, after_step=stop))
    command = [*TINY, "--sweep", "seed=0,1", "--out", str(out)]
    assert main(command) == 130
    assert "the same command resumes the sweep" in capsys.readouterr().err
    assert not (out / "seed=1").exists()
    # As a kill between two renamings leaves it: the run is resumed, not replaced.
    last = out / "seed=0" / "checkpoints" / "last"
    shutil.rmtree(last.with_name("last.previous"))
    last.rename(last.with_name("last.previous"))
    monkeypatch.setattr(Training, "fit", fit)
    assert main(command) == 0
    assert "(from step 1)" in capsys.readouterr().err
    assert (out / "seed=0" / "summary.json").is_file()
    assert (out / "seed=1" / "summary.json").is_file()
