"""Refined encoding: no image worse, nothing touched, each image by itself."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import SMALL
from torch import nn

import mqvae
from mqvae.cli import main
from mqvae.core.network import VQNetwork
from mqvae.errors import MqvaeError
from mqvae.refine.choices import choices_of
from mqvae.refine.curvature import Curvature, curvature_of
from mqvae.refine.refined import refined
from mqvae.refine.search import Passed, Search
from mqvae.tasks import Reconstruction
from mqvae.tokenizer import Codes, Tokenizer
from mqvae.tokenizer.shards import Shards

DIM = 6


def with_prices(quantizer):
    """Codes of unequal probabilities, and a λ that tells."""
    for stage in getattr(quantizer, "stages", [quantizer]):
        stage.prices.probabilities.copy_(torch.rand_like(stage.prices.probabilities) ** 3)
        stage.prices.distortion.fill_(0.1)
        stage.prices.steps.fill_(1000)
    return quantizer


def rate():
    return mqvae.RateAware(bits=2.0)


QUANTIZERS = {
    "vector": lambda: mqvae.VectorQuantizer(12, DIM),
    "cosine": lambda: mqvae.VectorQuantizer(12, DIM, distance=mqvae.Cosine()),
    "linear map": lambda: mqvae.VectorQuantizer(12, DIM, codebook=mqvae.LinearMap()),
    "affine": lambda: mqvae.VectorQuantizer(12, DIM, codebook=mqvae.Affine()),
    "groups": lambda: mqvae.VectorQuantizer(12, DIM, groups=3),
    "shared": lambda: mqvae.VectorQuantizer(12, DIM, groups=2, shared_codebook=True),
    "rate": lambda: with_prices(mqvae.VectorQuantizer(12, DIM, rate=rate())),
    "groups with rates": lambda: with_prices(mqvae.VectorQuantizer(12, DIM, groups=2, rate=rate())),
    "stages": lambda: mqvae.ResidualQuantizer([mqvae.VectorQuantizer(12, DIM) for _ in range(3)]),
    "stages with rates": lambda: with_prices(
        mqvae.ResidualQuantizer([mqvae.VectorQuantizer(12, DIM, rate=rate()) for _ in range(2)])
    ),
    "one stage": lambda: mqvae.ResidualQuantizer([mqvae.VectorQuantizer(12, DIM)]),
    "fewer codes than candidates": lambda: mqvae.VectorQuantizer(3, DIM),
    "gumbel": lambda: mqvae.GumbelQuantizer(12, DIM),
    "fsq": lambda: mqvae.FiniteScalarQuantizer((8, 5, 4, 3, 3, 2)),
    "lfq": lambda: mqvae.LookupFreeQuantizer(2**DIM),
    "bsq": lambda: mqvae.LookupFreeQuantizer(2**DIM, distance=mqvae.Cosine()),
}


class Normed(nn.Sequential):
    """A decoder with batch statistics, and gradients that somebody else left."""

    def __init__(self):
        super().__init__(
            nn.ConvTranspose2d(DIM, 8, 2, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 3, 1, 1)
        )


@pytest.fixture(params=QUANTIZERS.values(), ids=QUANTIZERS.keys())
def network(request):
    made = VQNetwork(nn.Conv2d(1, DIM, 2, 2), request.param(), Normed())
    with torch.no_grad():
        made.quantizer.initialize(torch.randn(200, DIM))
    return made.eval()


def images(number=6, side=8):
    return torch.rand(number, 1, side, side)


def errors(network, codes, x):
    with torch.no_grad():
        return (network.decode(codes) - x).square().flatten(1).mean(1)


def found_by(network, x, how):
    curvature = curvature_of(network, x.shape[1:])
    return refined(network, x, Reconstruction().eval(), how, curvature)


PASSES = pytest.mark.parametrize("passes", [3, 14])  # without annealing, and with


@pytest.mark.covering(1)
@PASSES
def test_no_image_is_worse_and_nothing_is_touched(network, passes):
    x = images()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    codes = found_by(network, x, mqvae.Refinement(passes))
    nearest = network.encode(x)
    assert codes.shape == nearest.shape and codes.dtype == nearest.dtype
    after, at_first = errors(network, codes, x), errors(network, nearest, x)
    assert (after <= at_first * (1 + 1e-5)).all()  # one image and a batch may round apart
    assert after.mean() < 0.99 * at_first.mean()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all((p.grad == 1).all() for p in network.parameters())
    assert not any(module.training for module in network.modules())


@pytest.mark.covering(1)
@PASSES
def test_an_image_gets_its_codes_whatever_the_others_are(network, passes):
    """In double precision, where what batches of other sizes round apart flips no code."""
    network.double()
    x, how = images().double(), mqvae.Refinement(passes)
    whole = found_by(network, x, how)
    assert torch.equal(found_by(network, x.flip(0), how), whole.flip(0))
    assert torch.equal(found_by(network, x[2:3], how), whole[2:3])


class Patches(nn.Module):
    """Images to a sequence of embeddings, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, DIM)

    def forward(self, x):
        return self.linear(nn.functional.unfold(x, 2, stride=2).mT)  # (B, L, D)


