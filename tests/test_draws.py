"""Several draws of what replaced codewords become, judged by the loss after the step."""

import copy

import pytest
import torch
from problems import squared_error
from test_placement import LAYOUTS, RULES, update_of
from torch import Tensor, nn

from mqvae import Ema, Joint, Kept, LeastRecentlyUsed, Meta, Replacement, VQNetwork
from mqvae import VectorQuantizer as Quantizer
from mqvae.core.replacement import Pool


class Watched(Replacement):
    """Remembers which rows were due, what was drawn for them, and what they became."""

    def __init__(self, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy = LeastRecentlyUsed(1, draws=draws)
        self.drawn: list[Tensor] = []
        draw = Pool.draw

        def noting(pool, rows, placed=None):
            self.drawn.append(draw(pool, rows, placed))
            return self.drawn[-1]

        monkeypatch.setattr(Pool, "draw", noting)

    def __call__(self, unused_steps, pool) -> tuple[Tensor, Tensor]:
        self.drawn.clear()
        self.rows, self.chosen = self.policy(unused_steps, pool)
        return self.rows, self.chosen


def network_of(replacement: Replacement, **layout) -> VQNetwork:
    """In float64; about half of its codewords are in use."""
    torch.manual_seed(3)
    quantizer = Quantizer(14, 6, replacement=replacement, **layout)
    return VQNetwork(nn.Linear(5, 6), quantizer, nn.Linear(6, 5)).double()


def batch(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 5, generator=generator, dtype=torch.float64)


def loss_with(
    network: VQNetwork, rows: Tensor, codewords: Tensor, x, y, loss, weight: float = 1.0
) -> float:
    """L at the weights as they are, some rows of the codebook others; by an ordinary pass."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.quantizer.codebook.weight[rows] = codewords
        found = network(x)
    quantized = found.quantized
    of_quantizer = 0.1 * quantized.commitment_loss + weight * quantized.codebook_loss
    return float(loss(found.output, y) + of_quantizer)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rule", "options"), RULES.values(), ids=RULES)
def test_the_draw_with_the_least_loss_after_the_step_is_taken(monkeypatch, rule, options, layout):
    network = network_of(watched := Watched(4, monkeypatch), **LAYOUTS[layout])
    update, taken = update_of(network, rule, **options), set()
    weight = 0.0 if rule is Ema else 1.0
    for seed in range(6):
        x = batch(seed)
        update.step(x, x)
        if not len(watched.rows):
            continue  # in such a small batch all may be in use
        assert len(watched.drawn) == 4
        losses = [
            loss_with(network, watched.rows, each, x, x, squared_error, weight)
            for each in watched.drawn
        ]
        best = losses.index(min(losses))
        assert torch.equal(watched.chosen, watched.drawn[best])
        assert max(losses) > 1.0001 * min(losses)
        taken.add(best)
    assert len(taken) > 1


@pytest.mark.parametrize("options", [{}, {"look_ahead": Kept()}])
def test_the_batch_and_the_loss_above_are_what_judges(monkeypatch, options):
    network = network_of(watched := Watched(4, monkeypatch))

    def cubed(output: Tensor, y: Tensor) -> Tensor:
        return 5 * (output - y).abs().pow(3).mean()

    update = update_of(network, Meta, upper_loss=cubed, **options)
    below = 0
    for seed in range(6):
        x, above = batch(seed), batch(100 + seed)
        update.step(x, x, above=(above, above))
        found = [
            [loss_with(network, watched.rows, each, z, z, loss) for each in watched.drawn]
            for z, loss in ((above, cubed), (x, squared_error))
        ]
        best, otherwise = (losses.index(min(losses)) for losses in found)
        assert torch.equal(watched.chosen, watched.drawn[best])
        below += best == otherwise
    assert below < 6


def test_the_least_of_the_samples_not_quantized_have_their_part(monkeypatch):
    network = network_of(watched := Watched(4, monkeypatch))
    network.quantizer.unquantized = 0.5
    x = batch()
    update_of(network).step(x, x)
    losses = [loss_with(network, watched.rows, d, x, x, squared_error) for d in watched.drawn]
    assert torch.equal(watched.chosen, watched.drawn[losses.index(min(losses))])


def test_judging_leaves_no_trace():
    """Batch statistics are those of a step that draws once, and no weight but the codebook's."""
    found = []
    for draws in (1, 8):
        torch.manual_seed(3)
        encoder = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))
        quantizer = Quantizer(14, 6, replacement=LeastRecentlyUsed(1, draws=draws))
        network = VQNetwork(encoder, quantizer, nn.Linear(6, 5)).double()
        update_of(network, Meta, look_ahead=Kept()).step(batch(), batch())
        found.append(network.state_dict())
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value) or key == "quantizer.codebook.weight", key
    assert not torch.equal(*(f["quantizer.codebook.weight"] for f in found))


def test_where_nothing_is_due_nothing_is_judged(monkeypatch):
    network = network_of(LeastRecentlyUsed(5, draws=4))
    passes = []
    network.encoder.register_forward_hook(lambda *_: passes.append(1))
    update = update_of(network, Joint)
    for step in range(5):
        update.step(batch(), batch())
        assert len(passes) == step + 1 + (step == 4)


def test_a_rule_that_hands_over_no_loss_is_told():
    quantizer = Quantizer(40, 6, replacement=LeastRecentlyUsed(1, draws=4))
    z_e = torch.randn(7, 6)
    quantizer.record(z_e, quantizer.encode(z_e))
    with pytest.raises(ValueError, match="draws=4 needs the loss") as caught:
        quantizer.update()
    assert "or leave draws out" in str(caught.value)


@pytest.mark.parametrize("draws", [0, -1])
def test_no_draws_are_refused(draws):
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        LeastRecentlyUsed(draws=draws)
