"""mqvae.training: what a run leaves, stopping and resuming, what is said when training fails."""

import csv
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small import settings_of

from mqvae.config import Settings, Trainer
from mqvae.core.rules import Update
from mqvae.errors import MqvaeError
from mqvae.metrics import evaluate
from mqvae.networks.vqvae import VQVAE
from mqvae.progress import Progress, watched
from mqvae.runs import COLUMNS, Run
from mqvae.tasks import Reconstruction
from mqvae.tokenizer import Tokenizer
from mqvae.training import (
    Interrupted,
    NotFinite,
    OutOfMemory,
    Training,
    assembly,
    begin,
    ema,
    logs,
    runs,
    warmup_cosine,
)
from mqvae.training import resume as go_on
from mqvae.training.memory import is_out_of_memory, what_to_lower

# 5 steps an epoch.
SMALL = {
    "name": "small",
    "steps": 12,
    "data": {"name": "digits", "side": 8, "batch_size": 30, "limit": 150},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 5},
}
EVALUATION = "evaluations/test-last.json"
RULES = {
    "joint": {"class_path": "mqvae.Joint"},
    "alternated": {"class_path": "mqvae.Alternated"},
    "meta": {"class_path": "mqvae.Meta"},
    "meta-kept-exact": {
        "class_path": "mqvae.Meta",
        "init_args": {
            "look_ahead": {"class_path": "mqvae.Kept"},
            "hypergradient": {"class_path": "mqvae.Exact"},
        },
    },
}


def settings(delta=None, *, rule="joint"):
    return settings_of("digits-tiny", SMALL, {"update": RULES[rule]}, over=(delta or {},))


