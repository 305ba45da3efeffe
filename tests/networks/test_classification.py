"""Classification: the network cut half-way, the task, and runs of both."""

import csv
import json

import numpy as np
import pytest
import reference
import torch
from problems import make
from small import settings_of
from test_hypergradient import XI, hypergradient, relative
from torch.nn.functional import cross_entropy

from mqvae import Classification, Exact, ForwardMode, NoQuantizer, ResNet18, VectorQuantizer
from mqvae.cli import main
from mqvae.config import Settings, load_preset
from mqvae.metrics import evaluate
from mqvae.networks.architecture import Inputs
from mqvae.report import write_report
from mqvae.runs import Run
from mqvae.tokenizer import Tokenizer
from mqvae.training import begin

# -- the network -----------------------------------------------------------------------------------


def of_torchvision(whole, *, inputs, stem=None):
    """The network cut half-way, with the whole one's weights and nothing quantized."""
    network = ResNet18(stem=stem).build(inputs, NoQuantizer(128)).eval()
    encoder, decoder = network.encoder.state_dict(), network.decoder.state_dict()
    assert not encoder.keys() & decoder.keys()
    assert encoder.keys() | decoder.keys() == whole.state_dict().keys()
    network.encoder.load_state_dict({k: whole.state_dict()[k] for k in encoder})
    network.decoder.load_state_dict({k: whole.state_dict()[k] for k in decoder})
    return network


def with_batch_statistics(whole, x):
    with torch.no_grad():
        whole.train()(x)
    return whole.eval()


@pytest.mark.parametrize(
    ("side", "channels", "stem"), [(28, 1, None), (28, 1, "imagenet"), (72, 3, None)]
)
def test_without_quantization_it_is_torchvisions(side, channels, stem):
    from torchvision.models import resnet18

    whole = resnet18(weights=None, num_classes=7)
    if stem == "imagenet":
        whole.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    elif side == 28:  # what everybody does on small images
        whole.conv1 = torch.nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        whole.maxpool = torch.nn.Identity()
    x = torch.rand(3, channels, side, side)
    with_batch_statistics(whole, x)
    network = of_torchvision(whole, inputs=Inputs(channels, side, 7), stem=stem)
    with torch.no_grad():
        expected = whole(x)
        assert torch.equal(network.decoder(network.encoder(x)), expected)
        # Channels are last around a quantizer, where convolutions add up in another order.
        torch.testing.assert_close(network(x).output, expected, rtol=1e-4, atol=1e-4)


def test_it_starts_as_torchvisions_does():
    from torchvision.models import resnet18

    whole = resnet18(weights=None, num_classes=10).state_dict()
    encoder, decoder = ResNet18().cut(Inputs(3, 224, 10), 128)
    for name, value in {**encoder.state_dict(), **decoder.state_dict()}.items():
        assert value.shape == whole[name].shape
        spread, expected = value.float().std(correction=0), whole[name].float().std(correction=0)
        torch.testing.assert_close(spread, expected, rtol=0.1, atol=0.01)


@pytest.mark.parametrize(
    ("side", "channels", "positions"), [(28, 1, 14), (32, 3, 16), (64, 3, 32), (224, 3, 28)]
)
@pytest.mark.parametrize("dim", [8, 24])
def test_shapes(side, channels, positions, dim):
    network = ResNet18(base_width=4).build(Inputs(channels, side, 5), VectorQuantizer(6, dim))
    assert ("to_codes" in dict(network.encoder.named_children())) == (dim != 8)
    result = network(torch.rand(2, channels, side, side))
    assert result.output.shape == (2, 5)
    assert result.quantized.codes.shape == (2, positions, positions)
    assert result.quantized.z_q.shape[-1] == dim


def test_either_stem_can_be_asked_for():
    for stem, positions in (("small", 48), ("imagenet", 12)):
        network = ResNet18(4, stem=stem).build(Inputs(1, 96, 3), VectorQuantizer(6, 8))
        assert network.encode(torch.rand(2, 1, 96, 96)).shape == (2, positions, positions)


@pytest.mark.parametrize(
    ("stem", "inputs", "said"),
    [
        (None, Inputs(1, 28), "2 or more classes apart, got 1: .*--data.classes"),
        (None, Inputs(1, 7, 3), "8 pixels a side or more, got 7: --size 8"),
        ("imagenet", Inputs(1, 16, 3), "17 pixels.* got 16: .*--network.stem small"),
    ],
)
def test_what_it_does_not_take(stem, inputs, said):
    with pytest.raises(ValueError, match=said):
        ResNet18(4, stem).build(inputs, VectorQuantizer(6, 8))