class Folded(nn.Module):
    """And back."""

    def __init__(self, side):
        super().__init__()
        self.side = side
        self.linear = nn.Linear(DIM, 4)

    def forward(self, z):
        return nn.functional.fold(self.linear(z).mT, self.side, 2, stride=2)


@PASSES
def test_codes_that_are_no_grid_are_refined(passes):
    quantizer = QUANTIZERS["groups"]()
    network = VQNetwork(Patches(), quantizer, Folded(8), channel_axis=-1).eval()
    x = images()
    codes, nearest = found_by(network, x, mqvae.Refinement(passes)), network.encode(x)
    after, before = errors(network, codes, x), errors(network, nearest, x)
    assert codes.shape == (6, 16, 3)
    assert (after <= before * (1 + 1e-5)).all() and after.mean() < 0.99 * before.mean()


def test_another_loss_of_images_is_lowered():
    task = mqvae.Adversarial(perceptual_weight=0.0, adversarial_weight=0.0).eval()  # L1
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS["vector"](), Normed()).eval()
    x = images()
    codes = refined(network, x, task, mqvae.Refinement(5), curvature_of(network, x.shape[1:]))
    with torch.no_grad():
        after, before = (
            (network.decode(each) - x).abs().flatten(1).mean(1)
            for each in (codes, network.encode(x))
        )
    assert (after <= before * (1 + 1e-5)).all() and after.mean() < 0.99 * before.mean()