def weights(folder, name="last"):
    return (folder / "checkpoints" / name / "model.safetensors").read_bytes()


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def all_but_time(folder):
    timed = {"seconds", "data_wait"}
    return [{k: row[k] for k in row.keys() - timed} for row in rows(folder)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was left alone, for every rule."""
    made = {}

    def run(rule):
        if rule not in made:
            made[rule] = tmp_path_factory.mktemp("finished") / rule
            torch.manual_seed(99)  # the seed of the settings is all that counts
            begin(settings(rule=rule), made[rule]).fit()
        return made[rule]

    return run


# -- the average of the weights --------------------------------------------------------------------


def test_the_weights_average_has_the_decay_that_help_and_page_say():
    """After n steps min(decay, (1 + n) / (10 + n)): no plain mean, which is 21% off after 30."""
    weight = torch.nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(weight, multi_avg_fn=ema.towards(0.99))
    values = torch.rand(30, dtype=torch.float64).tolist()
    expected = values[0]
    for n, value in enumerate(values):
        with torch.no_grad():
            weight.weight.fill_(value)
        average.update_parameters(weight)
        if n:
            decay = min(0.99, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert average.module.weight.item() != pytest.approx(np.mean(values), rel=1e-2)
    page = Path(__file__).parents[2] / "docs" / "training-settings.md"
    for text in (page.read_text(encoding="utf-8"), Trainer.__doc__):
        assert "(1 + n) / (10 + n)" in text and "plain mean" not in text


# -- what a run leaves -----------------------------------------------------------------------------


def test_files_of_a_run(finished):
    folder = finished("meta")
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    weights = ("model.safetensors", "state.json")
    assert files - events == {
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "images.npz",
        "evaluations/test-last.json",
        "evaluations/test-last-code_counts.csv",
        "samples/test-last/originals.png",
        "samples/test-last/reconstructions.png",
        *(f"checkpoints/{name}/{part}" for name in ("best", "best.previous") for part in weights),
        *(
            f"checkpoints/{name}/{part}"
            for name in ("last", "last.previous")
            for part in (*weights, "training.safetensors")
        ),
    }


def test_best_is_the_weights_alone(finished):
    best = Run(finished("meta")).load("best")
    assert best.training == {} and best.average is None
    assert not {"optimizers", "schedules", "batches"} & best.state.keys()
    assert best.state["step"] in (5, 10, 12)


def test_nothing_in_a_run_needs_unpickling(finished):
    folder = finished("meta")
    for path in (p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                assert all(file[name].dtype != object for name in file.files)
            continue
        assert not content.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
        match path.suffix:
            case ".safetensors":
                with safe_open(path, "pt") as file:
                    assert list(file.keys())
            case ".json":
                assert json.loads(content)
            case ".yaml":
                assert yaml.safe_load(content)
            case ".csv":
                table = list(csv.reader(content.decode().splitlines()))
                assert {len(line) for line in table} == {len(table[0])}
            case ".png":
                with Image.open(path) as image:
                    image.load()
            case _:
                assert path.parent.name == "tensorboard"


@pytest.mark.parametrize("rule", ["joint", "meta"])
def test_metrics(finished, rule):
    found = rows(finished(rule))
    assert tuple(found[0]) == COLUMNS
    assert [int(row["step"]) for row in found] == [2, 4, 6, 8, 10, 12]
    seconds = [float(row["seconds"]) for row in found]
    assert seconds[0] > 0
    assert seconds == sorted(set(seconds))
    for row in found:
        for name in ("task", "commitment", "codebook", "network_lr", "codebook_lr"):
            assert float(row[name]) > 0
        assert 1 <= float(row["perplexity"]) <= 16
        assert 1 / 16 <= float(row["usage"]) <= 1
        for name in ("direct_norm", "indirect_norm", "cosine"):
            assert (row[name] != "") == (rule == "meta")


def test_the_last_step_is_logged_whatever_the_interval(tmp_path):
    delta = {"steps": 5, "trainer": {"log_every": 3}}
    begin(settings(delta), tmp_path / "run").fit()
    assert [row["step"] for row in rows(tmp_path / "run")] == ["3", "5"]


def test_summary(finished):
    folder = finished("meta")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 12
    assert (summary["name"], summary["rule"], summary["seed"]) == ("small", "Meta", 0)
    assert summary["dataset"] == "digits"
    assert "scikit-learn" in summary["source"]
    assert summary["device"].startswith("cpu")
    assert set(summary["versions"]) >= {"mqvae", "torch", "python"}
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["protocol"]["images"] == 297
    assert summary["warnings"] == []
    assert summary["wall_seconds"] == pytest.approx(float(rows(folder)[-1]["seconds"]), rel=1e-6)
    assert 0 < summary["seconds_per_step"] < summary["wall_seconds"]
    # The figures are those of the weights that were saved.
    tokenizer = Tokenizer.from_run(folder, device="cpu")
    images = tokenizer.find_images("test")
    measured = evaluate(tokenizer.network, tokenizer.task, images)
    for name, value in measured.metrics.items():
        assert summary[name] == pytest.approx(value, rel=1e-6), name
    assert summary["parameters"] == sum(p.numel() for p in tokenizer.network.parameters())


def test_code_counts(finished):
    with (finished("meta") / "evaluations" / "test-last-code_counts.csv").open() as file:
        table = list(csv.DictReader(file))
    codes = [int(r["code"]) for r in table]
    assert {r["group"] for r in table} == {"0"}
    assert codes == sorted(set(codes)) and set(codes) <= set(range(16))
    # Codes that were never chosen have no row.
    assert all(int(r["count"]) > 0 for r in table)
    assert sum(int(r["count"]) for r in table) == 297 * 2 * 2
    summary = json.loads((finished("meta") / "summary.json").read_text())
    told = {"num_codes": 16, "groups": 1, "used": len(table)}
    assert summary["codes"].items() >= told.items()
    assert summary["usage"] == len(table) / 16


def test_summary_is_of_what_the_evaluation_of_the_last_checkpoint_says(finished):
    folder = finished("meta")
    summary, evaluation = (
        json.loads((folder / name).read_text()) for name in ("summary.json", EVALUATION)
    )
    assert summary["evaluation"] == EVALUATION
    for key in (*summary["figures"], "figures", "protocol", "codes", "pictures", "versions"):
        assert summary[key] == evaluation[key], key
    assert (evaluation["split"], evaluation["checkpoint"], evaluation["step"]) == (
        "test",
        "last",
        12,
    )
    assert evaluation["weights"] == Tokenizer.from_run(folder, device="cpu").model


def test_samples(finished):
    folder = finished("meta")
    tokenizer = Tokenizer.from_run(folder, device="cpu")
    x = tokenizer.find_images("test").pixels[:16] / 255
    shown = {"originals": x, "reconstructions": tokenizer.network(x).output.clamp(0, 1)}
    for name, images in shown.items():
        with Image.open(folder / "samples" / "test-last" / f"{name}.png") as picture:
            strip = np.asarray(picture.convert("L"))
        assert strip.shape == (8, 16 * 8 + 15 * 2)
        for i, image in enumerate(images):
            expected = image[0].detach().numpy() * 255
            assert abs(strip[:, i * 10 : i * 10 + 8] - expected).max() <= 1


def test_a_run_is_repeated_from_its_config_alone(finished, tmp_path):
    config = Run(finished("meta")).config
    assert config["data"]["init_args"]["channels"] == 1
    assert config["update"]["init_args"]["hypergradient"]["class_path"] == "mqvae.FiniteDifference"
    torch.manual_seed(5)
    begin(Settings.of(config), tmp_path / "again").fit()
    assert weights(tmp_path / "again") == weights(finished("meta"))
    assert all_but_time(tmp_path / "again") == all_but_time(finished("meta"))
    assert Run(tmp_path / "again").config == config


def test_another_seed_is_another_run(finished, tmp_path):
    begin(settings({"seed": 1}), tmp_path / "run").fit()
    assert weights(tmp_path / "run") != weights(finished("joint"))


def test_a_folder_of_images_is_found_from_anywhere(tmp_path, monkeypatch):
    images = tmp_path / "pictures"
    images.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (10, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i:02}.jpg")
    monkeypatch.chdir(tmp_path)
    delta = {"data": {"name": "pictures", "batch_size": 5, "limit": None}, "steps": 2}
    training = begin(settings(delta), "run")
    assert training.run.config["data"]["init_args"]["name"] == str(images)
    assert training.run.config["data"]["init_args"]["channels"] == 3
    training.fit()
    monkeypatch.chdir("/")
    tokenizer = Tokenizer.from_run(tmp_path / "run", device="cpu")
    assert len(tokenizer.find_images("test")) == len(training.splits.test)


def test_validation_leaves_training_alone(finished, tmp_path):
    # `best` is looked for at every checkpoint: more of them must not change the weights.
    begin(settings({"trainer": {"checkpoint_every": 2}}), tmp_path / "run").fit()
    assert weights(tmp_path / "run") == weights(finished("joint"))


@pytest.mark.parametrize("stopped", [False, True])
def test_best_is_the_best_of_the_checkpoints(tmp_path, monkeypatch, stopped):
    values = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(Training, "validation_loss", lambda self: next(values))
    if stopped:
        stop_after(monkeypatch, 11, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            begin(settings(), tmp_path / "run").fit()
        resume(tmp_path / "run").fit()
    else:
        begin(settings(), tmp_path / "run").fit()
    run = Run(tmp_path / "run")
    assert run.load("best").state["step"] == 10
    assert run.load("last").state["step"] == 12
    assert run.load("last").state["best"] == 0.3
    assert weights(run.folder, "best") != weights(run.folder)


# -- learning rates --------------------------------------------------------------------------------


def test_rates_rise_linearly_and_fall_as_a_cosine(tmp_path):
    delta = {
        "steps": 40,
        "data": {"batch_size": 16},
        "optimizer": {"network_lr": 2e-3, "codebook_lr": 5e-2, "warmup": 0.1},
        "trainer": {"log_every": 1, "checkpoint_every": 1000},
    }
    used = []

    class Watched(Update):
        def step(self, x, y, **options):
            used.append([o.param_groups[0]["lr"] for o in (self.lower, self.upper)])
            return super().step(x, y, **options)

    training = begin(settings(delta), tmp_path / "run")
    training.parts.update.__class__ = Watched
    training.fit()
    expected = [1 / 4, 2 / 4, 3 / 4, 1.0]
    expected += [(1 + math.cos(math.pi * i / 36)) / 2 for i in range(36)]
    found = rows(tmp_path / "run")
    for name, peak, column in (("network_lr", 2e-3, 0), ("codebook_lr", 5e-2, 1)):
        logged = [float(row[name]) for row in found]
        np.testing.assert_allclose(logged, peak * np.array(expected), rtol=1e-6)
        # What the row says is what the step used.
        np.testing.assert_allclose(logged, [rates[column] for rates in used], rtol=1e-6)
        assert logged[-1] < 0.003 * peak


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (4, 0.0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (4, 1.0, [0.25, 0.5, 0.75, 1]),
        (4, 0.5, [0.5, 1, 1, 0.5]),
        (1, 0.0, [1]),
        (1, 0.1, [1]),
        (1, 1.0, [1]),
    ],
)
def test_factors(steps, warmup, expected):
    factor = warmup_cosine(steps, warmup)
    np.testing.assert_allclose([factor(i) for i in range(steps)], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("linear", [1, 1, 0.75, 0.5, 0.25]),
        ("constant", [1, 1, 1, 1, 1]),
    ],
)
def test_a_run_follows_the_schedule_it_is_given(schedule, expected, tmp_path):
    delta = {"steps": 5, "optimizer": {"schedule": schedule, "warmup": 0.2, "network_lr": 2e-3}}
    training = begin(settings(delta), tmp_path / "run")
    found = []
    for _ in expected:
        found.append(training.parts.levels["lower"].param_groups[0]["lr"])
        training.parts.levels["lower"].step()
        training.parts.schedules["lower"].step()
    np.testing.assert_allclose(found, 2e-3 * np.array(expected), atol=1e-12)


# -- the codebook to start from --------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_the_codebook_starts_as_k_means_of_embeddings(tmp_path, groups):
    from sklearn.cluster import KMeans

    delta = {
        "network": {"width": 8},
        "quantizer": {"init_args": {"groups": groups, "num_codes": 24}},
    }
    training = begin(settings(delta), tmp_path / "run")
    network = training.parts.network
    with torch.no_grad():
        z_e = network.embed(training.splits.train.take(range(len(training.splits.train)))[0] / 255)
        quantized = network.quantizer(z_e)
    codes = quantized.codes.reshape(-1, groups)
    books = network.quantizer.codebook().detach().chunk(groups)
    for g, part in enumerate(z_e.reshape(-1, groups, 4 // groups).unbind(1)):
        assert len(codes[:, g].unique()) == 24
        reached = (part - books[g][codes[:, g]]).square().sum().item()
        reference = KMeans(24, n_init=1, random_state=0).fit(part.numpy()).inertia_
        chance = torch.cdist(part, part[torch.randperm(len(part))[:24]]).amin(1).square().sum()
        # It has seen a part of the images only.
        assert reached < 1.25 * reference < chance
    # It is what the first checkpoint holds.
    first = Run(tmp_path / "run").load("last")
    assert first.state["step"] == 0
    for name, tensor in network.state_dict().items():
        assert torch.equal(first.model[name], tensor)


def test_codes_spread_from_the_first_row_on(finished):
    assert float(rows(finished("joint"))[0]["usage"]) > 0.9
    assert float(rows(finished("joint"))[0]["perplexity"]) > 6


# -- stopping and going on -------------------------------------------------------------------------


def stop_after(monkeypatch, step, how):
    """Something that happens when that step is done."""
    advance = Progress.advance

    def and_stop(self, at, result):
        advance(self, at, result)
        if at == step:
            how()

    monkeypatch.setattr(Progress, "advance", and_stop)


def resume(folder):
    torch.manual_seed(1234)
    torch.rand(7)
    run = Run(folder)
    return go_on(run)


def same_run(folder, other):
    assert weights(folder) == weights(other)
    assert weights(folder, "best") == weights(other, "best")
    assert all_but_time(folder) == all_but_time(other)
    seconds = [float(row["seconds"]) for row in rows(folder)]
    assert seconds == sorted(set(seconds))
    timed = {"data_wait_share", "seconds_per_step", "wall_seconds"}
    one, two = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    assert one.keys() == two.keys()
    assert {k: one[k] for k in one.keys() - timed} == {k: two[k] for k in two.keys() - timed}


# In an epoch, between checkpoints and rows; at all of their ends; at the run's. Every kind of
# rule, quantizer and optimizer is in test_presets.py.
@pytest.mark.parametrize(
    ("rule", "step"), [("joint", 1), ("joint", 10), ("joint", 12), ("meta-kept-exact", 7)]
)
def test_stopped_and_gone_on_with_is_as_if_never_stopped(
    finished, tmp_path, monkeypatch, rule, step
):
    folder = tmp_path / "run"
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        number = (signal.SIGINT, signal.SIGTERM)[step % 2]
        stop_after(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(Interrupted) as stopped:
            begin(settings(rule=rule), folder).fit()
    assert (stopped.value.step, stopped.value.signal_number) == (step, number)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert Run(folder).load("last").state["step"] == step
    assert not (folder / "summary.json").exists()
    training = resume(folder)
    assert training.step == step
    training.fit()
    same_run(folder, finished(rule))


def test_killed_and_gone_on_with(finished, tmp_path, monkeypatch):
    """Without a last word: from the last checkpoint, rows written after it are written again."""

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 9, kill)
        with pytest.raises(Killed):
            begin(settings(rule="meta"), folder).fit()
    assert [row["step"] for row in rows(folder)] == ["2", "4", "6", "8"]
    training = resume(folder)
    assert training.step == 5
    training.fit()
    assert [row["step"] for row in rows(folder)] == ["2", "4", "6", "8", "10", "12"]
    same_run(folder, finished("meta"))


def test_stopped_twice(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    for step, make in ((3, lambda: begin(settings(), folder)), (4, lambda: resume(folder))):
        with monkeypatch.context() as patch:
            stop_after(patch, step, lambda: signal.raise_signal(signal.SIGINT))
            with pytest.raises(Interrupted):
                make().fit()
    resume(folder).fit()
    same_run(folder, finished("joint"))


def test_stopped_in_the_last_checkpoint(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        validate = Training.validation_loss

        def stopping(self):
            if self.step == 12:
                signal.raise_signal(signal.SIGTERM)
            return validate(self)

        patch.setattr(Training, "validation_loss", stopping)
        with pytest.raises(Interrupted):
            begin(settings(), folder).fit()
    assert not (folder / "summary.json").exists()
    resume(folder).fit()
    same_run(folder, finished("joint"))


def test_a_second_signal_acts_at_once(tmp_path, monkeypatch):
    folder, step = tmp_path / "run", Update.step
    calls = []

    def slow(self, x, y, **options):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return step(self, x, y, **options)

    monkeypatch.setattr(Update, "step", slow)
    with pytest.raises(KeyboardInterrupt):
        begin(settings(), folder).fit()
    assert len(calls) == 8
    assert Run(folder).load("last").state["step"] == 5


def test_a_config_that_does_not_fit_its_checkpoint(tmp_path):
    begin(settings(), tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["network"]["init_args"]["width"] = 10
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"run does not fit its config\.yaml"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("key", ["batches", "optimizers", "collapsed_steps"])
def test_a_checkpoint_of_another_version(tmp_path, key):
    begin(settings(), tmp_path / "run")
    run = Run(tmp_path / "run")
    found = run.load("last")
    state = {k: v for k, v in found.state.items() if k != key} | {"version": "0.0.7"}
    run.save("last", replace(found, state=state))
    with pytest.raises(ValueError, match=rf"another version \(mqvae 0\.0\.7, .*{key}"):
        resume(tmp_path / "run")


# -- losses that are not finite --------------------------------------------------------------------


def all_finite(run):
    for name in ("last", "best"):
        if (run.folder / "checkpoints" / name).exists():
            found = run.load(name)
            for key, tensor in {**found.model, **found.training}.items():
                assert torch.isfinite(tensor).all(), (name, key)
    for row in rows(run.folder):
        assert all(math.isfinite(float(v)) for v in row.values() if v)
    return run.load("last").state["step"]


# A loss that is not finite is in test_kills.py.
@pytest.mark.parametrize(("rate", "checkpoint_every"), [("network_lr", 1), ("codebook_lr", 100)])
def test_an_absurd_rate(tmp_path, checkpoint_every, rate):
    delta = {
        "optimizer": {rate: 1e30},
        "trainer": {"log_every": 1, "checkpoint_every": checkpoint_every},
    }
    with pytest.raises(NotFinite, match=r"at step [12]\b"):
        begin(settings(delta), tmp_path / "run").fit()
    assert all_finite(Run(tmp_path / "run")) <= 1


def too_much():
    """More than there is: PyTorch's own error."""
    return torch.empty(2**55, dtype=torch.uint8)


def no_memory():
    raise MemoryError


def no_cuda_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fails", [too_much, no_memory, no_cuda_memory])
def test_a_step_that_does_not_fit_in_memory(tmp_path, monkeypatch, fails):
    loss, made = Reconstruction.forward, [lambda: None]

    def failing(self, output, target):
        made[-1]()
        return loss(self, output, target)

    monkeypatch.setattr(Reconstruction, "forward", failing)
    stop_after(monkeypatch, 7, lambda: made.append(fails))
    with pytest.raises(OutOfMemory, match=r"out of memory after step 7\. The last good") as raised:
        begin(settings(), tmp_path / "run").fit()
    said = str(raised.value)
    assert str(tmp_path / "run" / "checkpoints" / "last") in said
    assert (
        "--trainer.micro_batches 2 (the same batch, in smaller parts), "
        "--trainer.precision bf16-mixed, --batch-size 15 (now 30)"
    ) in said
    assert all_finite(Run(tmp_path / "run")) == 5
    assert is_out_of_memory(raised.value.__cause__)


def test_the_codebook_is_initialized_from_batches_without_graphs(tmp_path, monkeypatch):
    training = begin(settings(), tmp_path / "run")
    network, taken, found = training.parts.network.eval(), [], []
    network.encoder.register_forward_pre_hook(
        lambda _, x: taken.append((len(x[0]), torch.is_grad_enabled()))
    )
    for size in (512, 25):
        monkeypatch.setattr(assembly, "INITIALIZATION_BATCH", size)
        torch.manual_seed(0)
        assembly.initialize_codebook(training.parts, training.splits.train, training.settings)
        found.append(network.quantizer.codebook.weight.clone())
    # 16 embeddings for each of 16 codes, 4 of an image; first, for their number, one image.
    assert taken == [(n, False) for n in (1, 64, 1, 25, 25, 14)]
    assert torch.allclose(*found, atol=1e-6)


def test_an_initialization_that_does_not_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "initialize_codebook", lambda *_: no_cuda_memory())
    with pytest.raises(OutOfMemory, match="before the first step"):
        begin(settings(), tmp_path / "run")


