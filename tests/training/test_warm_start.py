"""Quantization that sets in late: samples that are not quantized, and updates without any."""

import copy
import signal
from dataclasses import replace
from unittest.mock import patch

import pytest
import reference
import torch
from problems import QUANTIZERS, Problem, make, make_with, squared_error
from test_hypergradient import hypergradient, relative
from test_rules import (
    LOWER,
    NU,
    XI,
    Weights,
    assert_moved_to,
    descended,
    ema_of,
    update_of,
    weights,
)
from test_training import resume, rows, same_run, settings, stop_after
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from mqvae import (
    Alternated,
    DirectOnly,
    Exact,
    FiniteDifference,
    FiniteScalarQuantizer,
    ForwardMode,
    Joint,
    LookupFreeQuantizer,
    Meta,
    MetaBoth,
    NoQuantizer,
    Synchronous,
    Unquantized,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.config import Start
from mqvae.runs import Run
from mqvae.training import Interrupted, begin
from mqvae.training.schedule import Onset

SHARE = 0.4
AS_THEY_ARE = {4: [2], 9: [2, 4, 7], 11: [2, 4, 7, 9]}  # which samples of a batch of that size
STRAIGHT = ["table", "shared groups", "cosine groups", "affine", "residual"]
every_kind = pytest.mark.parametrize("kind", [*STRAIGHT, "rotation"])
every_family = pytest.mark.parametrize("family", ["convolutional", "classifier", "linear"])
KINDS = {
    **QUANTIZERS,
    "finite scalar": lambda codes, dim: FiniteScalarQuantizer([5] * dim),
    "lookup-free": lambda codes, dim: LookupFreeQuantizer(2**dim),
}


def problem_of(family: str, kind: str = "table", share: float = SHARE) -> Problem:
    problem = make_with(family, QUANTIZERS[kind], beta=0.4)
    problem.network.quantizer.unquantized = share
    return problem


def handed_on(z_e: Tensor, z: Tensor) -> Tensor:
    """What the decoder gets, sample by sample."""
    there = AS_THEY_ARE[len(z_e)]
    return torch.stack([z_e[i] if i in there else z[i] for i in range(len(z_e))])


def error(z_e: Tensor, z_q: Tensor) -> Tensor:
    """The mean over all numbers, of which those of samples handed on are zero."""
    found = [(z_e[i] - z_q[i]).square().sum() for i in range(len(z_e))]
    return sum(f for i, f in enumerate(found) if i not in AS_THEY_ARE[len(z_e)]) / z_e.numel()


def losses_at(problem, phi, theta, table, rows=None) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.losses_at` where some samples are not quantized."""
    z_e = reference.placed(problem, phi)
    rows = reference.selected_rows(problem, z_e, table) if rows is None else rows
    z_q = reference.selected(problem, table, rows)
    z = handed_on(z_e, reference.estimate(problem, z_e, z_q))
    task = problem.loss(reference.decode(problem, theta, z), problem.y)
    codebook = reference.codebook_loss(problem, z_e, table, rows)
    return task, error(z_e, z_q.detach()), codebook


partly = pytest.mark.usefixtures("_partly")


@pytest.fixture
def _partly(monkeypatch):
    monkeypatch.setattr(reference, "losses_at", losses_at)


def start_of(problem: Problem) -> tuple[list, list, Tensor]:
    phi, theta = reference.network_weights(problem)
    return phi, theta, reference.table_of(problem, reference.codebook_parameters(problem))


# -- samples that are not quantized ----------------------------------------------------------------


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.1, 3), (0.5, 15), (2 / 3, 20), (1, 30)])
def test_a_share_of_the_samples_is_handed_on_and_they_lie_evenly(share, number):
    quantizer = VectorQuantizer(5, 4)
    quantizer.unquantized = share
    z_e = torch.randn(30, 3, 3, 4)
    z_q = quantizer(z_e).z_q
    as_it_is = (z_q == z_e).flatten(1).all(1)
    assert as_it_is.sum() == number
    plain = VectorQuantizer.decode(quantizer, quantizer.encode(z_e))
    assert torch.equal(z_q[~as_it_is], plain[~as_it_is])
    places = as_it_is.nonzero().flatten().diff()
    assert not len(places) or places.max() - places.min() <= 1
    # In two processes they are the same ones.
    halves = []
    for rank in (0, 1):
        with patch("mqvae.core.quantizers.base.process_rank", return_value=rank):
            halves.append(quantizer(z_e.chunk(2)[rank]).z_q)
    assert torch.equal(torch.cat(halves), z_q)
    quantizer.eval()
    assert torch.equal(quantizer(z_e).z_q, plain)


@pytest.mark.covering(1)
@partly
@every_kind
@every_family
def test_joint_is_backpropagation(kind, family):
    problem = problem_of(family, kind)
    g_phi, g_theta, g_c = reference.gradients_at(problem, *start_of(problem))
    before = weights(problem)
    expected = descended(problem, g_phi, g_theta, reference.through(problem, g_c))
    step = update_of(problem, Joint).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)
    problem.network.load_state_dict(before, strict=False)
    task, commitment, codebook = losses_at(problem, *start_of(problem))
    torch.testing.assert_close(step.task, task.detach())
    torch.testing.assert_close(step.commitment, commitment.detach())
    torch.testing.assert_close(step.codebook, codebook.detach())


def with_task_gradient(problem: Problem, nu: float) -> tuple[list, list, Tensor]:
    """(g_φ, g_θ, g_C) where the decoder gets ẑ + ν z_q − sg(ν z_q) of quantized samples."""
    phi, theta, table = start_of(problem)
    table = table.detach().requires_grad_()
    z_e = reference.placed(problem, phi)
    rows = reference.selected_rows(problem, z_e, table)
    z_q = reference.selected(problem, table, rows)
    z = reference.estimate(problem, z_e, z_q) + nu * z_q - (nu * z_q).detach()
    task = problem.loss(reference.decode(problem, theta, handed_on(z_e, z)), problem.y)
    codebook = reference.codebook_loss(problem, z_e, table, rows)
    total = task + problem.beta * error(z_e, z_q.detach()) + problem.codebook_weight * codebook
    found = torch.autograd.grad(total, [*phi, *theta, table])
    return list(found[: len(phi)]), list(found[len(phi) : -1]), found[-1]


@pytest.mark.covering(1)
@every_kind
@every_family
def test_synchronous_reaches_codewords_of_quantized_samples(kind, family):
    problem = problem_of(family, kind)
    g_phi, g_theta, g_c = with_task_gradient(problem, NU)
    before = weights(problem)
    expected = descended(problem, g_phi, g_theta, reference.through(problem, g_c))
    update_of(problem, Synchronous, nu=NU).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)


def under_new_codebook(problem: Problem, g_c: Tensor) -> Weights:
    """C a step along g_C, then φ and θ under it."""
    zeros = [torch.zeros_like(p) for p in problem.network.encoder.parameters()]
    others = [torch.zeros_like(p) for p in problem.network.decoder.parameters()]
    first = descended(problem, zeros, others, reference.through(problem, g_c))
    moved = copy.deepcopy(problem)
    moved.network.load_state_dict(first, strict=False)
    g_phi, g_theta, _ = reference.gradients_at(moved, *start_of(moved))
    return descended(problem, g_phi, g_theta, reference.through(problem, g_c))


@pytest.mark.covering(1)
@partly
@every_kind
@pytest.mark.parametrize("nu", [0.0, NU])
def test_alternated_hands_the_same_samples_on_under_both_codebooks(kind, nu):
    problem = problem_of("convolutional", kind)
    before = weights(problem)
    expected = under_new_codebook(problem, with_task_gradient(problem, nu)[2])
    update_of(problem, Alternated, nu=nu).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)


@pytest.mark.covering(1)
@partly
@every_kind
@every_family
def test_meta_hands_the_same_samples_on_in_both_passes(kind, family):
    problem = problem_of(family, kind)
    before = weights(problem)
    expected = under_new_codebook(problem, reference.above_at(problem, XI)[2])
    update_of(problem, Meta, xi=XI, hypergradient=DirectOnly()).step(problem.x, problem.y)
    assert_moved_to(problem, before, expected)


@pytest.mark.covering(1)
@partly
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("convolutional", kind) for kind in ("table", "shared groups")),
        *(("linear", kind) for kind in STRAIGHT),
    ],
)
@pytest.mark.parametrize("name", ["FiniteDifference", "Exact", "Unrolled"])
def test_both_hypergradients_are_those_of_the_loss(kind, family, name):
    problem = problem_of(family, kind)
    if name == "FiniteDifference":
        rule = FiniteDifference(ForwardMode())
        indirect = reference.paper_difference_at(problem, XI, 1e-3)
    else:
        rule = Exact(ForwardMode(), ForwardMode()) if name == "Exact" else Unrolled(1)
        indirect = reference.numeric_at(problem, XI)[1]
    direct = reference.through(problem, reference.above_at(problem, XI)[2])
    of_codebook = {key: direct[key] + indirect[key] for key in direct}
    g_phi, g_theta = reference.network_reverse_mode(problem, XI)
    before = weights(problem)
    expected = descended(problem, g_phi, g_theta, of_codebook)
    update_of(problem, MetaBoth, xi=XI, hypergradient=rule).step(problem.x, problem.y)
    after = weights(problem)
    for key, value in expected.items():
        assert (after[key] - value).norm() < 1e-7 * (value - before[key]).norm(), key


@partly
def test_two_virtual_steps_hand_the_same_samples_on():
    problem = problem_of("convolutional")
    _, indirect = reference.numeric_at(problem, XI, 2)
    found = hypergradient(problem, Unrolled(2))
    assert relative(found.indirect, indirect["codebook.weight"]) < 1e-7


def test_averages_take_all_embeddings():
    one, other = problem_of("convolutional"), problem_of("convolutional", share=0.0)
    for problem in (one, other):
        ema_of(problem, decay=0.8).step(problem.x, problem.y)
    assert torch.equal(*(p.network.quantizer.codebook.weight for p in (one, other)))
    found, plain = weights(one), weights(other)
    assert not torch.equal(found["encoder.0.weight"], plain["encoder.0.weight"])


@every_kind
def test_where_nothing_is_handed_on_a_step_is_a_plain_one_to_the_bit(kind):
    """In eval, and at a share that no sample has."""
    plain, evaluated, least = (problem_of("convolutional", kind, s) for s in (0.0, 0.7, 1e-9))
    plain.network.train()
    evaluated.network.eval()
    for problem in (plain, evaluated, least):
        update_of(problem, Joint).step(problem.x, problem.y)
    expected = weights(plain)
    for key, value in weights(evaluated).items():
        assert torch.equal(value, expected[key])
    for key, value in weights(least).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-13, atol=1e-15)


# -- no quantization -------------------------------------------------------------------------------


def network_alone(problem: Problem) -> Weights:
    """Encoder and decoder a step along the task loss of the network without quantization."""
    network = problem.network
    task = problem.loss(network.decoder(network.channels_back(network.embed(problem.x))), problem.y)
    parameters = list(network.network_parameters())
    found = torch.autograd.grad(task, parameters)
    names = [n for n, _ in network.named_parameters() if not n.startswith("quantizer")]
    return {n: p.detach() - LOWER * g for n, p, g in zip(names, parameters, found)}


def of_kind(kind: str) -> Problem:
    """The problem with any kind of quantizer, those without a codebook included."""
    problem = make("convolutional", beta=0.4)
    network = problem.network
    network.quantizer = KINDS[kind](network.quantizer.num_codes, 6).double()
    return problem


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_samples_handed_on_the_network_is_one_without_quantizer(kind):
    problem = of_kind(kind)
    problem.network.quantizer.unquantized = 1.0
    for name in ("kl_weight", "entropy_weight"):  # a loss of the quantizer's own stays
        if hasattr(problem.network.quantizer, name):
            setattr(problem.network.quantizer, name, 0.0)
    expected = network_alone(problem)
    parameters = list(problem.network.codebook_parameters())
    update = Joint(
        problem.network,
        problem.loss,
        lower=SGD(problem.network.network_parameters(), lr=LOWER),
        upper=SGD(parameters, lr=0.5) if parameters else None,
        commitment_weight=0.4,
    )
    update.step(problem.x, problem.y)
    found = weights(problem)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_unquantized_is_the_network_alone_and_asks_no_quantizer(kind):
    problem = of_kind(kind)
    network = problem.network
    expected = network_alone(problem)
    before = {k: v.clone() for k, v in network.quantizer.state_dict().items()}
    lower = SGD(network.network_parameters(), lr=LOWER)
    with patch.object(type(network.quantizer), "quantize", side_effect=AssertionError):
        step = Unquantized(network, problem.loss, lower=lower).step(problem.x, problem.y)
    found = weights(problem)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-13, atol=1e-15)
    assert all(torch.equal(v, before[k]) for k, v in network.quantizer.state_dict().items())
    assert step.task > 0 and step.commitment == step.codebook == 0
    assert not len(step.codes)
    assert step.output.shape == problem.x.shape


def test_unquantized_is_joint_without_a_quantizer_to_the_bit():
    def network() -> VQNetwork:
        torch.manual_seed(2)
        encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
        return VQNetwork(encoder, VectorQuantizer(6, 4), nn.Linear(4, 5))

    one, other = network(), network()
    other.quantizer = NoQuantizer(4)
    rules = (Unquantized, one), (lambda *a, **k: Joint(*a, upper=None, **k), other)
    for rule, net in rules:
        update = rule(net, squared_error, lower=AdamW(net.network_parameters(), lr=1e-2))
        torch.manual_seed(5)
        for _ in range(3):
            x = torch.randn(8, 5)
            update.step(x, x)
    plain = other.state_dict()
    for key, value in one.state_dict().items():
        assert key.startswith("quantizer") or torch.equal(value, plain[key]), key


# -- in a run --------------------------------------------------------------------------------------

WARM = {"warm_start": {"unquantized": 0.25, "gradual": 0.5}}  # of 12 updates 3, and 6
EMA = {"update": {"class_path": "mqvae.Ema", "init_args": {}}}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.0, 0.0), [0.0] * 6),
        ((0.5, 0.0), [1.0] * 3 + [0.0] * 3),
        ((0.0, 0.5), [1.0, 2 / 3, 1 / 3, 0.0, 0.0, 0.0]),
        ((1 / 3, 1 / 3), [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]),
        ((0.0, 1.0), [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ((1.0, 0.0), [1.0] * 6),
    ],
)
def test_when_quantization_sets_in(shares, expected):
    onset = Onset.of(6, *shares)
    assert [onset.unquantized(i) for i in range(6)] == pytest.approx(expected)
    assert onset.unquantized(6) == 0.0 or onset.first == 6


def test_the_codebook_waits_and_is_set_by_k_means(tmp_path):
    initialized, tables, shares, started, remembered = [], [], [], [], []
    initialize = VQNetwork.initialize_codebook

    def note(network, batches, **options):
        taken = list(batches)
        initialized.append((len(tables), torch.cat(taken)))
        initialize(network, taken, **options)

    def after_step(training):
        quantizer = training.parts.network.quantizer
        tables.append(quantizer.table().detach().clone())
        shares.append(quantizer.unquantized)
        sizes = training.parts.update.state_dict().get("sizes", torch.zeros(1))
        started.append(bool(sizes.any()))
        if "upper" in training.parts.levels:
            remembered.append(len(training.parts.levels["upper"].state))

    with patch.object(VQNetwork, "initialize_codebook", note):
        training = begin(settings(WARM), tmp_path / "joint")
        summary = training.fit(after_step=after_step)
    assert [at for at, _ in initialized] == [0, 2]  # at the start, and with the third update
    assert torch.equal(*(x for _, x in initialized))
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2])
    assert len({table.numpy().tobytes() for table in tables}) == 11
    assert shares == pytest.approx([1, 1, 1, *(i / 6 for i in range(6, 0, -1)), 0, 0, 0])
    assert remembered == [0] * 3 + [1] * 9
    assert summary["warnings"] == []
    found = rows(tmp_path / "joint")
    assert [bool(row["perplexity"]) for row in found] == [False] + [True] * 5
    assert [float(row["commitment"]) > 0 for row in found] == [False, False] + [True] * 4
    begin(settings({**WARM, **EMA}), tmp_path / "ema").fit(after_step=after_step)
    assert started[12:] == [False] * 3 + [True] * 9


def test_the_average_takes_the_codebook_over(tmp_path):
    found = []

    def after_step(training):
        if training.step == 3:
            parts = training.parts
            found.extend(
                n.quantizer.table().detach().clone() for n in (parts.network, parts.measured)
            )

    delta = {**WARM, "trainer": {"ema_decay": 0.9}}
    begin(settings(delta), tmp_path / "run").fit(after_step=after_step)
    assert torch.equal(*found)


@pytest.mark.parametrize(("rule", "step"), [("joint", 2), ("meta-kept-exact", 6)])
def test_a_warm_start_goes_on_as_if_never_stopped(tmp_path, monkeypatch, rule, step):
    begin(settings(WARM, rule=rule), tmp_path / "whole").fit()
    with monkeypatch.context() as patched:
        stop_after(patched, step, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            begin(settings(WARM, rule=rule), tmp_path / "run").fit()
    again = resume(tmp_path / "run")
    assert again.step == step
    again.fit()
    same_run(tmp_path / "run", tmp_path / "whole")


def test_a_codebook_from_elsewhere_is_not_replaced(tmp_path, capsys):
    begin(settings(), tmp_path / "other").fit()
    model = Run(tmp_path / "other").load("last", training=False).model
    asked = replace(settings(WARM), start=Start(str(tmp_path / "other")))
    training = begin(asked, tmp_path / "run")
    codebook = training.parts.network.quantizer.table().detach()
    assert torch.equal(codebook, model["quantizer.codebook.weight"])
    assert "all steps are quantized" in capsys.readouterr().err
    assert Run(tmp_path / "run").config["warm_start"] == {"unquantized": 0.0, "gradual": 0.5}
    parts = replace(asked, start=Start(str(tmp_path / "other"), ("encoder", "decoder")))
    assert begin(parts, tmp_path / "parts").settings.warm_start.unquantized == 0.25


def test_more_than_all_updates_are_refused():
    with pytest.raises(ValueError, match=r"1 at most together; got 0\.7 and 0\.5"):
        settings({"warm_start": {"unquantized": 0.7, "gradual": 0.5}})
