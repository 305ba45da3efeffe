"""Selection in one piece against the three formulas it stands for, written out."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import mqvae
from mqvae.core import selection as module
from mqvae.core.selection import select

N, K, D = 40, 7, 6


def written_out(z_e: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(torch.promote_types(z_e.dtype, table.dtype), torch.float32)
    z_q = table[rows]
    z_hat = z_e + (z_q.to(z_e.dtype) - z_e).detach()
    commitment = (z_e.to(wide) - z_q.to(wide).detach()).square().mean()
    return z_hat, commitment, (z_e.to(wide).detach() - z_q.to(wide)).square().mean()


def inputs(dtype=torch.float64, table_dtype=None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z_e = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    table = torch.randn(K, D, generator=generator, dtype=torch.float64).to(table_dtype or dtype)
    rows = torch.randint(K - 1, (N,), generator=generator)  # the last one is never selected
    return z_e.requires_grad_(), table.requires_grad_(), rows


def weighed(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A loss in which each output has its own weight, and ẑ a gradient of its own everywhere."""
    z_q, commitment, codebook = found
    return (z_q.double().sin()).sum() + 0.3 * commitment + 0.7 * codebook


@pytest.mark.parametrize("piece", [1, 20, 2**18])
def test_values_and_gradients(monkeypatch, piece):
    monkeypatch.setitem(module.PIECE, "cpu", piece)
    z_e, table, rows = inputs()
    found, expected = select(z_e, table, rows), written_out(z_e, table, rows)
    assert torch.equal(found[0], table[rows])
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    got = torch.autograd.grad(weighed(found), [z_e, table])
    wanted = torch.autograd.grad(weighed(expected), [z_e, table])
    for one, other in zip(got, wanted):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_each_output_sends_its_gradient_where_it_should_and_nowhere_else(output):
    z_e, table, rows = inputs()
    found, expected = select(z_e, table, rows), written_out(z_e, table, rows)
    for target in (z_e, table):
        got, wanted = (
            torch.autograd.grad(three[output].sum(), target, allow_unused=True, retain_graph=True)[
                0
            ]
            if three[output].requires_grad
            else None
            for three in (found, expected)
        )
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_the_losses_have_graphs_of_their_own():
    """The codebook's backward pass does not free what the encoder's needs."""
    z_e, table, rows = inputs()
    z_q, commitment, codebook = select(z_e, table, rows)
    codebook.backward()
    (z_q.sum() + commitment).backward()
    assert table.grad is not None and z_e.grad is not None


@pytest.mark.parametrize(
    ("dtype", "table_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
)
def test_mixed_dtypes(dtype, table_dtype):
    z_e, table, rows = inputs(dtype, table_dtype)
    found, expected = select(z_e, table, rows), written_out(z_e, table, rows)
    assert torch.equal(found[0], table[rows].to(dtype))
    for one, other in zip(found[1:], expected[1:]):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
    got = torch.autograd.grad(weighed(found), [z_e, table])
    wanted = torch.autograd.grad(weighed(expected), [z_e, table])
    for one, other, source in zip(got, wanted, (z_e, table)):
        assert one.dtype == source.dtype
        close = 1e-5 if source.dtype in (torch.float32, torch.float64) else 2e-2
        torch.testing.assert_close(one.double(), other.double(), rtol=close, atol=close)


def test_second_derivatives():
    z_e, table, rows = inputs()
    seconds = []
    for function in (select, written_out):
        first = torch.autograd.grad(
            weighed(function(z_e, table, rows)), [z_e, table], create_graph=True
        )
        total = sum((g * g.detach().cos()).sum() for g in first)
        seconds.append(torch.autograd.grad(total, [z_e, table], allow_unused=True))
    # ẑ's own second derivative is not asked for: written out it would be taken at z_e + sg(·).
    assert seconds[0][0].abs().max() > 1e-4
    torch.testing.assert_close(seconds[0], seconds[1], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode():
    z_e, table, rows = inputs()
    generator = torch.Generator().manual_seed(9)
    t_e, t_table = (torch.randn(t.shape, generator=generator).double() for t in (z_e, table))
    tangents = []
    for function in (select, written_out):
        with forward_ad.dual_level():
            point = forward_ad.make_dual(z_e.detach(), t_e)
            book = forward_ad.make_dual(table.detach(), t_table)
            tangents.append([forward_ad.unpack_dual(f)[1] for f in function(point, book, rows)])
    for one, other in zip(*tangents):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_decoder_that_writes_into_its_input_changes_no_loss():
    z_e, table, rows = inputs()
    grads = []
    for function in (select, written_out):
        z_q, commitment, codebook = function(z_e, table, rows)
        total = torch.relu_(z_q).square().sum() + commitment + codebook
        grads.append((total, *torch.autograd.grad(total, [z_e, table])))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)


class Made(TorchDispatchMode):
    """The tensors that operations made, each storage once."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.storages = {t.untyped_storage().data_ptr(): t for t in known}
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, Tensor) else []:
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in self.storages:
                self.storages[pointer] = tensor  # held, so that no other gets its address
                self.sizes.append(tensor.numel())
        return out


def test_nothing_as_large_as_the_embeddings_is_held_but_the_results(monkeypatch):
    monkeypatch.setitem(module.PIECE, "cpu", 8 * D)
    z_e, table, rows = inputs()
    with Made(z_e, table, rows) as made:
        found = select(z_e, table, rows)
    assert made.sizes.count(N * D) == 1  # ẑ
    assert sorted(made.sizes)[-2] <= 8 * D
    gradients = torch.randn(N, D).double(), torch.ones(()).double(), torch.ones(()).double()
    with Made(z_e, table, rows, *found, *gradients) as made:
        torch.autograd.grad(found, [z_e, table], gradients)
    assert made.sizes.count(N * D) == 1  # the gradient of z_e
    assert sorted(made.sizes)[-2] <= max(8 * D, K * D)


def test_deterministic_algorithms_are_kept():
    z_e, table, rows = inputs(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        got = [torch.autograd.grad(weighed(select(z_e, table, rows)), table)[0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[0], g) for g in got)


@pytest.mark.parametrize("kind", ["one", "groups", "shared", "residual", "shared residual"])
def test_scatter_is_the_transpose_of_the_lookup_and_holds_no_embeddings(kind):
    torch.manual_seed(0)
    one = mqvae.VectorQuantizer(7, 6)
    quantizer = {
        "one": one,
        "groups": mqvae.VectorQuantizer(7, 6, groups=2),
        "shared": mqvae.VectorQuantizer(7, 6, groups=3, shared_codebook=True),
        "residual": mqvae.ResidualQuantizer([mqvae.VectorQuantizer(7, 6) for _ in range(2)]),
        "shared residual": mqvae.ResidualQuantizer([one, one], shared_codebook=True),
    }[kind]
    z_e, values = torch.randn(200, 6), torch.randn(200, 6)
    codes, table = quantizer.encode(z_e), quantizer.table().detach()
    leaf = table.clone().requires_grad_()
    (expected,) = torch.autograd.grad(quantizer.lookup(codes, leaf), leaf, values)
    with Made(z_e, values, codes, table) as made:
        found = quantizer.scatter(codes, values)
    torch.testing.assert_close(found, expected)
    assert max(made.sizes) <= max(2 * table.numel(), codes.numel())
    loss = 0.7 * quantizer.at_codes(z_e, codes, leaf).codebook_loss
    (expected,) = torch.autograd.grad(loss, leaf)
    found = quantizer.codebook_gradient(z_e, codes, table, 0.7)
    torch.testing.assert_close(found, expected)
