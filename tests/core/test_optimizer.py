"""Adam by row, against torch's for sparse gradients."""

import copy

import pytest
import torch
from problems import squared_error
from torch import Tensor, nn
from torch.optim import Adam, SparseAdam

from mqvae import Joint, Kept, Meta, ReplaceUnused, RowwiseAdam, VectorQuantizer, VQNetwork

ROWS, DIM = 12, 3


def gradients(steps: int) -> list[Tensor]:
    """Some rows of each are zero; of the fifth, all."""
    found = []
    for step in range(steps):
        g = torch.randn(ROWS, DIM, dtype=torch.float64)
        g[torch.rand(ROWS) < (1 if step == 4 else 0.6)] = 0
        found.append(g)
    return found


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.8), "eps": 1e-3}])
def test_it_is_torchs_adam_for_sparse_gradients(options):
    start = torch.randn(ROWS, DIM, dtype=torch.float64)
    own, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one, other = RowwiseAdam([own], lr=0.1, **options), SparseAdam([theirs], lr=0.1, **options)
    for g in gradients(30):
        before = own.detach().clone()
        own.grad, theirs.grad = g, g.to_sparse(1)
        one.step()
        other.step()
        still = (g == 0).all(1)
        assert torch.equal(own[still], before[still])
        assert still.all() or not torch.equal(own, before)
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)
    for moment in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(one.state[own][moment], other.state[theirs][moment])
    assert one.state[own]["step"] == other.state[theirs]["step"] == 30


def test_where_every_row_is_hit_it_is_adam():
    start = torch.randn(ROWS, DIM, dtype=torch.float64)
    own, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    # Adam adds eps after correcting the bias of the second moment.
    one, other = RowwiseAdam([own], lr=0.1, eps=0.0), Adam([theirs], lr=0.1, eps=0.0)
    for _ in range(10):
        own.grad = theirs.grad = torch.randn(ROWS, DIM, dtype=torch.float64)
        one.step()
        other.step()
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)


def test_a_vector_has_rows_of_one_number():
    own, theirs = nn.Parameter(torch.ones(ROWS)), nn.Parameter(torch.ones(ROWS))
    one, other = RowwiseAdam([own], lr=0.1), SparseAdam([theirs], lr=0.1)
    for g in gradients(4):
        own.grad, theirs.grad = g[:, 0].float(), g[:, 0].float().to_sparse()
        one.step()
        other.step()
    torch.testing.assert_close(own, theirs)


def test_its_state_goes_on():
    own = nn.Parameter(torch.randn(ROWS, DIM, dtype=torch.float64))
    optimizer = RowwiseAdam([own], lr=0.1)
    first, second = gradients(2)
    own.grad = first
    optimizer.step()
    state, twin = copy.deepcopy(optimizer.state_dict()), nn.Parameter(own.detach().clone())
    again = RowwiseAdam([twin], lr=0.5)
    again.load_state_dict(state)
    own.grad = twin.grad = second
    optimizer.step(lambda: None)
    assert again.step(lambda: 7) == 7
    assert torch.equal(own, twin)


@pytest.mark.parametrize(("rule", "options"), [(Joint, {}), (Meta, {"look_ahead": Kept()})])
def test_unused_codewords_stay_until_they_are_replaced(rule, options):
    quantizer = VectorQuantizer(40, 4, replacement=ReplaceUnused(3))
    network = VQNetwork(nn.Linear(5, 4), quantizer, nn.Linear(4, 5))
    lower = Adam(network.network_parameters(), lr=1e-2)
    upper = RowwiseAdam(network.codebook_parameters(), lr=0.1)
    update = rule(network, squared_error, lower=lower, upper=upper, **options)
    weight = quantizer.codebook.weight
    used = torch.zeros(40, dtype=torch.bool)
    before = weight.detach().clone()
    for _ in range(2):
        x = torch.randn(8, 5)
        used[update.step(x, x).codes] = True
    if rule is Joint:
        assert torch.equal(weight[~used], before[~used])
    assert not torch.equal(weight, before)
    x = torch.randn(8, 5)
    update.step(x, x)
    replaced = quantizer.unused_steps == 0
    state = upper.state[weight]
    assert (state["exp_avg_sq"][replaced].sum(1) == 0).any()  # forgotten
    assert state["exp_avg_sq"].any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -1.0}, "lr must be 0 or more, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": float("nan")}, "eps must be 0 or more, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        RowwiseAdam([nn.Parameter(torch.ones(2))], **options)
