"""The benchmarks: how they time, what they write, and what they conclude."""

import contextlib
import gc
import io
import json
import math
import multiprocessing
import re
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread

import pytest
import torch
from test_price import PRICES
from torch.optim import SGD

import benchmarks as bench
from benchmarks import (
    costs,
    first_steps,
    gpu,
    memory,
    model,
    peers,
    presets,
    processes,
    quantizer,
    resident,
    scaling,
    step,
    timing,
    whole,
)
from benchmarks.__main__ import main
from benchmarks.costs import settings_costs
from benchmarks.step import Case, Size, rule, step_costs
from benchmarks.table import Table, shown
from benchmarks.timing import WARM_UP, alternate, compared
from mqvae import DirectOnly
from mqvae.config import Settings, load_preset
from mqvae.core.rules import Joint, Meta
from mqvae.networks.vqvae import vqvae
from mqvae.tasks import Reconstruction
from mqvae.training import begin, inputs_of

DEVICES = ("cpu", "cuda")
ROOT = Path(__file__).parents[2]
TINY = Size(width=8, dim=4, num_codes=16, batch_size=2, side=8)


# -- timing ----------------------------------------------------------------------------------------


def test_contestants_take_turns():
    calls = []
    alternate({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=10)
    turns = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(turns) == WARM_UP + 10
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert {turn[0] for turn in turns} == {"a", "b", "c"}  # nobody is always first
    assert gc.isenabled() and not gc.get_freeze_count()


def test_ratios_are_of_medians_and_quartiles_of_rounds():
    found = compared({"a": [1.0, 2.0, 4.0, 100.0], "b": [3.0, 4.0, 8.0, 100.0]})
    assert found["a"].ratio == found["a"].low == found["a"].high == 1
    assert found["b"].seconds == 6.0
    assert found["b"].ratio == 6.0 / 3.0
    # Of the ratios 3, 2, 2 and 1, each within a round.
    assert (found["b"].low, found["b"].high) == (1.25, 2.75)


def test_one_round_has_no_spread():
    with pytest.raises(ValueError, match="rounds must be 2 or more, got 1"):
        alternate({"a": lambda: None}, rounds=1)


# -- tables ----------------------------------------------------------------------------------------


def test_cells():
    assert [shown(c) for c in (None, "yes", 3, 1234567, 0.0)] == [
        "",
        "yes",
        "3",
        "1,234,567",
        "0.00",
    ]
    assert [shown(c) for c in (1.17, 0.0123, 12.345, 1234.5, math.inf)] == [
        "1.17", "0.0123", "12.3", "1,234", "inf",
    ]  # fmt: skip


def test_a_table_in_words():
    table = Table("t", "Title", {"size": 3}, [{"a": "x", "b": 1.5}, {"a": "long", "c": 2}], ["N."])
    lines = table.text().splitlines()
    assert lines[:2] == ["Title", "size 3"]
    assert lines[3:] == ["a        b  c", "x     1.50", "long        2", "N."]
    assert "| a | b | c |\n|---|---|---|\n| x | 1.50 |  |\n| long |  | 2 |" in table.markdown()
    assert Table(**json.loads(json.dumps(table.json()))).text() == table.text()


def test_the_page_of_the_documentation_is_made_of_its_figures():
    folder = ROOT / "docs" / "performance"
    for name in bench.PAGES:
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == bench.page(folder, name), (
            "run: python -m benchmarks SECTION --out docs"
        )
    assert sorted(s for _, sections in bench.PAGES.values() for s in sections) == sorted(
        [*bench.SECTIONS, bench.CHECKS]
    )
    measured = {path.stem for path in folder.glob("*.json")}
    assert {"step", "quantizer", "whole", "scaling"} <= measured
    known = {bench.file_of(folder, s, d).stem for s in [*bench.SECTIONS, "checks"] for d in DEVICES}
    assert measured <= known
    for section in measured:
        content = json.loads((folder / f"{section}.json").read_text(encoding="utf-8"))
        assert content["tables"] and content["hardware"]["processor"]
        for picture in content["pictures"]:
            assert (folder / picture).is_file()


# -- steps -----------------------------------------------------------------------------------------


def test_costs_of_any_network_and_any_rule():
    """Each contestant has a network of its own, and trains it."""
    seen = []

    def recording(kind):
        made = rule(kind).make

        def make(network, x):
            seen.append((network, network.quantizer.codebook.weight.detach().clone()))
            return made(network, x)

        return Case(make, at_most=1e-9 if kind is Meta else 1.0)

    def absent(network, x):
        raise peers.NotHere("it is not installed")

    table = step_costs(
        "name",
        {"Joint": recording(Joint), "Meta": recording(Meta), "theirs": Case(absent)},
        lambda: vqvae(num_codes=8, dim=4, width=4),
        torch.rand(2, 1, 8, 8),
        rounds=2,
        conditions={"width": 4},
    )
    (one, start), (other, same) = seen
    assert torch.equal(start, same)
    for network in (one, other):
        assert not torch.equal(network.quantizer.codebook.weight, start)
    assert [row["step"] for row in table.rows] == ["Joint", "Meta"]
    assert [row["held"] for row in table.rows] == ["yes", "no"]
    assert Case(absent).columns(1.0)["held"] is None
    assert table.notes == ["theirs: it is not installed."]
    assert table.conditions == {"width": 4, "rounds": 2}


@pytest.mark.parametrize("label", step.CASES)
def test_every_row_is_a_step(label):
    torch.manual_seed(0)
    network, x = TINY.network(), torch.rand(2, 1, 8, 8)
    network.initialize_codebook(x)
    before = [p.detach().clone() for p in network.parameters()]
    try:
        take = step.CASES[label].make(network, x)
    except peers.NotHere:
        assert label.startswith("Betty")  # not among the dependencies
        return
    take()
    assert any(not torch.equal(p, b) for p, b in zip(network.parameters(), before))
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_double_backward_through_the_usual_loss_finds_the_direct_term_alone(monkeypatch):
    """Which is why the indirect one has rules of its own."""

    def descent(network):
        return {
            "lower": SGD(network.network_parameters(), lr=0.01),
            "upper": SGD(network.codebook_parameters(), lr=1.0),
        }

    monkeypatch.setattr(peers, "optimizers", descent)
    networks = []
    for theirs in (True, False):
        torch.manual_seed(0)
        network, x = TINY.network().double(), torch.rand(2, 1, 8, 8).double()
        network.initialize_codebook(x)
        before = network.quantizer.codebook.weight.detach().clone()
        levels, loss = descent(network), Reconstruction()
        if theirs:
            peers.double_backward(network, x)()
        else:
            Meta(network, loss, **levels, hypergradient=DirectOnly()).step(x, x)
        assert not torch.equal(network.quantizer.codebook.weight, before)
        networks.append(network)
    for one, other in zip(networks[0].parameters(), networks[1].parameters()):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# -- steps of runs ---------------------------------------------------------------------------------


def tiny(method, delta=None):
    """A method's settings at the smallest size."""
    quantizer = {"init_args": {"num_codes": 8, "dim": 4}}
    sizes = {
        "data": {"name": "digits", "batch_size": 4},
        "network": {"init_args": {"width": 4, "residual_blocks": 1}},
        "quantizer": quantizer,
        "trainer": {"accelerator": "cpu"},
    }
    return Settings.of(load_preset(f"methods/{method}", sizes, delta or {}))


TINY_CLASSIFIER = {
    "network": {"class_path": "mqvae.ResNet18", "init_args": {"base_width": 2}},
    "task": {"class_path": "mqvae.Classification"},
}


@pytest.mark.parametrize("task", [{}, TINY_CLASSIFIER], ids=["reconstruction", "classification"])
def test_costs_of_runs(task, monkeypatch):
    loaded = []

    def load_splits(settings):
        loaded.append(settings)
        return costs_load_splits(settings)

    costs_load_splits = costs.load_splits
    monkeypatch.setattr(costs, "load_splits", load_splits)
    methods = {"VQ-VAE": tiny("vq-vae", task), "MQ-VAE": tiny("mq-vae", task)}
    before = torch.get_rng_state()
    table = settings_costs("costs", methods, rounds=2, conditions={"scale": "tiny"})
    assert torch.equal(torch.get_rng_state(), before)
    assert len(loaded) == 1
    assert table.title == "One step of a run, relative to VQ-VAE on the same images"
    assert table.conditions == {"scale": "tiny", "rounds": 2}
    assert table.columns() == ["step", "ms", "ratio", "lower quartile", "upper quartile"]
    assert [row["step"] for row in table.rows] == ["VQ-VAE", "MQ-VAE"]
    assert table.rows[0]["ratio"] == table.rows[0]["upper quartile"] == 1.0
    assert table.rows[1]["ratio"] == table.rows[1]["ms"] / table.rows[0]["ms"] != 1.0


def test_steps_of_runs_are_those_of_the_runs(monkeypatch, tmp_path):
    """Each has parts of its own, and does to them what the first step of its run does."""
    made, seen = [], []
    assemble, alternate = costs.assemble, timing.alternate

    def recording(*arguments):
        parts, settings = assemble(*arguments)
        made.append(parts)
        return parts, settings

    def only_the_second(steps, **options):
        first, second = (dict(parts.network.state_dict()) for parts in made)
        start = {name: value.clone() for name, value in first.items()}
        steps["two"]()
        assert all(torch.equal(value, start[name]) for name, value in first.items())
        seen.append({name: value.clone() for name, value in second.items()})
        return alternate(steps, **options)

    monkeypatch.setattr(costs, "assemble", recording)
    monkeypatch.setattr(timing, "alternate", only_the_second)
    settings = tiny("mq-vae", {"steps": 1, "freeze": ["decoder"]})
    settings_costs("", {"one": settings, "two": settings}, rounds=2, conditions={})
    (stepped,) = seen
    run = begin(settings, tmp_path / "run")
    start = {name: value.clone() for name, value in run.parts.network.state_dict().items()}
    with contextlib.redirect_stderr(io.StringIO()):
        run.fit()
    ended = run.parts.network.state_dict()
    assert stepped.keys() == ended.keys()
    assert all(torch.equal(stepped[name], value) for name, value in ended.items())
    changed = {name.split(".")[0] for name, value in ended.items() if (value != start[name]).any()}
    assert changed == {"encoder", "quantizer"}


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        ({"data": {"batch_size": 5}}, "data of other is .*batch_size=5.*; make them the same"),
        ({"trainer": {"accelerator": "auto"}}, "trainer.accelerator of other is auto, that of one"),
        ({"trainer": {"devices": 2}}, "other: steps are timed in one process.*set it to 1"),
    ],
)
def test_steps_that_cannot_be_compared(delta, words):
    methods = {"one": tiny("vq-vae"), "other": tiny("vq-vae", delta)}
    with pytest.raises(ValueError, match=words):
        settings_costs("", methods, rounds=2, conditions={})