def test_what_it_cannot_be():
    with pytest.raises(ValueError, match="base_width must be 1 or more"):
        ResNet18(0)
    with pytest.raises(ValueError, match="stem must be small or imagenet, got 'large'"):
        ResNet18(stem="large")


# -- the task --------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_is_torchs(smoothing):
    output = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(5, (9,))
    found = Classification(smoothing)(output, target)
    expected = cross_entropy(output, target, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, output)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, output)[0])


def test_a_loss_in_half_precision_is_taken_in_single():
    output = torch.randn(9, 5).bfloat16()
    target = torch.randint(5, (9,))
    found = Classification()(output, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(output.float(), target))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("groups", ["one", "three"])
def test_hypergradients_pass_it(groups, smoothing):
    problem = make("classifier", groups)
    problem.loss = Classification(smoothing)
    found = hypergradient(problem, Exact(ForwardMode(), ForwardMode()))
    assert relative(found.indirect, reference.reverse_mode(problem, XI)) < 1e-12
    assert relative(found.direct, reference.above(problem, XI)[2]) < 1e-12


def test_what_the_task_refuses():
    with pytest.raises(ValueError, match=r"label_smoothing must be from 0 to 1, got 1\.5"):
        Classification(1.5)
    with pytest.raises(ValueError, match=r"expects outputs \(B, classes\), got \(2, 1, 8, 8\)"):
        Classification()(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="in a Classification task is no image"):
        Classification().images(torch.rand(2, 3))


CLASSES = 6


