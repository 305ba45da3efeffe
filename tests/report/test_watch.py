"""`mqvae report --watch`: the page of runs in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report import HEADER, make_run

from mqvae.cli import main
from mqvae.report import watch

pytestmark = pytest.mark.usefixtures("uncharted")  # what charts draw is in test_report.py

ROW = "1210,500,0.004,0.01,0.02,90,0.1,3e-4,6e-2,,,\n"


def pages(out: Path) -> tuple[bool, bool]:
    """Whether the page loads itself again, and whether it says that a run is unfinished."""
    page = out.read_text()
    return 'id="reload"' in page, "Unfinished" in page


def test_the_page_is_written_again_as_runs_go_on(tmp_path, monkeypatch, capsys):
    runs = [make_run(tmp_path / "a", "A"), make_run(tmp_path / "b", "B", finished=False)]
    out, seen = tmp_path / "r.html", []

    def sleep(seconds: float) -> None:
        seen.append((*pages(out), out.stat().st_mtime_ns))
        if len(seen) == 2:
            with (runs[1] / "metrics.csv").open("a") as file:
                file.write(ROW)
        if len(seen) == 4:
            (runs[1] / "summary.json").write_text(json.dumps({"mse": 0.1}))

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["report", "--watch", *map(str, runs), "--out", str(out)]) == 0
    assert [each[:2] for each in seen] == [(True, True)] * 4
    first, second, third, fourth = (each[2] for each in seen)
    assert first == second < third == fourth < out.stat().st_mtime_ns
    assert pages(out) == (False, False)
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n" and "Ctrl-C" in printed.err


def test_ctrl_c_leaves_a_page_that_stays(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a", finished=False)

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert watch([run], tmp_path / "r.html") == tmp_path / "r.html"
    assert pages(tmp_path / "r.html") == (False, True)


def test_a_run_that_has_just_begun_is_watched(tmp_path, monkeypatch):
    run = tmp_path / "new"
    run.mkdir()
    (run / "config.yaml").write_text("name: New\n")

    def sleep(seconds: float) -> None:
        assert "No run has logged a step yet" in (tmp_path / "r.html").read_text()
        (run / "metrics.csv").write_text(f"{HEADER}\n{ROW}")
        (run / "summary.json").write_text("{}")

    monkeypatch.setattr("time.sleep", sleep)
    watch([run], tmp_path / "r.html")
    assert "1,210" in (tmp_path / "r.html").read_text()


def test_a_run_that_failed_is_not_waited_for(tmp_path):
    run = make_run(tmp_path / "a", finished=False)
    (run / "failure.json").write_text('{"step": 3, "cause": "the task loss is nan at step 3."}')
    watch([run], tmp_path / "r.html")
    assert "the task loss is nan at step 3." in (tmp_path / "r.html").read_text()


def test_what_is_no_run_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        watch([tmp_path / "nothing"], tmp_path / "r.html")


def test_what_lies_beside_the_runs_is_passed_over(tmp_path, capsys):
    run, out = make_run(tmp_path / "a", "A", rows=3), tmp_path / "report.html"
    beside = tmp_path / "sweep.json"
    beside.write_text("{}")
    assert main(["report", str(run), str(beside), "--out", str(out)]) == 0
    assert main(["report", str(beside), "--out", str(out)]) == 2
    assert "sweep.json is not a run" in capsys.readouterr().err