# -- the others ------------------------------------------------------------------------------------


def test_the_quantizers_do_the_same():
    """Codes, codewords and the gradient of embeddings, ours and the peer's."""
    z_e, table = quantizer.inputs(200, 32, 8, "cpu")
    found = {}
    for name, make in quantizer.MAKERS.items():
        _, quantize, codebook = make(table)
        torch.manual_seed(1)
        found[name] = quantizer.training(quantize, z_e, codebook)()
    ours, theirs = found.values()
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0])


def test_the_quantizers_table(monkeypatch):
    monkeypatch.setattr(quantizer, "SHAPES", {(64, 16, 4): 2, (64, 32, 4): 2})
    monkeypatch.setattr(quantizer, "PRODUCT_WHOLE", 64 * 16 * 4)
    monkeypatch.setattr(quantizer, "working_memory", lambda *_: 1.5)
    (table,) = quantizer.run(device="cpu", rounds=None, only="")
    assert [row["what"] for row in table.rows] == [
        "matrix product",
        "mqvae, training",
        "mqvae, eval",
        "vector-quantize-pytorch, training",
        "vector-quantize-pytorch, eval",
        "matrix product",
        "mqvae, training",
        "mqvae, eval",
    ]
    assert [row["at most"] for row in table.rows[:4]] == [None, 2.0, 1.5, None]
    assert any("holds N × K distances" in note for note in table.notes)


