"""mqvae diagnose: what is measured against cases made by hand, and what is said of them."""

import dataclasses
import json
import math
import shlex

import pytest
import torch
from torch import nn

import mqvae
from mqvae.cli import main
from mqvae.config import Settings, from_arguments, load_preset
from mqvae.core.codebook import Table
from mqvae.data import InMemory
from mqvae.diagnosis import diagnose, motion, refitted, without_quantization
from mqvae.diagnosis.findings import findings
from mqvae.diagnosis.motion import coherence
from mqvae.networks.architecture import Architecture
from mqvae.report import write_report
from mqvae.runs import Run
from mqvae.tasks import AuxiliaryOptimizer
from mqvae.tokenizer import Tokenizer
from mqvae.training import begin


class Patches(Architecture):
    """One linear patch, one embedding: trained in no time."""

    def __init__(self, width: int) -> None:
        self.width = width

    def cut(self, inputs, dim):
        encoder = nn.Sequential(nn.Conv2d(1, self.width, 4, 4), nn.Conv2d(self.width, dim, 1))
        return encoder, nn.ConvTranspose2d(dim, 1, 4, 4)


SMALL = {
    "steps": 3,
    "data": {"name": "digits", "side": 8, "batch_size": 270},
    "network": {"class_path": f"{__name__}.Patches", "init_args": {"width": 8}},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
    "update": {"class_path": "mqvae.Joint"},
    "trainer": {"accelerator": "cpu"},
}
FEW = {"images": 400, "searched": 20, "steps": 2}


def trained(folder, *deltas):
    begin(Settings.of(load_preset("digits-tiny", SMALL, *deltas)), folder).fit()
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    # Long enough for the decoder to mind its codes.
    longer = {"steps": 100, "data": {"batch_size": 100}, "optimizer": {"network_lr": 1e-2}}
    return trained(tmp_path_factory.mktemp("made") / "run", longer)


@pytest.fixture(scope="module")
def usual(made):
    return diagnose(made, **FEW)


@pytest.fixture(scope="module")
def optimum(made):
    """The codebook that k-means ends with."""
    tokenizer = Tokenizer.from_run(made, device="cpu")
    train = tokenizer.settings.data.load("train")
    return refitted(
        tokenizer.network, tokenizer.task, train, train, tolerance=0.0, iterations=1000
    ).codebook


def with_codebook(folder, there, change):
    """The run once more, its codebook changed by hand."""
    there.mkdir()
    (there / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    checkpoint = Run(folder).load()
    codebook = checkpoint.model["quantizer.codebook.weight"].clone()
    model = {**checkpoint.model, "quantizer.codebook.weight": change(codebook)}
    Run(there).save("last", dataclasses.replace(checkpoint, model=model))
    return there


def about(diagnosis, what):
    return next(f for f in diagnosis.findings if f.about == what)


# -- the measurements ----------------------------------------------------------------------------


def pictures(count):
    noise = nn.functional.avg_pool2d(torch.rand(count, 1, 8, 8), 3, 1, 1) * 2
    return InMemory("made", "test", (noise * 255).clamp(0, 255).byte(), torch.arange(count) % 3, "")


def patches(quantizer, images):
    """Patches in an orthonormal basis: the decoder inverts the encoder."""
    encoder = nn.Conv2d(1, 16, 4, 4)
    decoder = nn.ConvTranspose2d(16, 1, 4, 4, bias=False)
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(16, 16)).Q.view(-1, 1, 4, 4)
        encoder.weight.copy_(basis)
        decoder.weight.copy_(basis)
        encoder.bias.zero_()
    network = mqvae.VQNetwork(encoder, quantizer, decoder)
    network.initialize_codebook(images.pixels / 255)
    return network


def test_the_bound_is_the_network_without_its_codes():
    images = pictures(40)
    network = patches(mqvae.VectorQuantizer(5, 16), images)
    assert without_quantization(network, mqvae.Reconstruction(), images)["mse"] < 1e-12
    with torch.no_grad():
        network.encoder.bias += 0.1  # in an orthonormal basis as far in the image
    bound = without_quantization(network, mqvae.Reconstruction(), images)
    assert bound["mse"] == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ValueError, match="no images"):
        without_quantization(network, mqvae.Reconstruction(), pictures(0))