def scores(labels: int, predictions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ones in which only the first classes are labels, or are predicted."""
    output, target = torch.randn(200, CLASSES), torch.randint(labels, (200,))
    output[torch.arange(200), target] += 1
    output[:, predictions:] -= 100
    return output, target


def measured(*batches, total=lambda tensor: tensor):
    measurement = Classification().measurement()
    for output, target in batches:
        measurement.update(output, target)
    return measurement, measurement.compute(total)


@pytest.mark.parametrize(("labels", "predictions"), [(6, 6), (5, 6), (6, 5), (4, 4), (1, 3)])
def test_figures_are_those_of_scikit_learn(labels, predictions):
    import sklearn.metrics

    output, target = scores(labels, predictions)
    measurement, figures = measured(*zip(output.split(70), target.split(70)))
    assert list(figures) == list(Classification.metrics)
    guesses = output.argmax(1)
    accuracy = sklearn.metrics.accuracy_score(target, guesses)
    assert figures["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert figures["f1"] == pytest.approx(
        sklearn.metrics.f1_score(target, guesses, average="macro"), rel=1e-12
    )
    expected = cross_entropy(output.double(), target).item()
    assert figures["cross_entropy"] == pytest.approx(expected, rel=1e-12)
    (matrix,) = measurement.show(output, output)
    confusion = sklearn.metrics.confusion_matrix(target, guesses, labels=range(CLASSES))
    assert np.array_equal(matrix.counts.numpy(), confusion)
    assert matrix.counts.dtype == torch.int64
    assert (matrix.name, matrix.rows, matrix.columns) == ("confusion", "label", "prediction")


def test_processes_that_share_a_split_have_the_figures_of_the_whole():
    batches = [scores(6, 6) for _ in range(3)]
    _, whole = measured(*batches)
    # One of them has got no batch, and has not seen how many classes there are.
    shares = [measured(batches[0])[0], measured(*batches[1:])[0], Classification().measurement()]

    def totals():
        seen = sum(len(share.counts) > 0 for share in shares)
        yield torch.tensor([CLASSES * seen, seen])
        yield sum(share.counts for share in shares if len(share.counts))
        yield sum(share.cross_entropy for share in shares)

    for share in reversed(shares):
        answers = iter([t.clone() for t in totals()])
        before = [(s.counts, s.cross_entropy) for s in shares]
        assert share.compute(lambda _, answers=answers: next(answers)) == pytest.approx(whole)
        assert int(share.show(*batches[0])[0].counts.sum()) == 600
        for s, (counts, loss) in zip(shares, before):
            s.counts, s.cross_entropy = counts, loss


# -- runs ------------------------------------------------------------------------------------------

SMALL = {
    "name": "small",
    "steps": 40,
    "data": {"name": "digits", "batch_size": 50},
    "network": {"init_args": {"base_width": 8, "stem": None}},
    "quantizer": {"init_args": {"num_codes": 32, "dim": 16}},
    "optimizer": {"network_lr": 3e-3, "codebook_lr": 1e-2},
    "trainer": {"accelerator": "cpu", "checkpoint_every": 15},
}
PRESET = "classification"
QUANTIZERS = {
    "projected": {"init_args": {"dim": 12}},
    "gumbel": {"class_path": "mqvae.GumbelQuantizer", "init_args": {"num_codes": 32, "dim": 16}},
    "none": {"class_path": "mqvae.NoQuantizer", "init_args": {"dim": 16}},
}


def settings(*deltas, rule="Meta"):
    update = {"update": {"class_path": f"mqvae.{rule}"}}
    return settings_of(PRESET, SMALL, over=(update, *deltas))


def state(folder):
    return Run(folder).load("last", training=False).model


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta") / "run"
    begin(settings(), folder).fit()
    return folder


def test_it_learns(meta):
    summary = json.loads((meta / "summary.json").read_text())
    assert summary["accuracy"] > 0.5
    assert summary["f1"] > 0.5
    assert summary["cross_entropy"] < 1.5
    assert 0 < summary["gradient_gap"] < float("inf")
    assert summary["warnings"] == []
    assert list(summary["figures"])[:3] == ["accuracy", "f1", "cross_entropy"]
    with (meta / "samples" / "test-last" / "confusion.csv").open(newline="") as file:
        counts = [[int(cell) for cell in row] for row in csv.reader(file)]
    assert sum(counts[i][i] for i in range(10)) == round(summary["accuracy"] * 297)
    assert sum(map(sum, counts)) == 297
    config = Run(meta).config
    assert config["network"] == {
        "class_path": "mqvae.ResNet18",
        "init_args": {"base_width": 8, "stem": None, "normalization": None},
    }
    assert config["task"]["class_path"] == "mqvae.Classification"
    assert config["data"]["init_args"]["classes"] == 10


def test_what_it_is_made_of_leaves_no_batch_statistics(tmp_path):
    # Probes before the first step, and k-means, look at images too.
    network = begin(settings(), tmp_path / "run").parts.network
    for name, value in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert value == 0, name
        if name.endswith("running_mean"):
            assert not value.any(), name


def test_a_step_counts_its_batch_once(meta):
    tracked = [v for k, v in state(meta).items() if k.endswith("num_batches_tracked")]
    assert len(tracked) == 20
    assert all(int(number) == 40 for number in tracked)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_other_quantizers_take_part(kind, tmp_path):
    few = {"steps": 2, "quantizer": QUANTIZERS[kind]}
    rule = "Joint" if kind in ("gumbel", "none") else "Meta"
    summary = begin(settings(few, rule=rule), tmp_path / "run").fit()
    assert 0 <= summary["f1"] <= 1
    assert ("gradient_gap" in summary) == (kind != "none")


def test_the_exact_hypergradient_takes_part(tmp_path):
    rule = {"update": {"init_args": {"hypergradient": {"class_path": "mqvae.Exact"}}}}
    summary = begin(settings({"steps": 2}, rule), tmp_path / "run").fit()
    assert summary["cross_entropy"] < float("inf")


def test_the_report(meta, tmp_path):
    page = write_report([meta], tmp_path / "report.html").read_text()
    for said in ("Accuracy", "F1", "CE", "Confusion matrix"):
        assert said in page


def test_a_run_encodes_and_has_no_images(meta, tmp_path, capsys):
    codes = tmp_path / "codes.npz"
    assert main(["encode", str(meta), "test", "--out", str(codes)]) == 0
    with np.load(codes) as file:
        assert file["codes"].shape == (297, 4, 4)
    assert main(["decode", str(meta), str(codes), "--out", str(tmp_path / "images")]) == 2
    assert "what a network gives in a Classification task is no image" in capsys.readouterr().err
    assert not (tmp_path / "images").exists()
    tokenizer = Tokenizer.from_run(meta, device="cpu")
    found = evaluate(tokenizer.network, tokenizer.task, tokenizer.find_images("test")).metrics
    assert found["f1"] == json.loads((meta / "summary.json").read_text())["f1"]


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        ({"data": {"classes": 9}}, "data.classes is 9, but digits has labels up to 9"),
        ({"data": {"side": 6}}, "8 pixels a side or more, got 6"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(delta, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        begin(settings(delta), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_classify(tmp_path):
    with pytest.raises(ValueError, match="take a network that classifies, such as ResNet18"):
        begin(settings({"network": {"class_path": "mqvae.VQVAE"}}), tmp_path / "run").fit()


def test_the_presets():
    paper, small = (Settings.of(load_preset(name)) for name in (PRESET, "fashion-mnist-classify"))
    assert paper.quantizer["init_args"]["dim"] == 512
    assert paper.network["init_args"]["base_width"] == 64
    assert (small.steps, small.data.batch_size) == (1500, 64)
    assert small.task == paper.task