def test_scaling(monkeypatch):
    monkeypatch.setattr(scaling, "BASE", {"N": 64, "K": 16, "D": 4})
    monkeypatch.setattr(scaling, "SWEEPS", {"N": (8, 16), "D": (4,)})
    monkeypatch.setattr(scaling, "STEP_SWEEPS", {"width": (4, 8)})
    monkeypatch.setattr(scaling, "DEMO", TINY)
    one, other = scaling.run(device="cpu", rounds=2)
    assert [(row["swept"], row["value"]) for row in one.rows] == [("N", 8), ("N", 16), ("D", 4)]
    assert [row["value"] for row in other.rows] == [4, 8]
    assert all(row["training, ms"] > 0 for row in one.rows)
    assert all(row["Meta(Amortized), kept, ms"] > 0 for row in other.rows)


def test_a_whole_run(monkeypatch, tmp_path):
    preset = tmp_path / "small.yaml"
    preset.write_text("{base: digits-tiny, network: {init_args: {width: 8}}}", encoding="utf-8")
    monkeypatch.setattr(whole, "PRESET", str(preset))
    monkeypatch.setattr(whole, "UPDATES", 10)
    monkeypatch.setattr(whole, "SETTLED", 2)
    monkeypatch.setattr(whole, "IMAGES", 64)
    monkeypatch.setattr(whole, "start_seconds", lambda device: 2.0)
    (table,) = whole.run(device="cpu", rounds=2, only="")
    figures = {row["what"]: row["value"] for row in table.rows}
    assert figures["from `mqvae train` to the first update"] == 2.0
    for name in ("Joint", "Meta"):
        bare = figures[f"{name}: updates per second, bare step"]
        run = figures[f"{name}: updates per second, whole run"]
        assert 0 < run < bare
        share = figures[f"{name}: share of the loop"]
        assert share == pytest.approx(100 * (1 - run / bare))
    assert figures["encoding: codes per second"] > figures["evaluation: images per second"]