def test_noise_follows_from_the_seed(monkeypatch):
    monkeypatch.setattr("mqvae.refine.search.STEPS", 0)  # which may end at the same codes
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS["vector"](), Normed()).eval()
    x = images()
    codes = [found_by(network, x, mqvae.Refinement(12, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def test_choices_are_the_codes_and_the_vectors_of_the_quantizer(network):
    codes = network.encode(images())
    choices = choices_of(network.quantizer)
    options = choices.split(codes)
    assert torch.equal(choices.join(options), codes)
    z_q = torch.zeros(*options.shape[:-1], DIM)
    for number, choice in enumerate(choices.each):
        z_q[..., choice.dims] += choice.table[options[..., number]]
    torch.testing.assert_close(z_q, network.quantizer.decode(codes))


def test_the_curvature_of_a_linear_decoder_is_its_own():
    """Kernel 3, stride 2: a position shares one row or column of pixels with each neighbour."""
    decoder = nn.ConvTranspose2d(DIM, 1, 3, 2, padding=1, output_padding=1)
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS["vector"](), decoder).eval()
    shape = (1, 24, 24)
    z_q = torch.zeros(1, 12, 12, DIM)
    full = torch.autograd.functional.jacobian(
        lambda z: decoder(z.movedim(-1, 1)).flatten(), z_q
    ).flatten(1)
    full = (full.T @ full).view(144, DIM, 144, DIM)
    middle = 6 * 12 + 6
    found = curvature_of(network, shape, at_once=3)
    for i in range(3):
        for j in range(3):
            right = full[middle, :, middle + 12 * (i - 1) + j - 1]
            mine = found.blocks[:, :, i, j] * found.scale
            assert (mine - right).norm() < 0.3 * full[middle, :, middle].norm()
    own, right = found.blocks[:, :, 1, 1] * found.scale, full[middle, :, middle]
    assert (own - right).norm() < 0.2 * right.norm()


@pytest.mark.covering(1)
@pytest.mark.parametrize("priced", [False, True], ids=["", "with prices"])
@pytest.mark.parametrize("name", ["vector", "groups", "stages", "fsq"])
def test_steps_minimize_the_model_position_by_position(name, priced):
    """Beside a slow search of the same model, a position and a choice at a time."""
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS[name](), Normed()).eval().double()
    x = images(2).double()
    half = torch.randn(DIM, DIM, 3, 3, dtype=torch.float64) / 9
    blocks = half + half.transpose(0, 1).flip(2, 3)  # as of a symmetric matrix
    blocks[:, :, 1, 1] += 3 * torch.eye(DIM)
    choices = choices_of(network.quantizer)
    how = mqvae.Refinement(1, 0.3 if priced else 0.0)
    search = Search(network, Reconstruction(), x, how, Curvature(blocks, 1.0), choices)
    options = choices.split(network.encode(x))
    gradient = torch.randn(2, 4, 4, DIM, dtype=torch.float64)
    damping = torch.tensor([0.7, 1.9], dtype=torch.float64)
    most = max(len(choice.table) for choice in choices.each)
    prices = torch.rand(*options.shape, most, dtype=torch.float64) if priced else None
    if priced and len({len(choice.table) for choice in choices.each}) > 1:
        pytest.skip("a prior counts codes, not levels")
    with torch.no_grad():
        now = Passed(torch.zeros(2), gradient, prices, torch.ones(2))
        found = search._swept(options, now, damping)

    def model(change, image):
        value = (gradient[image] * change).sum()
        for i in range(3):
            for j in range(3):
                moved = torch.zeros_like(change)
                y, z = (
                    slice(max(0, i - 1), 4 + min(0, i - 1)),
                    slice(max(0, j - 1), 4 + min(0, j - 1)),
                )
                u, v = (
                    slice(max(0, 1 - i), 4 + min(0, 1 - i)),
                    slice(max(0, 1 - j), 4 + min(0, 1 - j)),
                )
                moved[u, v] = change[y, z]
                value += damping[image] / 2 * (change @ blocks[:, :, i, j] * moved).sum()
        return value

    for image in range(2):
        change = torch.zeros(4, 4, DIM, dtype=torch.float64)
        chosen = options[image].clone()
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            for i in range(a, 4, 2):
                for j in range(b, 4, 2):
                    for number, choice in enumerate(choices.each):
                        values = []
                        for option, vector in enumerate(choice.table):
                            tried = change.clone()
                            tried[i, j, choice.dims] += vector - choice.table[chosen[i, j, number]]
                            values.append(model(tried, image))
                            if priced:
                                values[-1] += 0.3 * prices[image, i, j, number, option]
                        best = int(torch.stack(values).argmin())
                        change[i, j, choice.dims] += (
                            choice.table[best] - choice.table[chosen[i, j, number]]
                        )
                        chosen[i, j, number] = best
        assert torch.equal(found[image], chosen)


# -- bits ------------------------------------------------------------------------------------------


def spent(network, codes):
    choices = choices_of(network.quantizer)
    options = choices.split(codes)
    bits = [c.bits[options[..., s]].flatten(1).sum(1) for s, c in enumerate(choices.each)]
    return torch.stack(bits).sum(0)


@pytest.mark.covering(1)
@PASSES
@pytest.mark.parametrize("name", ["rate", "groups with rates", "stages with rates"])
def test_bits_are_traded_against_the_loss_of_each_image(name, passes):
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS[name](), Normed()).eval()
    x = images()
    nearest = network.encode(x)
    found = {w: found_by(network, x, mqvae.Refinement(passes, w)) for w in (0, 0.01)}
    bits = {w: spent(network, codes).sum() for w, codes in found.items()}
    assert bits[0.01] < bits[0] and bits[0.01] < spent(network, nearest).sum()
    before, after = (
        errors(network, codes, x) + 0.01 * spent(network, codes) for codes in (nearest, found[0.01])
    )
    assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.covering(1)
