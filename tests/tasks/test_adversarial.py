"""The adversarial task: its loss and discriminator, what a step costs and leaves, its troubles."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pairs import meet
from small import settings_of
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from mqvae import (
    Adversarial,
    Alternated,
    Amortized,
    Central,
    DirectOnly,
    Exact,
    FiniteDifference,
    ForwardMode,
    Joint,
    Kept,
    Meta,
    MetaNetwork,
    PatchDiscriminator,
    Undone,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.cli import main
from mqvae.core.gap import gradient_gap
from mqvae.diagnosis.choice import losses_of_images
from mqvae.networks.discriminator import JointBatchNorm
from mqvae.runs import COLUMNS, Run
from mqvae.tasks import perceptual
from mqvae.tasks.perceptual import PerceptualDistance
from mqvae.training import Interrupted, begin, resume
from mqvae.weights import NETWORKS, Weights, lpips_heads

SIDE, GREY = 16, 1
SMALL = {"discriminator_layers": 2, "discriminator_width": 4, "perceptual_weight": 0.0}
OPTIMIZER_STEP = Undone(optimizer_step=True)


class Decoder(nn.Module):
    """From 4 × 4 embeddings of 6 numbers to images, by one kind of last layer."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last
        if last == "transposed":
            layers = [nn.Conv2d(6, 4, 1), nn.ConvTranspose2d(4, GREY, 6, stride=4, padding=1)]
        else:
            layers = [
                nn.ConvTranspose2d(6, 4, 4, stride=4),
                nn.Conv2d(4, GREY, 3, padding="same", padding_mode="reflect"),
            ]
        self.layers = nn.Sequential(layers[0], nn.Tanh(), layers[1])

    @property
    def last_layer(self) -> nn.Module:
        return self.layers[-1]

    def forward(self, z: Tensor) -> Tensor:
        y = self.layers(z)
        ends = {
            "signed": lambda y: (y + 1) / 2,
            "in place": lambda y: y.add_(1).div_(2),
            "sigmoid": torch.sigmoid,
            "nearly a line": lambda y: torch.sigmoid(y / 100),
            "cut": lambda y: y.clamp(-2, 2),
        }
        return ends.get(self.last, lambda y: y)(y)


class Distance(nn.Module):
    """Stands for the perceptual network where its numbers do not matter."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.tanh() - target.tanh()).square().mean((1, 2, 3))


def make(last: str = "convolution", distance: nn.Module | None = None, **options):
    """A network, the task that knows it, its auxiliary and a batch, in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(3)
        encoder = nn.Sequential(nn.Conv2d(GREY, 5, 4, 4), nn.Tanh(), nn.Conv2d(5, 6, 3, padding=1))
        network = VQNetwork(encoder, VectorQuantizer(7, 6), Decoder(last))
        task = Adversarial(**{**SMALL, **options})
        task.perceptual = distance
        x = torch.rand(4, GREY, SIDE, SIDE)
    finally:
        torch.set_default_dtype(default)
    network.initialize_codebook(x)
    with torch.no_grad():
        network.quantizer.codebook.weight += 0.05 * torch.randn(7, 6)
    task.attend(network, x)
    return network, task, task.auxiliary_optimizers(10), x


def rule(network: VQNetwork, task: Adversarial, kind: type = Joint, **options):
    return kind(
        network,
        task,
        lower=AdamW(network.network_parameters(), lr=1e-2),
        upper=AdamW(network.codebook_parameters(), lr=1e-2),
        **options,
    )


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def random_weights() -> Weights:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: 0.05 * torch.randn(shape, generator=generator)
        for name, shape in NETWORKS["vgg16"].shapes().items()
    }
    return Weights(tensors, "random", "0" * 64)


@pytest.fixture(scope="module")
def vgg16() -> Weights:
    return random_weights()


# -- the discriminator -----------------------------------------------------------------------------


