"""What the layer takes and gives beside embeddings: masks, layouts, projections, k-means, usage."""

import math

import pytest
import torch
from test_layer import CODES, DIM, embeddings, same_state
from torch import Tensor, nn

from mqvae import (
    Affine,
    Cosine,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    LookupFreeQuantizer,
    Meta,
    MovingAverage,
    MqvaeError,
    NoQuantizer,
    Quantizer,
    RateAware,
    ReplaceUnused,
    ResidualQuantizer,
    Rotation,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.core.usage import count_codes, perplexity, usage

KINDS = {
    "vector": lambda **o: VectorQuantizer(CODES, DIM, **o),
    "groups": lambda **o: VectorQuantizer(CODES, DIM, groups=2, estimator=Rotation(), **o),
    "cosine": lambda **o: VectorQuantizer(CODES, DIM, distance=Cosine(), **o),
    "affine": lambda **o: VectorQuantizer(CODES, DIM, codebook=Affine(), **o),
    "projected": lambda **o: VectorQuantizer(CODES, DIM, codebook_dim=4, **o),
    "residual": lambda **o: ResidualQuantizer([VectorQuantizer(CODES, DIM) for _ in range(3)], **o),
    "gumbel": lambda **o: GumbelQuantizer(CODES, DIM, **o),
    "fsq": lambda **o: FiniteScalarQuantizer((3,) * DIM, **o),
    "lfq": lambda **o: LookupFreeQuantizer(2**DIM, **o),
    "none": lambda **o: NoQuantizer(DIM, **o),
}
every = pytest.mark.parametrize("name", KINDS)


def made(name: str, **options) -> Quantizer:
    torch.manual_seed(0)
    return KINDS[name](**options)


def total(out) -> Tensor:
    terms = [out.commitment_loss, out.codebook_loss, out.auxiliary_loss]
    return sum(term for term in terms if term is not None)


# -- masks -----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("training", [True, False])
def test_masked_positions_are_as_if_they_were_not_there(name, training):
    quantizer = made(name).train(training)
    z_e = torch.randn(4, 6, DIM)
    mask = torch.rand(4, 6) > 0.4
    inside = z_e[mask].requires_grad_()
    padded = z_e.masked_fill(~mask[..., None], math.nan).requires_grad_()
    alone, out = quantizer(inside), quantizer(padded, mask)
    groups = (3,) if name == "residual" else (2,) if name == "groups" else ()
    assert out.codes.shape == (4, 6, *groups)
    assert torch.equal(out.codes[mask], alone.codes)
    assert (out.codes[~mask] == -1).all()
    assert torch.equal(out.z_q[~mask].isnan(), torch.ones_like(out.z_q[~mask]).bool())
    if name != "gumbel" or not training:  # whose noise is drawn for each position
        torch.testing.assert_close(out.z_q[mask], alone.z_q)
    torch.testing.assert_close(total(out), total(alone), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.perplexity, alone.perplexity)
    torch.testing.assert_close(out.usage, alone.usage)
    if total(out).requires_grad:
        parameters = list(quantizer.parameters())
        found, expected = (
            torch.autograd.grad(total(o), [z, *parameters], allow_unused=True)
            for o, z in ((out, padded), (alone, inside))
        )
        if found[0] is not None:
            assert torch.count_nonzero(found[0][~mask]) == 0
            torch.testing.assert_close(found[0][mask], expected[0], rtol=1e-4, atol=1e-6)
        for one, other in zip(found[1:], expected[1:], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    quantizer.eval()
    assert torch.equal(quantizer.encode(padded, mask)[mask], quantizer.encode(inside))


@pytest.mark.parametrize("layout", [{}, {"groups": 2}, {"groups": 2, "shared_codebook": True}])
def test_masked_positions_have_no_part_in_updates(layout):
    options = {"codebook": MovingAverage(0.9), "rate": RateAware(bits=3.0, after=1), **layout}
    torch.manual_seed(0)
    one = VectorQuantizer(CODES, DIM, **options)
    two = VectorQuantizer(CODES, DIM, **options)
    two.load_state_dict(one.state_dict())
    for step in range(3):
        z_e, mask = embeddings(step).view(8, 12, DIM), torch.rand(8, 12) > 0.3
        one(z_e[mask])
        two(z_e.masked_fill(~mask[..., None], math.inf), mask)
        one.update()
        two.update()
        same_state(one, two)


def test_unused_codewords_become_no_masked_embedding():
    quantizer = VectorQuantizer(64, DIM, replacement=ReplaceUnused(1))
    z_e, mask = torch.randn(50, DIM), torch.arange(50) % 5 == 0
    quantizer(torch.where(mask[:, None], z_e, 1e3), mask)
    before = quantizer.codebook.weight.detach().clone()
    quantizer.update()
    replaced = (quantizer.codebook.weight != before).any(1)
    assert replaced.sum() > 40
    for row in quantizer.codebook.weight[replaced]:
        assert (z_e[mask] == row).all(1).any()


def test_a_mask_over_everything_changes_nothing():
    quantizer = VectorQuantizer(CODES, DIM, replacement=ReplaceUnused(1))
    before = quantizer.codebook.weight.detach().clone()
    out = quantizer(torch.randn(5, DIM), torch.zeros(5, dtype=torch.bool))
    assert out.commitment_loss == 0 == out.codebook_loss
    quantizer.update()
    assert torch.equal(quantizer.codebook.weight, before)
    assert not quantizer.unused_steps.any()


@pytest.mark.parametrize("mask", [torch.ones(4, 6), torch.ones(4, 5, dtype=torch.bool)])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(MqvaeError, match=r"mask must be bool and of shape \(4, 6\)"):
        made("vector")(torch.randn(4, 6, DIM), mask)


# -- layouts ---------------------------------------------------------------------------------------


@every
def test_channels_may_be_on_axis_1(name):
    last, first = made(name).eval(), made(name, channel_axis=1).eval()
    z_e = torch.randn(2, 5, 6, DIM)
    there, here = last(z_e), first(z_e.movedim(-1, 1))
    assert torch.equal(here.codes, there.codes)
    torch.testing.assert_close(here.z_q, there.z_q.movedim(-1, 1))
    torch.testing.assert_close(total(here), total(there))
    assert torch.equal(first.encode(z_e.movedim(-1, 1)), last.encode(z_e))
    if name != "none":
        torch.testing.assert_close(first.decode(here.codes), here.z_q)


@every
def test_a_layout_that_could_be_meant_two_ways_is_refused(name):
    z_e = torch.randn(2, DIM, DIM, DIM)
    with pytest.raises(MqvaeError, match="either may be the channels: pass channel_axis=1"):
        made(name)(z_e)
    codes = [made(name, channel_axis=axis).eval()(z_e).codes for axis in (-1, 1)]
    assert codes[0].shape == codes[1].shape
    network = VQNetwork(nn.Identity(), made("vector"), nn.Identity())
    assert network(z_e).output.shape == z_e.shape


def test_wrong_axes_are_told():
    with pytest.raises(MqvaeError, match="pass channel_axis=1 to it, move the channels"):
        made("vector")(torch.randn(2, DIM, 5, 7))
    with pytest.raises(MqvaeError, match="expects 8 channels on axis 1"):
        made("vector", channel_axis=1)(torch.randn(2, 5, DIM))
    with pytest.raises(MqvaeError, match="give channel_axis to VQNetwork"):
        VQNetwork(nn.Identity(), made("vector", channel_axis=1), nn.Identity())


# -- projections -----------------------------------------------------------------------------------


def test_codes_of_few_dimensions():
    quantizer = made("projected", distance=Cosine())
    z_e = torch.randn(3, 7, DIM, requires_grad=True)
    out = quantizer(z_e)
    assert quantizer.codebook.weight.shape == (CODES, 4)
    assert out.z_q.shape == z_e.shape
    with torch.no_grad():
        inner = nn.functional.normalize(quantizer.project_in(z_e), dim=-1)
        words = nn.functional.normalize(quantizer.codebook.weight, dim=-1)
        codes = torch.cdist(inner, words).argmin(-1)
        torch.testing.assert_close(out.z_q, quantizer.project_out(words[codes]))
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(quantizer.decode(out.codes), out.z_q)
    (out.z_q.square().sum() + total(out)).backward()
    assert all(p.grad is not None for p in quantizer.parameters())
    with pytest.raises(MqvaeError, match="leave codebook_dim out"):
        VQNetwork(nn.Identity(), quantizer, nn.Identity())


# -- k-means in the loop ---------------------------------------------------------------------------


def beginning(name: str) -> Quantizer:
    torch.manual_seed(0)
    if name == "residual":
        stages = [VectorQuantizer(CODES, DIM) for _ in range(2)]
        return ResidualQuantizer(stages, initialize="kmeans")
    groups = 2 if name == "groups" else 1
    return VectorQuantizer(CODES, DIM, groups=groups, initialize="kmeans")


@pytest.mark.parametrize("name", ["vector", "groups", "residual"])
def test_the_codebook_begins_as_k_means_of_the_first_passes(name):
    quantizer = beginning(name)
    before = quantizer.table().detach().clone()
    for step in range(4):  # of 96 embeddings; ten a codeword are 320
        z_e = embeddings(step)
        out = quantizer(z_e)
        assert torch.equal(out.z_q, z_e) and out.commitment_loss == 0
        assert torch.equal(quantizer.table(), before)
        quantizer.update()
    assert not torch.equal(quantizer.table(), before)
    out = quantizer(embeddings(5))
    # Around 48 places, 0.1 apart in each dimension; a random codebook leaves about 9.
    assert 0 < out.commitment_loss < 1.5
    other = beginning(name)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(embeddings(5)).z_q, out.z_q)


def test_few_embeddings_begin_in_the_end():
    quantizer = VectorQuantizer(1000, DIM, initialize="kmeans")
    for _ in range(50):
        quantizer(torch.randn(2, DIM))
        quantizer.update()
    assert quantizer(torch.randn(2, DIM)).commitment_loss > 0
    with pytest.raises(MqvaeError, match='initialize must be "kmeans" or None'):
        VectorQuantizer(4, 4, initialize="k-means++")


# -- usage and perplexity --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vector", "groups", "residual", "gumbel", "fsq", "lfq"])
def test_usage_and_perplexity_are_those_of_the_counts(name):
    quantizer = made(name)
    out = quantizer(torch.randn(40, DIM))
    counts = count_codes(out.codes, quantizer.num_codes, groups=quantizer.groups)
    torch.testing.assert_close(out.perplexity, perplexity(counts).float())
    torch.testing.assert_close(out.usage, usage(counts).float())
    assert out.perplexity > 2
    with pytest.raises(MqvaeError, match="call the quantizer itself"):
        _ = quantizer.quantize(quantizer.place(torch.randn(4, DIM))).usage


# -- stages ----------------------------------------------------------------------------------------


def normalized(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(256, DIM, generator=generator), dim=1)


@pytest.mark.covering(1)
@pytest.mark.parametrize("codebook", [None, MovingAverage(0.9)], ids=["learned", "ema"])
@pytest.mark.parametrize("initialize", [None, "kmeans"])
def test_no_stage_collapses_on_normalized_vectors(codebook, initialize):
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(
        [
            VectorQuantizer(CODES, DIM, codebook=codebook, replacement=ReplaceUnused(5))
            for _ in range(4)
        ],
        initialize=initialize,
    )
    trained = list(quantizer.parameters())
    optimizer = torch.optim.Adam(trained, lr=0.01) if trained else None
    for step in range(100):
        out = quantizer(normalized(step))
        if optimizer is not None:
            optimizer.zero_grad()
            out.codebook_loss.backward()
            optimizer.step()
        quantizer.update(optimizer)
    vectors = torch.cat([normalized(1000 + i) for i in range(8)])
    with torch.no_grad():
        out = quantizer(vectors)
    for stage in out.codes.unbind(-1):
        assert len(stage.unique()) >= 0.95 * CODES
    left = [vectors - quantizer._selected(out.codes, quantizer.table())[0]]
    assert out.commitment_loss < 0.5 * left[0].square().mean()


def test_replacement_of_a_stage_forgets_its_own_moments():
    torch.manual_seed(0)
    stages = [
        VectorQuantizer(CODES, DIM, replacement=ReplaceUnused(1)),
        VectorQuantizer(CODES, DIM),
    ]
    quantizer = ResidualQuantizer(stages)
    optimizer = torch.optim.Adam(quantizer.parameters())
    quantizer(torch.randn(5, DIM)).codebook_loss.backward()
    optimizer.step()
    moments = [optimizer.state[stage.codebook.weight]["exp_avg"] for stage in stages]
    for moment in moments:
        moment.fill_(1)
    quantizer.update(optimizer)
    assert 0 < torch.count_nonzero(moments[0].sum(1)) <= 5
    assert torch.count_nonzero(moments[1]) == moments[1].numel()


def test_stages_may_share_a_codebook():
    torch.manual_seed(0)
    one = VectorQuantizer(CODES, DIM, codebook=MovingAverage(0.5, epsilon=0.0))
    shared = ResidualQuantizer([one] * 3, shared_codebook=True)
    weight = one.codebook.weight
    assert shared.table().shape == (CODES, DIM)
    z_e = torch.randn(20, DIM)
    out = shared(z_e)
    left, parts, codes = z_e, [], []
    for _ in range(3):
        codes.append(torch.cdist(left, weight).argmin(1))
        parts.append(left)
        left = left - weight[codes[-1]]
    assert torch.equal(out.codes, torch.stack(codes, 1))
    torch.testing.assert_close(out.z_q, z_e - left)
    torch.testing.assert_close(shared.decode(out.codes), out.z_q)
    sums = torch.zeros(CODES, DIM).index_add_(0, torch.cat(codes), torch.cat(parts))
    number = torch.bincount(torch.cat(codes), minlength=CODES)[:, None]
    expected = torch.where(number > 0, (0.5 * weight + 0.5 * sums) / (0.5 + 0.5 * number), weight)
    shared.update()
    torch.testing.assert_close(weight, expected)
    assert len(shared.state_dict()) == len(one.state_dict())
    with pytest.raises(MqvaeError, match="takes one quantizer for all stages"):
        ResidualQuantizer([one, VectorQuantizer(CODES, DIM)], shared_codebook=True)
    with pytest.raises(MqvaeError, match="unless with shared_codebook=True"):
        ResidualQuantizer([one] * 2)


def test_dropout_leaves_out_the_last_stages():
    torch.manual_seed(0)
    stages = [VectorQuantizer(CODES, DIM, codebook=MovingAverage()) for _ in range(4)]
    quantizer = ResidualQuantizer(stages, dropout=0.8)
    z_e = torch.randn(400, 3, DIM)
    whole = quantizer.eval()(z_e)
    out = quantizer.train()(z_e)
    here = out.codes >= 0
    stays = here.sum(-1)
    assert (stays == stays[:, :1]).all()  # for each sample
    assert torch.equal(here, torch.arange(4) < stays[..., None])
    share = [(stays[:, 0] == n).float().mean().item() for n in range(1, 5)]
    assert share == pytest.approx([0.2, 0.2, 0.2, 0.4], abs=0.1)
    assert torch.equal(out.codes[here], whole.codes[here])
    torch.testing.assert_close(quantizer.decode(out.codes), out.z_q)
    kept = stays == 4
    torch.testing.assert_close(out.z_q[kept], whole.z_q[kept])
    # What a stage is left out of it does not learn from.
    for stage, used in zip(stages, here.flatten(0, 1).unbind(1), strict=True):
        assert stage._pending.counts.sum() == used.sum()
    network = VQNetwork(nn.Identity(), quantizer, nn.Identity())
    with pytest.raises(MqvaeError, match="leave dropout out, or train with Joint"):
        Meta(network, nn.functional.mse_loss, lower=None, upper=None)