@PASSES
@pytest.mark.parametrize("name", ["vector", "groups", "stages", "rate"])
def test_bits_under_a_prior_are_traded_against_the_loss_of_each_image(name, passes):
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS[name](), Normed()).eval()
    x = images()
    nearest = network.encode(x)
    quantizer = network.quantizer
    prior = mqvae.PixelCNN(quantizer.num_codes, nearest.shape[1:], width=8, layers=2)
    before = prior.state_dict()
    found = {
        weight: found_by(network, x, mqvae.Refinement(passes, weight, prior=counts))
        for weight, counts in ((0.0, None), (0.01, prior))
    }
    bits = {weight: prior.prices(codes)[0] for weight, codes in found.items()}
    at_first = prior.prices(nearest)[0]
    assert bits[0.01].sum() < bits[0].sum() and bits[0.01].sum() < at_first.sum()
    start, end = errors(network, nearest, x) + 0.01 * at_first, errors(network, found[0.01], x)
    assert (end + 0.01 * bits[0.01] <= start * (1 + 1e-5)).all()
    assert all(torch.equal(before[key], value) for key, value in prior.state_dict().items())
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_refinement_says_which_prior_counted():
    one, other = (mqvae.PixelCNN(8, (4, 4), width=4, layers=2) for _ in range(2))
    with torch.no_grad():
        other.places += 1
    told = {str(mqvae.Refinement(10, 1e-5, prior=each)) for each in (one, other, one, None)}
    assert len(told) == 3


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2)])
def test_prices_of_a_prior_are_its_bits_with_another_code(shape):
    """To the bit at the last place; elsewhere what comes later is linearized by the embedding."""
    prior = mqvae.PixelCNN(5, shape, width=6, layers=3).double()
    codes = torch.randint(5, (2, *shape))

    def bits(codes):
        logits = prior(codes).detach().log_softmax(-1)
        return -logits.gather(-1, codes[..., None]).flatten(1).sum(1) / math.log(2)

    total, prices = prior.prices(codes)
    torch.testing.assert_close(total, bits(codes))
    last = (slice(None), *[-1] * len(shape))
    differences = []
    for code in range(5):
        other = codes.clone()
        other[last] = code
        differences.append(bits(other) - total)
    found = prices[last] - prices[last].gather(-1, codes[last][:, None])
    torch.testing.assert_close(found, torch.stack(differences, -1))

    first, step = (0, *[0] * len(shape)), 1e-6
    embedded = prior.embed(codes)
    own = prior.logits(embedded).log_softmax(1).detach()
    for code in range(5):
        moved = embedded.detach().clone()
        to = prior.embedding.weight[code].detach()  # of the first group
        moved[0, :, 0, 0] += step * (to - moved[0, :, 0, 0])
        after = prior.logits(moved).log_softmax(1).detach()
        grid = codes.flatten(2)[:, None]
        later = (own - after).gather(1, grid)[0].sum() / math.log(2) / step
        mine = -own[0, code, 0, 0] / math.log(2)
        here = -own[0, codes[first], 0, 0] / math.log(2)
        torch.testing.assert_close(
            prices[first][code] - prices[first][codes[first]],
            later + mine - here,
            rtol=1e-4,
            atol=1e-4,
        )


