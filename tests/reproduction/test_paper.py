"""The paper's tables and figures, run again: values, runs that are found again, rows, verdicts."""

import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.table import Table as BenchTable
from mqvae.config import Settings, load_preset
from mqvae.data import InMemory
from mqvae.errors import MqvaeError
from mqvae.metrics.frechet import Frechet
from mqvae.tokenizer import Tokenizer
from reproduction.__main__ import main
from reproduction.paper import levels
from reproduction.paper.comparison import Comparison
from reproduction.paper.curves import _throughout
from reproduction.paper.few import Few
from reproduction.paper.further import Along, Beginning, Cost, Diagnosis
from reproduction.paper.methods import META_RATE, METHODS, Method, paper_value
from reproduction.paper.methods_table import AtSizes
from reproduction.paper.outcome import known_originals
from reproduction.paper.renamed import of_today
from reproduction.paper.reproduce import EXPERIMENTS, experiments, published, wants
from reproduction.paper.results import Results, file_name
from reproduction.paper.rows import by_protocol, lacking, table
from reproduction.paper.runner import carry_out, missing
from reproduction.paper.scales import SCALES, load_scale
from reproduction.paper.sections import Cell, Column, Row, Table
from reproduction.paper.study import Study
from reproduction.paper.tables import BESIDE
from reproduction.paper.verdicts import best_by_every, claim, every, judgement, verdicts
from reproduction.paper.work import FURTHER, Place, Run
from reproduction.results import put, read

ROOT = Path(__file__).parents[2]
DEBUG = load_scale("debug")
RUN = Run("debug", "reconstruction", "digits", "VQ-VAE", 6e-2, 20, 0)
PLAIN = ("mse", "perplexity")


def result(run, mse, *, validation=None, **more):
    """What a run leaves, less what no row needs."""
    described = {k: {"better": "lower", "protocol": "", "title": k} for k in PLAIN}
    return {
        "seed": run.seed,
        "figures": {"mse": mse, "perplexity": 10.0},
        "validation": mse if validation is None else validation,
        "described": described,
        "seconds": 1.0,
        "device": "cpu",
        **more,
    }


def comparison(*methods, seeds=3):
    return Comparison(load_scale("cpu"), "reconstruction", "fashion-mnist", methods, seeds)


def judge(compared, results, losses):
    """Results of what the rates of VQ-VAE, or of another method, are judged by."""
    for (method, rate), loss in losses.items():
        content = {"failed": "nan"} if loss is None else {"validation": loss, "perplexity": 10.0}
        results.put(Beginning(compared.run(method, rate, 0), 1050), content)


# -- the paper's values ---------------------------------------------------------------------------


def test_the_papers_values_are_scaled_back():
    assert paper_value(1, "fashion-mnist", "MQ-VAE", "mse") == pytest.approx(4.28e-3)
    assert paper_value(1, "fashion-mnist", "MQ-VAE", "lpips") == pytest.approx(0.033)
    assert paper_value(2, "fashion-mnist", "VQ-VAE", "accuracy") == pytest.approx(0.891)
    assert paper_value(2, "cifar100", "VQ-VAE", "gradient_gap") == 3.76
    assert paper_value(4, "fashion-mnist", "MQ-VAE", "ratio") == 3.95
    assert paper_value(7, "cifar100", "MQ-VAE‡", "mse") == pytest.approx(4.58e-3)
    assert paper_value(1, "fashion-mnist", "MQ-VAE†", "mse") is None


def test_every_row_of_the_papers_tables_has_its_method():
    wanted = {1: 7, 2: 7, 3: 5, 5: 7, 6: 5, 7: 4, 8: 2}
    for experiment in EXPERIMENTS.values():
        number = getattr(experiment, "number", None)
        if number is None or isinstance(experiment, AtSizes):
            continue
        dataset = experiment.datasets[0]
        figure = {2: "accuracy", 8: "lpips"}.get(number, "mse")
        has = [m for m in experiment.methods if paper_value(number, dataset, m, figure) is not None]
        assert len(has) == wanted[number]
        assert has == [m for m in METHODS if m in has] or number in (3, 6, 7)
        beside = {1: BESIDE, 3: ("VQ-VAE + alt, β = 0",)}.get(number, ())
        missing = set(experiment.methods) - set(has) - set(beside)
        assert missing == {"MQ-GAN, amortized" if number == 8 else "No quantization"}


# -- runs and where they are found ----------------------------------------------------------------


def test_a_run_is_what_its_preset_and_scale_say():
    run = Run("paper", "reconstruction", "fashion-mnist", "MQ-VAE + group", 6e-2, 20_000, 3)
    config = run.settings().config()
    assert (config["seed"], config["steps"]) == (3, 20_000)
    assert config["network"]["init_args"]["width"] == 256
    assert config["quantizer"]["init_args"]["groups"] == 4
    assert config["quantizer"]["init_args"]["dim"] == 512
    assert config["data"]["init_args"]["batch_size"] == 512
    assert config["optimizer"]["network_lr"] == 3e-4
    assert config["optimizer"]["codebook_lr"] == META_RATE
    assert config["update"]["init_args"]["commitment_weight"] == 0.1
    gumbel = dataclasses.replace(run, method="Gumbel-VQVAE").settings().config()
    assert gumbel["quantizer"]["init_args"]["anneal_steps"] == 20_000


def test_every_method_has_settings():
    for method in METHODS:
        task = "adversarial" if "GAN" in method else "reconstruction"
        run = Run("cpu", task, "fashion-mnist", method, 1e-2, 100, 0)
        assert run.settings().config()["name"] == method
    assert [load_scale(name).name for name in SCALES] == list(SCALES)


