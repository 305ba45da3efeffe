"""Encoder, quantizer and decoder as one network; the VQ-VAE."""

import copy

import pytest
import torch
from problems import GROUPS
from torch import Tensor, nn
from torch.optim import SGD

from mqvae import (
    VQGAN,
    VQVAE,
    Joint,
    Kept,
    Meta,
    ResNet18,
    Undone,
    VectorQuantizer,
    VQNetwork,
    vqvae,
)
from mqvae.networks.architecture import Inputs
from mqvae.networks.vqvae import ResidualBlock, VQVAEEncoder

everywhere = pytest.mark.parametrize("groups", GROUPS)


def quantizer(groups: str, codes: int = 7) -> VectorQuantizer:
    number, shared = GROUPS[groups]
    return VectorQuantizer(codes, 6, groups=number, shared_codebook=shared)


def feature_maps(groups: str) -> tuple[VQNetwork, Tensor]:
    """Convolutions: (B, D, H, W)."""
    encoder = nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 6, 1),
    )
    decoder = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)
    )
    return VQNetwork(encoder, quantizer(groups), decoder), torch.randn(4, 2, 8, 10)


def tokens(groups: str) -> tuple[VQNetwork, Tensor]:
    """Transformers: (B, T, D)."""
    encoder = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 6))
    decoder = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5))
    return VQNetwork(encoder, quantizer(groups), decoder, channel_axis=-1), torch.randn(4, 11, 5)


def plain(groups: str) -> tuple[VQNetwork, Tensor]:
    """Vectors: (B, D)."""
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6))
    decoder = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    return VQNetwork(encoder, quantizer(groups), decoder), torch.randn(40, 5)


LAYOUTS = {"feature maps": feature_maps, "tokens": tokens, "plain": plain}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
POSITIONS = {"feature maps": (4, 4, 5), "tokens": (4, 11), "plain": (40,)}


def ready(layout: str, groups: str) -> tuple[VQNetwork, Tensor]:
    """In eval mode, its codes spread."""
    network, x = LAYOUTS[layout](groups)
    network.initialize_codebook(x)
    return network.eval(), x


@everywhere
@every_layout
def test_decoding_the_codes_is_the_output_to_the_bit(layout, groups):
    network, x = ready(layout, groups)
    with torch.no_grad():
        result = network(x)
        codes = network.encode(x)
        assert len(codes.unique()) > 3
        assert torch.equal(codes, result.quantized.codes)
        assert torch.equal(network.decode(codes), result.output)


@everywhere
@every_layout
def test_every_position_has_its_codes(layout, groups):
    network, x = ready(layout, groups)
    positions = POSITIONS[layout]
    number = GROUPS[groups][0]
    result = network(x)
    assert result.quantized.codes.shape == positions + ((number,) if number > 1 else ())
    assert result.quantized.z_q.shape == (*positions, 6)
    z_e = network.embed(x)
    assert z_e.shape == (*positions, 6)
    assert z_e.is_contiguous()
    # What stands at a position is quantized there, and the decoder finds it there.
    features = network.encoder(x)
    words = torch.empty_like(features)
    for place in torch.cartesian_prod(*[torch.arange(n) for n in positions]).view(
        -1, len(positions)
    ):
        index = tuple(place.tolist())
        inside = (index[0], slice(None), *index[1:]) if layout == "feature maps" else index
        assert torch.equal(z_e[index], features[inside])
        words[inside] = network.quantizer(features[inside]).z_q
    torch.testing.assert_close(network.decoder(words), result.output)


@every_layout
def test_layouts_there_and_back(layout):
    network, x = LAYOUTS[layout]("one")
    features = network.encoder(x)
    assert torch.equal(network.channels_back(network.channels_last(features)), features)


@everywhere
@every_layout
def test_gradients_reach_the_parameters_they_should(layout, groups):
    network, x = LAYOUTS[layout](groups)
    network.initialize_codebook(x)
    result = network(x)
    result.output.square().mean().backward()
    assert all(p.grad is None for p in network.codebook_parameters())
    assert any(torch.count_nonzero(p.grad) for p in network.encoder_parameters())
    assert all(torch.count_nonzero(p.grad) for p in network.decoder_parameters())