def test_other_errors_are_not_of_memory(tmp_path, monkeypatch):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not is_out_of_memory(error) and not is_out_of_memory(ValueError("out of memory"))

    def failing(self, output, target):
        raise error

    run = begin(settings(), tmp_path / "run")
    monkeypatch.setattr(Reconstruction, "forward", failing)
    with pytest.raises(RuntimeError) as raised:
        run.fit()
    assert raised.value is error


class Checkpointed(VQVAE):
    """A network that can compute twice what it does not keep."""

    def __init__(self, width: int = 4, checkpointing: bool = False) -> None:
        super().__init__(width)


@pytest.mark.parametrize(
    ("delta", "processes", "words"),
    [
        ({"trainer": {"micro_batches": 4}}, 2,
         "--trainer.micro_batches 8 (the same batch, in smaller parts), "
         "--trainer.precision bf16-mixed, --batch-size 14 (now 30)"),
        ({"data": {"batch_size": 1}, "trainer": {"precision": "bf16-mixed"}}, 1,
         "a smaller --size or a smaller network"),
    ],
)  # fmt: skip
def test_what_can_be_lowered(delta, processes, words):
    assert what_to_lower(settings(delta), processes) == words


def test_checkpointing_is_named_where_the_network_has_it():
    network = {"class_path": f"{__name__}.Checkpointed"}
    words = "--network.checkpointing true"
    assert words in what_to_lower(settings({"network": network}), 1)
    network["init_args"] = {"checkpointing": True}
    assert words not in what_to_lower(settings({"network": network}), 1)


