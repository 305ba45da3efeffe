"""Studies of where a hypergradient could win: closed forms, gradients, a tiny run each."""

import math

import pytest
import torch
from torch.func import functional_call

import mqvae
from mqvae.data import load
from reproduction import classifier_codes, codebook_under_prior, few_shot_codebook, priced_codebooks
from reproduction.__main__ import RATE_DISTORTION, STUDIES, main
from reproduction.classifier_codebooks import (
    Labelled,
    Scale,
    held_out_loss,
    left_out,
    quantized,
    targets,
)
from reproduction.domains import HELD_OUT, write_seen
from reproduction.few_shot import DEBUG, Adapter, Domain, blend, task_loss
from reproduction.frozen import Frozen, codes_at, entropy, nearest_codes

TINY = priced_codebooks.Scale(3, 2, 6, 2, (0.1,), (0.01,), (1e-3,), (0.7,), 2, 4, 2)


def frozen(num_codes: int = 6, dim: int = 4, seed: int = 0) -> Frozen:
    """A small network, not trained, whose codebook is some of its embeddings."""
    torch.manual_seed(seed)
    network = mqvae.vqvae(1, num_codes=num_codes, dim=dim, width=4, residual_blocks=1)
    for parameter in network.parameters():
        parameter.data.mul_(2)
    z = network.embed(torch.rand(16, 1, 8, 8)).flatten(0, 2)
    network.quantizer.codebook.assign(z[torch.randperm(len(z))[:num_codes]])
    return Frozen(network)


def domain(of: Frozen, count: int = 8, seed: int = 1) -> Domain:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = images.to(of.codebook.dtype)
    return Domain(images, of.embed(images))


def in_float64(of: Frozen) -> Frozen:
    of.network.double()
    of.codebook = of.codebook.double()
    return of


def test_codewords_are_the_weighted_means_of_prior_and_embeddings():
    torch.manual_seed(0)
    codewords, log_weight = torch.randn(5, 3), torch.randn(5)
    z, codes = torch.randn(40, 3), torch.randint(4, (40,))  # nothing chooses the last
    found = blend(codewords, log_weight, z, codes)
    for k in range(5):
        m, chosen = float(log_weight[k].exp()), z[codes == k]
        expected = (m * codewords[k] + chosen.sum(0)) / (m + len(chosen))
        torch.testing.assert_close(found[k], expected)
    torch.testing.assert_close(found[4], codewords[4])