# -- of any preset ---------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A preset of a test's own, with a codebook map and a rule that is none of those measured."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "{base: digits-tiny, data: {name: photos, side: 8, channels: 1, batch_size: 3}, network: "
        "{init_args: {width: 4, residual_blocks: 1}}, quantizer: {init_args: {num_codes: 8, "
        "dim: 4}}, update: {class_path: mqvae.MetaBoth}, trainer: {devices: 2}}",
        encoding="utf-8",
    )
    return str(path)


@pytest.mark.parametrize("rule", presets.RULES)
def test_steps_of_a_preset_by_every_rule_need_no_data(small, rule):
    settings = presets.settings_of(small, rule, "cpu")
    splits, settings = presets.on_noise(settings)
    assert splits.train.pixels.shape == (3, 1, 8, 8) and splits.train.pixels.float().std() > 50
    assert rule.startswith(settings.update["class_path"].removeprefix("mqvae."))
    presets.step_on_noise(small, rule, "cpu")()


def test_the_form_of_the_images_is_looked_up_where_it_is_open(small):
    settings = presets.settings_of("digits-tiny", "Joint", "cpu")
    splits, found = presets.on_noise(settings)
    assert splits.train.shape == (1, 16, 16) and found.data.classes == 10
    with pytest.raises(ValueError, match="there is no preset 'digitstiny'"):
        presets.settings_of("digitstiny", "Joint", "cpu")


