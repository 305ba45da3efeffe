"""The studies beside the package: rows, runs, results, pages."""

import json
import math

import pytest
import yaml

from mqvae.cli import main as program
from mqvae.config import from_arguments
from reproduction import page, results, work
from reproduction.__main__ import RESULTS, main
from reproduction.figures import Results
from reproduction.rows import Study


@pytest.fixture
def in_process(monkeypatch):
    """Commands of mqvae run in this process, as ever; returns those that did."""
    done = []

    def mqvae(*arguments):
        done.append([str(argument) for argument in arguments])
        if program(done[-1]):
            raise work.Failed(done[-1])

    monkeypatch.setattr(work, "mqvae", mqvae)
    monkeypatch.setattr(work.weights, "find", lambda name: None)  # LPIPS is not here, as in CI
    return done


def test_every_row_makes_a_network_and_has_a_turn():
    tasks = {task.row: task for task in Study.load().tasks()}
    assert tasks.keys() == Study.load().rows.keys()
    for row, task in tasks.items():
        settings, _, _ = from_arguments(task.train_arguments())
        assert settings.components().quantizer is not None, row
        assert settings.steps == task.options["steps"]


def test_runs_have_folders_of_their_own_whatever_their_priors():
    tasks = list(Study.load().tasks())
    assert len({task.key for task in tasks}) == len(tasks)
    by_folder = {task.folder: (task.row, task.data, task.seed) for task in tasks}
    assert len(set(by_folder.values())) == len(by_folder)


def test_two_rows_from_training_to_the_line(tmp_path, in_process, capsys):
    file = tmp_path / "results.jsonl"
    typed = ["rate-distortion", "--scale=debug", f"--runs={tmp_path}", f"--results={file}"]
    typed.append("--only=ema-16384,residual-2")
    assert main(typed) == 0
    lines = results.read(file)
    assert sorted(line["row"] for line in lines) == ["ema-16384", "residual-2"]
    for line in lines:
        figures, summary = line["figures"], next(tmp_path.glob(f"{line['row']}-*/summary.json"))
        summary = json.loads(summary.read_text())
        assert figures["mse"] == pytest.approx(summary["mse"], rel=1e-5)
        groups = summary["codes"]["groups"]
        assert groups == (2 if line["row"] == "residual-2" else 1)
        assert ("prior_bits" in figures) == (line["asked"]["prior"] is not None)
        assert line["steps"] == 4 and line["versions"]["commit"] and line["seconds"]
        if groups == 1:
            assert figures["entropy"] == pytest.approx(math.log2(figures["perplexity"]), rel=1e-5)
        else:
            assert 0 <= figures["entropy"] <= 2 * math.log2(figures["perplexity"]) + 1e-4
    prior = json.loads(next(tmp_path.glob("ema-16384-*/prior/summary.json")).read_text())
    (line,) = (line for line in lines if line["row"] == "ema-16384")
    assert line["figures"]["prior_bits"] == pytest.approx(prior["bits_per_code"], rel=1e-5)
    number = len(in_process)
    assert main(typed) == 0 and len(in_process) == number  # they are known
    capsys.readouterr()
    assert main([*typed, "--missing"]) == 0 and not capsys.readouterr().out.strip()

    # Without its line, a finished run is measured and not trained again.
    file.unlink()
    assert main([*typed[:-1], "--only=ema-16384"]) == 0
    assert len(results.read(file)) == 1 and len(in_process) == number

    # A folder that was trained with other settings is refused.
    config = next(tmp_path.glob("ema-16384-*/config.yaml"))
    content = yaml.safe_load(config.read_text())
    content["quantizer"]["init_args"]["num_codes"] = 65
    config.write_text(yaml.safe_dump(content))
    file.unlink()
    assert main([*typed[:-1], "--only=ema-16384"]) == 1 and not results.read(file)


def test_a_prior_is_trained_again_where_its_samples_are_wanted(tmp_path, in_process, monkeypatch):
    tasks = [t for t in Study.load(scale="debug").tasks() if t.row == "ema-1024" and t.seed == 0]
    plain = next(task for task in tasks if task.prior is not None and "samples" not in task.prior)
    drawing = next(task for task in tasks if task.prior is not None and "samples" in task.prior)
    assert plain.folder == drawing.folder and plain.key != drawing.key
    assert "fid" not in work.make(plain, tmp_path)["figures"]
    told, file = [], tmp_path / plain.folder / "prior" / "summary.json"

    def prior(*arguments):
        told.append([str(argument) for argument in arguments])
        measured = {"samples": {"distance": "fid"}, "fid": 3.0, "fid_reconstructions": 2.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | measured))

    monkeypatch.setattr(work, "mqvae", prior)
    figures = work.make(drawing, tmp_path)["figures"]
    assert (figures["fid"], figures["fid_reconstructions"]) == (3.0, 2.0)
    assert [each[0] for each in told] == ["prior"]
    assert {"--samples=4", "--samples-every=2", "--overwrite"} <= {*told[0]}
    assert work.make(drawing, tmp_path)["figures"] == figures and len(told) == 1


def test_entropy_of_codes_is_summed_over_groups():
    table = ["group,code,count", "0,3,10", "0,5,10", "1,0,30", "1,1,10"]
    rest = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert work.entropy(iter(table)) == pytest.approx(1 + rest, rel=1e-12)


def test_a_line_with_a_prior_outweighs_one_without():
    def line(mse, **figures):
        asked = {"data": "digits", "seed": 0}
        return {"row": "a", "asked": asked, "figures": {"mse": mse, **figures}}

    rows = {"a": {"label": "A", "family": "A"}}
    lines = [line(1.0), line(2.0, prior_bits=3.0), line(3.0)]
    assert Results(lines, rows).value("a", "mse", "digits") == 2.0
    assert Results([*lines, line(4.0, prior_bits=3.0)], rows).value("a", "mse", "digits") == 4.0


def test_what_is_said_of_two_rows_pairs_their_seeds():
    def line(row, seed, mse):
        return {"row": row, "asked": {"data": "d", "seed": seed}, "figures": {"mse": mse}}

    lines = [line("a", 0, 1.0), line("a", 1, 2.0), line("b", 0, 0.9), line("b", 1, 2.2)]
    lines.append(line("b", 2, 50.0))
    found = Results(lines, {})
    assert found.change("b", "a", "mse", "d") == "±0.0% (−10.0% to +10.0% over 2 seeds)"
    assert found.change("a", "c", "mse", "d") == "not measured"


def test_the_committed_page_is_what_the_results_give(tmp_path):
    made = page.write(RESULTS, tmp_path)
    assert made.read_text() == (page.DOCS / made.name).read_text()
    drawn = sorted(path.name for path in (tmp_path / "rate-distortion").iterdir())
    assert drawn == sorted(path.name for path in (page.DOCS / "rate-distortion").iterdir())