def test_a_run_of_one_absurd_step(tmp_path):
    # Its loss was finite; what it made of the weights is not fit to be saved or summed up.
    delta = {"steps": 1, "optimizer": {"network_lr": 1e30}}
    with pytest.raises(NotFinite, match=r"validation loss is (inf|nan) at step 1\b"):
        begin(settings(delta), tmp_path / "run").fit()
    assert all_finite(Run(tmp_path / "run")) == 0
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, where):
    training = begin(settings(), tmp_path / "run")
    before = weights(tmp_path / "run")
    training.run.start_metrics(after_step=0)
    training.step = 3
    training.parts.update.step(*[torch.rand(8, 1, 8, 8)] * 2)
    if where == "weight":
        next(training.parts.network.decoder.parameters()).data.view(-1)[0] = math.inf
    else:
        state = next(iter(training.parts.update.upper.state.values()))
        state["exp_avg"][0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"(decoder|upper)\.\S+ is not finite at step 3\b"):
        training.save("last")
    assert weights(tmp_path / "run") == before
    assert all_finite(Run(tmp_path / "run")) == 0


# -- collapse --------------------------------------------------------------------------------------


def test_collapse_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "COLLAPSE_STEPS", 20)
    delta = {
        "steps": 60,
        "data": {"batch_size": 30},
        "quantizer": {"init_args": {"num_codes": 512}},
        "optimizer": {"codebook_lr": 3.0, "warmup": 0},
    }
    summary = begin(settings(delta), tmp_path / "run").fit()
    usage = [float(row["usage"]) for row in rows(tmp_path / "run")]
    assert usage[-10:] == pytest.approx([usage[-1]] * 10, abs=0.01)
    assert max(usage[-10:]) < 0.01
    [warning] = summary["warnings"]
    assert f"mqvae: warning: {warning}" in capsys.readouterr().err
    assert "codebook collapse" in warning and "of 512 codes" in warning
    assert "optimizer.codebook_lr" in warning and "quantizer.num_codes" in warning
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"] == [warning]


