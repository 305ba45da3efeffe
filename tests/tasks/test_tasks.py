"""A task as a component: what it owns, what it says, and that nobody knows it by name."""

import csv
import json
import shutil
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from small import settings_of
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR

import mqvae
from mqvae.core.distributed import mean_across_processes
from mqvae.core.optimizer import apply
from mqvae.networks.architecture import Inputs
from mqvae.report import write_report
from mqvae.runs import COLUMNS, Run
from mqvae.tasks import AuxiliaryOptimizer, Matrix, Measurement, Metric, Reconstruction, Task
from mqvae.tokenizer import Tokenizer
from mqvae.training import Interrupted, begin, resume


class Judged(Reconstruction):
    """Reconstruction against a small critic, beside a frozen network it is compared through."""

    logs = ("critic_loss",)

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__()
        self.weight = weight
        self.critic = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 1, 3)
        )
        self.frozen = nn.Conv2d(1, 3, 3).requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        apart = (self.frozen(output) - self.frozen(target)).square().mean()
        return super().forward(output, target) + apart - self.weight * self.critic(output).mean()

    def auxiliary_optimizers(self, steps: int) -> Mapping[str, AuxiliaryOptimizer]:
        optimizer = SGD(self.critic.parameters(), lr=0.05, momentum=0.9)
        return {"critic": AuxiliaryOptimizer(optimizer, StepLR(optimizer, 3, gamma=0.5))}

    def step(
        self, auxiliary: Mapping[str, AuxiliaryOptimizer], x: Tensor, y: Tensor, output: Tensor
    ) -> dict[str, Tensor]:
        assert not output.requires_grad
        self.seen += 1
        loss = (softplus(self.critic(output)) + softplus(-self.critic(x))).mean()
        parameters = list(self.critic.parameters())
        found = mean_across_processes(torch.autograd.grad(loss, parameters))
        apply(auxiliary["critic"].optimizer, parameters, found)
        return {"critic_loss": loss}


class Classes(Task):
    """Labels from images: its figures are no errors of pixels, and there is a matrix to show."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("Accuracy", "higher", "share of images", unit="%", scale=0.01)
    }

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return -output.log_softmax(1).gather(1, target[:, None]).mean()

    def measurement(self) -> Measurement:
        return _Hits()


class _Hits(Measurement):
    def __init__(self) -> None:
        self.counts = torch.zeros(10, 10, dtype=torch.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        for label, guess in zip(target.tolist(), output.argmax(1).tolist(), strict=True):
            self.counts[label, guess] += 1

    def compute(self, total) -> dict[str, float]:
        return {"accuracy": self.counts.trace().item() / self.counts.sum().item()}

    def show(self, x: Tensor, output: Tensor) -> list[Matrix]:
        return [Matrix("confusion", "Confusion matrix", self.counts, "class", "prediction")]


class Classifier(mqvae.Architecture):
    """Of a user's own: it takes grey images of 8 pixels a side, and nothing else."""

    def __init__(self, width: int = 8) -> None:
        self.width = width

    def check(self, inputs: Inputs) -> None:
        if inputs.side != 8:
            raise ValueError(f"Classifier takes images of side 8, got {inputs.side}.")

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        encoder = nn.Sequential(
            nn.Conv2d(inputs.channels, self.width, 4, 4), nn.ReLU(), nn.Conv2d(self.width, dim, 1)
        )
        return encoder, nn.Sequential(nn.Flatten(), nn.Linear(4 * dim, inputs.classes))


SMALL = {
    "name": "small",
    "steps": 12,
    "data": {"name": "digits", "side": 8, "batch_size": 60},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 5},
}
HERE = __name__
CLASSIFIER = {
    "task": {"class_path": f"{HERE}.Classes"},
    "network": {"class_path": f"{HERE}.Classifier", "init_args": {"width": 12}},
}


def settings(*deltas, rule="Meta"):
    update = {"update": {"class_path": f"mqvae.{rule}"}}
    return settings_of("digits-tiny", SMALL, over=(update, *deltas))