def test_memory_of_rules_is_compared(monkeypatch):
    peaks = {
        "Joint": [(300.0, 100.0), (310.0, 100.0), (900.0, 100.0)],
        "Meta(Exact), kept": [(387.5, 100.0), (387.5, 100.0), (0.0, 0.0)],
        "Meta(FiniteDifference), kept": [(388.0, 100.0)] * 3,
    }
    monkeypatch.setattr(memory, "MIB", 1)
    monkeypatch.setattr(memory, "RULES", peaks)
    monkeypatch.setattr(memory, "in_a_process", lambda preset, rule, device: peaks[rule].pop())
    (table,) = memory.run(device="cpu", rounds=None, only="Meta")
    assert [row["peak, MiB"] for row in table.rows] == [310.0, 387.5, 388.0]
    assert [row.get("held") for row in table.rows] == [None, "yes", "no"]
    assert [row["ratio"] for row in table.rows] == [1.0, 1.25, 388 / 310]
    assert [row["beyond the program, MiB"] for row in table.rows] == [210.0, 287.5, 288.0]
    assert table.conditions["preset"] == presets.PRESET
    assert memory.run(device="cpu", rounds=1, only="nothing") == []


def test_memory_is_that_of_a_process_of_its_own(small, monkeypatch):
    peak, program = memory.in_a_process(small, "Meta(FiniteDifference), undone", "cpu")
    assert 50e6 < program < peak < 4e9
    for code, stderr, words in (
        (1, "Traceback\nOSError: full\n", "OSError: full"),
        (-9, "", "signal 9"),
    ):
        done = CompletedProcess([], code, "", stderr)
        monkeypatch.setattr(memory.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(RuntimeError, match=f"Joint of it could not be measured: .*{words}"):
            memory.in_a_process("it", "Joint", "cpu")


def test_the_peak_is_seen():
    resident.forget()
    before = resident.most_resident()
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    del held
    assert 60 * 2**20 < resident.most_resident() - before < 200 * 2**20
    resident.forget()
    assert abs(resident.most_resident() - resident.resident()) < 8 * 2**20


def test_processes(small):
    """Rules and DistributedDataParallel, counted and timed at one process and at two."""
    measured, predicted = processes.run(device="cpu", rounds=2, only="Finite", preset=small)
    names = [processes.PLAIN, "Joint", *(rule for rule in presets.RULES if "Finite" in rule)]
    assert [row["step"] for row in measured.rows] == names
    plain, joint, kept, undone = measured.rows
    assert [row["reductions"] for row in (joint, kept, undone)] == [1, 3, 4]
    assert joint["MB sent"] == plain["MB sent"] and joint["of plain's"] == 1
    network = presets.settings_of(small, "Joint", "cpu")
    parts = sizes(*presets.on_noise(network))
    assert joint["MB sent"] == 4e-6 * sum(parts.values())
    assert kept["MB sent"] == 4e-6 * (2 * parts["φ"] + parts["θ"] + 2 * parts["C"])
    assert undone["MB sent"] == 4e-6 * (3 * parts["φ"] + 2 * parts["θ"] + 2 * parts["C"])
    assert all(row["efficiency"] > 0 for row in measured.rows)
    assert measured.conditions["images a process"] == 3
    operations = {row["step"]: row["GFLOP an image"] for row in predicted.rows}
    assert operations[processes.PLAIN] == operations["Joint"]
    assert 1.6 < operations["Meta(FiniteDifference), kept"] / operations["Joint"] < 2.2
    assert 2.4 < operations["Meta(FiniteDifference), undone"] / operations["Joint"] < 3
    assert len(predicted.rows) == len(model.CLUSTERS) * len(names)


def sizes(splits, settings):
    """Numbers in encoder, decoder and codebook."""
    components = settings.components()
    network = components.network.build(inputs_of(settings.data), components.quantizer)
    return {
        "φ": sum(p.numel() for p in network.encoder_parameters()),
        "θ": sum(p.numel() for p in network.decoder_parameters()),
        "C": sum(p.numel() for p in network.codebook_parameters()),
    }


def test_a_process_that_fails_says_why():
    here, there = multiprocessing.Pipe()
    worker = Thread(target=processes.work, args=(there, 0, 1, "nothing", ""))
    worker.start()
    group = processes.Group([here])
    with pytest.raises(RuntimeError, match=r"Joint could not .*MqvaeError: there is no preset"):
        group.ask("step", "Joint")
    here.send(None)
    worker.join(10)
    assert not worker.is_alive()
    there.close()
    with pytest.raises(RuntimeError, match="a process has ended"):
        group.ask("step", "Joint")


def test_the_model_of_many_gpus():
    cluster = model.Cluster(gpus=4, bandwidth=1e9, latency=1e-3)
    assert cluster.seconds(2e9, 3) == pytest.approx(2 * 3 / 4 * 2 + 3e-3)
    count = model.Count(flops=model.RATE / 100, sent=int(2e9), reductions=3)  # 10 ms an image
    assert model.efficiency(count, 100, cluster) == pytest.approx(1 / (1 + 3.003))
    # Behind the backward pass, two thirds of a second, it is that much less.
    hidden = model.Count(count.flops, count.sent, 3, hidden=True)
    assert model.efficiency(hidden, 100, cluster) == pytest.approx(1 / (1 + 3.003 - 2 / 3))
    assert model.efficiency(hidden, 1000, cluster) == 1
    for one in (count, hidden):
        enough = model.images_for(0.9, one, cluster)
        assert model.efficiency(one, enough, cluster) == pytest.approx(0.9)


# A step of the VQ-GAN f16 at 256 × 256 with `Adversarial`: operations an image, bytes, reductions.
VQGAN = {
    processes.PLAIN: (1344725843968, 298666800, 31),
    "Joint": (1344725843968, 298666800, 21),
    "Meta(DirectOnly), kept": (1483189256192, 298666800, 22),
    "Meta(Amortized), kept": (1483189256192, 299191088, 22),
    "Meta(FiniteDifference), kept": (2538108223488, 416434000, 30),
    "Meta(FiniteDifference), undone": (3706877378560, 703485308, 38),
    "Meta(Exact), kept": (3430470647808, 586284384, 38),
}


def rows_of_the_page_of_processes():
    """The table of the model in docs/processes-cost.md."""
    lines = [
        f"| step | GFLOP an image | MB | reductions | {' | '.join(model.CLUSTERS)} |",
        "|---" * (4 + len(model.CLUSTERS)) + "|",
    ]
    for name, (flops, sent, reductions) in VQGAN.items():
        count = model.Count(flops, sent, reductions, hidden=name == processes.PLAIN)
        cells = [name, f"{flops / 1e9:,.0f}", f"{sent / 1e6:.0f}", str(reductions)]
        for cluster in model.CLUSTERS.values():
            images = math.ceil(model.images_for(0.9, count, cluster))
            cells.append(f"{model.efficiency(count, 8, cluster):.2f}; {images}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def test_the_page_of_processes_has_the_models_figures():
    page = (ROOT / "docs" / "processes-cost.md").read_text(encoding="utf-8")
    assert "\n".join(rows_of_the_page_of_processes()) in page


@pytest.mark.parametrize("name", [n for n in PRICES if n in step.CASES and step.CASES[n].predicted])
def test_the_prediction_is_what_is_counted(name):
    """A backward pass of the encoder is two forward ones; Joint has six of either half's."""
    encoder, encoder_back, *decoder, _ = PRICES[name][2]
    relative = (encoder + 2 * encoder_back + sum(decoder)) / 6
    assert step.CASES[name].predicted == pytest.approx(relative, abs=0.005)


def test_the_working_memory_of_the_quantizer_is_bounded():
    """N × K distances alone would be 600 MiB; a fresh process measures itself."""
    for what in ("training", "eval"):
        found = quantizer.working_memory(f"mqvae, {what}", (20_000, 8192, 16), "cpu")
        assert found is None or found < 64


# -- the command -----------------------------------------------------------------------------------


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step, "DEMO", TINY)
    monkeypatch.setattr(step, "PAPER", TINY)
    out = tmp_path / "out"
    assert main(["step", "--out", str(out), "--rounds", "2", "--only", "kept"]) == 0
    printed = capsys.readouterr().out
    assert "Meta(Amortized), kept" in printed and str(out / "performance.md") in printed
    text = (out / "performance.md").read_text(encoding="utf-8")
    assert "`python -m benchmarks step --rounds 2 --only 'kept'`" in text
    assert "![step-demo.png](performance/step-demo.png)" in text
    content = json.loads((out / "performance" / "step.json").read_text(encoding="utf-8"))
    assert [t["name"] for t in content["tables"]] == ["step-demo", "step-paper", "step-methods"]
    assert content["hardware"]["torch"] == torch.__version__
    assert (out / "performance" / "step-paper.png").stat().st_size > 1000


# -- the first steps of a run ----------------------------------------------------------------------


def test_the_perplexity_of_the_first_steps(capsys):
    tiny = ["digits-tiny", "--method", "recommended", "--network.width", "8"]
    tiny += ["--warm_start.unquantized", "0.01", "--trainer.accelerator", "cpu"]
    first_steps.main(["6", *tiny])
    lowest, some = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"lowest after step 50: \d+ of 64 codes, at step [456]", lowest)
    assert some == ""  # tens alone, of which there is none