def test_the_discriminator_is_that_of_isola_et_al():
    judge = PatchDiscriminator()
    assert sum(p.numel() for p in judge.parameters()) == 2_765_633
    assert judge(torch.rand(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    convolutions = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in judge.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert (len(norms), sum(isinstance(m, nn.LeakyReLU) for m in judge.modules())) == (3, 4)
    assert convolutions[3].weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert norms[2].weight.mean().item() == pytest.approx(1, abs=0.01)
    # A patch has 70 × 70 pixels.
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    (seen,) = torch.autograd.grad(judge.eval()(x)[0, 0, 7, 7], x)
    assert [int(side.sum()) for side in (seen[0].sum((0, 1)) != 0, seen[0].sum((0, 2)) != 0)] == [
        70,
        70,
    ]


def test_the_smallest_image_leaves_one_logit():
    judge = PatchDiscriminator(width=2, layers=3)
    assert judge(torch.rand(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="24 × 24 pixels or more, got 23 × 40"):
        judge.check(23, 40)
    with pytest.raises(ValueError, match="layers must be 1 or more"):
        PatchDiscriminator(layers=0)


# -- the perceptual distance -----------------------------------------------------------------------


def test_the_perceptual_distance_is_lpips(vgg16):
    from torchmetrics.functional.image.lpips import _LPIPS

    distance = PerceptualDistance(vgg16)
    with torch.device("meta"):
        reference = _LPIPS(pretrained=False, net="vgg", pnet_rand=True)
    state = {}
    for name in reference.state_dict():
        _, _, index, kind = ("." + name).replace("net.", "").rsplit(".", 3)
        if name.startswith("net."):
            state[name] = vgg16.tensors[f"{index}.{kind}"]
        else:
            level = int(name.removeprefix("lins.").removeprefix("lin")[0])
            state[name] = lpips_heads(NETWORKS["vgg16"])[level].view(1, -1, 1, 1)
    reference.load_state_dict(state, assign=True)
    reference.scaling_layer = type(reference.scaling_layer)()
    x, y = torch.rand(2, 3, 3, 16, 20)
    y.requires_grad_()
    expected = reference.eval()(y, x, normalize=True).flatten()
    found = distance(y, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    slopes = [torch.autograd.grad(d.sum(), y)[0] for d in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-8)
    assert not any(p.requires_grad for p in distance.parameters())
    # Grey ones have three channels alike, and a distance from itself of 0.
    grey = torch.rand(2, 1, 16, 16)
    assert distance(grey, grey).tolist() == [0, 0]
    assert torch.equal(
        distance(grey, x[:2, :1, :, :16]),
        distance(*(each.repeat(1, 3, 1, 1) for each in (grey, x[:2, :1, :, :16]))),
    )


def test_weights_that_are_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    arguments = ["train", "digits-tiny", "--out", str(tmp_path / "run"), "--task", "Adversarial"]
    arguments += ["--data.side", "16", "--trainer.accelerator", "cpu"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "`mqvae weights vgg16` fetches them" in said
    assert "--task.perceptual_weight 0" in said
    assert not (tmp_path / "run").exists()


# -- the loss --------------------------------------------------------------------------------------


def by_hand(network: VQNetwork, task: Adversarial, x: Tensor) -> tuple[Tensor, Tensor]:
    """L_task and λ, all by autograd through the decoder."""
    output = network(x).output
    weight = network.decoder.last_layer.weight
    reconstruction = task.l1_weight * (output - x).abs().mean()
    if task.perceptual_weight:
        distance = task.perceptual(output, x).mean()
        reconstruction = reconstruction + task.perceptual_weight * distance
    generator = -task.discriminator(2 * output.repeat(1, 3, 1, 1) - 1).mean()
    of = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
        for loss in (reconstruction, generator)
    ]
    adaptive = (of[0] / (of[1] + 1e-4)).clamp(0, 1e4)
    return reconstruction + task.adversarial_weight * adaptive * generator, adaptive


@pytest.mark.parametrize("last", ["convolution", "transposed", "signed", "in place"])
def test_loss_gradient_and_adaptive_weight_are_those_of_autograd(last):
    network, task, auxiliary, x = make(last, l1_weight=1.7, adversarial_weight=0.6)
    expected, adaptive = by_hand(network, task, x)
    output = network(x).output
    loss = task(output, x)
    parameters = list(network.parameters())
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        *(torch.autograd.grad(each, parameters, allow_unused=True) for each in (loss, expected)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
    assert adaptive > 0.01
    logged = task.step(auxiliary, x, x, output.detach())
    torch.testing.assert_close(logged["adaptive_weight"], adaptive)
    assert not any(value.requires_grad for value in logged.values())


def test_with_the_perceptual_distance(vgg16):
    network, task, auxiliary, x = make(
        distance=PerceptualDistance(vgg16).double(), perceptual_weight=0.3
    )
    expected, _ = by_hand(network, task, x)
    output = network(x).output
    loss = task(output, x)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        *(torch.autograd.grad(each, network.decoder.parameters()) for each in (loss, expected)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
    logged = task.step(auxiliary, x, x, output.detach())
    measured = task.eval().measurement()
    measured.update(output.detach(), x)
    figures = measured.compute(lambda tensor: tensor)
    assert figures["perceptual_loss"] == pytest.approx(logged["perceptual"].item())
    assert figures["mse"] == pytest.approx((output - x).square().mean().item())
    assert figures.keys() == Adversarial.metrics.keys()
    each = losses_of_images(task, output.detach(), x)
    torch.testing.assert_close(each.mean(), task(output.detach(), x))
    without = make()[1].measurement()
    without.update(output.detach(), x)
    assert "perceptual_loss" not in without.compute(lambda tensor: tensor)


def test_a_batch_in_parts_is_the_batch_as_a_whole():
    found = []
    for parts in (1, 2, 3):
        network, task, auxiliary, x = make()
        update = rule(network, task, Meta)
        for _ in range(2):
            step = update.step(x, x, parts=parts)
            logged = task.step(auxiliary, x, x, step.output)
        found.append({**copied(network), **copied(task), **logged})
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_half_precision_is_near():
    found = []
    for half in (False, True):
        network, task, auxiliary, x = make()
        for module in (network, task):
            module.float()
        x = x.float()
        update = rule(network, task, Meta, look_ahead=Kept(), hypergradient=Amortized())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            step = update.step(x, x)
            logged = task.step(auxiliary, x, x, step.output)
        found.append({"task": step.task, **logged})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].float(), value, rtol=0.05, atol=0.01, msg=name)


def test_in_eval_mode_it_is_the_reconstruction():
    network, task, _, x = make(distance=Distance(), perceptual_weight=0.5, l1_weight=2.0)
    before = copied(task)
    task.eval()
    with torch.no_grad():
        output = network(x).output
        expected = 2 * (output - x).abs().mean() + 0.5 * task.perceptual(output, x).mean()
        assert torch.equal(task(output, x), expected)
    assert gradient_gap(network, task, x, x) > 0
    assert all(torch.equal(value, before[name]) for name, value in copied(task).items())
    assert not task._last_layer._inputs


def test_without_a_discriminator_it_trains_on_l1_and_lpips():
    options = {"perceptual_weight": 0.5, "l1_weight": 2.0, "adversarial_weight": 0.0}
    network, task, auxiliary, x = make(distance=Distance(), **options)
    discriminator = copied(task.discriminator)
    output = network(x).output.detach().requires_grad_()
    (found,) = torch.autograd.grad(task(output, x), output)
    loss = 2 * (output - x).abs().mean() + 0.5 * task.perceptual(output, x).mean()
    torch.testing.assert_close(found, torch.autograd.grad(loss, output)[0])
    logged = task.step(auxiliary, x, x, output.detach())
    assert set(logged) == {"l1", "perceptual"}
    after = copied(task.discriminator)
    assert all(torch.equal(value, discriminator[name]) for name, value in after.items())


def test_nothing_of_a_pass_is_held_on_to():
    network, task, auxiliary, x = make()
    update = rule(network, task, Meta)
    for parts in (1, 2):
        task.step(auxiliary, x, x, update.step(x, x, parts=parts).output)
        assert not task._last_layer._inputs
        assert not task._terms
    with torch.no_grad():
        network(x)
    assert not task._last_layer._inputs
    task.attend(network, x)  # once more is as once
    network(x)
    assert len(task._last_layer._inputs) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"perceptual_weight": 1.0, "side": 12}, "16 × 16 pixels or more, got 12 × 12"),
        ({"discriminator_layers": 3}, "24 × 24 pixels or more, got 16 × 16"),
        ({"decoder": nn.Conv2d(6, 1, 1)}, "Conv2d's is None. Take mqvae.VQVAE"),
        ({"decoder": Decoder("sigmoid").double()}, "followed by more than a scale and a shift"),
        ({"decoder": Decoder("nearly a line").double()}, "more than a scale and a shift"),
        ({"decoder": Decoder("cut").double()}, "followed by more than a scale and a shift"),
        ({"start": -1}, "start must be 0 or more, got -1"),
    ],
)
def test_what_does_not_fit_is_said_before_training(change, said):
    decoder, side = change.pop("decoder", None), change.pop("side", SIDE)
    network, *_ = make()
    network.decoder = decoder or network.decoder
    x = torch.rand(1, GREY, side, side, dtype=torch.float64)
    with pytest.raises(ValueError, match=said):
        Adversarial(**{**SMALL, **change}).attend(network, x)
    if decoder is not None:  # which no one asks for without a discriminator
        Adversarial(**SMALL, adversarial_weight=0).attend(network, x)


