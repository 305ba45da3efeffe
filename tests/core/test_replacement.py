"""Unused codewords replaced: which, when, by what, and what is forgotten."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import squared_error
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from mqvae import (
    Affine,
    Alternated,
    Cosine,
    Ema,
    HyperNetwork,
    Joint,
    Kept,
    LinearMap,
    Meta,
    MetaBoth,
    MetaNetwork,
    MqvaeError,
    ReplaceUnused,
    ResidualQuantizer,
    Synchronous,
    Undone,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.config import Settings, Start, load_preset
from mqvae.runs import Run
from mqvae.training import begin

CODES, DIM = 9, 4
FAR = 1e3  # where no embedding goes


def network_of(after: int | None = 3, **options) -> VQNetwork:
    """Its last four codewords of every codebook lie where nothing selects them."""
    torch.manual_seed(4)
    replacement = None if after is None else ReplaceUnused(after)
    quantizer = VectorQuantizer(CODES, DIM, replacement=replacement, **options)
    weight = quantizer.codebook.weight
    with torch.no_grad():
        weight.add_(FAR * (unused_rows(weight)[:, None].float()))
    return VQNetwork(nn.Linear(5, DIM), quantizer, nn.Linear(DIM, 5))


def unused_rows(weight: Tensor) -> Tensor:
    return torch.arange(len(weight)) % CODES >= 5


def batch(step: int) -> Tensor:
    return torch.randn(32, 5, generator=torch.Generator().manual_seed(step))


def update_of(network: VQNetwork, rule=Joint, *, upper_lr: float = 1e-2, **options):
    lower = AdamW(network.network_parameters(), lr=1e-2)
    if rule is Ema:
        return Ema(network, squared_error, lower=lower, **options)
    upper = AdamW(network.codebook_parameters(), lr=upper_lr, weight_decay=0.0)
    return rule(network, squared_error, lower=lower, upper=upper, **options)


RULES = {
    "Joint": (Joint, {}),
    "Synchronous": (Synchronous, {}),
    "Alternated": (Alternated, {}),
    "Ema": (Ema, {}),
    "Meta": (Meta, {}),
    "Meta kept": (Meta, {"look_ahead": Kept()}),
    "MetaNetwork": (MetaNetwork, {}),
    "MetaBoth": (MetaBoth, {}),
}
every_rule = pytest.mark.parametrize(("rule", "options"), RULES.values(), ids=RULES)


@every_rule
@pytest.mark.parametrize("after", [1, 3])
def test_a_codeword_becomes_an_embedding_exactly_when_its_time_is_up(rule, options, after):
    network, twin = network_of(after), network_of(None)
    update, plain = update_of(network, rule, **options), update_of(twin, rule, **options)
    weight, other = network.quantizer.codebook.weight, twin.quantizer.codebook.weight
    dead = unused_rows(weight)
    for step in range(after):
        assert (weight[dead] > FAR / 2).all()
        x = batch(step)
        with torch.no_grad():
            z_e = network.embed(x)
        one, two = update.step(x, x), plain.step(x, x)
        assert torch.equal(one.codes, two.codes)
        if step < after - 1:
            assert torch.equal(weight, other)
    used = torch.zeros(CODES, dtype=torch.bool)
    used[one.codes.unique()] = True
    assert not (used & dead).any() and used.any()
    for row in dead.nonzero().flatten():
        assert (z_e == weight[row]).all(1).any()
    # The others are bit for bit those of training without replacement.
    last = used if after == 1 else ~dead
    assert torch.equal(weight[last], other[last])
    counts = network.quantizer.unused_steps
    assert torch.equal(counts[dead], torch.zeros(4, dtype=torch.int64))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    after=st.integers(1, 4),
    groups=st.sampled_from([(1, False), (2, False), (2, True)]),
    batches=st.lists(st.integers(1, 6), min_size=1, max_size=8),
)
def test_counts_and_replacements_follow_a_literal_loop(seed, after, groups, batches):
    torch.manual_seed(seed)
    number, shared = groups
    quantizer = VectorQuantizer(
        6, 4, groups=number, shared_codebook=shared, replacement=ReplaceUnused(after)
    )
    weight = quantizer.codebook.weight
    unused = [0] * len(weight)
    for size in batches:
        z_e = torch.randn(size, 4)
        codes = quantizer(z_e).codes
        before = weight.detach().clone()
        quantizer.update()
        rows = {
            (0 if shared else g * 6) + int(code)
            for one in codes.reshape(-1, number)
            for g, code in enumerate(one)
        }
        dead = []
        for row in range(len(weight)):
            unused[row] = 0 if row in rows else unused[row] + 1
            if unused[row] >= after:
                dead.append(row)
                unused[row] = 0
        assert quantizer.unused_steps.tolist() == unused
        assert (weight != before).any(1).nonzero().flatten().tolist() == dead
        for row in range(len(weight)):
            if row not in dead:
                assert torch.equal(weight[row], before[row])
                continue
            parts = z_e.view(size, number, -1)
            pool = parts.flatten(0, 1) if shared else parts[:, row // 6]
            assert (pool == weight[row]).all(1).any()


def test_groups_take_vectors_of_their_own_group():
    network = network_of(1, groups=2)
    quantizer = network.quantizer
    update = update_of(network)
    x = batch(0)
    with torch.no_grad():
        parts = network.embed(x).view(32, 2, 2)
    update.step(x, x)
    dead = unused_rows(quantizer.codebook.weight).nonzero().flatten()
    assert len(dead) == 8
    for row in dead:
        own, foreign = parts[:, row // CODES], parts[:, 1 - row // CODES]
        assert (own == quantizer.codebook.weight[row]).all(1).any()
        assert not (foreign == quantizer.codebook.weight[row]).all(1).any()


def test_cosine_codewords_become_embeddings_on_the_sphere():
    network = network_of(1, distance=Cosine())
    with torch.no_grad():
        # Two directions serve all; the others are unused.
        network.quantizer.codebook.weight.copy_(torch.eye(4)[[0] * 8 + [1]])
        network.quantizer.codebook.weight[:8] *= -1
    x = batch(0)
    with torch.no_grad():
        z_e = network.embed(x)
    torch.testing.assert_close(z_e.norm(dim=1), torch.ones(32))
    before = network.encode(x)
    update_of(network).step(x, x)
    unused = [row for row in range(CODES) if row not in before]
    assert unused
    for row in unused:
        assert (z_e == network.quantizer.codebook.weight[row]).all(1).any()


@pytest.mark.parametrize("name", [name for name in RULES if name != "Ema"])
def test_the_optimizer_forgets_replaced_rows_and_no_others(name):
    rule, options = RULES[name]
    network, twin = network_of(3), network_of(None)
    update, plain = update_of(network, rule, **options), update_of(twin, rule, **options)
    rows = unused_rows(network.quantizer.codebook.weight)
    with torch.no_grad():
        # All are used once, so that there are moments to forget, and then four no more.
        for one in (network, twin):
            one.quantizer.codebook.weight[rows] -= FAR
    for step in range(2):
        update.step(batch(step), batch(step))
        plain.step(batch(step), batch(step))
    with torch.no_grad():
        for one in (network, twin):
            one.quantizer.codebook.weight[rows] += FAR
            if one is network:
                one.quantizer.unused_steps[:] = 0
    state = update.upper.state[network.quantizer.codebook.weight]
    other = plain.upper.state[twin.quantizer.codebook.weight]
    for step in range(2, 5):
        assert all(state[moment][rows].any() for moment in ("exp_avg", "exp_avg_sq"))
        step_one = update.step(batch(step), batch(step))
        plain.step(batch(step), batch(step))
    assert not set(step_one.codes.tolist()) & set(rows.nonzero().flatten().tolist())
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.count_nonzero(state[moment][rows]) == 0
        assert torch.equal(state[moment][~rows], other[moment][~rows])
        assert torch.count_nonzero(other[moment][rows]) > 0
    assert state["step"] == other["step"] == 5


def test_sgd_forgets_its_momentum_and_works_without_any():
    for momentum in (0.9, 0.0):
        network = network_of(2)
        upper = SGD(network.codebook_parameters(), lr=0.1, momentum=momentum)
        lower = SGD(network.network_parameters(), lr=0.1)
        update = Joint(network, squared_error, lower=lower, upper=upper)
        weight = network.quantizer.codebook.weight
        rows = unused_rows(weight)
        update.step(batch(0), batch(0))
        if momentum:
            upper.state[weight]["momentum_buffer"].fill_(1e-9)
        update.step(batch(1), batch(1))
        if momentum:
            buffer = upper.state[weight]["momentum_buffer"]
            assert torch.count_nonzero(buffer[rows]) == 0
            assert torch.count_nonzero(buffer[~rows]) > 0
        assert (weight < FAR / 2).all()


def test_a_moving_average_starts_again_from_the_new_codeword():
    network = network_of(2)
    update = update_of(network, Ema, decay=0.9, epsilon=0.0)
    weight = network.quantizer.codebook.weight
    rows = unused_rows(weight)
    update.step(batch(0), batch(0))
    sizes = update.state_dict()["sizes"].clone()
    torch.testing.assert_close(sizes[rows], torch.full((4,), 0.9))
    update.step(batch(1), batch(1))
    assert (weight[rows] < FAR / 2).all()
    # The next average is one of the codeword and the embeddings that choose it.
    x = batch(2)
    before = weight.detach().clone()
    with torch.no_grad():
        z_e, codes = network.embed(x), network.encode(x)
    update.step(x, x)
    for row in rows.nonzero().flatten():
        chosen = z_e[codes == row]
        expected = (0.9 * before[row] + 0.1 * chosen.sum(0)) / (0.9 + 0.1 * len(chosen))
        torch.testing.assert_close(weight[row], expected)


@pytest.mark.parametrize("how", ["eval", "frozen"])
@pytest.mark.parametrize("rule", [Joint, Meta, Ema])
def test_nothing_is_replaced_in_eval_or_frozen(how, rule):
    network = network_of(1)
    update = update_of(network, rule, **({} if rule is Ema else {"upper_lr": 0.0}))
    if how == "eval":
        network.eval()
    else:
        network.quantizer.requires_grad_(False)
    before = copy.deepcopy(network.quantizer.state_dict())
    for step in range(3):
        update.step(batch(step), batch(step))
    after = network.quantizer.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_pass_counts_nothing():
    network = network_of(1)
    for step in range(3):
        network(batch(step))
    assert torch.count_nonzero(network.quantizer.unused_steps) == 0
    assert (network.quantizer.codebook.weight > FAR / 2).any()


@pytest.mark.parametrize("codebook", [Affine(), LinearMap(), HyperNetwork()])
def test_codewords_of_a_map_are_not_replaced(codebook):
    with pytest.raises(ValueError, match="cannot be replaced one by one") as caught:
        VectorQuantizer(4, 6, codebook=codebook, replacement=ReplaceUnused())
    assert type(codebook).__name__ in str(caught.value)
    assert "leave out the replacement, or use Table()" in str(caught.value)


@pytest.mark.parametrize("after", [0, -2])
def test_no_patience_is_refused(after):
    with pytest.raises(ValueError, match=f"after must be 1 or more, got {after}"):
        ReplaceUnused(after)


def test_used_is_what_the_first_pass_chose_also_where_the_look_ahead_is_undone():
    """φ and θ step under the new codebook, whose codes are others; those are not counted."""
    network = network_of(after=50)
    update = update_of(network, Meta, upper_lr=1.0, look_ahead=Undone())
    passes = []
    quantize = network.quantizer.quantize
    network.quantizer.quantize = lambda *given: passes.append(quantize(*given)) or passes[-1]
    others = 0
    for seed in range(5):
        passes.clear()
        x = batch(seed)[:4]  # fewer than there are codewords
        step = update.step(x, x)
        used = torch.zeros(CODES, dtype=torch.bool)
        used[step.codes.unique()] = True
        assert torch.equal(passes[0].codes, step.codes)
        others += set(passes[-1].codes.tolist()) != set(step.codes.tolist())
        assert torch.equal(network.quantizer.unused_steps == 0, used)
    assert others


# -- a codebook that is set anew -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["assign", "initialize", "kmeans", "stages"])
def test_new_codewords_have_never_gone_unused(how):
    torch.manual_seed(0)
    options = {"replacement": ReplaceUnused(50)}
    if how == "kmeans":
        options["initialize"] = "kmeans"
    stages = [VectorQuantizer(CODES, DIM, **options) for _ in range(1 + (how == "stages"))]
    quantizer = ResidualQuantizer(stages) if how == "stages" else stages[0]
    z_e = torch.randn(200, DIM)
    if how == "kmeans":  # as if codes had been counted before the codebook began
        stages[0].unused_steps.fill_(3)
        quantizer(z_e)
        quantizer.update()
    else:
        for _ in range(3):
            quantizer(z_e[:2])
            quantizer.update()
        assert all((stage.unused_steps == 3).any() for stage in stages)
        if how == "assign":
            quantizer.assign(torch.randn(CODES, DIM))
        else:
            quantizer.initialize(z_e)
    assert not any(stage.unused_steps.any() for stage in stages)


@pytest.mark.parametrize("shared", [False, True])
def test_fresh_codewords_are_not_replaced_for_what_the_old_ones_did(shared):
    """A counter that was almost full replaced 14 of 64 fresh codewords one step later."""
    network = network_of(after=3, groups=2, shared_codebook=shared)
    update = update_of(network, upper_lr=0.0)
    for step in range(2):
        update.step(batch(step), batch(step))
    unused = network.quantizer.get_buffer("unused_steps")
    assert (unused == 2).any()
    network.initialize_codebook(batch(2))
    assert not unused.any()
    before = network.quantizer.codebook.weight.detach().clone()
    update.step(batch(3), batch(3))
    assert torch.equal(network.quantizer.codebook.weight, before)
    assert unused.max() <= 1


def test_a_codebook_taken_from_another_run_starts_unused(trained, tmp_path):
    quantizer = {"init_args": {"replacement": {"class_path": "mqvae.ReplaceUnused"}}}
    small = {
        "steps": 2,
        "data": {"name": "digits", "side": 8, "batch_size": 4},
        "network": {"init_args": {"width": 8, "residual_blocks": 1}},
        "quantizer": quantizer,
        "trainer": {"accelerator": "cpu"},
    }
    run = trained("replacing", small)
    settings = Settings.of(load_preset("digits-tiny", small))
    parts = ["encoder", "codebook", "decoder"]
    settings = replace(settings, start=Start(str(run), parts))
    training = begin(settings, tmp_path / "tuned")
    there = Run(run).load("last", training=False).weights
    assert there["quantizer.unused_steps"].any()
    mine = training.parts.network.quantizer
    assert torch.equal(mine.codebook.weight, there["quantizer.codebook.weight"])
    assert not mine.get_buffer("unused_steps").any()


@pytest.mark.parametrize(("before", "now"), [(True, False), (False, True)])
def test_a_codebook_comes_from_a_run_that_counted_use_or_did_not(trained, tmp_path, before, now):
    def small(counts):
        kind = {"class_path": "mqvae.ReplaceUnused"} if counts else None
        return {
            "steps": 2,
            "data": {"name": "digits", "side": 8, "batch_size": 4},
            "network": {"init_args": {"width": 8, "residual_blocks": 1}},
            "quantizer": {"init_args": {"replacement": kind}},
            "trainer": {"accelerator": "cpu"},
        }

    run = trained(f"counting {before}", small(before))
    settings = Settings.of(load_preset("digits-tiny", small(now)))
    settings = replace(settings, start=Start(str(run), ["encoder", "codebook", "decoder"]))
    mine = begin(settings, tmp_path / "tuned").parts.network.quantizer
    there = Run(run).load("last", training=False).weights
    assert torch.equal(mine.codebook.weight, there["quantizer.codebook.weight"])


def test_codewords_that_are_not_finite_in_the_codebooks_type_are_refused():
    quantizer = VectorQuantizer(CODES, DIM).half()
    before = quantizer.codebook.weight.detach().clone()
    with pytest.raises(MqvaeError, match=r"finite numbers of the codebook's type, torch\.float16"):
        quantizer.initialize(1e6 * torch.randn(50, DIM))
    assert torch.equal(quantizer.codebook.weight, before)


# -- embeddings that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_no_codeword_becomes_an_embedding_that_is_not_finite(bad):
    """Half the embeddings are broken: the finite ones are drawn, now or at a later step."""
    network = network_of(after=1, groups=2)
    quantizer = network.quantizer
    rows = unused_rows(quantizer.codebook.weight)
    z_e = torch.randn(20, DIM)
    z_e[::2] = bad
    codes = torch.zeros(20, 2, dtype=torch.int64)
    replaced: set[int] = set()
    for _ in range(8):
        before = quantizer.codebook.weight.detach().clone()
        quantizer.record(z_e, codes)
        quantizer.update()
        changed = (quantizer.codebook.weight != before).any(1)
        replaced |= set(changed.nonzero().flatten().tolist())
        assert torch.isfinite(quantizer.codebook.weight).all()
    if bad < 1e38:  # large, but a number
        return
    assert (quantizer.codebook.weight[rows].abs() < FAR / 2).all()
    # Never the origin, as a draw of nobody would give.
    assert (quantizer.codebook.weight[rows] != 0).all()
    every = z_e.view(20, 2, -1)[1::2]
    for row in replaced:
        drawn = quantizer.codebook.weight[row]
        assert (every[:, row // CODES] == drawn).all(1).any()


def test_where_no_embedding_is_finite_nothing_is_replaced():
    network = network_of(after=1)
    quantizer = network.quantizer
    before = quantizer.codebook.weight.detach().clone()
    z_e, codes = torch.full((6, DIM), torch.nan), torch.zeros(6, dtype=torch.int64)
    for _ in range(3):
        quantizer.record(z_e, codes)
        quantizer.update()
    assert torch.equal(quantizer.codebook.weight, before)
    # They are still due.
    assert quantizer.get_buffer("unused_steps").tolist() == [0] + [3] * (CODES - 1)
