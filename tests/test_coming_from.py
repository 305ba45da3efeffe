"""What docs/from says of other libraries: the same codebook and inputs, there and here."""

import re
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from problems import squared_error
from torch import Tensor, nn
from torch.optim import SGD
from torch.testing import assert_close
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize

from mqvae import (
    Alternated,
    Cosine,
    Ema,
    FiniteScalarQuantizer,
    Joint,
    LinearMap,
    LookupFreeQuantizer,
    ResidualQuantizer,
    Rotation,
    StraightThrough,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.config import Settings, load_preset

K, D = 24, 8
LEARNED = {"learnable_codebook": True, "ema_update": False}


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(theirs: VectorQuantize, ours: VectorQuantizer) -> tuple[VectorQuantize, VectorQuantizer]:
    """Both with one codebook."""
    book = theirs._codebook.embed  # (codebooks, K, d)
    with torch.no_grad():
        book.copy_(embeddings(*book.shape, seed=1))
        if theirs.use_cosine_sim:
            book.copy_(nn.functional.normalize(book, dim=-1))
        theirs._codebook.embed_avg.copy_(book)
    ours.codebook.assign(book.flatten(0, 1))
    return theirs, ours


PAIRS = {
    "plain": ({}, {}),
    "heads": ({"heads": 2, "codebook_dim": D // 2, "separate_codebook_per_head": True},
              {"groups": 2}),
    "heads, one codebook": ({"heads": 2, "codebook_dim": D // 2},
                            {"groups": 2, "shared_codebook": True}),
    "cosine": ({"use_cosine_sim": True}, {"distance": Cosine()}),
}  # fmt: skip


@pytest.mark.parametrize(("there", "here"), PAIRS.values(), ids=PAIRS)
def test_codes_and_vectors(there, here):
    theirs, ours = pair(VectorQuantize(D, K, **there).eval(), VectorQuantizer(K, D, **here))
    z = embeddings(3, 10, D)
    z_q, codes, loss = theirs(z)
    quantized = ours(z)
    assert len(codes.unique()) > 5
    assert torch.equal(codes, quantized.codes)
    assert_close(z_q, quantized.z_q)
    back = theirs.get_codes_from_indices(codes)  # (..., H, D/H) of heads that share a codebook
    assert_close(back.reshape(z.shape), ours.decode(quantized.codes))
    assert loss == 0 < quantized.commitment_loss  # theirs has none in eval mode


def test_images_have_their_channels_first():
    theirs, ours = pair(VectorQuantize(D, K, accept_image_fmap=True).eval(), VectorQuantizer(K, D))
    network = VQNetwork(nn.Identity(), ours, nn.Identity())
    images = embeddings(2, D, 4, 5)
    z_q, codes, _ = theirs(images)
    result = network(images)
    assert codes.shape == result.quantized.codes.shape == (2, 4, 5)
    assert torch.equal(codes, result.quantized.codes)
    assert_close(z_q, result.output)


@pytest.mark.parametrize("rotation", [False, True], ids=["straight-through", "rotation"])
def test_a_learnable_codebook_has_one_loss_for_both_sides(rotation):
    """Its weight is β and that of the codebook loss at once, its value is counted once."""
    theirs, ours = pair(
        VectorQuantize(D, K, commitment_weight=0.7, rotation_trick=rotation, **LEARNED),
        VectorQuantizer(K, D, estimator=Rotation() if rotation else StraightThrough()),
    )
    g = embeddings(3, 10, D, seed=2)
    z_there, z_here = (embeddings(3, 10, D).requires_grad_() for _ in range(2))
    z_q, _, loss = theirs(z_there)
    quantized = ours(z_here)
    assert_close(loss, 0.7 * quantized.commitment_loss)
    assert_close(loss, 0.7 * quantized.codebook_loss)
    assert_close(z_q, quantized.z_q)
    ((z_q * g).sum() + loss).backward()
    losses = quantized.commitment_loss + quantized.codebook_loss
    ((quantized.z_q * g).sum() + 0.7 * losses).backward()
    assert_close(z_there.grad, z_here.grad, rtol=1e-4, atol=1e-5)
    assert_close(theirs._codebook.embed.grad[0], ours.codebook.weight.grad)


def linear(quantizer: VectorQuantizer) -> VQNetwork:
    torch.manual_seed(3)
    return VQNetwork(nn.Linear(5, D), quantizer, nn.Linear(D, 5), channel_axis=-1)


def test_averages_are_the_same_averages():
    theirs, ours = pair(VectorQuantize(D, K, decay=0.8), VectorQuantizer(K, D))
    network = linear(ours)
    lower = SGD(network.network_parameters(), lr=0.1)
    update = Ema(network, squared_error, lower=lower, decay=0.8)
    for step in range(4):
        x = embeddings(30, 5, seed=step)
        theirs(network.encoder(x).detach())
        update.step(x, x)
        # Smoothing shortens their codewords by ε/N, with N from 0.4 on, and draws ours to where
        # they were.
        assert_close(theirs.codebook, ours.table(), rtol=1e-4, atol=1e-5)
    assert (theirs.codebook - embeddings(K, D, seed=1)).norm() > 0.1


def test_in_place_optimization_is_alternated():
    theirs, ours = pair(
        VectorQuantize(D, K, in_place_codebook_optimizer=partial(SGD, lr=20.0), **LEARNED),
        VectorQuantizer(K, D),
    )
    network = linear(ours)
    x = embeddings(30, 5)
    z_e = network.encoder(x).detach()
    _, codes, _ = theirs(z_e)
    update = Alternated(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), lr=0.1),
        upper=SGD(network.codebook_parameters(), lr=20.0),
    )
    before = ours.encode(z_e)
    step = update.step(x, x)
    assert_close(theirs.codebook, ours.table())
    # Both look codes up anew, by the codebook that has moved.
    assert torch.equal(codes, step.codes)
    assert not torch.equal(codes, before)


def test_their_synchronous_update_moves_no_codeword():
    """What Huh et al. have is `Synchronous`; theirs scales what the encoder gets."""
    theirs, _ = pair(
        VectorQuantize(D, K, sync_update_v=0.5, commitment_weight=0.0, rotation_trick=False,
                       **LEARNED),
        VectorQuantizer(K, D),
    )  # fmt: skip
    z, g = embeddings(3, 10, D).requires_grad_(), embeddings(3, 10, D, seed=2)
    z_q, _, _ = theirs(z)
    (z_q * g).sum().backward()
    assert_close(z.grad, 1.5 * g)
    assert theirs._codebook.embed.grad is None or not theirs._codebook.embed.grad.any()


def test_stages():
    theirs = ResidualVQ(dim=D, num_quantizers=3, codebook_size=K, rotation_trick=False, **LEARNED)
    ours = ResidualQuantizer([VectorQuantizer(K, D) for _ in range(3)])
    for there, here in zip(theirs.layers, ours.stages, strict=True):
        pair(there, here)
    z = embeddings(3, 10, D)
    z_q, codes, losses = theirs(z)
    quantized = ours(z)
    assert torch.equal(codes, quantized.codes)
    assert_close(z_q, quantized.z_q)
    assert_close(theirs.get_output_from_indices(codes), ours.decode(quantized.codes))
    # Theirs is a loss of each stage, on what the stages before left over.
    assert losses.shape == (3,)
    assert_close(losses.sum(), quantized.codebook_loss)
    assert_close(losses[-1], quantized.commitment_loss)


def test_one_linear_map():
    theirs = SimVQ(dim=D, codebook_size=K, rotation_trick=False)
    ours = VectorQuantizer(K, D, codebook=LinearMap())
    ours.codebook.assign(theirs.frozen_codebook)
    with torch.no_grad():
        ours.codebook.weight.copy_(theirs.code_transform.weight.T)
    z_there, z_here = (embeddings(3, 10, D).requires_grad_() for _ in range(2))
    z_q, codes, loss = theirs(z_there)
    quantized = ours(z_here)
    assert torch.equal(codes, quantized.codes)
    assert_close(z_q, quantized.z_q)
    expected = quantized.codebook_loss + 0.25 * quantized.commitment_loss
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(z_there.grad, z_here.grad)
    assert_close(theirs.code_transform.weight.grad, ours.codebook.weight.grad.T)


def test_scalars():
    levels = [8, 5, 5, 4]
    theirs, ours = FSQ(levels), FiniteScalarQuantizer(levels)
    z_there, z_here = (2 * embeddings(3, 50, 4) for _ in range(2))
    z_q, codes = theirs(z_there.requires_grad_())
    quantized = ours(z_here.requires_grad_())
    assert torch.equal(codes.long(), quantized.codes)
    assert_close(z_q, quantized.z_q)
    for value in (z_q, quantized.z_q):
        value.square().sum().backward()
    assert_close(z_there.grad, z_here.grad)


def test_bits_have_the_other_order():
    theirs = LFQ(codebook_size=2**6, dim=6, entropy_loss_weight=0.3)
    ours = LookupFreeQuantizer(2**6, entropy_weight=0.3, temperature=1 / 100)
    z = 0.1 * embeddings(3, 50, 6)
    z_q, codes, entropy = theirs(z)
    quantized = ours(z)
    assert_close(z_q, quantized.z_q)
    assert torch.equal(theirs.indices_to_codes(codes), ours.decode(quantized.codes))
    bits = torch.tensor([int(f"{code:06b}"[::-1], 2) for code in codes.flatten().tolist()])
    assert torch.equal(bits.view_as(codes), quantized.codes)
    assert not torch.equal(codes, quantized.codes)
    # Theirs adds 1e-5 under its logarithms.
    assert_close(
        entropy, quantized.auxiliary_weight * quantized.auxiliary_loss, rtol=1e-2, atol=1e-3
    )


# -- losses of projects that are not installed, written from their own words --------------------


@pytest.mark.parametrize(
    ("theirs", "commitment", "codebook"),
    [
        (lambda commit, book: 0.25 * book + commit, 1.0, 0.25),
        (lambda commit, book: book + 0.25 * commit, 0.25, 1.0),
        (lambda commit, book: 10 * (0.05 * commit + 0.95 * book), 0.5, 9.5),
    ],
    ids=["taming-transformers", "LlamaGen", "vqtorch, times 10"],
)
def test_where_beta_is(theirs, commitment, codebook):
    """A step of descent on their loss, with the stop-gradients written out, and `Joint`."""
    network = linear(VectorQuantizer(K, D))
    twin = linear(VectorQuantizer(K, D))
    twin.load_state_dict(network.state_dict())
    x = embeddings(30, 5)
    z_e = twin.encoder(x)
    z_q = twin.quantizer.codebook.weight[twin.quantizer.encode(z_e)]
    losses = ((z_e - z_q.detach()).square().mean(), (z_e.detach() - z_q).square().mean())
    output = twin.decoder(z_e + (z_q - z_e).detach())
    (squared_error(output, x) + theirs(*losses)).backward()
    SGD(twin.parameters(), lr=0.1).step()
    Joint(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), lr=0.1),
        upper=SGD(network.codebook_parameters(), lr=0.1),
        commitment_weight=commitment,
        codebook_weight=codebook,
    ).step(x, x)
    for found, expected in zip(network.parameters(), twin.parameters(), strict=True):
        assert_close(found, expected)


# -- the pages -----------------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs"


def test_the_mathematics_names_tests_that_exist():
    pages = "".join(path.read_text() for path in DOCS.glob("mathematics*.md"))
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", pages)
    assert len(named) > 30
    for file, name in named:
        (path,) = Path(__file__).parent.rglob(file)
        assert f"def {name}(" in path.read_text(), (file, name)


@pytest.mark.parametrize("page", ["taming-transformers", "llamagen"])
def test_their_settings_as_ours_describe_a_run(page, tmp_path):
    (block,) = re.findall(
        r"^    base: .*\n(?:^    .*\n)*", (DOCS / "from" / f"{page}.md").read_text(), re.MULTILINE
    )
    file = tmp_path / "my.yaml"
    file.write_text(dedent(block))
    settings = Settings.of(load_preset(str(file)))
    settings.components()
    assert settings.task["class_path"] == "mqvae.Adversarial"