def test_coherence_is_that_of_a_loop():
    delta, rows = torch.randn(40, 3, dtype=torch.float64), torch.randint(6, (40,))
    common = 0.0
    for row in range(6):
        own = delta[rows == row]
        common += len(own) * own.mean(0).square().sum() if len(own) else 0
    found = coherence(delta, rows, 6)
    assert found.item() == pytest.approx((common / delta.square().sum()).item(), rel=1e-12)
    alike = torch.ones(10, 3)
    assert coherence(alike, torch.arange(10) % 2, 4).item() == pytest.approx(1)
    against = torch.cat([alike, -alike])
    assert coherence(against, torch.zeros(20, dtype=torch.int64), 4).item() == pytest.approx(0)
    assert coherence(0 * alike, torch.zeros(10, dtype=torch.int64), 4).item() == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_motion_of_a_step_by_hand(groups):
    images = pictures(60)
    network = patches(mqvae.VectorQuantizer(7, 16, groups=groups), images)
    with torch.no_grad():
        network.quantizer.codebook.weight[3] = 100.0  # never chosen
    batches = [images.take(torch.arange(n, n + 30)) for n in (0, 30)]
    batches = [(x / 255, y) for x, y in batches]
    x = batches[0][0]
    result = network(x)
    parts = (network.embed(x) - result.quantized.z_q).view(-1, 16 // groups)
    shift = torch.randn(16) * 0.01

    def step(x, y):
        with torch.no_grad():
            network.encoder.bias += shift
            weight = network.quantizer.codebook.weight
            weight += 3.0 / math.sqrt(weight.shape[1])
            weight[3] += 1.0 / math.sqrt(weight.shape[1])

    found = motion(network, mqvae.Reconstruction(), batches, step, 1)
    assert found.distance == pytest.approx(parts.norm(dim=1).mean().item(), rel=1e-5)
    drift = torch.stack([part.norm() for part in shift.chunk(groups)]).mean().item()
    assert found.drift == pytest.approx(drift, rel=1e-3)
    assert found.coherence == pytest.approx(1 if groups == 1 else found.coherence, rel=1e-4)
    assert found.speed == pytest.approx(3, rel=1e-4)
    assert found.speed_of_unused == pytest.approx(4, rel=1e-4)
    # The image's error is the embedding's: both losses pull codewords the same way.
    assert found.alignment == pytest.approx(1, abs=1e-4)
    assert found.steps == 1


# -- what is said of runs ------------------------------------------------------------------------


def test_dead_codes_are_told(made, optimum, tmp_path):
    def kill(codebook):
        codebook[:4] = optimum[:4]
        codebook[4:] = 50.0 + torch.arange(12.0)[:, None]
        return codebook

    run = with_codebook(made, tmp_path / "dead", kill)
    found = diagnose(run, **FEW)
    assert found.measured.dead == 12
    assert found.measured.usage <= 4 / 16
    assert found.measured.of_refit > 0.05
    said = about(found, "codebook")
    assert "12 of 16 codewords are dead" in said.words
    assert "codewords do not lie where the embeddings are" in said.words
    assert any("ReplaceUnused" in command for command in said.commands)


def test_a_codebook_at_the_optimum_of_k_means_gains_nothing(made, optimum, tmp_path):
    run = with_codebook(made, tmp_path / "optimal", lambda codebook: optimum)
    # Of all images but those held out the optimum is nearly that of all.
    found = diagnose(run, images=10_000, searched=20, steps=1)
    assert found.measured.dead == 0
    assert found.measured.error_refitted == pytest.approx(found.measured.error, rel=0.02)
    assert abs(found.measured.of_refit) < 0.02
    said = about(found, "codebook")
    assert "All 16 codewords are in use" in said.words
    assert said.words.endswith("codewords lie where they should.")
    assert not said.limits
    assert said.commands == ()


def test_figures_are_those_of_the_run(made, usual):
    found = usual
    summary = json.loads((made / "summary.json").read_text())
    assert found.measured.figure == "mse"
    assert found.measured.now["mse"] == pytest.approx(summary["mse"], rel=1e-6)
    assert found.measured.perplexity == pytest.approx(summary["perplexity"], rel=1e-6)
    assert found.measured.chosen["mse"] < found.measured.nearest["mse"]
    assert found.measured.unquantized["mse"] != found.measured.now["mse"]
    # The rates are zero where the run ended: motion is that of a small share of the settings'.
    assert found.measured.rate == pytest.approx(0.01)
    assert found.measured.motion.drift > 1e-4
    assert found.measured.motion.speed > 1e-4
    assert found.step == 100
    assert sum(finding.limits for finding in found.findings) == 1
    assert found.findings[0].limits


def files_of(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_a_diagnosis_leaves_no_trace_and_is_repeated(made, usual):
    before, random = files_of(made), torch.get_rng_state()
    again = diagnose(made, **FEW)
    assert files_of(made) == before
    assert torch.equal(random, torch.get_rng_state())
    assert again.content() == usual.content()


def said_of(run, found, *, rate=None, **changed):
    """What is said of the run's measurements with some of them changed."""
    moved = {k: changed.pop(k) for k in list(changed) if hasattr(found.measured.motion, k)}
    measured = dataclasses.replace(
        found.measured, **changed, motion=dataclasses.replace(found.measured.motion, **moved)
    )
    quantizer = mqvae.VectorQuantizer(16, 4, codebook=Table(), rate=rate)
    said = findings(measured, Settings.of_run(Run(run)), quantizer, run)
    return {finding.about: finding for finding in said}, said[0].about


def mse(value):
    return {"mse": value, "psnr": 20.0}


def test_each_limit_is_named(made, usual):
    base = {"now": mse(1.0), "nearest": mse(1.0), "chosen": mse(0.99), "dead": 0}
    cases = {
        "bits": {"unquantized": mse(0.5), "refitted": mse(0.99)},
        "codebook": {"unquantized": mse(0.5), "refitted": mse(0.7)},
        "choice": {"unquantized": mse(0.9), "refitted": mse(0.99), "chosen": mse(0.6)},
        "network": {"unquantized": mse(0.98), "refitted": mse(0.99)},
    }
    for limit, changed in cases.items():
        said, first = said_of(made, usual, **{**base, **changed})
        assert first == limit
        assert [about for about, finding in said.items() if finding.limits] == [limit]
        assert said[limit].commands
    adapted, _ = said_of(made, usual, **{**base, "unquantized": mse(1.5), "refitted": mse(1.0)})
    assert "50% worse: its decoder has adapted" in adapted["bits"].words
    far, _ = said_of(made, usual, **{**base, "unquantized": mse(820.0), "refitted": mse(816.0)})
    assert "is 819 times worse" in far["bits"].words
    assert "changes the MSE by a factor of 816" in far["codebook"].words


def test_codewords_not_worth_their_bits_are_not_called_dead(made, usual):
    changed = {"now": mse(1.0), "unquantized": mse(0.5), "refitted": mse(1.0), "dead": 9}
    priced, _ = said_of(made, usual, rate=mqvae.RateAware(bits=3.0), **changed)
    assert "9 of 16 codewords are not worth their bits" in priced["codebook"].words
    assert not priced["codebook"].commands
    assert [c for c in priced["bits"].commands if "--quantizer.rate.bits 4" in c]
    plain, first = said_of(made, usual, **changed)
    assert "9 of 16 codewords are dead" in plain["codebook"].words
    # More bits would gain most, and half of those that there are are dead.
    assert first == "codebook" and "ReplaceUnused" in plain["codebook"].commands[0]
    assert said_of(made, usual, **{**changed, "dead": 7})[1] == "bits"
    assert plain["codebook"].commands


def test_a_codebook_that_is_left_behind_is_told_its_rate(made, usual):
    slow, _ = said_of(made, usual, drift=1.0, speed=0.1, coherence=0.8)
    assert "their codeword is left behind" in slow["motion"].words
    rate = 10 * Settings.of_run(Run(made)).optimizer.codebook_lr
    assert f"--optimizer.codebook_lr {rate:.1g}" in slow["motion"].commands[0]
    vain, _ = said_of(made, usual, drift=1.0, speed=0.1, coherence=0.1, dead=0)
    assert "little that it could follow" in vain["motion"].words
    assert not vain["motion"].commands
    fast, _ = said_of(made, usual, drift=1.0, speed=30.0, dead=0)
    assert "lower its learning rate" in fast["motion"].words
    still, _ = said_of(made, usual, drift=0.0)
    assert "do not move" in still["motion"].words


def test_every_command_can_be_typed(made, usual):
    more = {"now": mse(1.0), "unquantized": mse(0.1), "refitted": mse(1.0), "dead": 0}
    bits, _ = said_of(made, usual, **more, drift=1.0, speed=0.1, coherence=0.5)
    alike = {"now": mse(1.0), "unquantized": mse(1.0), "refitted": mse(1.0)}
    network, _ = said_of(made, usual, **alike, chosen=mse(1.0), nearest=mse(1.0), alignment=0.0)
    codebook, _ = said_of(made, usual, refitted=mse(0.1), now=mse(1.0), drift=1.0, speed=0.1)
    every = (bits, network, codebook)
    commands = [c for said in every for f in said.values() for c in f.commands]
    tried = " ".join(commands)
    for option in ("Ema", "ReplaceUnused", "num_codes", "groups", "codebook_lr", "steps"):
        assert option in tried
    for command in commands:
        program, train, *arguments = shlex.split(command)
        assert (program, train) == ("mqvae", "train")
        settings, out, _ = from_arguments(arguments)
        settings.components()
        assert out is not None and out.parent == made.parent


# -- other runs ----------------------------------------------------------------------------------


class Classifier(Architecture):
    """Scores from quantized patches."""

    def cut(self, inputs, dim):
        encoder = nn.Conv2d(inputs.channels, dim, 4, 4)
        return encoder, nn.Sequential(nn.Flatten(), nn.Linear(4 * dim, inputs.classes))


CLASSIFIER = {
    "network": {"class_path": f"{__name__}.Classifier"},
    "task": {"class_path": "mqvae.Classification"},
}


def test_a_classifier(tmp_path):
    ema = {"update": {"class_path": "mqvae.Ema"}}
    run = trained(tmp_path / "run", CLASSIFIER, ema)
    found = diagnose(run, **FEW)
    assert found.measured.figure == "cross_entropy"
    assert set(found.measured.unquantized) == {"accuracy", "f1", "cross_entropy"}
    assert found.measured.chosen["cross_entropy"] < found.measured.nearest["cross_entropy"]


@pytest.mark.parametrize("kind", ["GumbelQuantizer", "NoQuantizer"])
def test_other_quantizers_are_refused(kind, tmp_path, capsys):
    arguments = {"dim": 4} | ({"num_codes": 16} if kind == "GumbelQuantizer" else {})
    quantizer = {"class_path": f"mqvae.{kind}", "init_args": arguments}
    settings = Settings.of(load_preset("digits-tiny", SMALL, {"quantizer": quantizer}))
    begin(settings, tmp_path / "run")
    assert main(["diagnose", str(tmp_path / "run")]) == 2
    assert f"expects a VectorQuantizer, got {kind}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "diagnosis.json").exists()


class Played(mqvae.Reconstruction):
    """A task with an auxiliary network."""

    def __init__(self):
        super().__init__()
        self.own = nn.Linear(1, 1)

    def auxiliary_optimizers(self, steps):
        return {"own": AuxiliaryOptimizer(torch.optim.SGD(self.own.parameters(), lr=0.1))}


def test_a_task_with_players(tmp_path):
    delta = {"task": {"class_path": f"{__name__}.Played"}}
    begin(Settings.of(load_preset("digits-tiny", SMALL, delta)), tmp_path / "run")
    found = diagnose(tmp_path / "run", images=400, steps=2).measured
    assert (found.figure, found.searched_images) == ("mse", 8)


def test_a_gan_is_measured_by_its_reconstruction(tmp_path):
    sizes = {"perceptual_weight": 0.0, "discriminator_layers": 1, "discriminator_width": 4}
    delta = {
        "data": {"side": 16, "batch_size": 20},
        "network": {"class_path": "mqvae.VQVAE", "init_args": {"width": 4, "residual_blocks": 1}},
        "task": {"class_path": "mqvae.Adversarial", "init_args": sizes},
        "trainer": {"fast_dev_run": True},
    }
    run = trained(tmp_path / "run", delta)
    before = (run / "checkpoints" / "last" / "model.safetensors").read_bytes()
    measured = diagnose(run, images=100, steps=1, searched=4).measured
    assert (run / "checkpoints" / "last" / "model.safetensors").read_bytes() == before
    assert (
        set(measured.now)
        == set(measured.unquantized)
        == set(measured.refitted)
        == {
            "mse",
            "psnr",
        }
    )
    assert measured.figure == "mse"


@pytest.mark.usefixtures("uncharted")
def test_the_command_and_the_report(made, tmp_path, capsys):
    run = with_codebook(made, tmp_path / "run", lambda codebook: codebook)
    (run / "summary.json").write_bytes((made / "summary.json").read_bytes())
    few = [part for k, n in FEW.items() for part in (f"--{k}", str(n))]
    assert main(["diagnose", str(run), *few]) == 0
    said = capsys.readouterr().out
    written = json.loads((run / "diagnosis.json").read_text())
    assert "LIMITS: " + written["findings"][0]["words"] in said
    assert "not quantized, same network" in said
    page = write_report([made, run], tmp_path / "report.html").read_text()
    assert "What limits the runs" in page
    assert written["findings"][-1]["words"].replace("'", "&#39;") in page
    assert "What limits the runs" not in write_report([made], tmp_path / "r.html").read_text()
    for broken in ('{"findings": []}', '{"findings": [1]}', "[]", "{"):
        (run / "diagnosis.json").write_text(broken)
        with pytest.raises(ValueError, match=r"diagnosis\.json is (damaged|not valid JSON)"):
            write_report([run], tmp_path / "report.html")


@pytest.mark.parametrize("wrong", ["--images", "--searched", "--steps"])
def test_wrong_numbers_are_refused(made, wrong, capsys):
    assert main(["diagnose", str(made), wrong, "0"]) == 2
    assert not (made / "diagnosis.json").exists()
    assert "1 or more" in capsys.readouterr().err