def test_an_output_that_the_network_has_not_made():
    network, task, _, x = make()
    with pytest.raises(ValueError, match="output of 4 images is judged that the decoder has not"):
        task(x.clone().requires_grad_(), x)
    with pytest.raises(ValueError, match="call attend"):
        Adversarial(**SMALL).double()(network(x).output, x)


# -- the discriminator's turn ----------------------------------------------------------------------


def test_its_step_is_the_hinge_loss_by_adamw():
    network, task, auxiliary, x = make(discriminator_lr=1e-3)
    output = network(x).output.detach()
    by_hand = PatchDiscriminator(width=4, layers=2).double()
    by_hand.load_state_dict(task.discriminator.state_dict())
    optimizer = AdamW(by_hand.parameters(), lr=1e-3, betas=(0.5, 0.9), weight_decay=0)
    real, generated = (by_hand(2 * each.repeat(1, 3, 1, 1) - 1) for each in (x, output))
    loss = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + generated).clamp(min=0).mean())
    loss.backward()
    optimizer.step()
    logged = task.step(auxiliary, x, x, output)
    torch.testing.assert_close(logged["discriminator"], loss.detach())
    torch.testing.assert_close(logged["logits_real"], real.mean().detach())
    torch.testing.assert_close(logged["logits_generated"], generated.mean().detach())
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(task.discriminator.state_dict()[name], value)
    assert all(p.grad is None for p in task.parameters())


