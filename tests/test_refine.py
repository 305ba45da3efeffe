"""Refined encoding: no image worse, nothing touched, each image by itself."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from torch import nn

import mqvae
from mqvae.cli import main
from mqvae.core.candidates import bits_of, candidates_of
from mqvae.core.network import VQNetwork
from mqvae.core.refine import refined
from mqvae.errors import MqvaeError
from mqvae.pieces import Pieces
from mqvae.tasks import Reconstruction
from mqvae.tokenizer import Codes, Tokenizer

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


def test_no_image_is_worse_and_nothing_is_touched(network):
    x, task = images(), Reconstruction().eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    codes = refined(network, x, task, mqvae.Refinement(15))
    nearest = network.encode(x)
    assert codes.shape == nearest.shape and codes.dtype == nearest.dtype
    after, at_first = errors(network, codes, x), errors(network, nearest, x)
    assert (after <= at_first * (1 + 1e-5)).all()  # one image and a batch may round apart
    assert after.mean() < 0.99 * at_first.mean()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all((p.grad == 1).all() for p in network.parameters())
    assert not any(module.training for module in network.modules())


def test_an_image_gets_its_codes_whatever_the_others_are(network):
    """In double precision, where what batches of other sizes round apart flips no code."""
    network.double()
    x, task, how = images().double(), Reconstruction().eval(), mqvae.Refinement(10)
    whole = refined(network, x, task, how)
    assert torch.equal(refined(network, x.flip(0), task, how), whole.flip(0))
    assert torch.equal(refined(network, x[2:3], task, how), whole[2:3])
    assert not torch.equal(refined(network, x, task, mqvae.Refinement(10, seed=1)), whole)


def test_candidates_stand_for_what_they_mix(network):
    z_e = network.embed(images()).flatten(0, -2)
    found = candidates_of(network.quantizer, z_e, 4)
    choices, options = found.costs.shape[1:]
    index = torch.randint(options, (len(z_e), choices))
    certain = nn.functional.one_hot(index, options).float()
    z_q = network.quantizer.decode(found.chosen(index))
    torch.testing.assert_close(found.mixed(certain), z_q)
    assert (found.costs.diff(dim=-1) >= -1e-5).all()  # the nearest first


@pytest.mark.parametrize("name", ["vector", "cosine", "groups with rates", "shared", "fsq", "bsq"])
def test_the_first_candidates_are_the_codes_that_the_quantizer_gives(name):
    quantizer = QUANTIZERS[name]()
    z_e = quantizer.place(torch.randn(300, DIM))
    found = candidates_of(quantizer, z_e, 5)
    first = found.chosen(torch.zeros(found.costs.shape[:2], dtype=torch.int64))
    assert torch.equal(first, quantizer._encode(z_e))


def test_candidates_are_those_of_all_codes_that_cost_least(monkeypatch):
    monkeypatch.setattr("mqvae.core.candidates.SCORES", 40)  # in several parts
    quantizer = QUANTIZERS["rate"]()
    z_e = torch.randn(50, DIM) + 30  # far from zero, where products alone lose digits
    quantizer.assign(quantizer.table() + 30)
    with_prices(quantizer)
    price = quantizer.prices.price()[0]
    costs = torch.cdist(z_e.double(), quantizer.table().double()).square() + price
    found = candidates_of(quantizer, z_e, 5)
    torch.testing.assert_close(
        found.costs[:, 0].double(), costs.sort(1).values[:, :5], rtol=1e-3, atol=1e-3
    )


def test_stages_are_searched_together():
    """A pair of codewords that no greedy choice finds is the nearest sum of two."""
    quantizer = QUANTIZERS["stages"]()
    z_e = torch.randn(40, DIM)
    tables = [stage.table() for stage in quantizer.stages]
    sums = sum(t.view(*[-1 if j == i else 1 for j in range(3)], DIM) for i, t in enumerate(tables))
    nearest = torch.cdist(z_e, sums.reshape(-1, DIM)).amin(1).square()
    found = candidates_of(quantizer, z_e, 12).costs[:, 0]  # (N, 12)
    greedy = (quantizer.decode(quantizer.encode(z_e)) - z_e).square().sum(1)
    assert (found[:, 0] <= greedy + 1e-5).all()
    assert (found[:, 0] <= nearest + 1e-4).float().mean() > 0.9


# -- bits ------------------------------------------------------------------------------------------


def spent(network, codes):
    table = bits_of(network.quantizer)
    codes = codes.reshape(codes.shape[0], -1, len(table))
    return torch.stack([table[g][codes[..., g]].sum(1) for g in range(len(table))]).sum(0)


@pytest.mark.parametrize("name", ["rate", "groups with rates", "stages with rates"])
def test_bits_are_traded_against_the_loss_of_each_image(name):
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS[name](), Normed()).eval()
    x, task = images(), Reconstruction().eval()
    nearest = network.encode(x)
    found = {w: refined(network, x, task, mqvae.Refinement(20, bits_weight=w)) for w in (0, 0.01)}
    bits = {w: spent(network, codes).sum() for w, codes in found.items()}
    assert bits[0.01] < bits[0] and bits[0.01] < spent(network, nearest).sum()
    before, after = (
        errors(network, codes, x) + 0.01 * spent(network, codes) for codes in (nearest, found[0.01])
    )
    assert (after <= before * (1 + 1e-5)).all()


def test_bits_that_nobody_knows_are_refused():
    network = VQNetwork(nn.Conv2d(1, DIM, 2, 2), QUANTIZERS["vector"](), Normed()).eval()
    with pytest.raises(MqvaeError, match="trained with a rate"):
        refined(network, images(), Reconstruction(), mqvae.Refinement(2, bits_weight=1e-5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"passes": 0}, "1 pass or more, got 0"),
        ({"candidates": 1}, "2 candidates or more, got 1"),
        ({"bits_weight": -1.0}, "bits_weight must be 0 or more"),
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
    with pytest.raises(MqvaeError, match="codes of a Own cannot be refined"):
        refined(network, images(), Reconstruction(), mqvae.Refinement(2))


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
    assert main([*command, "--candidates", "4", "--out", str(tmp_path / "codes.npz")]) == 0
    codes = Codes.load(tmp_path / "codes.npz")
    assert codes.refined == "refined by 5 passes over 4 candidates, bits_weight 0, seed 0"
    x = tokenizer.find_images("test").take(torch.arange(len(codes.codes)))[0] / 255
    same = codes.codes == tokenizer.encode(x, refine=mqvae.Refinement(5, 4)).numpy()
    assert same.mean() > 0.99  # batches of other sizes may round a code apart
    assert not np.array_equal(codes.codes, tokenizer.encode(x).numpy())


def test_a_folder_is_resumed_under_the_same_refinement_alone(run, tokenizer, tmp_path, capsys):
    folder = tmp_path / "codes"
    test = tokenizer.find_images("test")
    how = mqvae.Refinement(40)
    whole = Pieces(folder, tokenizer, test, refine=how)
    assert len(whole.index["pieces"]) > 1  # a piece takes about as long as one of nearest codes
    whole.begin(going_on=whole.check(overwrite=False))
    whole.encode()
    codes = [Codes.load(folder / name) for name in whole.index["pieces"]]
    (folder / whole.index["pieces"][0]).unlink()  # as if it had been killed there
    command = ["encode", str(run), "test", "--accelerator", "cpu", "--out", str(folder)]
    for other in ([], ["--refine", "4"], ["--refine", "40", "--candidates", "2"]):
        assert main([*command, *other]) == 2
        assert "that were refined otherwise (refined by 40 passes over 8" in capsys.readouterr().err
    assert main([*command, "--refine", "40"]) == 0
    again = [Codes.load(folder / name) for name in whole.index["pieces"]]
    for one, other in zip(codes, again, strict=True):
        assert one.refined == other.refined == str(how)
        assert np.array_equal(one.codes, other.codes)
    index = json.loads((folder / "index.json").read_text())
    assert index["complete"] and index["refined"] == str(how)


def test_a_folder_of_before_is_one_of_nearest_codes(run, tokenizer, tmp_path):
    folder = tmp_path / "codes"
    command = ["encode", str(run), "test", "--accelerator", "cpu", "--out", str(folder)]
    assert main(command) == 0
    index = json.loads((folder / "index.json").read_text())
    assert index.pop("refined") == ""
    (folder / "index.json").write_text(json.dumps(index))
    assert Pieces(folder, tokenizer, tokenizer.find_images("test")).check(overwrite=False)


def test_evaluate_measures_refined_codes_beside_the_others(run, capsys):
    for options in ([], ["--refine", "5"], ["--refine", "6"]):
        assert main(["evaluate", str(run), "--accelerator", "cpu", *options]) == 0
    assert "codes refined by 6 passes over 8 candidates" in capsys.readouterr().out
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


@pytest.mark.parametrize("option", [["--candidates", "4"], ["--bits-weight", "1e-5"]])
@pytest.mark.parametrize("command", ["encode", "evaluate"])
def test_options_of_the_search_need_it(run, tmp_path, capsys, command, option):
    more = ["test", "--out", str(tmp_path / "codes")] if command == "encode" else []
    assert main([command, str(run), *more, *option]) == 2
    assert f"{option[0]} is of refined codes: add --refine 50." in capsys.readouterr().err


def test_the_report_says_which_codes_were_refined(run, tmp_path):
    assert main(["evaluate", str(run), "--accelerator", "cpu", "--refine", "2"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert "codes refined by 2 passes over 8" in (tmp_path / "report.html").read_text()