def test_few_images_and_a_batch_above_are_settings_of_a_run():
    few = Few(100, 50, 16)
    run = dataclasses.replace(RUN, method="MQ-VAE, kept, held-out batch above", few=few)
    config = run.settings().config()
    data = config["data"]["init_args"]
    assert (data["limit"], data["validation"]) == (100, 50)
    assert config["update"]["init_args"]["upper_batch"] == "held-out"
    titles = {
        dataclasses.replace(run, method=method, few=each).title
        for method in ("MQ-VAE, kept", "MQ-VAE, kept, next batch above", run.method)
        for each in (None, few)
    }
    assert len(titles) == 6


@pytest.mark.parametrize(
    ("method", "rule"), [("VQ-GAN", {"class_path": "mqvae.Joint"}), ("MQ-GAN, amortized", {})]
)
def test_photos_64_is_a_run_of_table_8(method, rule):
    preset = Settings.of(load_preset("photos-64", {"update": rule} if rule else {})).config()
    config = Run("cpu", "adversarial", "photos", method, 6e-3, 700, 0).settings().config()
    assert config | {"name": ""} == preset | {"name": ""}


def test_a_result_is_found_by_its_configuration(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.put(RUN, result(RUN, 0.5))
    again = Results(tmp_path / "results.jsonl")
    assert again.get(RUN)["figures"]["mse"] == 0.5
    assert again.get(dataclasses.replace(RUN, seed=1)) is None
    assert again.get(dataclasses.replace(RUN, rate=1e-2)) is None
    (line,) = read(tmp_path / "results.jsonl")
    assert line["name"] == file_name(RUN)
    asks = line["asks"]
    assert asks["optimizer"]["codebook_lr"] == 6e-2
    assert "accelerator" not in asks["trainer"], "where it was trained is no part of what it is"


def test_a_metric_that_is_not_finite_is_a_result(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.put(RUN, result(RUN, float("nan")))
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert content["figures"]["mse"] is None
    assert content["not_finite"]["/figures/mse"] == "nan"
    assert all(
        math.isnan(r.get(RUN)["figures"]["mse"])
        for r in (results, Results(tmp_path / "results.jsonl"))
    )


def test_a_result_from_before_a_setting_was_there_is_found(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.put(RUN, result(RUN, 0.5))
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    del content["asks"]["trainer"]["ema_decay"]
    content["asks"]["trainer"]["average"] = 0.0  # as it was called
    content["asks"]["data"]["above"] = "same"
    del content["asks"]["update"]["init_args"]["codebook_weight"]
    content["asks"]["update"]["init_args"].pop("upper_batch", None)
    file.write_text(json.dumps(content))
    again = Results(tmp_path / "results.jsonl")
    assert again.get(RUN)["figures"]["mse"] == 0.5
    assert again.name(RUN) == content["name"]
    assert again.get(dataclasses.replace(RUN, rate=1e-2)) is None
    content["asks"]["trainer"]["average"] = 0.5
    file.write_text(json.dumps(content))
    assert Results(tmp_path / "results.jsonl").get(RUN) is None


def test_a_result_that_lacks_something_is_made_again(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.put(RUN, result(RUN, 0.5, left_out={}))
    final = dataclasses.replace(RUN, final=True)
    assert results.complete(RUN)
    assert not results.complete(final)
    results.put(RUN, result(RUN, 0.5, left_out=dict.fromkeys(FURTHER, "no weights")))
    assert results.complete(final)


def test_a_damaged_result_is_named(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"name": "a", "asks": {}}\n{')
    with pytest.raises(MqvaeError, match=r"line 2 of .*results\.jsonl is no result .*remove it"):
        Results(file)


def test_lines_are_sorted_and_those_of_a_name_replaced(tmp_path):
    file = tmp_path / "new" / "results.jsonl"
    for name, value in (("b", 1), ("a", 2), ("b", 3)):
        put(file, {"name": name, "value": value}, key="name")
    assert file.read_text() == '{"name": "a", "value": 2}\n{"name": "b", "value": 3}\n'


def test_the_committed_results_are_as_they_would_be_written(tmp_path):
    file, copied = published("cpu"), tmp_path / "paper.jsonl"
    copied.write_bytes(file.read_bytes())
    put(copied, read(file)[0], key="name")
    assert copied.read_bytes() == file.read_bytes()


def test_older_results_are_read_under_the_names_of_today():
    revival = {"class_path": "mqvae.ReplaceUnused", "init_args": {"after": 7, "draws": 1}}
    older = {
        "trainer": {"average": 0.9, "parts": 2},
        "data": {"class_path": "mqvae.ImageData", "init_args": {"above": "next"}},
        "update": {"class_path": "mqvae.Meta", "init_args": {"xi": 0.5}},
        "quantizer": {"init_args": {"replacement": revival}},
    }
    found = of_today(older)
    assert found["trainer"] == {"ema_decay": 0.9, "micro_batches": 2}
    assert found["data"]["init_args"] == {}
    assert found["update"]["init_args"] == {"xi": 0.5, "upper_batch": "next"}
    assert found["quantizer"]["init_args"]["replacement"]["init_args"] == {"after": 7}
    older["data"]["init_args"]["above"] = "same"  # which rules without a batch above have, too
    assert of_today(older)["update"]["init_args"] == {"xi": 0.5}
    revival["init_args"]["draws"] = 4
    assert of_today(older)["quantizer"]["init_args"]["replacement"] == revival


class Counted:
    """A piece of work that notes how often it is done."""

    title, words, amount, alone, filled = "counted", "counted", 1.0, False, dict

    def __init__(self):
        self.made = 0

    def asks(self):
        return {"kind": "counted"}

    def satisfied(self, content):
        return True

    def make(self, place):
        self.made += 1
        return {"value": self.made}


def test_work_is_done_once(tmp_path):
    work = Counted()
    for _ in range(2):
        carry_out(
            lambda _: [work, work],
            Results(tmp_path / "results.jsonl"),
            Place(tmp_path, tmp_path / "results.jsonl"),
        )
    assert work.made == 1


def test_no_two_pieces_of_a_round_train_the_same_run(tmp_path):
    results, asked = Results(tmp_path / "results.jsonl"), []
    wanted = [Beginning(RUN, 10), Diagnosis(RUN), RUN, dataclasses.replace(RUN, seed=1)]
    for done in (RUN, wanted[0], wanted[1]):
        asked.append(missing(lambda _: wanted, results))
        results.put(done, {"figures": {}, "left_out": {}})
    assert asked == [[RUN, wanted[3]], [wanted[0], wanted[3]], [wanted[1], wanted[3]]]


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch):
    from mqvae.training import NotFinite, Training

    def fit(self, after_step=None):
        raise NotFinite("the task loss is nan at step 3. The last good checkpoint is kept in X.")

    monkeypatch.setattr(Training, "fit", fit)
    content = RUN.make(Place(tmp_path, tmp_path / "results.jsonl", accelerator="cpu"))
    assert content == {"failed": "the task loss is nan at step 3.", "seed": 0}


def test_a_beginning_is_where_the_whole_run_is_then(tmp_path):
    place = Place(tmp_path / "runs", tmp_path / "results.jsonl", accelerator="cpu")
    beginning = Beginning(RUN, 10)
    trained = beginning.make(place)
    assert not (RUN.folder(place) / "summary.json").exists()
    at_once = RUN.make(dataclasses.replace(place, runs=tmp_path / "at once"))
    whole = RUN.make(place)  # it goes on from there
    assert whole["curve"] == at_once["curve"] and whole["figures"] == at_once["figures"]
    at = whole["curve"]["step"].index(10)
    assert trained == {name: whole["curve"][name][at] for name in trained}
    assert trained["validation"] != whole["curve"]["validation"][-1]
    # Where the whole run has been made it is not trained again.
    Results(place.results).put(RUN, whole)
    elsewhere = dataclasses.replace(place, runs=tmp_path / "none")
    assert beginning.make(elsewhere) == trained and not elsewhere.runs.exists()


def test_a_distance_is_measured_at_checkpoints_while_a_run_trains(tmp_path, monkeypatch):
    place, seen = Place(tmp_path / "runs", tmp_path / "results.jsonl"), []

    def distance(folder, *_):
        seen.append(Tokenizer.from_run(folder).step)
        return 100.0 / len(seen)

    monkeypatch.setattr("reproduction.paper.further.distance_of", distance)
    points = [[10, 100.0], [20, 50.0]]
    assert Along(RUN).make(place)["points"] == points
    assert seen == [10, 20]
    assert (RUN.folder(place) / "summary.json").is_file()  # it need not be trained again


def test_a_run_killed_between_two_renamings_is_resumed(tmp_path, monkeypatch):
    from mqvae import training as trainer
    from mqvae.runs import Run as Folder

    place = Place(tmp_path, tmp_path / "results.jsonl", accelerator="cpu")
    folder = Folder.create(RUN.folder(place), {"name": "a run"}).folder
    (folder / "checkpoints" / "last.previous").mkdir()

    class Resumed(Exception):
        pass

    def resume(run):
        assert run.folder == folder
        raise Resumed

    monkeypatch.setattr(trainer, "resume", resume)
    with pytest.raises(Resumed):
        RUN.train(place)


def test_a_beginning_that_fails_is_a_result(tmp_path, monkeypatch):
    from mqvae.training import NotFinite, Training

    def fit(self, after_step=None):
        raise NotFinite("the task loss is nan at step 3. The last good checkpoint is kept in X.")

    monkeypatch.setattr(Training, "fit", fit)
    place = Place(tmp_path, tmp_path / "results.jsonl", accelerator="cpu")
    assert Beginning(RUN, 10).make(place) == {"failed": "the task loss is nan at step 3."}


class Halves(Frechet):
    """Features that need no weights; how many images were looked at."""

    def __init__(self, images, words):
        super().__init__(2, words, images)
        self.looked = 0

    def features(self, images):
        self.looked += len(images)
        return images[:, 0].mean(2)[:, :2]


def test_features_of_originals_are_measured_once(tmp_path):
    def distance(pixels, words="mean of rows"):
        images = InMemory("made", "test", pixels, torch.zeros(len(pixels), dtype=torch.int64), "")
        figure = Halves(images, words)
        with known_originals({"halves": figure}, images, tmp_path):
            for part in (pixels / 255).split(4):
                figure.update(part / 2, part)
        return figure.compute(lambda sums: sums), figure.looked

    some, others = torch.randint(0, 256, (2, 10, 1, 2, 2), dtype=torch.uint8)
    first, looked = distance(some)
    assert first > 0 and looked == 20
    assert distance(some) == (first, 10)
    assert distance(others)[1] == distance(some, "other weights")[1] == 20
    assert len(list(tmp_path.iterdir())) == 3


def test_the_first_round_has_each_rule_at_its_best_rate_and_says_what_failed(tmp_path):
    rules, results = EXPERIMENTS["codebooks"], Results(tmp_path / "results.jsonl")
    study = Study(load_scale("debug"), 1, results)
    for work in rules._first_round(study):
        if work.run.method not in ("VQ-VAE", "EMA + replace"):
            continue
        high = work.run.rate == 6e-2
        content = {"validation": 6e-3 if high else 7e-3, "perplexity": 10.0}
        results.put(work, {"failed": "nan."} if work.run.rate == 3e-4 else content)
    section = rules.section(study)
    (made,) = section.tables
    assert [(row.method, row.rate) for row in made.rows] == [
        ("VQ-VAE", 6e-2),
        ("EMA + replace", None),
    ]
    assert [set(row.cells) for row in made.rows] == [
        {"mse", "perplexity", "0.06"},
        {"mse", "perplexity"},
    ]
    assert any("codebook 0.0003" in note and note.endswith(": nan.") for note in made.notes)
    # A rule with a rate of which one point is left is no line; one without a rate is level.
    assert [line.label for line in section.plots[0].lines] == ["EMA + replace, no rate"]


# -- protocols ------------------------------------------------------------------------------------


def test_the_papers_protocol_gives_baselines_the_networks_rate():
    compared = comparison("VQ-VAE", "MQ-VAE")
    assert compared.paper_rate("VQ-VAE") == load_scale("cpu").network_rate("reconstruction") == 1e-3
    assert compared.paper_rate("MQ-VAE") == META_RATE
    assert load_scale("paper").network_rate("reconstruction") == 3e-4


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("task", ["reconstruction", "classification"])
def test_every_method_has_the_same_rates_to_choose_from(scale, task):
    compared = dataclasses.replace(
        comparison("VQ-VAE", "MQ-VAE", "No quantization"), scale=load_scale(scale), task=task
    )
    grid = compared.grid("VQ-VAE")
    assert grid == compared.grid("MQ-VAE") == sorted(grid)
    assert {compared.paper_rate("VQ-VAE"), META_RATE} < {*grid}
    assert compared.grid("No quantization") == [None]


def test_matched_rates_are_chosen_on_validation_images(tmp_path):
    compared, results = comparison("VQ-VAE"), Results(tmp_path / "results.jsonl")
    grid = compared.grid("VQ-VAE")
    assert grid == [1e-3, 6e-3, 2e-2, 6e-2, 2e-1]
    with pytest.raises(LookupError):
        compared.best_rate("VQ-VAE", results)
    for i, rate in enumerate(grid[:4]):  # what lies beyond a worse one is not wanted
        wanted = {(work.run.rate, work.steps) for work in compared.choices(results)}
        expected = {rate, grid[1]} if i < 2 else {rate}
        assert wanted == {(each, 1050) for each in expected}
        # What a whole run is on test images chooses nothing.
        run = compared.run("VQ-VAE", rate, 0)
        results.put(run, result(run, 1.0 + i))
        judge(compared, results, {("VQ-VAE", rate): [5, 4, 1, 2][i]})
    assert compared.best_rate("VQ-VAE", results) == 2e-2
    rows = compared.runs("matched", "VQ-VAE", results, {})
    assert [(run.rate, run.seed) for run in rows] == [(2e-2, 0), (2e-2, 1), (2e-2, 2)]


def test_a_rate_that_diverges_is_not_chosen(tmp_path):
    compared, results = comparison("VQ-VAE"), Results(tmp_path / "results.jsonl")
    for rate in compared.grid("VQ-VAE"):
        judge(compared, results, {("VQ-VAE", rate): 1 / rate if rate < 5e-2 else None})
    assert compared.best_rate("VQ-VAE", results) == 2e-2


@pytest.mark.parametrize("method", ["VQ-VAE + alt", "MQ-VAE‡", "MQ-VAE, direct only"])
def test_every_method_has_a_rate_of_its_own(method, tmp_path):
    base = "MQ-VAE" if "MQ" in method else "VQ-VAE"
    compared, results = comparison(base, method), Results(tmp_path / "results.jsonl")
    for rate in compared.grid(base):
        judge(compared, results, {(base, rate): abs(rate - 6e-2), (method, rate): abs(rate - 2e-2)})
    assert (compared.best_rate(base, results), compared.best_rate(method, results)) == (6e-2, 2e-2)
    assert compared.rows("time") == [base, method]


def test_ablations_are_not_compared_at_equal_time():
    study = Study(load_scale("cpu"), 3, Results(Path("none")))
    for name, there in (("table-3", True), ("table-7", False), ("appendix-f", False)):
        compared = EXPERIMENTS[name].comparison(study, "fashion-mnist")
        assert ("time" in compared.protocols) == there


def test_rates_that_another_comparison_has_chosen_are_kept(tmp_path):
    own, results = comparison("VQ-VAE"), Results(tmp_path / "results.jsonl")
    larger = dataclasses.replace(own, size=(16384, 64), tuned=own)
    assert list(larger.choices(results)) == list(own.choices(results))
    for rate in own.grid("VQ-VAE"):
        judge(own, results, {("VQ-VAE", rate): abs(rate - 2e-2)})
    runs = larger.runs("matched", "VQ-VAE", results, {})
    assert {(run.rate, run.size) for run in runs} == {(2e-2, (16384, 64))}
    # Without a codebook there are dimensions, and no number of codes.
    sizes = ((16384, 8), (1024, 8), (16384, 64))
    bounds = [dataclasses.replace(own, size=s).run("No quantization", None, 0) for s in sizes]
    assert [run.size for run in bounds] == [(1024, 8), (1024, 8), None]


def test_where_no_rate_works_that_is_said(tmp_path):
    compared, results = comparison("VQ-VAE"), Results(tmp_path / "results.jsonl")
    judge(compared, results, {("VQ-VAE", rate): None for rate in compared.grid("VQ-VAE")})
    with pytest.raises(LookupError, match="no rate worked"):
        compared.best_rate("VQ-VAE", results)


def test_equal_time_is_fewer_updates_of_what_costs_more(tmp_path):
    compared, results = comparison("VQ-VAE", "MQ-VAE"), Results(tmp_path / "results.jsonl")
    for method in compared.methods:
        judge(compared, results, {(method, rate): rate for rate in compared.grid(method)})
    costs = {"VQ-VAE": 1.0, "MQ-VAE": 2.5}
    assert compared.runs("time", "MQ-VAE", results, costs)[0].steps == 1200
    assert compared.runs("time", "VQ-VAE", results, costs)[0].steps == 3000
    assert compared.runs("matched", "MQ-VAE", results, costs)[0].steps == 3000


def test_a_step_of_each_method_is_measured_beside_vq_vaes_and_found_again(tmp_path, monkeypatch):
    measured = []

    def turns(name, methods, *, rounds, conditions):
        measured.append([*methods])
        quartiles = {"lower quartile": 2.0, "upper quartile": 3.0}
        rows = [{"step": method, "ms": 4.0 + i, "ratio": 1 + i} for i, method in enumerate(methods)]
        return BenchTable(name, "", {}, [row | quartiles for row in rows])

    monkeypatch.setattr("benchmarks.costs.settings_costs", turns)
    place = Place(tmp_path / "runs", tmp_path / "results.jsonl")
    study = Study(DEBUG, 1, Results(place.results))
    (table_4,) = experiments(["table-4"])
    assert study.costs("reconstruction", table_4.methods) == {"VQ-VAE": 1.0}
    wanted = list(table_4.wants(study))
    of_paper = [work.method for work in wanted if work.task == "reconstruction"]
    assert of_paper == [m for m in table_4.methods if m != "VQ-VAE"]
    assert [w.method for w in wanted if w.task == "adversarial"] == ["MQ-GAN", "MQ-GAN, amortized"]
    for work in wanted[:2]:
        study.results.put(work, work.make(place))
    first, second = (work.method for work in wanted[:2])
    assert measured == [["VQ-VAE", first], ["VQ-VAE", second]]
    costs = {"VQ-VAE": 1.0, first: 2, second: 2}
    assert study.costs("reconstruction", table_4.methods) == costs
    (made,) = table_4.section(study).tables
    assert [(row.method, row.cells["ms"].values) for row in made.rows] == [
        (first, (5.0,)),
        (second, (5.0,)),
    ]
    assert made.rows[0].runs == (file_name(wanted[0]),)
    assert Cost("debug", "adversarial", "MQ-GAN").asks()["beside"] == "vq-vae"


# -- rows and verdicts ----------------------------------------------------------------------------


def filled(tmp_path, ours):
    """Table 1's first rows in the paper's protocol, VQ-VAE's MSE being 8, 10 and 12."""
    compared, results = comparison("VQ-VAE", "MQ-VAE"), Results(tmp_path / "results.jsonl")
    for method, values in (("VQ-VAE", (8e-3, 10e-3, 12e-3)), ("MQ-VAE", ours)):
        for run, value in zip(compared.runs("paper", method, results, {}), values, strict=True):
            results.put(run, result(run, value))
    return table(dataclasses.replace(compared, protocols=("paper",)), 1, results, {})


def test_a_row_has_our_figure_the_papers_and_both_ratios(tmp_path):
    made = filled(tmp_path, (4e-3, 5e-3, 6e-3))
    base, row = made.rows
    cell = row.cells["mse"]
    assert cell.values == pytest.approx((4, 5, 6))
    assert (cell.mean, cell.spread) == pytest.approx((5, 1))
    assert cell.paper == pytest.approx(4.28)
    assert cell.ratio == pytest.approx(0.5)
    assert cell.paper_ratio == pytest.approx(4.28 / 7.26)
    assert base.cells["mse"].ratio is None
    assert row.cells["perplexity"].paper == pytest.approx(80.5)
    assert row.runs == tuple(
        file_name(run) for run in comparison("MQ-VAE").runs("paper", "MQ-VAE", None, {})
    )


def test_a_ratio_is_of_the_seeds_that_both_have(tmp_path):
    compared, results = comparison("VQ-VAE", "MQ-VAE"), Results(tmp_path / "results.jsonl")
    for method, values in (("VQ-VAE", (8e-3, 100e-3)), ("MQ-VAE", (6e-3,))):
        for run, value in zip(compared.runs("paper", method, results, {}), values, strict=False):
            results.put(run, result(run, value))
    _, row = table(dataclasses.replace(compared, protocols=("paper",)), 1, results, {}).rows
    assert row.cells["mse"].ratio == pytest.approx(0.75)


def test_what_was_measured_otherwise_is_left_out_and_said(tmp_path):
    compared, results = comparison("VQ-VAE", "MQ-VAE", seeds=2), Results(tmp_path / "results.jsonl")
    compared = dataclasses.replace(compared, protocols=("paper",))
    (one, other), (mine, last) = (
        compared.runs("paper", method, results, {}) for method in ("VQ-VAE", "MQ-VAE")
    )
    for run, images, protocol in (
        *((one, 301, "new"), (other, 301, "new")),
        *((mine, 301, "old"), (last, 179, "new")),
    ):
        content = result(run, 5e-3, protocol={"images": images})
        content["described"]["perplexity"]["protocol"] = protocol
        results.put(run, content)
    made = table(compared, 1, results, {})
    assert [row.seeds for row in made.rows] == [(0, 1), (0,)]
    assert [set(row.cells) for row in made.rows] == [{"mse", "perplexity"}, {"mse"}]
    assert any("179 test images, and the others on 301" in note for note in made.notes)
    lacks = " ".join(lacking(compared, results, {}, made))
    assert "MQ-VAE (our reading, 1 of 2 seeds)" in lacks
    assert "Perplexity of all seeds: MQ-VAE" in lacks


def test_a_verdict_is_of_paired_seeds(tmp_path):
    made = filled(tmp_path, (4e-3, 5e-3, 7.2e-3))
    (row,) = verdicts(made, "mse", [("MQ-VAE", "VQ-VAE"), ("MQ-VAE", "VQ-VAE + alt")])
    assert (row.claim, row.paper) == ("MQ-VAE against VQ-VAE, MSE", "0.59")
    assert row.here == {"paper": "0.53 (0.50 to 0.60)"}
    assert row.verdict == "our reading: holds; 6e-2 for all: missing"


def three(*rows):
    """A table of rows of three seeds: method, protocol, values, and the paper's value."""
    return Table(
        "",
        [Column("mse", "MSE (e-3)", "lower"), Column("ssim", "SSIM", "higher")],
        [
            Row(name, protocol, {"mse": Cell(values, paper)}, seeds=(0, 1, 2))
            for name, protocol, values, paper in rows
        ],
    )


def test_only_the_papers_protocol_has_a_value_to_hold():
    made = three(
        *[("VQ-VAE", p, (10.0, 10.0, 10.0), 7.26) for p in ("paper", "equal", "matched", "time")],
        ("MQ-VAE", "paper", (6.0, 5.8, 6.2), 4.28),
        ("MQ-VAE", "equal", (10.5, 10.4, 10.6), 4.28),
        ("MQ-VAE", "matched", (9.0, 9.5, 9.4), 4.28),
        ("MQ-VAE", "time", (9.0, 10.5, 11.0), 4.28),
    )
    (row,) = verdicts(made, "mse", [("MQ-VAE", "VQ-VAE")])
    assert row.verdict == "our reading: holds; 6e-2 for all: does not hold, the other way round"
    assert row.here["equal"] == "1.05 (1.04 to 1.06)"
    assert row.here["matched"].endswith(", better with every seed")
    assert row.here["time"].endswith(", no significant difference")
    found = claim("table-1", "MSE", made, ("MQ-VAE", "VQ-VAE"), "mse")
    assert found.paper == "0.59" and found.here["equal"] == "1.05 (1.04 to 1.06)"
    assert found.verdict == ("our reading: holds; 6e-2 for all: does not hold, the other way round")
    told = every(made, "MQ-VAE", "VQ-VAE")
    assert "our reading better with every seed by MSE" in told
    assert "6e-2 for all worse with every seed by MSE" in told and "matched" not in told
    best = best_by_every("table-1", made, [("MQ-VAE", "VQ-VAE")], [True, False])
    assert (best.paper, best.here["paper"], best.here["equal"]) == ("1 of 2", "1 of 1", "0 of 1")
    assert best.verdict == "our reading: holds; 6e-2 for all: does not hold"


def test_an_order_is_judged_where_the_paper_has_no_value():
    made = three(
        ("MQ-VAE", "paper", (6.0, 7.0, 8.0), None), ("MQ-VAE†", "paper", (6.6, 7.7, 8.8), None)
    )
    (row,) = verdicts(made, "mse", [("MQ-VAE", "MQ-VAE†")])
    assert (row.paper, row.here["paper"]) == ("-", "0.91 (0.91 to 0.91)")
    assert row.verdict.startswith("our reading: better with every seed")


def test_shares_are_compared_in_points():
    made = Table(
        "",
        [Column("accuracy", "Accuracy (%)", "higher")],
        [
            Row("VQ-VAE", "paper", {"accuracy": Cell((88.9, 89.2), 89.1)}, seeds=(0, 1)),
            Row("MQ-VAE", "paper", {"accuracy": Cell((88.4, 89.3), 89.6)}, seeds=(0, 1)),
        ],
    )
    (row,) = verdicts(made, "accuracy", [("MQ-VAE", "VQ-VAE")])
    assert row.claim == "MQ-VAE against VQ-VAE, points of Accuracy"
    assert (row.paper, row.here["paper"]) == ("+0.5 points", "-0.2 (-0.5 to +0.1) points")
    assert row.verdict.startswith("our reading: too few seeds for a verdict")


@pytest.mark.parametrize(
    ("ratios", "published", "said"),
    [
        ([0.61, 0.64, 0.60], 0.59, "holds"),
        ([0.91, 0.94, 0.90], 0.59, "holds in direction, by less"),
        ([0.30, 0.31, 0.30], 0.59, "holds in direction, by more"),
        ([1.34, 1.40, 1.44], 1.05, "does not hold, worse by more"),
        ([1.02, 1.05, 1.04], 0.59, "does not hold, the other way round"),
        ([0.97, 1.05, 1.01], 0.59, "does not hold, no significant difference"),
        ([1.5, 1.7, 1.6], 1.58, "holds"),
        ([0.9, 0.8, 0.9], 1.58, "does not hold, the other way round"),
    ],
)
def test_judgements(ratios, published, said):
    assert judgement(ratios, published) == said


def test_one_metric_has_a_column_for_each_protocol():
    made = three(("VQ-VAE", "paper", (10.0, 9.0, 11.0), 7.26), ("VQ-VAE", "time", (8.0,) * 3, 7.26))
    pivot = by_protocol(made, "mse")
    assert [column.title for column in pivot.columns] == ["The paper", "Our reading", "Equal time"]
    (row,) = pivot.rows
    assert [row.cells[c.key].mean for c in pivot.columns] == [7.26, 10.0, 8.0]


def test_the_other_reading_gives_every_codebook_the_papers_rate(tmp_path):
    compared, results = (
        comparison("VQ-VAE", "MQ-VAE", "EMA, 0.9"),
        Results(tmp_path / "results.jsonl"),
    )
    rates = [compared.rate("equal", name, results) for name in compared.methods]
    assert rates == [META_RATE, META_RATE, None]


def test_bits_explain_an_error_that_falls_with_them(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    compared = comparison("VQ-VAE", "MQ-VAE", "VQ-VAE + group")
    for method, perplexities in (("VQ-VAE", (32, 64, 256)), ("MQ-VAE", (128, 512))):
        for place, perplexity in enumerate(perplexities):
            run = compared.run(method, 6e-2 / (place + 1), 0)
            content = result(run, 20e-3 * 0.9 ** math.log2(perplexity))
            content["figures"]["perplexity"] = perplexity
            results.put(run, content)
    grouped = compared.run("VQ-VAE + group", 6e-2, 0)
    results.put(grouped, result(grouped, 4e-3))
    section = EXPERIMENTS["bits"].section(Study(load_scale("cpu"), 3, results))
    (plot,) = section.plots
    assert {line.label: len(line.x) for line in plot.lines} == {
        "with a look-ahead": 2,
        "without a look-ahead": 3,
    }
    first, *_, last = section.verdict
    assert "Over 5 rows" in first and "by -10% a bit" in first and "100% of the variance" in first
    assert "4 codes an embedding the lowest MSE is 4.00e-3" in last


def priors(*curves):
    return {seed: {"points": list(enumerate(curve))} for seed, curve in enumerate(curves)}


def test_samples_of_priors_are_compared_at_every_point_and_over_seeds():
    theirs, ours = [80.0, 50.0, 40.0], [70.0, 45.0, 42.0]
    said = _throughout(priors(theirs), priors(ours))
    assert "at 2 of 3 points" in said and "1.05 (one seed) times that over VQ-VAE's" in said
    assert said.endswith("too few seeds for a verdict.")
    said = _throughout(priors(theirs, theirs, theirs), priors(ours, ours, ours))
    assert "at 6 of 9 points" in said and "1.05 (1.05 to 1.05) times" in said
    assert said.endswith("does not hold, worse with every seed.")
    assert _throughout(priors(ours, ours, ours), priors(theirs, theirs, theirs)).endswith("holds.")


def test_rows_that_are_not_complete_say_so(tmp_path):
    compared, results = comparison("VQ-VAE"), Results(tmp_path / "results.jsonl")
    run = compared.runs("paper", "VQ-VAE", results, {})[0]
    results.put(run, result(run, 8e-3))
    made = table(compared, 1, results, {})
    first, *metrics = lacking(compared, results, {}, made)
    assert first.startswith("fashion-mnist: VQ-VAE (our reading, 1 of 3 seeds; 6e-2 for all; ")
    assert metrics == []
    (said,) = lacking(compared, results, {}, None)
    assert said == "fashion-mnist, in every protocol: VQ-VAE."


def test_without_a_codebook_there_is_nothing_of_codes_to_show_or_to_miss(tmp_path):
    compared, results = comparison("No quantization", seeds=1), Results(tmp_path / "results.jsonl")
    run = compared.run("No quantization", None, 0)
    results.put(run, result(run, 8e-3))  # an older result has a perplexity, of 1
    made = table(compared, 1, results, {})
    assert {column.key for column in made.columns} == {"mse", "perplexity"}
    assert all(row.cells.keys() == {"mse"} for row in made.rows)
    assert list(lacking(compared, results, {}, made)) == []


# -- the command ----------------------------------------------------------------------------------


def test_hours_are_estimated_from_a_timed_step_and_nothing_is_trained(tmp_path, capsys):
    command = ["table-1", "table-2", "--scale", "debug", "--estimate", "--out", str(tmp_path / "o")]
    assert main(command) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"reconstruction: \d+ runs of \d+ steps, worth [\d,]+ of VQ-VAE's, which take [\d,]+ ms "
        r"here: \d+\.\d hours",
        first,
    )
    assert second.startswith("classification: ") and last.startswith("together ")
    assert not (tmp_path / "o").exists()


def test_all_at_the_debug_scale(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["all", "--scale", "debug", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    html = (out / "reproduction.html").read_text()
    pages = {path: path.read_text() for path in out.glob("**/*.md")}
    markdown = "".join(pages.values())
    lines = {line["name"]: line for line in read(out / "results.jsonl")}
    for experiment in EXPERIMENTS.values():
        assert (experiment.title in said) == experiment.of_paper
        assert (experiment.title in markdown) == experiment.of_paper
    for name, line in lines.items():
        if line["asks"]["kind"] == "run":
            assert (out / "runs" / name / "config.yaml").is_file()
    shown = {name for name in lines if name in markdown}
    # Every run is on the page but those of the grid and of the lengths that no row is of.
    assert len(shown) > len(lines) / 2
    # Nothing is trained again, and the page is the same to the byte.
    written = (out / "results.jsonl").stat().st_mtime_ns
    assert main(["all", "--scale", "debug", "--out", str(out)]) == 0
    assert (out / "results.jsonl").stat().st_mtime_ns == written
    assert (out / "reproduction.html").read_text() == html
    assert {path: path.read_text() for path in out.glob("**/*.md")} == pages


def test_where_the_levels_differ_at_the_debug_scale(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.delitem(levels.LOOKING, "reconstruction")
    assert main(["levels", "--scale", "debug", "--out", str(out)]) == 0
    assert EXPERIMENTS["levels"].title in capsys.readouterr().out
    page = (out / "codebooks.md").read_text()
    assert "## Where the levels differ" in page
    assert "* Classification, what held-out images above add to the same batch: " in page
    assert page.count("trained on them too: ") == 1
    assert "* Classification, what a smoothed loss above adds to the same loss: " in page
    for content in read(out / "results.jsonl"):
        update = content["asks"]["update"]["init_args"]
        assert bool(update.get("upper_loss")) == ("upper-loss" in content["name"])
        data = content["asks"]["data"]
        assert data["limit"] + data["validation"] == 150
        summary = json.loads((out / "runs" / content["name"] / "summary.json").read_text())
        # Rates are chosen by what the codebook has not been judged on.
        assert content["validation"] != summary["validation"]
        assert any(name.startswith("training_") for name in content["figures"])


def test_pages_of_several_experiments():
    assert [each.name for each in experiments(["codebooks"])] == ["codebooks", "levels"]
    assert [each.name for each in experiments(["levels"])] == ["levels"]
    assert not {"codebooks", "levels"} & {each.name for each in experiments(["all"])}


THREE_RUNS = """
import sys
from pathlib import Path
from reproduction.paper.results import Results
from reproduction.paper.runner import carry_out
from reproduction.paper.work import Place, Run

if __name__ == "__main__":
    out = Path(sys.argv[1])
    runs = [Run("debug", "reconstruction", "digits", "VQ-VAE", 6e-2, 20, s) for s in range(3)]
    place = Place(out / "runs", out / "results.jsonl", accelerator="cpu")
    carry_out(lambda _: runs, Results(place.results), place, jobs=2)
"""


def test_one_row_of_a_table_is_asked_for_by_its_method(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    study = Study(load_scale("cpu"), 1, results, frozenset({"fashion-mnist"}))
    work = wants(experiments(["table-1"]), study, ["VQ-VAE + replace"])(results)
    runs = [getattr(each, "run", each) for each in work]
    methods = {(run.task, run.method) for run in runs if isinstance(run, Run)}
    # The class score is taken with the second.
    assert methods == {
        ("reconstruction", "VQ-VAE + replace"),
        ("classification", "No quantization"),
    }
    with pytest.raises(MqvaeError, match="Did you mean 'VQ-VAE \\+ replace'"):
        wants(experiments(["table-1"]), study, ["VQ-VAE + replaced"])


def test_interrupted_work_goes_on(tmp_path):
    """Two at a time, stopped by a signal: what is done stays, the rest is done the next time."""
    script = tmp_path / "three.py"
    script.write_text(THREE_RUNS)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "done" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert "KeyboardInterrupt" in process.stderr.read()
        assert process.wait(timeout=60) != 0
    done = len(read(tmp_path / "results.jsonl"))
    assert 1 <= done < 3
    again = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stderr
    assert len(read(tmp_path / "results.jsonl")) == 3
    assert f"of {3 - done}]" in again.stderr


def test_what_is_unknown_is_said(capsys):
    assert main(["tabel-1"]) == 2
    assert "did you mean 'table-1'" in capsys.readouterr().err.lower()
    assert main(["table-1", "--seeds", "0"]) == 2
    assert [each.name for each in experiments(["table-3", "table-1"])] == ["table-1", "table-3"]


def test_the_published_page_is_made_of_the_published_results(tmp_path):
    """docs/reproduction.md comes out of the committed results, but for how matplotlib draws."""
    docs = ROOT / "docs"
    arguments = ["all", "--scale", "cpu", "--published", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert main(["codebooks", *arguments[1:]]) == 0
    for name in ("reproduction", "codebooks"):
        for path in [docs / f"{name}.md", *(docs / name).iterdir()]:
            found = tmp_path / path.relative_to(docs)
            assert found.is_file(), path
            assert path.suffix == ".svg" or found.read_bytes() == path.read_bytes(), path


def test_the_paper_has_43_points_each_with_its_file_and_command():
    page = (ROOT / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 44))
    counts = dict.fromkeys(("done", "partly", "not"), 0)
    for _, row in rows:
        _, _, place, command, status = (cell.strip() for cell in row.split("|"))
        assert all((ROOT / file).is_file() for file in re.findall("`([^`]+)`", place)), place
        if command.startswith("`python -m reproduction"):
            experiments(command.strip("`").partition(" --")[0].split()[3:])
        counts[re.match(r"\w+", status)[0]] += 1
    assert "Done: {done}. Partly: {partly}. Not: {not}.".format(**counts) in page


def test_one_line_adds_a_row_to_a_table(tmp_path, monkeypatch):
    added = Method("VQ-VAE + transport, added", "transport")
    monkeypatch.setitem(METHODS, added.name, added)  # a method's own line, where it is a new one
    (table,) = experiments(["table-1"])
    table = dataclasses.replace(table, methods=(*table.methods, added.name))
    study = Study(DEBUG, 1, Results(tmp_path / "results.jsonl"))
    wanted = [work for work in table.wants(study) if isinstance(work, Run)]
    asked = [work for work in wanted if work.method == added.name]
    assert {work.settings().quantizer["class_path"] for work in asked} == {"mqvae.VectorQuantizer"}
    assert all("-transport-" in work.title for work in asked)
