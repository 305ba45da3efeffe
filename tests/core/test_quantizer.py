"""The quantizer: values, gradients, symmetries, types, state, errors."""

import copy
import io
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from problems import GROUPS
from torch import Tensor

from mqvae import Quantized, VectorQuantizer

CODES, DIM = 7, 6

everywhere = pytest.mark.parametrize("name", GROUPS)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def make(name: str, *, codes: int = CODES, dtype: torch.dtype = torch.float32) -> VectorQuantizer:
    groups, shared = GROUPS[name]
    return VectorQuantizer(codes, DIM, groups=groups, shared_codebook=shared).to(dtype)


def embeddings(
    *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 1
) -> Tensor:
    z_e = torch.randn(
        *shape, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return (scale * z_e).to(dtype)


def books(quantizer: VectorQuantizer) -> list[Tensor]:
    """One table per group, (K, D/G): rows g·K … g·K + K - 1, or the shared one."""
    weight = quantizer.codebook.weight.detach()
    if quantizer.shared_codebook:
        return [weight] * quantizer.groups
    k = quantizer.num_codes
    return [weight[g * k : (g + 1) * k] for g in range(quantizer.groups)]


def by_group(quantizer: VectorQuantizer, codes: Tensor) -> Tensor:
    """Codes as (N, G)."""
    return codes.reshape(-1, quantizer.groups)


def literal(quantizer: VectorQuantizer, z_e: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (N, G) and codewords (N, D) by brute force in float64."""
    width = quantizer.dim // quantizer.groups
    parts = z_e.detach().double().reshape(-1, quantizer.groups, width)
    codes, words = [], []
    for g, book in enumerate(books(quantizer)):
        k = (parts[:, g, None] - book.double()).square().sum(-1).argmin(1)
        codes.append(k)
        words.append(book[k])
    return torch.stack(codes, 1), torch.cat(words, 1)


def same(one: Quantized, other: Quantized) -> bool:
    return all(
        torch.equal(getattr(one, field), getattr(other, field))
        for field in ("z_q", "codes", "commitment_loss", "codebook_loss")
    )


# Values


@everywhere
def test_embeddings_become_the_nearest_codewords_of_their_own_table(name):
    quantizer, z_e = make(name), embeddings(8, 10)
    codes, words = literal(quantizer, z_e)
    found = quantizer(z_e)
    for g in range(quantizer.groups):
        assert len(codes[:, g].unique()) == CODES
    assert torch.equal(by_group(quantizer, found.codes), codes)
    assert torch.equal(found.z_q.reshape(-1, DIM), words)


@everywhere
@pytest.mark.parametrize(
    ("z_scale", "codebook_scale"),
    [(1, 1), (1e4, 1e-4), (1e-4, 1e4), (1e15, 1), (1, 1e-30), (1e-30, 1)],
)
def test_z_q_is_the_codewords_to_the_bit(name, z_scale, codebook_scale):
    quantizer, z_e = make(name), embeddings(50, scale=z_scale)
    with torch.no_grad():
        quantizer.codebook.weight.mul_(codebook_scale)
    found = quantizer(z_e)
    width = DIM // quantizer.groups
    for g, book in enumerate(books(quantizer)):
        words = book[by_group(quantizer, found.codes)[:, g]]
        assert words.abs().max() > 0
        assert torch.equal(found.z_q[:, g * width : (g + 1) * width], words)


@everywhere
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantizing_codewords_is_idempotent(name, scale, dtype):
    quantizer = make(name, dtype=dtype)
    with torch.no_grad():
        quantizer.codebook.weight.mul_(scale)
    shape = (40,) if quantizer.groups == 1 else (40, quantizer.groups)
    codes = torch.randint(CODES, shape)
    z_e = quantizer.decode(codes).detach()
    found = quantizer(z_e)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.z_q, z_e)
    assert found.commitment_loss == 0
    assert found.codebook_loss == 0
    once = quantizer(embeddings(40, dtype=dtype, scale=scale))
    twice = quantizer(once.z_q)
    assert once.commitment_loss > 0
    assert torch.equal(twice.codes, once.codes)
    assert torch.equal(twice.z_q, once.z_q)


@everywhere
def test_losses_are_the_means(name):
    quantizer, z_e = make(name, dtype=torch.float64), embeddings(4, 5, dtype=torch.float64)
    found = quantizer(z_e)
    total = (z_e.reshape(-1, DIM) - literal(quantizer, z_e)[1]).square().sum()
    assert total > 1
    expected = total / (4 * 5 * DIM)
    for loss in (found.commitment_loss, found.codebook_loss):
        assert loss.shape == ()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-14, atol=0)


@everywhere
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_shapes_and_range(name, shape):
    quantizer = make(name)
    z_e = embeddings(*shape)
    found = quantizer(z_e)
    groups = () if quantizer.groups == 1 else (quantizer.groups,)
    assert found.z_q.shape == z_e.shape
    assert found.codes.shape == shape + groups
    assert found.codes.dtype == torch.int64
    assert 0 <= int(found.codes.min()) <= int(found.codes.max()) < CODES
    assert torch.equal(quantizer.decode(found.codes), found.z_q)
    # Every position is quantized by itself.
    flat = quantizer(z_e.reshape(-1, DIM))
    assert torch.equal(flat.codes.reshape(found.codes.shape), found.codes)
    assert torch.equal(flat.z_q.reshape(z_e.shape), found.z_q)


@everywhere
def test_no_embeddings(name):
    quantizer = make(name)
    found = quantizer(torch.empty(0, DIM))
    assert found.z_q.shape == (0, DIM)
    assert found.codes.numel() == 0
    assert quantizer.decode(found.codes).shape == (0, DIM)


@everywhere
def test_layout_in_memory_does_not_matter(name):
    quantizer, z_e = make(name), embeddings(3, 4, 5)
    strided = z_e.movedim(-1, 0).contiguous().movedim(0, -1)
    assert not strided.is_contiguous()
    found, expected = quantizer(strided), quantizer(z_e)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.z_q, expected.z_q)
    torch.testing.assert_close(
        found.commitment_loss, expected.commitment_loss
    )  # summed in another order


@everywhere
def test_decode_gives_z_q_from_any_integer(name):
    quantizer = make(name)
    found = quantizer(embeddings(4, 5))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(quantizer.decode(found.codes.to(dtype)), found.z_q)


# Gradients


def gradients(value: Tensor, *leaves: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(value, leaves, allow_unused=True))


@everywhere
def test_the_gradient_of_z_q_goes_to_z_e_unchanged_and_never_to_the_codebook(name):
    quantizer = make(name, dtype=torch.float64)
    z_e = embeddings(4, 5, dtype=torch.float64).requires_grad_()
    weights = torch.randn(4, 5, DIM, dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        return (weights * z.sin() * z.cumsum(0)).sum()

    found = quantizer(z_e)
    to_z_e, to_codebook = gradients(function(found.z_q), z_e, quantizer.codebook.weight)
    z_q = found.z_q.detach().requires_grad_()
    (expected,) = gradients(function(z_q), z_q)
    assert expected.abs().min() > 0
    assert torch.equal(to_z_e, expected)
    assert to_codebook is None


@everywhere
def test_gradient_of_the_commitment_loss(name):
    quantizer = make(name, dtype=torch.float64)
    z_e = embeddings(4, 5, dtype=torch.float64).requires_grad_()
    found = quantizer(z_e)
    to_z_e, to_codebook = gradients(found.commitment_loss, z_e, quantizer.codebook.weight)
    expected = 2 / (4 * 5 * DIM) * (z_e.detach() - literal(quantizer, z_e)[1].view_as(z_e))
    assert expected.abs().min() > 0
    torch.testing.assert_close(to_z_e, expected, rtol=1e-13, atol=0)
    assert to_codebook is None


def scattered(quantizer: VectorQuantizer, z_e: Tensor) -> Tensor:
    """The gradient of the codebook loss, one embedding and one group after the other."""
    flat = z_e.detach().reshape(-1, quantizer.dim)
    codes, words = literal(quantizer, z_e)
    width = quantizer.dim // quantizer.groups
    gradient = torch.zeros_like(quantizer.codebook.weight)
    for i in range(len(flat)):
        for g in range(quantizer.groups):
            row = int(codes[i, g]) + (0 if quantizer.shared_codebook else g * quantizer.num_codes)
            part = slice(g * width, (g + 1) * width)
            gradient[row] += 2 / flat.numel() * (words[i, part] - flat[i, part])
    return gradient.detach()


@everywhere
@pytest.mark.parametrize("codes", [CODES, 60])  # with 60 some are not chosen
def test_gradient_of_the_codebook_loss(name, codes):
    quantizer = make(name, codes=codes, dtype=torch.float64)
    z_e = embeddings(4, 5, dtype=torch.float64).requires_grad_()
    found = quantizer(z_e)
    to_z_e, to_codebook = gradients(found.codebook_loss, z_e, quantizer.codebook.weight)
    expected = scattered(quantizer, z_e)
    unused = expected.abs().sum(1) == 0
    assert not unused.all()
    assert codes == CODES or unused.any()
    torch.testing.assert_close(to_codebook, expected, rtol=1e-12, atol=1e-16)
    assert torch.count_nonzero(to_codebook[unused]) == 0
    assert to_z_e is None


@everywhere
def test_lookup_is_linear_and_its_transpose_scatters(name):
    quantizer = make(name, dtype=torch.float64)
    codes = quantizer(embeddings(20, dtype=torch.float64)).codes
    one, other = torch.randn(2, *quantizer.codebook.weight.shape, dtype=torch.float64)
    torch.testing.assert_close(
        quantizer.lookup(codes, 2 * one - other),
        2 * quantizer.lookup(codes, one) - quantizer.lookup(codes, other),
    )
    cotangent = torch.randn(20, DIM, dtype=torch.float64)
    one.requires_grad_()
    (transposed,) = gradients((cotangent * quantizer.lookup(codes, one)).sum(), one)
    # <y, L x> = <Lᵀ y, x>
    torch.testing.assert_close(
        (transposed * other).sum(), (cotangent * quantizer.lookup(codes, other)).sum()
    )


@everywhere
def test_decode_is_differentiable_in_the_codebook(name):
    quantizer = make(name)
    shape = (4,) if quantizer.groups == 1 else (4, quantizer.groups)
    quantizer.decode(torch.full(shape, 2)).sum().backward()
    expected = torch.zeros_like(quantizer.codebook.weight)
    if quantizer.shared_codebook:
        expected[2] = 4 * quantizer.groups
    else:
        expected[2::CODES] = 4
    assert torch.equal(quantizer.codebook.weight.grad, expected)


@everywhere
def test_at_codes_uses_the_codes_and_codewords_it_is_given(name):
    quantizer, z_e = make(name, dtype=torch.float64), embeddings(9, dtype=torch.float64)
    found = quantizer(z_e)
    codebook = quantizer.codebook()
    assert same(quantizer.at_codes(z_e, found.codes, codebook), found)
    other = (found.codes + 1) % CODES
    elsewhere = quantizer.at_codes(z_e, other, 2 * codebook)
    assert torch.equal(elsewhere.codes, other)
    assert torch.equal(elsewhere.z_q, 2 * quantizer.decode(other))
    expected = (z_e - 2 * quantizer.decode(other)).square().mean()
    torch.testing.assert_close(elsewhere.commitment_loss, expected.detach())
    torch.testing.assert_close(elsewhere.codebook_loss, expected)


@everywhere
def test_a_frozen_codebook_works(name):
    quantizer, z_e = make(name), embeddings(9).requires_grad_()
    expected = quantizer(z_e)
    quantizer.requires_grad_(False)
    found = quantizer(z_e)
    assert same(found, expected)
    assert not found.codebook_loss.requires_grad
    (found.z_q.sum() + found.commitment_loss).backward()
    assert torch.count_nonzero(z_e.grad) == z_e.numel()
    assert quantizer.codebook.weight.grad is None


# Symmetries


@everywhere
def test_permuting_the_codebook_permutes_codes_and_nothing_else(name):
    quantizer, z_e = make(name), embeddings(30)
    found = quantizer(z_e)
    found.codebook_loss.backward()
    gradient = quantizer.codebook.weight.grad
    tables = len(quantizer.codebook.weight) // CODES
    orders = [torch.randperm(CODES) for _ in range(tables)]
    rows = torch.cat([t * CODES + order for t, order in enumerate(orders)])
    permuted = copy.deepcopy(quantizer)
    permuted.zero_grad()
    with torch.no_grad():
        permuted.codebook.weight.copy_(quantizer.codebook.weight[rows])
    again = permuted(z_e)
    again.codebook_loss.backward()

    codes, new = by_group(quantizer, found.codes), by_group(quantizer, again.codes)
    assert not torch.equal(codes, new)
    for g in range(quantizer.groups):
        # Row j of the new table is row order[j] of the old one.
        assert torch.equal(orders[g % tables][new[:, g]], codes[:, g])
    assert torch.equal(again.z_q, found.z_q)
    assert torch.equal(again.commitment_loss, found.commitment_loss)
    assert torch.equal(again.codebook_loss, found.codebook_loss)
    assert torch.equal(permuted.codebook.weight.grad, gradient[rows])


def test_groups_are_quantized_apart():
    z_e = embeddings(30)
    changed = z_e.clone()
    changed[:, :2] += 10
    for name in ("three", "two-shared"):
        quantizer = make(name)
        before, after = quantizer(z_e), quantizer(changed)
        width = DIM // quantizer.groups
        assert not torch.equal(before.codes[:, 0], after.codes[:, 0])
        assert torch.equal(before.codes[:, 1:], after.codes[:, 1:])
        assert torch.equal(before.z_q[:, width:], after.z_q[:, width:])


def test_one_group_shared_or_not_is_the_same():
    own, shared = VectorQuantizer(CODES, DIM), VectorQuantizer(CODES, DIM, shared_codebook=True)
    shared.load_state_dict(own.state_dict())
    assert same(own(embeddings(20)), shared(embeddings(20)))


@pytest.mark.parametrize(
    ("groups", "shared", "rows"), [(1, False, 7), (3, False, 21), (2, True, 7)]
)
def test_the_table_holds_a_codebook_per_group_or_one(groups, shared, rows):
    quantizer = VectorQuantizer(7, 6, groups=groups, shared_codebook=shared)
    assert quantizer.codebook.weight.shape == (rows, 6 // groups)
    assert [n for n, _ in quantizer.named_parameters()] == ["codebook.weight"]
    assert f"num_codes=7, dim=6, groups={groups}" in repr(quantizer)


# Types and precision


@everywhere
@halves
def test_halves_come_back_as_halves_and_are_ranked_in_float32(name, dtype):
    quantizer = make(name, codes=100)  # its codebook in float32
    z_e = embeddings(200, dtype=dtype).requires_grad_()
    found, wide = quantizer(z_e), quantizer(z_e.detach().float())
    assert found.z_q.dtype == dtype
    assert torch.equal(found.codes, wide.codes)
    assert torch.equal(found.z_q, wide.z_q.to(dtype))
    for loss, expected in (
        (found.commitment_loss, wide.commitment_loss),
        (found.codebook_loss, wide.codebook_loss),
    ):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
    found.commitment_loss.backward()
    assert z_e.grad.dtype == dtype


@everywhere
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_quantizer_of_another_dtype(name, dtype):
    quantizer = make(name, dtype=dtype)
    z_e = embeddings(50, dtype=dtype)
    found = quantizer(z_e)
    codes, words = literal(quantizer, z_e)
    assert torch.equal(by_group(quantizer, found.codes), codes)
    assert found.z_q.dtype == dtype
    assert torch.equal(found.z_q, words)
    least = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.commitment_loss.dtype == found.codebook_loss.dtype == least
    assert quantizer.decode(found.codes).dtype == dtype
    exact = (z_e.double() - words.double()).square().mean()
    torch.testing.assert_close(found.commitment_loss.double(), exact, rtol=1e-6, atol=0)
    found.codebook_loss.backward()
    assert quantizer.codebook.weight.grad.dtype == dtype
    assert torch.count_nonzero(quantizer.codebook.weight.grad) > 0


@everywhere
def test_float64_embeddings_with_a_float32_codebook(name):
    quantizer, z_e = make(name), embeddings(50, dtype=torch.float64)
    found = quantizer(z_e)
    codes, words = literal(quantizer, z_e)
    assert torch.equal(by_group(quantizer, found.codes), codes)
    assert found.z_q.dtype == torch.float64
    assert torch.equal(found.z_q, words.double())
    assert found.commitment_loss.dtype == torch.float64
    found.codebook_loss.backward()
    assert quantizer.codebook.weight.grad.dtype == torch.float32


@everywhere
def test_float32_embeddings_with_a_float64_codebook(name):
    quantizer, z_e = make(name, dtype=torch.float64), embeddings(50)
    found = quantizer(z_e)
    codes, words = literal(quantizer, z_e)
    assert torch.equal(by_group(quantizer, found.codes), codes)
    assert found.z_q.dtype == torch.float32
    assert torch.equal(found.z_q, words.float())


@everywhere
def test_autocast_changes_nothing(name):
    quantizer, z_e = make(name, codes=100), embeddings(300)
    expected = quantizer(z_e)
    decoded = quantizer.decode(expected.codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(quantizer(z_e), expected)
        assert torch.equal(quantizer.decode(expected.codes), decoded)


@everywhere
def test_behind_a_layer_under_autocast(name):
    quantizer = make(name)
    layer = torch.nn.Linear(5, DIM)
    x = torch.randn(64, 5)
    expected = quantizer(layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_e = layer(x)
        assert z_e.dtype == torch.bfloat16
        found = quantizer(z_e)
    assert found.z_q.dtype == torch.bfloat16
    assert (found.codes == expected.codes).float().mean() > 0.9
    for loss, value in (
        (found.commitment_loss, expected.commitment_loss),
        (found.codebook_loss, expected.codebook_loss),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, value, rtol=0.02, atol=0)
    (found.z_q.float().square().mean() + found.commitment_loss + found.codebook_loss).backward()
    for parameter in (*layer.parameters(), *quantizer.parameters()):
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.norm() > 0


@halves
def test_losses_of_large_halves_are_finite(dtype):
    quantizer = make("one")
    found = quantizer(embeddings(20, dtype=dtype, scale=3000.0))
    assert found.commitment_loss > torch.finfo(torch.float16).max
    assert torch.isfinite(found.commitment_loss)
    assert torch.isfinite(found.z_q).all()


# State


@everywhere
@pytest.mark.parametrize("training", [True, False])
def test_no_pass_changes_any_state(name, training):
    quantizer, z_e = make(name).train(training), embeddings(30)
    before = copy.deepcopy(quantizer.state_dict())
    random, given = torch.get_rng_state(), z_e.clone()
    first = quantizer(z_e)
    assert same(quantizer(z_e), first)
    quantizer.decode(first.codes)
    quantizer.nearest_codes(z_e, quantizer.codebook())
    after = quantizer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(z_e, given)
    assert quantizer.training == training
    assert quantizer.codebook.weight.grad is None


@everywhere
def test_training_and_evaluation_agree(name):
    quantizer, z_e = make(name), embeddings(30)
    assert same(quantizer.train()(z_e), quantizer.eval()(z_e))


@everywhere
def test_state_is_loaded_strictly(name):
    one, other = make(name), make(name)
    z_e = embeddings(30)
    assert not torch.equal(one(z_e).z_q, other(z_e).z_q)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(one(z_e), other(z_e))

    state = one.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        make(name, codes=CODES + 1).load_state_dict(state)


@everywhere
def test_initialize_keeps_the_shape_of_the_state(name):
    quantizer = make(name)
    before = {key: value.shape for key, value in quantizer.state_dict().items()}
    quantizer.initialize(embeddings(50))
    assert {key: value.shape for key, value in quantizer.state_dict().items()} == before


@everywhere
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies_are_equal_and_independent(name, copied):
    quantizer, z_e = make(name), embeddings(30)
    expected = quantizer(z_e)
    twin = copied(quantizer)
    assert same(twin(z_e), expected)
    with torch.no_grad():
        twin.codebook.weight.add_(1)
    assert same(quantizer(z_e), expected)


def test_the_result_is_read_only():
    found = make("one")(embeddings(3))
    with pytest.raises(FrozenInstanceError):
        found.codes = torch.zeros(3)


def test_the_global_seed_decides_the_first_codebook():
    torch.manual_seed(3)
    one = make("three")
    torch.manual_seed(3)
    assert torch.equal(make("three").codebook.weight, one.codebook.weight)
    assert not torch.equal(make("three").codebook.weight, one.codebook.weight)
    # Codewords of about unit length, whatever the dimension.
    for dim in (4, 256):
        lengths = VectorQuantizer(500, dim).codebook.weight.detach().norm(dim=1)
        assert 0.9 < float(lengths.mean()) < 1.1


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, r"num_codes must be 1 or more, got 0\."),
        ({"num_codes": -3}, r"num_codes must be 1 or more, got -3\."),
        ({"dim": 0}, r"dim must be 1 or more, got 0\."),
        ({"groups": 0}, r"groups must be 1 or more, got 0\."),
        ({"groups": -1}, r"groups must be 1 or more, got -1\."),
        (
            {"groups": 4},
            r"groups must divide dim: got groups=4, dim=6\. Groups that would do: \[1, 2, 3, 6\]\.",
        ),
        ({"groups": 7}, r"Groups that would do: \[1, 2, 3, 6\]\."),
        ({"groups": 5, "dim": 1}, r"Groups that would do: \[1\]\."),
    ],
)
def test_wrong_sizes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"num_codes": 4, "dim": 6, **arguments})


def test_unknown_and_positional_arguments_raise():
    with pytest.raises(TypeError, match="num_groups"):
        VectorQuantizer(4, 6, num_groups=2)
    with pytest.raises(TypeError, match="positional"):
        VectorQuantizer(4, 6, 2)


@everywhere
@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 7, 8), (1,)])
def test_another_last_dimension_raises(name, shape):
    with pytest.raises(
        ValueError, match="move the channels to the end, or build it with"
    ) as caught:
        make(name)(torch.zeros(shape))
    message = str(caught.value)
    assert f"(..., {DIM}), channels last" in message
    assert str(shape) in message
    assert f"dim={shape[-1]}" in message


@everywhere
def test_codes_that_cannot_be_decoded_raise(name):
    quantizer = make(name)
    codes = quantizer(embeddings(3)).codes
    for wrong in (codes.float(), codes.double(), codes.bool(), codes + 0j):
        with pytest.raises(ValueError, match="codes must be integers, got torch"):
            quantizer.decode(wrong)
    for value in (-1, CODES, 1000):
        spoilt = codes.clone()
        spoilt[1] = value
        with pytest.raises(ValueError, match="codes must lie in 0 … 6") as caught:
            quantizer.decode(spoilt)
        assert f"{value}" in str(caught.value)
        assert "another codebook" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (5,), (4, 2), (3, 4)])
def test_codes_of_other_groups_raise(shape):
    with pytest.raises(ValueError, match="codes must end in a dimension of 3 groups") as caught:
        make("three").decode(torch.zeros(shape, dtype=torch.int64))
    assert str(shape) in str(caught.value)