def test_levels_have_no_prior():
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS["fsq"](), Normed()).eval()
    prior = mqvae.PixelCNN(network.quantizer.num_codes, (4, 4), width=4, layers=2)
    with pytest.raises(MqvaeError, match="leave out the prior"):
        found_by(network, images(), mqvae.Refinement(2, 1e-5, prior=prior))


def test_bits_that_nobody_knows_are_refused():
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS["vector"](), Normed()).eval()
    with pytest.raises(MqvaeError, match="a prior knows"):
        found_by(network, images(), mqvae.Refinement(2, bits_weight=1e-5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"passes": 0}, "1 pass or more, got 0"),
        ({"bits_weight": -1.0}, "bits_weight must be 0 or more"),
        ({"prior": object()}, "add bits_weight=1e-5"),
        ({"bits_weight": float("nan")}, "bits_weight must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(MqvaeError, match=message):
        mqvae.Refinement(**wrong)


class Own(mqvae.NoQuantizer):
    def decode(self, codes):
        return torch.zeros(*codes.shape, self.dim)


def test_a_quantizer_without_candidates_is_refused_by_name():
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), Own(DIM), Normed()).eval()
    with pytest.raises(MqvaeError, match="codes of Own cannot be refined"):
        found_by(network, images(), mqvae.Refinement(2))


# -- a tokenizer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(trained):
    rates = {"network_lr": 1e-2, "codebook_lr": 3e-2}
    return trained("some", SMALL, {"steps": 40, "optimizer": rates, "network": {"width": 16}})


@pytest.fixture
def tokenizer(run):
    return Tokenizer.from_run(run, device="cpu")


def test_a_trained_run_gains(tokenizer):
    x = tokenizer.find_images("test").take(torch.arange(100))[0] / 255
    tokenizer.network.train()
    codes = tokenizer.encode(x, refine=30)
    assert tokenizer.network.training
    with torch.no_grad():
        after, before = (
            (tokenizer.decode(c) - x).square().mean() for c in (codes, tokenizer.encode(x))
        )
    assert after < 0.99 * before
    with torch.inference_mode():
        assert (tokenizer.encode(x[:9], refine=30) == codes[:9]).float().mean() > 0.9


def test_sizes_that_were_filled_up_count_their_own_pixels(tokenizer):
    given = [torch.rand(1, 8, 8), torch.rand(1, 10, 13)]
    record = tokenizer.encode(given, refine=mqvae.Refinement(20))
    nearest = tokenizer.encode(given)
    assert record.codes.shape == nearest.codes.shape and record.sizes == nearest.sizes
    for i, image in enumerate(given):
        after, before = (
            (tokenizer.decode(each[i])[0] - image).square().mean() for each in (record, nearest)
        )
        assert after <= before * (1 + 1e-5)


def test_tasks_and_networks_that_have_no_image_to_compare_are_refused(trained):
    label = {
        "task": {"class_path": "mqvae.Classification"},
        "network": {"class_path": "mqvae.ResNet18", "init_args": {"base_width": 4}},
    }
    classifier = Tokenizer.from_run(trained("classes", SMALL | label), device="cpu")
    with pytest.raises(MqvaeError, match="Classification run cannot be refined"):
        classifier.encode(torch.rand(2, 1, 8, 8), refine=2)


# -- files -----------------------------------------------------------------------------------------


def test_encode_writes_refined_codes_and_says_so(run, tokenizer, tmp_path):
    command = ["encode", str(run), "test", "--accelerator", "cpu", "--refine", "5"]
    assert main([*command, "--out", str(tmp_path / "codes.npz")]) == 0
    codes = Codes.load(tmp_path / "codes.npz")
    assert codes.refined == "refined by 5 passes, bits_weight 0, seed 0"
    x = tokenizer.find_images("test").take(torch.arange(len(codes.codes)))[0] / 255
    same = codes.codes == tokenizer.encode(x, refine=5).numpy()
    assert same.mean() > 0.99  # batches of other sizes may round a code apart
    assert not np.array_equal(codes.codes, tokenizer.encode(x).numpy())