# -- all of it on a GPU, here on the CPU -----------------------------------------------------------


def test_the_command_of_a_gpu_at_a_tiny_size(monkeypatch, tmp_path):
    monkeypatch.setattr(step, "DEMO", TINY)
    monkeypatch.setattr(step, "PAPER", TINY)
    monkeypatch.setattr(gpu, "TESTS", ("tests/test_cuda.py::test_batches_are_the_same",))
    monkeypatch.chdir(tmp_path)
    tiny = ["--accelerator", "cpu", "--scale", "debug", "--results", "found.jsonl"]
    tiny += ["--sections", "step", "--rounds", "2", "--only", "DirectOnly), kept", "--out", "out"]
    assert main(["gpu", *tiny, "--minutes", "0.03"]) == 0
    page = Path("out/performance.md").read_text()
    assert "| Meta(DirectOnly), kept |" in page and "`python -m benchmarks gpu`, " in page
    tests, table = json.loads(Path("out/performance/checks.json").read_text())["tables"][0]["rows"]
    assert (tests["done"], tests["failed"], tests["skipped"]) == (1, 0, 0)
    assert table["failed"] == 0 and table["done"] < 5  # of some twenty, when the time was up
    # What was measured on this machine is not measured again.
    assert gpu.known(Path("out/performance/step.json"), gpu.hardware("cpu"))
    assert not gpu.known(Path("out/performance/step.json"), {"processor": "another"})
    assert not gpu.known(Path("out/performance/step-cuda.json"), gpu.hardware("cpu"))