def weights(folder):
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    timed = {"seconds", "data_wait"}
    return [{k: v for k, v in row.items() if k not in timed} for row in found]


# -- an auxiliary network --------------------------------------------------------------------

ADVERSARIAL = {"task": {"class_path": f"{HERE}.Judged", "init_args": {"weight": 0.02}}}


def interrupt(at):
    def after(training):
        if training.step == at:
            raise Interrupted(at, 2)

    return after


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run with a player to its end, and the player at its beginning."""
    whole = begin(settings(ADVERSARIAL), tmp_path_factory.mktemp("judged") / "whole")
    critic = {k: v.clone() for k, v in whole.parts.task.state_dict().items()}
    whole.fit()
    return whole, critic


def test_a_task_with_a_player_goes_on_bit_for_bit(judged, tmp_path):
    whole, critic = judged
    for name, value in whole.parts.task.state_dict().items():
        # Trained, counted and averaged; the frozen one has not moved.
        assert torch.equal(value, critic[name]) == name.startswith("frozen"), name
    assert whole.parts.auxiliary["critic"].optimizer.param_groups[0]["lr"] == 0.05 * 0.5**4

    half = begin(settings(ADVERSARIAL), tmp_path / "half")
    with pytest.raises(Interrupted):
        half.fit(after_step=interrupt(8))
    # From the checkpoint of step 5, in the middle of the schedule.
    again = resume(Run(tmp_path / "half"))
    assert (again.step, int(again.parts.task.seen)) == (5, 5)
    again.fit()
    assert weights(tmp_path / "half") == weights(whole.run.folder)
    assert rows(tmp_path / "half") == rows(whole.run.folder)
    for name, value in whole.parts.task.state_dict().items():
        assert torch.equal(again.parts.task.state_dict()[name], value), name


def test_what_a_player_reports_is_logged(judged):
    folder = judged[0].run.folder
    found = rows(folder)
    assert set(found[0]) == {*COLUMNS, "critic_loss"} - {"seconds", "data_wait"}
    assert all(float(row["critic_loss"]) for row in found)
    saved = Run(folder).load("last").training
    assert "task.critic.0.weight" in saved
    assert "task.critic.1.running_mean" in saved
    assert not any(name.startswith("task.frozen") for name in saved)


@pytest.mark.parametrize("rule", ["Joint", "Meta", "MetaBoth", "Ema"])
def test_only_its_own_step_touches_a_player(tmp_path, rule):
    training = begin(settings(ADVERSARIAL, rule=rule), tmp_path / "run")
    task, network = training.parts.task.train(), training.parts.network.train()
    trained = {k: v.clone() for k, v in task.state_dict().items()}
    x, y = training.parts.batches.next()
    result = training.parts.update.step(x, task.target(x, y))
    assert all(p.grad is None for p in task.parameters())
    for name, value in task.named_parameters():
        assert torch.equal(value, trained[name]), name
    # Batch statistics are those of one pass, however many the rule makes.
    assert int(task.critic[1].num_batches_tracked) == 1
    assert result.output.shape == x.shape
    assert not result.output.requires_grad
    assert network.training


# -- a task and a network that are no reconstruction -----------------------------------------------


def test_another_task_from_training_to_the_report(tmp_path):
    longer = {"steps": 60, "optimizer": {"network_lr": 1e-2}}
    summary = begin(settings(CLASSIFIER, longer), tmp_path / "run").fit()
    assert summary["accuracy"] > 0.3
    assert "mse" not in summary
    assert summary["figures"]["accuracy"]["better"] == "higher"
    assert summary["pictures"] == [
        {
            "kind": "matrix",
            "rows": "class",
            "columns": "prediction",
            "file": "samples/test-last/confusion.csv",
            "title": "Confusion matrix",
        }
    ]
    with (tmp_path / "run" / "samples" / "test-last" / "confusion.csv").open(newline="") as file:
        counts = [[int(cell) for cell in row] for row in csv.reader(file)]
    assert sum(map(sum, counts)) == 297
    hits = sum(counts[i][i] for i in range(10))
    assert summary["accuracy"] == pytest.approx(hits / 297)

    config = Run(tmp_path / "run").config
    assert config["network"] == {"class_path": f"{HERE}.Classifier", "init_args": {"width": 12}}
    assert config["data"]["init_args"]["classes"] == 10
    tokenizer = Tokenizer.from_run(tmp_path / "run", device="cpu")
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    assert tokenizer.decode(torch.from_numpy(codes.codes[:3].astype("int64"))).shape == (3, 10)
    with pytest.raises(ValueError, match="in a Classes task is no image"):
        tokenizer.decode_to_files(codes, tmp_path / "images")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "Accuracy" in page
    assert "Confusion matrix" in page


def test_what_a_network_does_not_take_is_said(tmp_path):
    with pytest.raises(ValueError, match="takes images of side 8, got 12"):
        begin(settings(CLASSIFIER, {"data": {"side": 12}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- images that no figure has seen ----------------------------------------------------------------


def test_best_is_chosen_on_images_of_the_training_set(tmp_path):
    training = begin(settings(), tmp_path / "run")
    train, held_out, test = (
        {p.numpy().tobytes() for p in images.take(range(len(images)))[0]}
        for images in (training.splits.train, training.splits.validation, training.splits.test)
    )
    assert (len(training.splits.train), len(training.splits.validation)) == (1350, 150)
    assert not train & held_out
    assert not held_out & test
    assert Run(tmp_path / "run").config["data"]["init_args"]["validation"] == 150
    training.fit()
    losses = [row["validation"] for row in rows(tmp_path / "run")]
    assert [bool(loss) for loss in losses] == [False, False, True, False, True, True]
    best = Run(tmp_path / "run").load("best").state["best"]
    assert best == pytest.approx(min(float(loss) for loss in losses if loss), rel=1e-6)


def test_another_seed_holds_out_other_images(tmp_path):
    parts = [begin(settings({"seed": s}), tmp_path / str(s)).splits.validation for s in (0, 1)]
    assert not torch.equal(parts[0].indices, parts[1].indices)


def test_without_validation_images_there_is_no_best(tmp_path):
    training = begin(settings({"data": {"validation": 0}}), tmp_path / "run")
    assert len(training.splits.train) == 1500
    training.fit()
    assert {row["validation"] for row in rows(tmp_path / "run")} == {""}
    with pytest.raises(ValueError, match=r"no checkpoint 'best'.*data\.validation above 0"):
        Tokenizer.from_run(tmp_path / "run", checkpoint="best")


def test_more_validation_images_than_there_are(tmp_path):
    with pytest.raises(ValueError, match="expected 0 to 1499 of the 1500"):
        begin(settings({"data": {"validation": 1500}}), tmp_path / "run")


# -- optimizers ------------------------------------------------------------------------------------


def test_each_level_has_an_optimizer_of_its_own(tmp_path):
    delta = {
        "optimizer": {
            "network": {"init_args": {"betas": [0.8, 0.95], "eps": 1e-6}},
            "codebook": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}},
            "codebook_lr": 3.0,
        }
    }
    whole = begin(settings(delta), tmp_path / "whole")
    lower, upper = whole.parts.levels["lower"], whole.parts.levels["upper"]
    assert (type(lower), type(upper)) == (AdamW, SGD)
    assert lower.defaults["betas"] == (0.8, 0.95)
    assert lower.defaults["eps"] == 1e-6
    assert (upper.defaults["lr"], upper.defaults["momentum"]) == (3.0, 0.5)


# -- from another run, and held still --------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    begin(settings(), folder).fit()
    return folder


def state(folder):
    return Run(folder).load("last", training=False).model


def test_from_another_run(source, tmp_path):
    begun = begin(settings({"from": {"run": str(source)}, "seed": 3}), tmp_path / "run")
    for name, value in state(source).items():
        assert torch.equal(begun.parts.network.state_dict()[name], value), name
    some = {"from": {"run": str(source), "parts": ["encoder"]}, "seed": 3}
    begun = begin(settings(some), tmp_path / "some")
    for name, value in state(source).items():
        same = torch.equal(begun.parts.network.state_dict()[name], value)
        assert same == name.startswith("encoder"), name


@pytest.mark.covering(1)
@pytest.mark.parametrize("frozen", [["encoder"], ["codebook"], ["encoder", "codebook"]])
@pytest.mark.parametrize("rule", ["Joint", "Meta", "Ema"])
def test_what_is_frozen_stays(source, tmp_path, frozen, rule):
    delta = {"from": {"run": str(source)}, "freeze": frozen}
    begin(settings(delta, rule=rule), tmp_path / "run").fit()
    before, after = state(source), state(tmp_path / "run")
    still = {"quantizer" if name == "codebook" else name for name in frozen}
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name.partition(".")[0] in still), name


def test_a_run_goes_on_without_the_one_it_started_from(tmp_path):
    begin(settings({"steps": 2}), tmp_path / "source").fit()
    delta = {"from": {"run": str(tmp_path / "source")}}
    with pytest.raises(Interrupted):
        begin(settings(delta), tmp_path / "run").fit(after_step=interrupt(8))
    shutil.rmtree(tmp_path / "source")
    resume(Run(tmp_path / "run")).fit()


def test_what_does_not_fit_is_named_shape_by_shape(source, tmp_path):
    delta = {"from": {"run": str(source)}, "network": {"width": 8}}
    with pytest.raises(ValueError, match="do not fit this network") as refused:
        begin(settings(delta), tmp_path / "run")
    assert "encoder.layers.2.weight: (4, 2, 4, 4) there, (8, 4, 4, 4) here" in str(refused.value)
    assert "quantizer" not in str(refused.value)
    assert not (tmp_path / "run").exists()


# -- the average of the weights --------------------------------------------------------------------


def test_the_average_is_what_is_measured_and_used(tmp_path):
    delta = {"trainer": {"ema_decay": 0.9}, "optimizer": {"network_lr": 3e-3}}
    training = begin(settings(delta), tmp_path / "run")
    mean, seen = {}, []

    def follow(training):
        kept = min(0.9, (1 + len(seen)) / (10 + len(seen)))
        for name, p in training.parts.network.named_parameters():
            now = p.detach().double()
            mean[name] = now if not seen else kept * mean[name] + (1 - kept) * now
        seen.append(1)

    summary = training.fit(after_step=follow)
    saved = Run(tmp_path / "run").load("last")
    for name, value in mean.items():
        torch.testing.assert_close(saved.average[name].double(), value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(saved.average[name], saved.model[name])
    tokenizer = Tokenizer.from_run(tmp_path / "run", device="cpu")
    for name, value in saved.average.items():
        assert torch.equal(tokenizer.network.state_dict()[name], value)
    images = tokenizer.find_images("test")
    found = mqvae.metrics.evaluate(tokenizer.network, tokenizer.task, images).metrics
    assert summary["mse"] == pytest.approx(found["mse"], rel=1e-6)

    half = begin(settings(delta), tmp_path / "half")
    with pytest.raises(Interrupted):
        half.fit(after_step=interrupt(7))
    resume(Run(tmp_path / "half")).fit()
    again = Run(tmp_path / "half").load("last")
    assert all(torch.equal(again.average[name], value) for name, value in saved.average.items())


def test_without_one_there_is_no_file_of_it(tmp_path):
    begin(settings(), tmp_path / "run")
    files = {p.name for p in (tmp_path / "run" / "checkpoints" / "last").iterdir()}
    assert files == {"model.safetensors", "training.safetensors", "state.json"}
    assert json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())


def test_a_batch_in_parts_is_the_whole_batch(tmp_path):
    for parts in (1, 3):
        delta = {"trainer": {"micro_batches": parts}}
        begin(settings(delta, rule="Joint"), tmp_path / str(parts)).fit()
    one, three = state(tmp_path / "1"), state(tmp_path / "3")
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=1e-3, atol=1e-4)