def _traces(network: VQNetwork) -> dict[str, Tensor]:
    return {
        k: v.clone() for k, v in network.state_dict().items() if k != "quantizer.codebook.weight"
    }


@everywhere
@every_layout
@pytest.mark.parametrize("training", [True, False])
def test_initializing_the_codebook_changes_the_codebook_alone(layout, groups, training):
    network, x = LAYOUTS[layout](groups)
    network.train(training)
    network.encoder[0].eval()  # flags may differ
    flags = [m.training for m in network.modules()]
    state, before = _traces(network), network.quantizer.codebook.weight.detach().clone()
    given, random = x.clone(), torch.get_rng_state()
    network.initialize_codebook(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, given)
    assert [m.training for m in network.modules()] == flags
    after = _traces(network)
    assert after.keys() == state.keys()
    assert all(torch.equal(after[k], state[k]) for k in state)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    # All rows are new.
    assert (network.quantizer.codebook.weight != before).any(1).all()


def test_the_statistics_would_change_otherwise():
    network, x = feature_maps("one")
    state, random = _traces(network), torch.get_rng_state()
    network(x)
    after = _traces(network)
    assert {k for k in state if not torch.equal(after[k], state[k])} == {
        "encoder.1.running_mean",
        "encoder.1.running_var",
        "encoder.1.num_batches_tracked",
    }
    assert not torch.equal(torch.get_rng_state(), random)