def test_results_of_a_gpu_lie_beside_those_of_the_cpu(tmp_path):
    table = Table("step-demo", "Steps", {"width": 1}, [{"step": "Joint", "ms": 1.0}])
    content = {"command": "c", "date": "d", "hardware": {"device": "H"}, "pictures": []}
    for name in ("step", "step-cuda"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "tables": [table.json()]}))
    page = bench.page(tmp_path)
    assert "## Step: " in page and "## Step on a GPU: " in page
    assert "Missing here: quantizer, whole, scaling, memory." in page
    for name in ("quantizer", "whole", "scaling", "memory"):
        (tmp_path / f"{name}-cuda.json").write_text(json.dumps({**content, "tables": []}))
    assert "Not measured" not in bench.page(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stepp"], "there is no section 'stepp'. Did you mean 'step'?"),
        (["step", "--rounds", "1"], "--rounds must be 2 or more, got 1"),
        (["step", "--accelerator", "tpu"], "invalid choice: 'tpu'"),
        (["step", "--out", __file__], "is a file: --out takes a folder"),
        (["quantizer", "--only", "nothing like it"], "no row's name holds 'nothing like it'"),
        (["memory", "--only", "nothing like it"], "no row's name holds 'nothing like it'"),
        (
            ["processes", "--accelerator", "cuda"],
            "'processes' is measured on CPUs: leave out --accelerator",
        ),
        (["step", "--preset", "paper"], "has sizes of its own: leave out --preset"),
        (["memory", "--preset", "papre"], "there is no preset 'papre'. Did you mean 'paper'?"),
        (["scaling", "--only", "x"], "the section 'scaling' is one whole: leave out --only"),
    ],
)
def test_bad_input(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as leaving:  # argparse's own
        code = leaving.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