def test_no_collapse_no_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "COLLAPSE_STEPS", 2)
    delta = {"steps": 8, "optimizer": {"codebook_lr": 1e-4}}
    summary = begin(settings(delta), tmp_path / "run").fit()
    assert summary["warnings"] == []
    assert "warning" not in capsys.readouterr().err
    assert min(float(row["usage"]) for row in rows(tmp_path / "run")) > 0.5


def log_rows(training, used):
    """Rows in which so many of the codes were used."""
    step = SimpleNamespace(**dict.fromkeys((*logs.LOSSES, *logs.NORMS)))
    training.log.open(training.run, training.step)
    for number in used:
        training.step += training.log_every
        training.log.counts.add(torch.arange(number).repeat(5))
        training.log.row(training.step, 1.0, 1.0, 0.1, step, {}, None)
    training.log.close()


@pytest.mark.parametrize(
    ("num_codes", "used", "warnings"),
    [
        (500, [4] * 3, 0),  # not long enough
        (500, [4] * 4, 1),
        (500, [4] * 20, 1),  # once is enough
        (500, [5] * 20, 0),  # 1% is not under 1%
        (500, [4, 4, 4, 9, 4, 4, 4, 9], 0),
        (500, [4, 4, 4, 4, 9, 4, 4, 4, 4], 2),
        (16, [1] * 4, 1),  # one code of 16 is over 1%, and a collapse all the same
        (16, [2] * 20, 0),
        (2, [1] * 4, 1),
        (1, [1] * 20, 0),
    ],
)
def test_when_a_collapse_is_one(tmp_path, monkeypatch, num_codes, used, warnings):
    monkeypatch.setattr(logs, "COLLAPSE_STEPS", 40)
    delta = {
        "quantizer": {"init_args": {"num_codes": num_codes}},
        "trainer": {"log_every": 10},
    }
    monkeypatch.setattr(runs, "initialize_codebook", lambda *_: None)
    training = begin(settings(delta), tmp_path / "run")
    log_rows(training, used)
    assert len(training.log.warnings) == warnings