@everywhere
@every_layout
def test_initializing_takes_the_codebook_from_the_embeddings(layout, groups):
    network, x = LAYOUTS[layout](groups)
    network.eval()
    before = network(x).quantized.codebook_loss
    network.initialize_codebook(x, generator=torch.Generator().manual_seed(0))
    by_hand = copy.deepcopy(network.quantizer)
    by_hand.initialize(network.embed(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.quantizer.codebook.weight, by_hand.codebook.weight)
    assert network(x).quantized.codebook_loss < 0.7 * before


def test_inputs_to_initialize_from_may_come_in_batches():
    network, x = feature_maps("one")
    other = copy.deepcopy(network.eval())
    network.initialize_codebook(x, generator=torch.Generator().manual_seed(0))
    taken = []
    other.encoder.register_forward_pre_hook(lambda _, inputs: taken.append(len(inputs[0])))
    parts = (part for part in x.split(2))
    other.initialize_codebook(parts, generator=torch.Generator().manual_seed(0))
    assert len(taken) > 1 and max(taken) == 2
    found, expected = other.quantizer.codebook.weight, network.quantizer.codebook.weight
    assert torch.allclose(found, expected, atol=1e-6)


def test_an_encoder_that_raises_while_initializing_leaves_no_trace():
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    network, x = feature_maps("one")
    network.encoder.append(Raises())
    state, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        network.initialize_codebook(x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@everywhere
@pytest.mark.parametrize("layout", [*LAYOUTS, "vqvae"])
def test_three_groups_of_parameters_disjoint_and_together_all(layout, groups):
    if layout == "vqvae":
        number, shared = GROUPS[groups]
        network = vqvae(num_codes=8, dim=6, width=4, groups=number, shared_codebook=shared)
    else:
        network, _ = LAYOUTS[layout](groups)
    encoder, codebook, decoder = (
        [id(p) for p in parameters()]
        for parameters in (
            network.encoder_parameters,
            network.codebook_parameters,
            network.decoder_parameters,
        )
    )
    assert encoder and codebook and decoder
    together = encoder + codebook + decoder
    assert len(set(together)) == len(together)
    assert set(together) == {id(p) for p in network.parameters()}
    assert [id(p) for p in network.network_parameters()] == encoder + decoder
    assert codebook == [id(network.quantizer.codebook.weight)]
    assert encoder == [id(p) for p in network.encoder.parameters()]


@everywhere
def test_state_is_loaded_strictly(groups):
    network, x = ready("feature maps", groups)
    other, _ = feature_maps(groups)
    other.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(other.eval()(x).output, network(x).output)


@everywhere
@every_layout
def test_under_autocast(layout, groups):
    network, x = ready(layout, groups)
    expected = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(x)
    assert torch.isfinite(result.output).all()
    agree = result.quantized.codes == expected.quantized.codes
    assert agree.float().mean() > 0.8
    loss = result.quantized.commitment_loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.quantized.commitment_loss, rtol=0.1, atol=0)
    (result.output.float().square().mean() + loss + result.quantized.codebook_loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# The VQ-VAE


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [(4, 4), (8, 8), (28, 28), (32, 32), (12, 20)])
def test_images_keep_their_shape(channels, side):
    network = vqvae(channels, num_codes=16, dim=8, width=8)
    x = torch.rand(2, channels, *side)
    result = network(x)
    assert result.output.shape == x.shape
    assert result.quantized.codes.shape == (2, side[0] // 4, side[1] // 4)
    assert network.encode(x).shape == (2, side[0] // 4, side[1] // 4)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_a_stride_is_the_pixels_of_a_code(stride):
    network = VQVAE(width=16, stride=stride).build(Inputs(3, 32), VectorQuantizer(8, 4))
    result = network(torch.rand(1, 3, 32, 2 * stride))
    assert result.output.shape == (1, 3, 32, 2 * stride)
    assert result.quantized.codes.shape == (1, 32 // stride, 2)
    with pytest.raises(ValueError, match=f"must be multiples of {stride}, got"):
        network(torch.rand(1, 3, 32, stride + 1))


@everywhere
def test_codes_decode_to_the_same_images(groups):
    number, shared = GROUPS[groups]
    network = vqvae(3, num_codes=16, dim=6, width=8, groups=number, shared_codebook=shared).eval()
    x = torch.rand(4, 3, 16, 16)
    network.initialize_codebook(x)
    with torch.no_grad():
        codes = network.encode(x)
        assert len(codes.unique()) > 8
        assert torch.equal(network.decode(codes), network(x).output)


@pytest.mark.parametrize(
    ("side", "smaller", "larger"),
    [
        ((30, 30), "28 × 28", "32 × 32"),
        ((29, 28), "28 × 28", "32 × 28"),
        ((28, 31), "28 × 28", "28 × 32"),
        ((5, 7), "4 × 4", "8 × 8"),
    ],
)
def test_other_sides_raise_and_name_those_that_would_do(side, smaller, larger):
    network = vqvae(1, num_codes=4, dim=4, width=4)
    with pytest.raises(ValueError, match="must be multiples of 4") as caught:
        network(torch.rand(1, 1, *side))
    message = str(caught.value)
    assert f"got {side[0]} × {side[1]}" in message
    assert f"{smaller} or {larger} would do" in message


def test_sides_that_would_do_are_not_zero():
    with pytest.raises(ValueError, match="multiples of 4") as caught:
        vqvae(1, num_codes=4, dim=4, width=4)(torch.rand(1, 1, 3, 30))
    assert "4 × 32 would do" in str(caught.value)
    assert "0 × 28" not in str(caught.value)


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (3, 1), (1, 2)])
def test_other_channels_raise(channels, given):
    network = vqvae(channels, num_codes=4, dim=4, width=4)
    message = f"expects images of {channels} channels, got {given}"
    with pytest.raises(ValueError, match=message):
        network(torch.rand(1, given, 8, 8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 0}, "width must be an even number of 2 or more, got 0"),
        ({"width": 7}, "width must be an even number of 2 or more, got 7"),
        ({"width": 6, "stride": 8}, "width must be a multiple of 4, got 6"),
        ({"stride": 6}, "stride must be 2, 4, 8 or another power of two, got 6"),
        ({"residual_blocks": -1}, "residual_blocks must be 0 or more, got -1"),
    ],
)
def test_wrong_sizes_raise(sizes, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(**sizes)


def test_parameters_at_the_papers_size():
    with torch.device("meta"):
        network = vqvae()

    def count(parameters) -> int:
        return sum(p.numel() for p in parameters)

    # Two residual blocks of a 3×3 and a 1×1 convolution on each side.
    blocks = 2 * (256 * 256 * 9 + 256 + 256 * 256 + 256)
    encoder = 128 * 16 + 128 + 128 * 256 * 16 + 256 + 256 * 256 * 9 + 256 + blocks + 256 * 512 + 512
    decoder = 512 * 256 * 9 + 256 + blocks + 256 * 128 * 16 + 128 + 128 * 16 + 1
    assert count(network.encoder_parameters()) == encoder == 2_560_128
    assert count(network.decoder_parameters()) == decoder == 3_018_113
    assert count(network.codebook_parameters()) == 1024 * 512 == 524_288
    assert count(network.parameters()) == 6_102_529


@pytest.mark.parametrize("residual_blocks", [0, 1, 3])
def test_as_many_residual_blocks_as_asked_for(residual_blocks):
    network = vqvae(3, num_codes=4, dim=4, width=4, residual_blocks=residual_blocks)
    for part in (network.encoder, network.decoder):
        blocks = [m for m in part.modules() if isinstance(m, ResidualBlock)]
        assert len(blocks) == residual_blocks
    assert network(torch.rand(1, 3, 8, 8)).output.shape == (1, 3, 8, 8)


def test_a_residual_block_adds():
    block, x = ResidualBlock(4), torch.randn(2, 4, 5, 5)
    first, second = block.layers[1], block.layers[3]
    expected = x + second(first(x.relu()).relu())
    assert torch.equal(block(x), expected)
    nn.init.zeros_(second.weight)
    nn.init.zeros_(second.bias)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_embeddings_are_normalized(kind):
    torch.manual_seed(0)
    plain = VQVAEEncoder(VQVAE(width=8), 1, 6).double()
    encoder = VQVAEEncoder(VQVAE(width=8, normalization=kind), 1, 6).double()
    assert encoder.state_dict().keys() >= plain.state_dict().keys()
    encoder.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(5, 1, 12, 8, dtype=torch.float64)
    axes = (0, 2, 3) if kind == "batch" else (1,)

    def normalized(z_e: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (z_e - mean) / (variance + 1e-5).sqrt()

    mean, variance = (f(plain(x), axes, keepdim=True) for f in (torch.mean, torch.var))
    biased = plain(x).var(axes, unbiased=False, keepdim=True)
    expected = normalized(plain(x), mean, biased)
    torch.testing.assert_close(encoder(x), expected)
    encoder.eval()
    if kind == "batch":  # by the averages that the one batch before has moved
        expected = normalized(plain(x), 0.1 * mean, 0.9 + 0.1 * variance)
    torch.testing.assert_close(encoder(x), expected)
    # Nothing to be learned that could undo it.
    assert len(list(encoder.parameters())) == len(list(plain.parameters()))


@pytest.mark.parametrize("look_ahead", [Undone(), Kept()])
def test_a_look_ahead_leaves_no_trace_in_the_statistics_of_embeddings(look_ahead):
    architecture = VQVAE(width=8, normalization="batch")
    found = []
    for rule, options in ((Joint, {}), (Meta, {"look_ahead": look_ahead})):
        torch.manual_seed(0)
        network = architecture.build(Inputs(1, 8), VectorQuantizer(8, 4))
        lower = SGD(network.network_parameters(), lr=0.1)
        upper = SGD(network.codebook_parameters(), lr=0.1)
        update = rule(network, nn.functional.mse_loss, lower=lower, upper=upper, **options)
        x = torch.rand(5, 1, 8, 8)
        update.step(x, x)
        found.append(list(network.encoder.buffers()))
    assert len(found[0]) == 3
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["batch", "layer"])
@pytest.mark.parametrize("network", [VQGAN, ResNet18])
def test_other_networks_normalize_embeddings_too(network, kind):
    sizes = {"width": 8, "z_channels": 8} if network is VQGAN else {"base_width": 8}
    torch.manual_seed(0)
    encoder, _ = network(normalization=kind, **sizes).cut(Inputs(1, 32, 10), 6)
    z_e = encoder(torch.rand(5, 1, 32, 32))
    axes = (0, 2, 3) if kind == "batch" else (1,)
    assert z_e.mean(axes).abs().max() < 1e-4
    # Up to the 1e-5 that is added to variances, which are small before training.
    assert (z_e.var(axes, unbiased=False) <= 1.001).all()
    assert z_e.var(axes, unbiased=False).mean() > 0.5
    plain, _ = network(**sizes).cut(Inputs(1, 32, 10), 6)
    assert len(list(encoder.parameters())) == len(list(plain.parameters()))


def test_an_unknown_normalization_is_refused():
    for kind in (
        lambda n: VQVAE(normalization=n),
        lambda n: VQGAN(normalization=n),
        lambda n: ResNet18(normalization=n),
    ):
        with pytest.raises(ValueError, match="normalization must be batch or layer, got 'group'"):
            kind("group")
