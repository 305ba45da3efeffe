"""upper_batch and upper_loss: what the codebook is judged on, in runs and from the command line."""

import pytest
import torch
from small import settings_of

import mqvae
from mqvae.config import Settings, from_arguments, load_preset
from mqvae.core.rules import Update
from mqvae.data import Batches, hold_out, load
from mqvae.runs import Run
from mqvae.training import Interrupted, begin, loop
from mqvae.training import resume as go_on

# 5 steps an epoch; all images for validation are one batch.
SMALL = {
    "steps": 7,
    "data": {"name": "digits", "side": 8, "batch_size": 50, "limit": 250, "validation": 50},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 3},
}


def settings(above="same", **delta):
    return settings_of("digits-tiny", SMALL, {"update": {"upper_batch": above}}, over=(delta,))


def weights(folder):
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


class Seen:
    """What a step of a run is handed over."""

    def __init__(self, monkeypatch):
        self.below, self.above = [], []
        step = Update.step

        def spied(update, x, y, *, parts=1, above=None):
            self.below.append(x.clone())
            self.above.append(above and above[0].clone())
            return step(update, x, y, parts=parts, above=above)

        monkeypatch.setattr(Update, "step", spied)


def test_the_next_batch_is_that_of_the_next_step(tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    begin(settings("next"), tmp_path / "next").fit()
    assert len(seen.below) == 7
    for above, below in zip(seen.above, seen.below[1:]):
        assert torch.equal(above, below)
    below = seen.below[:]
    begin(settings(), tmp_path / "same").fit()
    assert seen.above[7:] == [None] * 7
    # The levels differ above alone: what the network steps on is the same.
    assert all(torch.equal(a, b) for a, b in zip(below, seen.below[7:], strict=True))
    assert weights(tmp_path / "next") != weights(tmp_path / "same")


def test_held_out_batches_are_of_the_validation_images(tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    training = begin(settings("held-out"), tmp_path / "run")
    training.fit()
    pixels, _ = training.splits.validation.take(torch.arange(50))
    validation = {x.numpy().tobytes() for x in (pixels / 255)}
    trained = {x.numpy().tobytes() for x in torch.cat(seen.below)}
    for batch in seen.above:
        assert len(batch) == 50  # all there are
        assert {x.numpy().tobytes() for x in batch} == validation
    assert not torch.equal(seen.above[0], seen.above[1])  # in another order each time
    assert len(trained) == 250
    assert not trained & validation


@pytest.mark.parametrize(("above", "stop"), [("next", 4), ("held-out", 1)])
def test_gone_on_with_it_has_the_same_batches_above(tmp_path, monkeypatch, above, stop):
    begin(settings(above), tmp_path / "whole").fit()

    class Asked:
        number = None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(loop, "Signals", Asked)

    def after_step(training):
        Asked.number = 15 if training.step == stop else None

    with pytest.raises(Interrupted):
        begin(settings(above), tmp_path / "stopped").fit(after_step=after_step)
    monkeypatch.undo()
    go_on(Run(tmp_path / "stopped")).fit()
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def pictures(images):
    return {x.numpy().tobytes() for x in images.take(torch.arange(len(images)))[0]}


def test_a_limit_leaves_the_held_out_images_as_they_are():
    images = load("digits", "train")
    left, held_out = hold_out(images, 150, seed=3)
    few, same = hold_out(images, 150, seed=3, limit=300)
    assert (len(left), len(few), len(same)) == (1350, 300, 150)
    assert torch.equal(same.indices, held_out.indices)
    assert set(few.indices.tolist()) < set(left.indices.tolist())
    assert few.indices.tolist() == sorted(few.indices.tolist())
    # What another rule is trained on beside one that has both.
    both, nothing = hold_out(images, 0, seed=3, limit=450)
    assert set(both.indices.tolist()) == set(few.indices.tolist()) | set(same.indices.tolist())
    assert len(nothing) == 0
    assert hold_out(images, 150, seed=4, limit=300)[0].indices.tolist() != few.indices.tolist()
    every, _ = hold_out(images, 150, seed=3, limit=1350)
    assert torch.equal(every.indices, left.indices)
    with pytest.raises(ValueError, match=r"data\.limit is 1351.* expected 1350 at most"):
        hold_out(images, 150, seed=3, limit=1351)


def test_a_run_of_few_images_sees_no_others(tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    few = {"limit": 300, "validation": 40}
    training = begin(settings("held-out", data=few), tmp_path / "run")
    training.fit()
    assert len(training.splits.train) == 300
    for batches, images, whole in (
        (seen.below, training.splits.train, False),
        (seen.above, training.splits.validation, True),
    ):
        found = {(x * 255).round().byte().numpy().tobytes() for x in torch.cat(batches)}
        assert found == pictures(images) if whole else found <= pictures(images)


def test_skipping_leaves_out_a_batch():
    images = load("digits", "train")
    whole, skipping = (Batches(images, 700, seed=3) for _ in range(2))
    batches = [whole.next()[0] for _ in range(6)]  # two an epoch
    skipping.skip()
    assert torch.equal(skipping.next()[0], batches[1])
    skipping.skip()
    assert torch.equal(skipping.next()[0], batches[3])
    assert skipping.state_dict() == {"epoch": 2, "position": 0}


def test_an_upper_level_where_there_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no option --update\.upper_batch of Joint"):
        of_arguments("--update", "Joint", "--update.upper_batch", "next")
    nothing = settings("held-out", data={"validation": 0})
    with pytest.raises(ValueError, match=r"expected data\.validation to be 1 or more"):
        begin(nothing, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the upper loss ------------------------------------------------------------------------------


def of_arguments(*arguments):
    return from_arguments(["digits-tiny", *arguments])[0]


def test_an_upper_loss_from_the_command_line(tmp_path):
    found = of_arguments("--update.upper_loss", "torch.nn.L1Loss")
    assert isinstance(found.components().rule.upper_loss, torch.nn.L1Loss)
    again = Settings.of(found.config())
    assert again == found
    own = of_arguments(
        "--update.upper_loss", "Classification", "--update.upper_loss.label_smoothing", "0.2"
    )
    loss = own.components().rule.upper_loss
    assert isinstance(loss, mqvae.Classification)
    assert loss.label_smoothing == 0.2
    assert of_arguments().components().rule.upper_loss is None


class Doubled(mqvae.Reconstruction):
    def forward(self, output, target):
        return 2 * super().forward(output, target)


def test_a_run_with_an_upper_loss(tmp_path):
    for name, path in (
        ("none", None),
        ("same", "mqvae.Reconstruction"),
        ("other", f"{__name__}.Doubled"),
    ):
        spec = path and {"class_path": path}
        update = {"init_args": {"upper_loss": spec}}
        begin(Settings.of(load_preset("digits-tiny", SMALL, {"update": update})), tmp_path / name)
        training = go_on(Run(tmp_path / name))
        assert (training.parts.update.rule.upper_loss is None) == (path is None)
        training.fit()
    assert weights(tmp_path / "none") == weights(tmp_path / "same")
    assert weights(tmp_path / "none") != weights(tmp_path / "other")


@pytest.mark.parametrize("path", ["os.system", "torch.load", "torch.nn.Linear", "mqvae.Kept"])
def test_what_is_no_loss_is_refused(path):
    with pytest.raises(ValueError):
        of_arguments("--update.upper_loss", path).components()
