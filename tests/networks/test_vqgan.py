"""The VQ-GAN's network: sizes, layout, and activation checkpointing that changes no gradient."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD

from mqvae import (
    VQGAN,
    VQVAE,
    Amortized,
    Central,
    Cosine,
    Exact,
    FiniteDifference,
    ForwardMode,
    Joint,
    Kept,
    Meta,
    Undone,
    Unrolled,
    VectorQuantizer,
)
from mqvae.config import Settings, load_preset
from mqvae.core.passes import call
from mqvae.networks.architecture import Inputs
from mqvae.networks.vqgan.blocks import Attention, group_norm
from mqvae.tokenizer import Tokenizer
from mqvae.training import begin

SMALL = {
    "width": 8,
    "multipliers": (1, 2),
    "residual_blocks": 1,
    "attention_at": (4,),
    "z_channels": 6,
}
INPUTS = Inputs(channels=2, side=8)


def small(dim=4, num_codes=7, distance=None, **changed):
    quantizer = VectorQuantizer(num_codes, dim, distance=distance)
    return VQGAN(**{**SMALL, **changed}).build(INPUTS, quantizer)


# -- sizes -----------------------------------------------------------------------------------------


def conv(channels, width, kernel):
    return channels * width * kernel**2 + width


def residual(channels, width):
    shortcut = conv(channels, width, 1) if channels != width else 0
    norms = 2 * channels + 2 * width
    return norms + conv(channels, width, 3) + conv(width, width, 3) + shortcut


def attention(width):
    return 2 * width + 4 * conv(width, width, 1)


def middle(width):
    return 2 * residual(width, width) + attention(width)


def encoder_count(width, multipliers, blocks, attends, z, dim, channels=3):
    """Counted by hand, level by level."""
    total, now = conv(channels, width, 3), width
    for i, m in enumerate(multipliers):
        for _ in range(blocks):
            total += residual(now, m * width) + (attention(m * width) if i in attends else 0)
            now = m * width
        total += conv(now, now, 3) if i < len(multipliers) - 1 else 0
    return total + middle(now) + 2 * now + conv(now, z, 3) + conv(z, dim, 1)


def decoder_count(width, multipliers, blocks, attends, z, dim, channels=3):
    now = multipliers[-1] * width
    total = conv(dim, z, 1) + conv(z, now, 3) + middle(now)
    for i, m in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += residual(now, m * width) + (attention(m * width) if i in attends else 0)
            now = m * width
        total += conv(now, now, 3) if i > 0 else 0
    return total + 2 * now + conv(now, channels, 3)


F16 = {"multipliers": (1, 1, 2, 2, 4), "attention_at": (16,)}
F8 = {"multipliers": (1, 2, 2, 4), "attention_at": (32,)}


def test_parameters_are_as_many_as_the_originals():
    for sizes, dim, total in ((F16, 256, None), (F16, 8, 72), (F8, 8, 70), (F8, 32, None)):
        with torch.device("meta"):
            network = VQGAN(**sizes).build(Inputs(3, 256), VectorQuantizer(16384, dim))
        multipliers = sizes["multipliers"]
        by_hand = (128, multipliers, 2, {len(multipliers) - 1}, 256, dim)
        encoder = sum(p.numel() for p in network.encoder_parameters())
        decoder = sum(p.numel() for p in network.decoder_parameters())
        assert encoder == encoder_count(*by_hand)
        assert decoder == decoder_count(*by_hand)
        if total:  # millions, as LlamaGen's authors count its tokenizers with 8 dimensions
            every = sum(p.numel() for p in network.parameters())
            assert round(every / 1e6) == total


@pytest.mark.parametrize("blocks", [1, 3])
def test_other_sizes_are_counted_too(blocks):
    sizes = {"width": 12, "multipliers": (2, 1, 3), "attention_at": (8, 2), "z_channels": 5}
    with torch.device("meta"):
        network = VQGAN(residual_blocks=blocks, **sizes).build(Inputs(1, 8), VectorQuantizer(9, 3))
    by_hand = (12, (2, 1, 3), blocks, {0, 2}, 5, 3, 1)
    assert sum(p.numel() for p in network.encoder_parameters()) == encoder_count(*by_hand)
    assert sum(p.numel() for p in network.decoder_parameters()) == decoder_count(*by_hand)


def test_groups_of_any_width():
    found = {width: group_norm(width).num_groups for width in (1, 7, 8, 32, 40, 48, 128, 512, 37)}
    assert found == {1: 1, 7: 1, 8: 2, 32: 8, 40: 10, 48: 12, 128: 32, 512: 32, 37: 1}
    assert group_norm(32, 1).num_groups == 32


@pytest.mark.parametrize("width", [8, 32, 64, 128])
def test_a_norm_leaves_channels_their_means(width):
    """What is bright and what is dark, which a group of a single channel would lose."""
    x = torch.randn(2, width, 6, 6) + torch.randn(2, width, 1, 1)
    means = group_norm(width)(x).mean((2, 3))
    assert means.std() > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"residual_blocks": 0}, "residual_blocks must be 1 or more, got 0"),
        ({"z_channels": -1}, "z_channels must be 1 or more, got -1"),
        ({"multipliers": ()}, r"one for each level, got \[\]"),
        ({"multipliers": (1, 0)}, r"one for each level, got \[1, 0\]"),
        ({"dropout": 1.0}, "dropout must be 0 or more and below 1, got 1.0"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VQGAN(**arguments)


# -- images and embeddings -------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "codes"), [(8, 2), (16, 4)])
def test_shapes(side, codes):
    network = small(multipliers=(1, 1, 2))
    result = network(torch.rand(3, 2, side, side))
    assert result.output.shape == (3, 2, side, side)
    assert result.quantized.codes.shape == (3, codes, codes)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 2, got 7 × 7: 6 × 6 or 8 × 8 would do"):
        VQGAN(**SMALL).build(Inputs(2, 7), VectorQuantizer(3, 4))
    network = small()
    with pytest.raises(ValueError, match="multiples of 2, got 8 × 9"):
        network(torch.rand(1, 2, 8, 9))
    with pytest.raises(ValueError, match="images of 2 channels, got 3"):
        network(torch.rand(1, 3, 8, 8))


def test_attention_is_where_it_was_asked_for():
    def places(network):
        return [
            [sum(isinstance(m, Attention) for m in level.modules()) for level in part.levels]
            for part in (network.encoder, network.decoder)
        ]

    assert places(small(multipliers=(1, 1, 2), attention_at=(4,))) == [[0, 1, 0], [0, 2, 0]]
    assert places(small(multipliers=(1, 1, 2), attention_at=(2,))) == [[0, 0, 1], [2, 0, 0]]
    assert places(small(multipliers=(1, 1, 2), attention_at=())) == [[0, 0, 0], [0, 0, 0]]


def test_signed_scales_on_both_ways():
    signed = small()
    plain = small(signed=False)
    plain.load_state_dict(signed.state_dict())
    x = torch.rand(2, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(signed.encoder(x), plain.encoder(2 * x - 1), atol=1e-6)
        z = signed.encoder(x)
        assert torch.allclose(signed.decoder(z), plain.decoder(z) / 2 + 0.5, atol=1e-6)


def test_few_dimensions_on_the_unit_sphere():
    network = small(dim=3, num_codes=9, distance=Cosine()).double()
    x = torch.rand(8, 2, 8, 8, dtype=torch.float64)
    network.initialize_codebook(x)
    result = network(x)
    z_q = result.quantized.z_q
    assert z_q.shape == (8, 4, 4, 3)
    assert torch.allclose(z_q.norm(dim=-1), torch.ones(8, 4, 4, dtype=torch.float64))
    assert len(result.quantized.codes.unique()) > 5
    assert torch.equal(network.encode(x), result.quantized.codes)
    assert torch.allclose(network.decode(network.encode(x)), result.output)
    # By hand: the most similar codeword.
    similar = nn.functional.cosine_similarity(
        network.encoder(x).movedim(1, -1)[..., None, :], network.quantizer.codebook(), dim=-1
    )
    assert torch.equal(similar.argmax(-1), result.quantized.codes)
    # 1×1 convolutions go to the codewords' dimensions and back.
    assert network.encoder.to_codes.weight.shape == (3, 6, 1, 1)
    assert network.decoder.from_codes.weight.shape == (6, 3, 1, 1)


@pytest.mark.parametrize("kind", [VQGAN, VQVAE])
def test_the_last_layer_makes_the_images(kind):
    architecture = VQGAN(**SMALL, checkpointing=True) if kind is VQGAN else VQVAE(8, 1)
    network = architecture.build(INPUTS, VectorQuantizer(7, 4))
    layer, seen = network.decoder.last_layer, []
    assert isinstance(layer, nn.Conv2d if kind is VQGAN else nn.ConvTranspose2d)
    assert sum("last_layer" in key for key in network.state_dict()) in (0, 2)
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    output = network(torch.rand(2, 2, 8, 8)).output
    output.square().mean().backward()
    (made,) = seen  # once, also where blocks are made again
    assert torch.equal((made + 1) / 2 if kind is VQGAN else made, output)
    assert layer.weight.grad.abs().sum() > 0


# -- activation checkpointing ----------------------------------------------------------------------


def pair(**changed):
    """The same network without and with checkpointing, in float64, and a batch."""
    network, saving = small(**changed), small(checkpointing=True, **changed)
    saving.load_state_dict(network.state_dict())
    x = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    network, saving = network.double(), saving.double()
    network.initialize_codebook(x)
    saving.load_state_dict(network.state_dict())
    return network, saving, x


def kept_bytes(network, x):
    """What a pass keeps for its gradient, and the gradients."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = network(x)
        loss = result.output.square().mean() + result.quantized.commitment_loss
    gradients = torch.autograd.grad(loss, list(network.network_parameters()))
    own = {p.data_ptr() for p in network.parameters()}
    return sum(size for at, size in kept.items() if at not in own), gradients


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointing_keeps_less_and_changes_no_gradient(dropout):
    network, saving, x = pair(dropout=dropout, residual_blocks=2)
    results = []
    for either in (network, saving):
        torch.manual_seed(3)
        results.append(kept_bytes(either, x))
    (all_of_it, gradients), (less, again) = results
    assert less < all_of_it / 2
    for one, other in zip(gradients, again):
        assert torch.equal(one, other)
        assert one.abs().sum() > 0