def test_few_codes_are_no_collapse_where_they_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "COLLAPSE_STEPS", 40)
    monkeypatch.setattr(runs, "initialize_codebook", lambda *_: None)
    rate = {"class_path": "mqvae.RateAware", "init_args": {"bits": 2.0}}
    delta = {"quantizer": {"init_args": {"num_codes": 500, "rate": rate}}}
    for used, warnings in ((4, 0), (1, 1)):
        training = begin(settings({**delta, "trainer": {"log_every": 10}}), tmp_path / f"{used}")
        log_rows(training, [used] * 20)
        assert len(training.log.warnings) == warnings


def test_a_collapse_goes_on_over_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "COLLAPSE_STEPS", 40)
    delta = {"trainer": {"log_every": 10}, "steps": 100}
    training = begin(settings(delta), tmp_path / "run")
    log_rows(training, [1, 1, 1])
    training.save("last")
    again = resume(tmp_path / "run")
    log_rows(again, [1])
    assert len(again.log.warnings) == 1
    again.save("last")
    assert resume(tmp_path / "run").log.warnings == again.log.warnings


# -- progress --------------------------------------------------------------------------------------


def test_progress_without_a_terminal(capsys):
    step = SimpleNamespace(task=torch.tensor(0.5), commitment=torch.tensor(0.25))
    with Progress("MQ-VAE", 0, 200) as progress:
        for i in range(1, 201):
            progress.advance(i, step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # and one every 30 seconds between them
    assert lines[0].startswith("MQ-VAE: 1/200, ") and lines[1].startswith("MQ-VAE: 200/200, ")
    assert "steps/s" in lines[0] and "s left" in lines[0]
    assert "task 5.00e-01 commitment 2.50e-01" in lines[0]


def test_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    step = SimpleNamespace(task=torch.tensor(0.5), commitment=torch.tensor(0.25))
    with Progress("MQ-VAE", 10, 20) as progress:
        for i in range(11, 21):
            progress.advance(i, step)
    shown = capsys.readouterr().err
    assert "20/20" in shown and "steps/s" in shown and "task 5.00e-01" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_watched(capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    parts = iter("abc")
    assert list(watched(parts, 3, "encoding")) == ["a", "b", "c"]
    shown = capsys.readouterr().err
    assert ("encoding" in shown and "3/3" in shown and "batches/s" in shown) == terminal
    assert bool(shown) == terminal


def test_a_machine_without_the_accelerator(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=r"accelerator is cuda, which this machine does not"):
        begin(settings({"trainer": {"accelerator": "cuda"}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_trains_and_is_measured_in_float32(tmp_path):
    delta = {"steps": 3, "trainer": {"precision": "bf16-mixed"}}
    summary = begin(settings(delta, rule="meta"), tmp_path / "run").fit()
    assert summary["protocol"]["precision"] == "float32"
    tokenizer = Tokenizer.from_run(tmp_path / "run", device="cpu")
    assert all(t.dtype == torch.float32 for t in load_file_of(tmp_path / "run").values())
    measured = evaluate(tokenizer.network, tokenizer.task, tokenizer.find_images("test"))
    assert measured.metrics["mse"] == pytest.approx(summary["mse"], rel=1e-6)


STEPPED = {
    "clipped": {"gradient_clip_val": 1e-3},
    "several batches": {"accumulate_grad_batches": 3},
    "float16": {"precision": "16-mixed"},
}


@pytest.mark.parametrize("name", STEPPED)
def test_how_steps_are_made_is_resumed(name, tmp_path, finished):
    options = {"trainer": STEPPED[name]}
    whole = begin(settings(options), tmp_path / "whole")
    whole.fit()
    half = begin(settings(options), tmp_path / "half")

    def stop(training):
        if training.step == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        half.fit(after_step=stop)
    again = go_on(Run(tmp_path / "half"))
    again.fit()
    assert weights(tmp_path / "half") == weights(tmp_path / "whole")
    assert weights(tmp_path / "whole") != weights(finished("joint"))
    for training in (whole, again):
        place = training.parts.batches.state_dict()
        number = STEPPED[name].get("accumulate_grad_batches", 1)
        taken = place["epoch"] * training.parts.batches.batches_per_epoch + place["position"]
        assert taken == 12 * number
    if name == "float16":
        scaler = again.parts.update.scaler
        assert scaler.state_dict() == whole.parts.update.scaler.state_dict()


@pytest.mark.parametrize(
    ("delta", "rule", "words"),
    [
        ({"accumulate_grad_batches": 2}, "meta", "a rule that makes one pass a step, .*got Meta"),
        ({"accumulate_grad_batches": 2}, "alternated", "one pass a step, .*got Alternated"),
        ({"precision": "16-mixed"}, "meta", "Meta takes no GradScaler"),
    ],
)
def test_what_a_rule_cannot_do_is_said_before_anything_is_made(delta, rule, words, tmp_path):
    with pytest.raises(MqvaeError, match=words):
        begin(settings({"trainer": delta}, rule=rule), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def load_file_of(folder):
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")