def test_a_folder_is_resumed_under_the_same_refinement_alone(run, tokenizer, tmp_path, capsys):
    folder = tmp_path / "codes"
    test = tokenizer.find_images("test")
    how = mqvae.Refinement(40)
    whole = Shards(folder, tokenizer, test, refine=how)
    assert len(whole.index["pieces"]) > 1  # a piece takes about as long as one of nearest codes
    whole.begin(going_on=whole.check(overwrite=False))
    whole.encode()
    codes = [Codes.load(folder / name) for name in whole.index["pieces"]]
    (folder / whole.index["pieces"][0]).unlink()  # as if it had been killed there
    command = ["encode", str(run), "test", "--accelerator", "cpu", "--out", str(folder)]
    for other in ([], ["--refine", "4"], ["--refine", "40", "--bits-weight", "1"]):
        assert main([*command, *other]) == 2
        assert "that were refined otherwise (refined by 40 passes," in capsys.readouterr().err
    assert main([*command, "--refine", "40"]) == 0
    again = [Codes.load(folder / name) for name in whole.index["pieces"]]
    for one, other in zip(codes, again, strict=True):
        assert one.refined == other.refined == str(how)
        assert np.array_equal(one.codes, other.codes)
    index = json.loads((folder / "index.json").read_text())
    assert index["complete"] and index["refined"] == str(how)


def test_evaluate_measures_refined_codes_beside_the_others(run, capsys):
    for options in ([], ["--refine", "5"], ["--refine", "6"]):
        assert main(["evaluate", str(run), "--accelerator", "cpu", *options]) == 0
    assert "codes refined by 6 passes" in capsys.readouterr().out
    plain, found = (
        json.loads((run / "evaluations" / f"test-last{end}.json").read_text())
        for end in ("", "-refined")
    )
    assert found["mse"] < plain["mse"] and found["usage"] != plain["usage"]
    assert found["gradient_gap"] == plain["gradient_gap"]
    assert found["refined"].startswith("refined by 6 passes") and "refined" not in plain
    assert len(found["measured"]) == 1  # nothing stays of 5 passes


def test_the_card_has_what_encode_gives_by_itself(run, tokenizer, tmp_path):
    assert main(["evaluate", str(run), "--accelerator", "cpu"]) == 0
    tokenizer.save_pretrained(tmp_path / "before")
    assert main(["evaluate", str(run), "--accelerator", "cpu", "--refine", "5"]) == 0
    tokenizer.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "README.md").read_text() for name in ("before", "after"))
    assert before == after


def test_the_program_weighs_bits_of_the_runs_prior(run, tokenizer, tmp_path, capsys):
    def encoded(*more):
        out = str(tmp_path / "codes.npz")
        typed = ["encode", str(run), "test", "--out", out, "--overwrite", "--accelerator", "cpu"]
        code = main([*typed, "--refine", "2", "--bits-weight", "1e-3", *more])
        return Codes.load(out) if code == 0 else capsys.readouterr().err

    assert "has no prior" in encoded("--bits-of", "prior")
    assert main(["prior", str(run), "--steps", "2", "--width", "4", "--layers", "2"]) == 0
    assert "bits under prior" in encoded("--bits-of", "prior").refined
    typed = ["encode", str(run), "test", "--out", str(tmp_path / "x"), "--refine", "2"]
    assert main([*typed, "--bits-of", "prior"]) == 2
    assert "add --bits-weight" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["encode", "evaluate"])
def test_the_weight_of_bits_needs_refinement(run, tmp_path, capsys, command):
    more = ["test", "--out", str(tmp_path / "codes")] if command == "encode" else []
    assert main([command, str(run), *more, "--bits-weight", "1e-5"]) == 2
    assert "--bits-weight is of refined codes: add --refine 10." in capsys.readouterr().err


def test_the_report_says_which_codes_were_refined(run, tmp_path):
    assert main(["evaluate", str(run), "--accelerator", "cpu", "--refine", "2"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert "codes refined by 2 passes" in (tmp_path / "report.html").read_text()