def test_no_weight_is_k_means_and_all_weight_stays():
    torch.manual_seed(0)
    codewords, z = torch.randn(5, 3), torch.randn(40, 3)
    lloyd = Adapter(codewords, torch.tensor(-math.inf), 1).codebook(z)
    codes = nearest_codes(z, codewords)
    for k in range(5):
        mean = z[codes == k].mean(0) if (codes == k).any() else codewords[k]
        torch.testing.assert_close(lloyd[k], mean)
    assert torch.equal(Adapter(codewords, torch.tensor(math.inf)).codebook(z), codewords)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_hypergradient_through_the_closed_form_is_a_numeric_derivative(rounds):
    of = in_float64(frozen())
    few, others = domain(of, 3), domain(of, seed=2)
    codewords = of.codebook.clone().requires_grad_()
    log_weight = torch.zeros(len(codewords), dtype=torch.float64, requires_grad=True)

    def loss(c, w):
        return task_loss(of, Adapter(c, w, rounds).codebook(few.z), others)

    g_c, g_w = torch.autograd.grad(loss(codewords, log_weight), [codewords, log_weight])
    assert g_c.norm() > 0 and g_w.norm() > 0
    torch.manual_seed(3)
    v_c, v_w, step = torch.randn_like(codewords), torch.randn_like(log_weight), 1e-6
    with torch.no_grad():
        ends = [loss(codewords + s * step * v_c, log_weight + s * step * v_w) for s in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((g_c * v_c).sum() + (g_w * v_w).sum(), numeric, rtol=1e-5, atol=0)


def test_codes_of_an_entropy_cost_no_more_and_are_nearest_where_they_may_be():
    of = frozen(num_codes=16)
    z = domain(of, 64).z
    near = nearest_codes(z, of.codebook)
    bits = entropy(near, 16)
    assert bits > 1
    assert torch.equal(codes_at(z, of.codebook, bits + 1e-6), near)

    def distortion(codes):
        return float((z - of.codebook[codes]).square().sum(-1).mean())

    errors = [distortion(near)]
    for share in (0.8, 0.5):
        codes = codes_at(z, of.codebook, share * bits)
        assert entropy(codes, 16) <= share * bits
        errors.append(distortion(codes))
    assert errors[0] < errors[1] < errors[2]


def test_entropy_of_even_codes_is_log2():
    assert entropy(torch.arange(8).repeat(3), 16) == pytest.approx(3)


def test_few_shot_codebook_end_to_end():
    of = frozen()
    images = {f"{i}": domain(of, 12, i).x for i in range(4)}
    tests = {"new": (domain(of, 8, 7).x, domain(of, 8, 8).x)}
    lines = list(few_shot_codebook.study(of, images, tests, DEBUG, 0, {}))
    assert len(lines) == 1 + len(few_shot_codebook.NUMBERS)
    chosen = lines[0]["chosen"]["rates"]
    assert chosen.keys() >= {few_shot_codebook.METHOD, "Reptile", "joint training"}
    for line in lines[1:]:
        assert set(line["methods"]) > set(few_shot_codebook.BASELINES)
        compared = set(line["methods"]) - {few_shot_codebook.METHOD} if line["n"] == 25 else set()
        assert set(line["equal"]) == compared
        for name, equal in line["equal"].items():
            assert equal["bits"] <= line["methods"][name]["bits"]
            assert equal["mse"] > 0
    assert "new" in few_shot_codebook.table(lines)


def test_few_shot_wins_only_where_every_domain_and_baseline_agrees():
    def line(domain, seed, ratio, worst):
        equal = {name: {"bits": 1.0, "mse": 1.0, "hypergradient": ratio} for name in names}
        equal["one m"]["hypergradient"] = worst
        methods = {key: {"mse": 1.0, "bits": 1.0} for key in (*names, "hypergradient")}
        return {"seed": seed, "domain": domain, "n": 25, "methods": methods, "equal": equal}

    names = (*few_shot_codebook.BASELINES, few_shot_codebook.ABLATION)
    lines = [line(domain, seed, 0.9, 0.94) for domain in "ab" for seed in range(3)]
    assert few_shot_codebook.wins(lines)
    assert not few_shot_codebook.wins([*lines, line("b", 3, 0.9, 1.0)])
    assert not few_shot_codebook.wins([])


# -- codes for a classifier ------------------------------------------------------------------------


def labelled(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Labelled:
    """Embeddings around one of three places, labels from these."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    z = torch.randn(count, 4, 5, generator=generator) + 2 * y[:, None, None]
    return Labelled(z.to(dtype), y)


def test_leaving_one_out_in_closed_form_is_leaving_one_out():
    known = labelled(12, 0, torch.float64)
    features = known.z.flatten(1)
    penalty, accuracy = left_out(features, known.y)
    size = float(features.square().sum(1).mean())
    right = 0
    for i in range(12):
        others = torch.arange(12) != i
        f = features[others]
        kernel = f @ f.T + penalty * size * torch.eye(11)
        alpha = torch.linalg.solve(kernel, targets(known.y[others], f.dtype))
        right += int((features[i] @ f.T @ alpha).argmax() == known.y[i])
    assert accuracy == pytest.approx(right / 12)
    assert accuracy > 0


def test_the_hypergradient_through_ridge_regression_is_a_numeric_derivative():
    lower, upper = labelled(10, 0, torch.float64), labelled(8, 1, torch.float64)
    torch.manual_seed(0)
    codewords = (3 * torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    penalty, scale = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 2.0))
    inputs = [codewords, penalty, scale]
    endless = 1e12  # at this temperature soft codes do not move: what is left is of fixed codes

    def loss(*at):
        return held_out_loss(*at, lower, upper, endless)

    found = torch.autograd.grad(loss(*inputs), inputs)
    directions = [torch.randn_like(value) for value in inputs]
    with torch.no_grad():
        ends = [
            loss(*(v + sign * 1e-6 * d for v, d in zip(inputs, directions))) for sign in (1, -1)
        ]
    along = sum((g * d).sum() for g, d in zip(found, directions))
    assert all(g.norm() > 1e-3 for g in found)
    torch.testing.assert_close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=0)


def test_codes_are_hard_forward_and_soft_backward():
    torch.manual_seed(0)
    z, codewords = torch.randn(2, 3, 5), torch.randn(4, 5)
    found = quantized(z, codewords, 1.0)
    torch.testing.assert_close(found, codewords[nearest_codes(z, codewords)])


def test_classifier_codes_end_to_end():
    known, test = labelled(40, 0), labelled(30, 1)
    scale = Scale((3,), 2, 12, 8, (0.01,), (0.3,))
    settings = classifier_codes.tuned(known, scale, 0)
    assert settings == dict.fromkeys(("hypergradient", "joint training"), (0.01, 0.3))
    (line,) = classifier_codes.study(known, test, scale, 0, settings)
    methods = line["methods"]
    assert set(methods) == {*classifier_codes.BASELINES, classifier_codes.METHOD}
    assert all(0.6 < result["accuracy"] <= 1 for result in methods.values())
    assert "K = 3" in classifier_codes.table([line])


def test_a_classifier_wins_by_a_point_and_is_nowhere_below():
    def line(k, accuracy):
        methods = {name: {"accuracy": 0.7} for name in classifier_codes.BASELINES}
        return {"codes": k, "methods": {**methods, "hypergradient": {"accuracy": accuracy}}}

    assert classifier_codes.wins([line(4, 0.712), line(16, 0.712)])
    assert not classifier_codes.wins([line(4, 0.705), line(16, 0.705)])
    assert not classifier_codes.wins([line(4, 0.75), line(16, 0.69)])


# -- a codebook under a prior ----------------------------------------------------------------------


def test_the_hypergradient_through_steps_of_a_prior_is_a_numeric_derivative():
    torch.manual_seed(0)
    prior = priced_codebooks.Autoregressive(3, 4, TINY).double()
    below, above, direction = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    below.requires_grad_()

    def bits(scores):
        weights = dict(prior.named_parameters())
        ahead, _ = priced_codebooks.stepped(prior, weights, scores.softmax(-1), 2, 0.5)
        return functional_call(prior, ahead, (above.softmax(-1),))

    (found,) = torch.autograd.grad(bits(below), [below])
    ends = [bits(below + sign * 1e-5 * direction).detach() for sign in (1, -1)]
    assert found.norm() > 1e-5
    torch.testing.assert_close(
        (found * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=0
    )


def test_soft_bits_of_hard_choices_are_the_cross_entropy_of_the_prior():
    torch.manual_seed(0)
    prior = priced_codebooks.Autoregressive(3, 4, TINY)
    codes = torch.randint(3, (5, 2, 2))
    nats = torch.nn.functional.cross_entropy(prior.cnn(codes).flatten(0, 2), codes.flatten())
    hard = torch.nn.functional.one_hot(codes.flatten(1), 3).float()
    torch.testing.assert_close(prior(hard), nats / math.log(2))


def test_codebook_under_prior_end_to_end():
    of = frozen()
    train, test = domain(of, 40), domain(of, 10, 2)
    settings = codebook_under_prior.tuned(of, train.x, train.z, of.codebook[:3], TINY)
    assert settings["hypergradient"].keys() == {"lr", "inner_rate"}
    given = (of, (train.x, train.z), (test.x, test.z), TINY, 0, settings)
    lines = list(codebook_under_prior.study(*given))
    assert len(lines) == 5
    assert all(line["mse"] > 0 and line["bits"] > 0 for line in lines)
    known = {(line["method"], line["trade"]) for line in lines[:4]}
    (last,) = codebook_under_prior.study(*given, known)
    assert last["method"] == lines[4]["method"]
    assert last["mse"] == pytest.approx(lines[4]["mse"], rel=1e-4)  # alike but for rounding
    assert "RateAware" in codebook_under_prior.table(lines)


def test_a_codebook_wins_at_equal_error_against_every_baseline():
    def line(method, mse, bits):
        return {"seed": 0, "method": method, "mse": mse, "bits": bits}

    curves = [line(name, *p) for name in codebook_under_prior.BASELINES for p in ((1, 4), (3, 2))]
    assert codebook_under_prior.wins([*curves, line("hypergradient", 2, 2.9)])
    assert not codebook_under_prior.wins([*curves, line("hypergradient", 2, 2.95)])
    assert not codebook_under_prior.wins(
        [*curves, line("hypergradient", 4, 1)]
    )  # out of their span


@pytest.mark.parametrize("study", sorted(STUDIES.keys() - {RATE_DISTORTION}))
def test_studies_are_commands(study, tmp_path, capsys):
    assert main([study, "--results", str(tmp_path / "none.jsonl")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("does not win")


def test_frozen_networks_are_trained_without_the_classes_held_out(tmp_path):
    write_seen(tmp_path, 2, 1)
    images = load(str(tmp_path), "train")
    assert images.shape == (1, 28, 28)
    assert len(images) == 2 * 7
    classes = {name.split("/")[-2] for name in images.names}
    assert classes == set("0123456789") - {str(label) for label in HELD_OUT.values()}