def test_checkpointing_at_other_weights():
    """The graph is made again when the network has its own weights back."""
    network, saving, x = pair()
    found = []
    for either in (network, saving):
        torch.manual_seed(5)
        other = [
            (p + 0.1 * torch.randn_like(p)).detach().requires_grad_()
            for p in either.encoder.parameters()
        ]
        z = call(either.encoder, other, x)
        found.append(torch.autograd.grad(z.square().mean(), other))
    for one, again in zip(*found):
        assert torch.equal(one, again)
        assert one.abs().sum() > 0


RULES = {
    "finite differences": {"hypergradient": FiniteDifference(), "look_ahead": Undone()},
    "central": {"hypergradient": FiniteDifference(Central()), "look_ahead": Undone()},
    "kept": {"hypergradient": FiniteDifference(), "look_ahead": Kept()},
    "amortized": {"hypergradient": Amortized(), "look_ahead": Kept()},
    "forward mode": {"hypergradient": FiniteDifference(ForwardMode()), "look_ahead": Undone()},
    "exact": {"hypergradient": Exact(), "look_ahead": Undone()},
    "unrolled": {"hypergradient": Unrolled(2), "look_ahead": Undone()},
}


@pytest.mark.parametrize(
    ("rule", "parts"),
    [("joint", 1), ("joint", 2), ("finite differences", 2), *((rule, 1) for rule in RULES)],
)
def test_checkpointing_under_every_rule(rule, parts):
    network, saving, x = pair(width=4, z_channels=3)
    after = []
    for either in (network, saving):
        lower = SGD(either.network_parameters(), lr=0.1)
        upper = SGD(either.codebook_parameters(), lr=0.1)
        common = {"lower": lower, "upper": upper}
        loss = lambda output, target: (output - target).square().mean()  # noqa: E731
        update = (
            Joint(either, loss, **common)
            if rule == "joint"
            else Meta(either, loss, **common, **RULES[rule], xi=0.1)
        )
        before = {key: tensor.clone() for key, tensor in either.state_dict().items()}
        for _ in range(2):
            update.step(x, x, parts=parts)
        after.append(either.state_dict())
    for key, tensor in after[0].items():
        assert torch.allclose(tensor, after[1][key], rtol=1e-9, atol=1e-12), key
    assert not torch.equal(
        before["quantizer.codebook.weight"], after[0]["quantizer.codebook.weight"]
    )


# -- as a component of a run -----------------------------------------------------------------------


def test_it_trains_by_settings(tmp_path):
    config = load_preset(
        "digits-tiny",
        {
            "steps": 2,
            "data": {"side": 16, "channels": 3, "batch_size": 50},
            "network": {
                "class_path": "mqvae.VQGAN",
                "init_args": {
                    "width": 8,
                    "multipliers": [1, 1, 2],
                    "residual_blocks": 1,
                    "attention_at": [4],
                    "z_channels": 8,
                    "checkpointing": True,
                },
            },
            "quantizer": {
                "init_args": {"num_codes": 12, "distance": {"class_path": "mqvae.Cosine"}}
            },
            "trainer": {"accelerator": "cpu"},
        },
    )
    summary = begin(Settings.of(config), tmp_path / "run").fit()
    assert 0 < summary["mse"] < 0.5
    tokenizer = Tokenizer.from_run(tmp_path / "run", device="cpu")
    assert tokenizer.settings.network["init_args"]["multipliers"] == [1, 1, 2]
    assert tokenizer.encode(torch.rand(2, 3, 16, 16)).shape == (2, 4, 4)