def test_before_its_start_nobody_hears_it():
    network, task, auxiliary, x = make(start=2)
    update = rule(network, task, Meta)
    before, loud = copied(task.discriminator), {"generator", "adaptive_weight"}
    for i in range(4):
        step = update.step(x, x)
        logged = task.step(auxiliary, x, x, step.output)
        auxiliary["discriminator"].schedule.step()
        same = all(torch.equal(before[n], v) for n, v in copied(task.discriminator).items())
        assert same == (i < 2)
        assert (loud | {"discriminator"} <= logged.keys()) == (i >= 2)
        assert "l1" in logged
        if i < 2:
            torch.testing.assert_close(step.task, (step.output - x).abs().mean())
    assert int(task.updates) == 4


# -- what a step costs, and what it leaves ---------------------------------------------------------

EXACT = Exact(ForwardMode(), ForwardMode())
# How often a step goes through the perceptual network, and through the discriminator before that
# one's own turn: as often as through the decoder, and no more.
CALLS = {
    "Joint": (Joint, {}, 1),
    "Alternated": (Alternated, {}, 1),
    "Direct only, kept": (Meta, {"hypergradient": DirectOnly(), "look_ahead": Kept()}, 1),
    "Amortized, kept": (Meta, {"hypergradient": Amortized(), "look_ahead": Kept()}, 1),
    "Amortized, undone": (Meta, {"hypergradient": Amortized(), "look_ahead": OPTIMIZER_STEP}, 2),
    "Meta, kept": (Meta, {"look_ahead": Kept()}, 2),
    "Meta, undone": (Meta, {}, 3),
    "Meta, central": (Meta, {"hypergradient": FiniteDifference(Central())}, 3),
    "Exact, kept": (Meta, {"hypergradient": Exact(), "look_ahead": Kept()}, 3),
    "Exact, undone": (Meta, {"hypergradient": Exact()}, 4),
    "Exact, forward mode": (Meta, {"hypergradient": EXACT}, 4),
    "MetaNetwork": (MetaNetwork, {}, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_step_goes_through_its_networks_as_often_as_it_must(name):
    kind, options, expected = CALLS[name]
    network, task, auxiliary, x = make(distance=Distance(), perceptual_weight=1.0)
    update = rule(network, task, kind, **options)
    calls = {"discriminator": 0, "perceptual": 0}
    for part in calls:

        def count(module: nn.Module, inputs: object, part: str = part) -> None:
            calls[part] += 1

        getattr(task, part).register_forward_pre_hook(count)
    for i in (1, 2):
        before = copied(task)
        step = update.step(x, x)
        assert calls == {"discriminator": i * expected + 2 * (i - 1), "perceptual": i * expected}
        # The rule leaves the traces of one pass in batch statistics, and nothing else.
        for part, value in copied(task).items():
            if part.endswith("num_batches_tracked"):
                assert value == before[part] + 1
            elif "running" not in part:
                assert torch.equal(value, before[part]), part
        assert all(p.grad is None for p in task.parameters())
        task.step(auxiliary, x, x, step.output)
        assert calls["discriminator"] == i * (expected + 2)


class Convolutions(TorchDispatchMode):
    """Counts gradients of convolutions by whose weight they have."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.shapes = {tuple(w.shape): name for name, w in weights.items()}
        self.forward, self.backward = (dict.fromkeys(weights, 0) for _ in range(2))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            weight = args[1] if name == "convolution" else args[2]
            counts = self.forward if name == "convolution" else self.backward
            if (whose := self.shapes.get(tuple(weight.shape))) is not None:
                counts[whose] += 1
        return function(*args, **(kwargs or {}))


def test_the_adaptive_weight_costs_no_further_backward_pass():
    network, task, _, x = make()
    update = rule(network, task)
    with Convolutions({"first": task.discriminator.layers[0].weight}) as seen:
        update.step(x, x)
    assert (seen.forward, seen.backward) == ({"first": 1}, {"first": 1})


def test_exact_is_right_through_it_by_differences_and_by_forward_mode():
    """The adaptive weight changes along the step, and its change is a part of the derivative."""
    found = []
    for derivative in (ForwardMode(), Central(1e-4)):
        network, task, _, x = make(distance=Distance(), perceptual_weight=1.0)
        before = network.quantizer.codebook.weight.detach().clone()
        Meta(
            network,
            task,
            lower=SGD(network.network_parameters(), lr=1e-3),
            upper=SGD(network.codebook_parameters(), lr=1.0),
            hypergradient=Exact(derivative, derivative),
        ).step(x, x)
        found.append(before - network.quantizer.codebook.weight.detach())
    assert found[0].norm() > 0.01
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_what_differentiates_it_twice_is_refused():
    network, task, _, x = make()
    update = rule(network, task, Meta, hypergradient=Unrolled(1))
    with pytest.raises(ValueError, match="as Unrolled does: use Exact"):
        update.step(x, x)


# -- a run -----------------------------------------------------------------------------------------


def settings(*deltas, rule="Meta", **options):
    task = {"class_path": "mqvae.Adversarial", "init_args": {**SMALL, **options}}
    run = {
        "name": "small",
        "steps": 10,
        "data": {"name": "digits", "side": 16, "batch_size": 10, "validation": 10},
        "network": {"init_args": {"width": 4, "residual_blocks": 1}},
        "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
        "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 5},
        "update": {"class_path": f"mqvae.{rule}"},
        "task": task,
    }
    return settings_of("digits-tiny", run, *deltas)


def rows(folder: Path) -> list[dict[str, str]]:
    timed = {"seconds", "data_wait"}
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]


def test_a_run_goes_on_bit_for_bit(tmp_path):
    start = 3
    averaged = {"trainer": {"ema_decay": 0.9}}
    whole = begin(settings(averaged, start=start), tmp_path / "whole")
    summary = whole.fit()
    assert "mse" in summary and "perceptual_loss" not in summary["figures"]
    found = rows(tmp_path / "whole")
    assert set(found[0]) == {*COLUMNS, *Adversarial.logs} - {"seconds", "data_wait"}
    heard = [bool(row["generator"]) for row in found]
    assert heard == [int(row["step"]) > start for row in found]
    assert all(bool(row["l1"]) and not row["perceptual"] for row in found)

    def interrupt(training):
        if training.step == 8:
            raise Interrupted(8, 2)

    with pytest.raises(Interrupted):
        begin(settings(averaged, start=start), tmp_path / "half").fit(after_step=interrupt)
    again = resume(Run(tmp_path / "half"))
    assert (again.step, int(again.parts.task.updates)) == (5, 5)
    again.fit()
    assert rows(tmp_path / "half") == found
    for one, other in zip(
        (whole.parts.network, whole.parts.task),
        (again.parts.network, again.parts.task),
        strict=True,
    ):
        assert all(torch.equal(other.state_dict()[n], v) for n, v in one.state_dict().items())


def test_what_is_trained_is_in_a_checkpoint_and_what_is_frozen_is_not(tmp_path, vgg16, monkeypatch):
    monkeypatch.setattr(perceptual, "read", lambda name: vgg16)
    begin(settings(perceptual_weight=1.0), tmp_path / "run")
    saved = Run(tmp_path / "run").load("last").training
    kept = {name.removeprefix("task.") for name in saved if name.startswith("task.")}
    assert {name.partition(".")[0] for name in kept} == {"discriminator", "updates"}
    assert resume(Run(tmp_path / "run")).parts.task.perceptual is not None


def test_training_that_falls_apart_is_said_once(tmp_path, capsys):
    task = Adversarial(**SMALL)
    logged = {"discriminator": 0.001, "logits_real": 5.0, "logits_generated": -4.0}
    assert set(task.troubles(logged)) == {"saturated"}
    assert set(task.troubles({**logged, "discriminator": 0.5, "adaptive_weight": 1e4})) == {"bound"}
    assert not task.troubles({"l1": 0.1})
    assert not task.troubles({**logged, "discriminator": 1.0, "adaptive_weight": 3.0})

    training = begin(settings({"steps": 14}, start=2), tmp_path / "run")
    said = {4: ["a"], 6: ["a", "b"], 8: ["b"], 10: ["a", "b"], 12: ["a", "b"], 14: ["a", "b"]}
    monkeypatched = lambda _: {k: f"trouble {k}." for k in said.get(training.step, [])}  # noqa: E731
    training.parts.task.troubles = monkeypatched
    summary = training.fit()
    # b in the third row in succession, at 10; a at 14; each once.
    assert summary["warnings"] == [
        f"trouble {k}. So it was in 3 rows of metrics.csv, up to step {step}."
        for k, step in (("b", 10), ("a", 14))
    ]
    assert capsys.readouterr().err.count("mqvae: warning: trouble") == 2
    assert Run(tmp_path / "run").load("last").state["troubled_rows"] == {"a": 3, "b": 5}


# -- two processes ---------------------------------------------------------------------------------

PAIRS = {
    "Joint": (Joint, {}),
    "Meta": (Meta, {}),
    "Meta, kept": (Meta, {"hypergradient": Amortized(), "look_ahead": Kept()}),
    "Exact": (Meta, {"hypergradient": Exact()}),
}


def trained(name: str, problem: tuple, rank: int = 0, processes: int = 1) -> dict[str, Tensor]:
    """All that three steps on this process's share of the batch make."""
    (network, task, auxiliary, x), (kind, options) = problem, PAIRS[name]
    update = rule(network, task, kind, **options)
    mine = x.chunk(processes)[rank]
    for _ in range(3):
        step = update.step(mine, mine)
        logged = task.step(auxiliary, mine, mine, step.output)
    return {**copied(network), **copied(task), "adaptive_weight": logged["adaptive_weight"]}


def problem() -> tuple:
    return make(distance=Distance(), perceptual_weight=1.0, start=1)


def turns(network, task, auxiliary, x) -> Iterator[Callable[[], Any]]:
    """A step of the rule, then the discriminator's."""
    update = rule(network, task)
    yield lambda: update.step(x, x)
    yield lambda: task.step(auxiliary, x, x, network(x).output.detach())


def counting(function: Callable[..., Any], counts: list[int], i: int) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        counts[i] += 1
        return function(*args, **options)

    return call


def shifted() -> Tensor:
    """Of mean 100 and standard deviation 0.01: E[x²] − E[x]² is all rounding in float32."""
    noise = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    return 100 + 0.01 * noise


def apart() -> Tensor:
    """The first half around 0, the other around 3."""
    noise = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return noise + 3 * (torch.arange(8) >= 4)[:, None, None, None]


def joined(x: Tensor, norm: nn.Module | None = None) -> dict[str, Tensor]:
    """Output, gradient and running statistics of batch norm over all processes' images."""
    norm = JointBatchNorm(3) if norm is None else norm
    x = x.clone().requires_grad_()
    output = norm(x)
    (gradient,) = torch.autograd.grad((output.sin() / 16).sum(), x)
    own = getattr(norm, "own", norm)
    return {"output": output.detach(), "gradient": gradient, **copied(own)}


def work(rank: int, folder: str) -> dict[str, Any]:
    # Made before they meet: their codebooks are to be those of the whole batch.
    problems, further = {name: problem() for name in PAIRS}, make()
    meet(rank, folder)
    found = {name: trained(name, each, rank, 2) for name, each in problems.items()}
    sent = [0, 0]
    for i, call in enumerate(turns(*problems["Joint"])):
        reduce = dist.all_reduce
        dist.all_reduce = counting(reduce, sent, i)
        call()
        dist.all_reduce = reduce
    network, task, _, x = further
    normalized = [joined(images.chunk(2)[rank]) for images in (shifted(), apart())]
    try:
        rule(network, task, Meta, hypergradient=EXACT).step(x, x)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    return {"found": found, "refusal": refusal, "sent": sent, "normalized": normalized}


def test_two_processes_do_what_one_does_with_the_whole_batch(pair, tmp_path):
    one, other = pair(work, str(tmp_path))
    for name in PAIRS:
        expected = trained(name, problem())
        for key, value in expected.items():
            assert torch.equal(one["found"][name][key], other["found"][name][key]), key
            torch.testing.assert_close(
                one["found"][name][key], value, rtol=1e-8, atol=1e-10, msg=f"{name} {key}"
            )
    for i, images in enumerate((shifted(), apart())):
        expected = joined(images.double(), nn.BatchNorm2d(3).double())
        both = [found["normalized"][i] for found in (one, other)]
        output = torch.cat([each["output"] for each in both]).double()
        # A float32 of 100 is exact to 4e-6, 4e-4 of the deviation.
        torch.testing.assert_close(output, expected["output"], rtol=0, atol=5e-3)
        for name in ("running_mean", "running_var"):
            assert torch.equal(both[0][name], both[1][name])
            torch.testing.assert_close(both[0][name].double(), expected[name], rtol=1e-4, atol=1e-6)
        # What each process finds is averaged, as its weights' gradients are.
        slope = torch.cat([each["gradient"] for each in both]).double() / 2
        size = expected["gradient"].abs().max()
        torch.testing.assert_close(slope / size, expected["gradient"] / size / 2, rtol=0, atol=1e-2)
    # Two batch norms, each forward and back; the last layer's gradients; the rule's own.
    assert one["sent"] == [1 + 1 + 2 * 2, 1 + 2 * 2 * 2]
    assert "forward mode does not reach what several processes share" in one["refusal"]
