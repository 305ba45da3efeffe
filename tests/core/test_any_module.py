"""Rules on modules of any shape, and what rules take: clipping, scaling, several batches a step."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.utils.checkpoint import checkpoint

from mqvae import (
    Alternated,
    Ema,
    GenericMeta,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    MovingAverage,
    ReplaceUnused,
    Synchronous,
    Undone,
    Unquantized,
    Update,
    VectorQuantizer,
    VQNetwork,
    codebook_parameters,
    network_parameters,
)
from mqvae.errors import MqvaeError

WEIGHTS = {"commitment_weight": 0.3, "codebook_weight": 0.7}


class Plain(nn.Module):
    """Encoder, quantizer and decoder that no VQNetwork holds."""

    def __init__(self, network: VQNetwork) -> None:
        super().__init__()
        network = copy.deepcopy(network)
        self.encoder, self.quantizer, self.decoder = (
            network.encoder,
            network.quantizer,
            network.decoder,
        )

    def forward(self, x):
        return self.decoder(self.quantizer(self.encoder(x)).z_q)


class Checkpointed(Plain):
    """The same, which makes the pass of encoder and quantizer again on the way back."""

    def forward(self, x):
        return self.decoder(checkpoint(self.quantized, x, use_reentrant=False))

    def quantized(self, x):
        return self.quantizer(self.encoder(x)).z_q


class TwoLevels(nn.Module):
    """Two quantizers, a skip and a condition, inputs and outputs by name."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.encoder, self.second = nn.Linear(5, 6), nn.Linear(6, 4)
        self.label = nn.Embedding(3, 4)
        self.fine = VectorQuantizer(7, 6, **options)
        self.coarse = VectorQuantizer(6, 4, **options)
        self.decoder = nn.Linear(10, 5)

    def forward(self, batch):
        z = self.encoder(batch["image"])
        top = self.coarse(self.second(z) + self.label(batch["label"]))
        return {"image": self.decoder(torch.cat([self.fine(z).z_q, top.z_q], -1)), "top": top.codes}


def of_image(output, target):
    return mse_loss(output["image"], target[0])


def network(dropout: float = 0.0, **options) -> VQNetwork:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(dropout))
    return VQNetwork(encoder, VectorQuantizer(8, 6, **options), nn.Linear(6, 5)).double()


def batch(seed: int = 0, number: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 5, generator=generator, dtype=torch.float64)


def levels_of(module, kind=AdamW) -> dict[str, AdamW | SGD | None]:
    upper = codebook_parameters(module)
    return {
        "lower": kind(network_parameters(module), lr=1e-2),
        "upper": kind(upper, lr=3e-2) if upper else None,
    }


def update_of(module, rule, loss=mse_loss, kind=AdamW, **options) -> Update:
    return Update(module, loss, rule, **levels_of(module, kind), **options)


def assert_same(one: nn.Module, two: nn.Module) -> None:
    """To what other orders of summation round in float64."""
    there = two.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(there[name], value, rtol=1e-9, atol=1e-12)


RULES = {
    "Joint": Joint(**WEIGHTS),
    "Synchronous": Synchronous(nu=0.5, **WEIGHTS),
    "Alternated": Alternated(**WEIGHTS),
    "Alternated, nu": Alternated(nu=0.5, **WEIGHTS),
}
LAYOUTS = {
    "one": {},
    "groups": {"groups": 2, "replacement": ReplaceUnused(2)},
    "average": {"codebook": MovingAverage(0.8)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RULES)
def test_a_module_is_trained_as_the_network_of_its_parts(name, layout):
    """Batch norm sees each batch once, and dropout draws the same numbers in every pass."""
    whole = network(dropout=0.2, **LAYOUTS[layout])
    plain = Plain(whole)
    updates = update_of(whole, RULES[name]), update_of(plain, RULES[name])
    for seed in range(4):
        steps = []
        for update in updates:
            torch.manual_seed(seed)
            steps.append(update(batch(seed), batch(seed)))
        assert torch.equal(steps[0].codes, steps[1].codes)
        torch.testing.assert_close(steps[0].task, steps[1].task)
        torch.testing.assert_close(steps[0].commitment, steps[1].commitment)
    assert_same(whole.encoder, plain.encoder)
    assert_same(whole.decoder, plain.decoder)
    assert_same(whole.quantizer, plain.quantizer)


@pytest.mark.parametrize("name", RULES)
def test_checkpointing_changes_nothing(name):
    whole = network(dropout=0.2, replacement=ReplaceUnused(2))
    whole.encoder[1] = nn.Identity()  # torch's checkpointing counts batches of batch norm twice
    plain, again = Plain(whole), Checkpointed(whole)
    for update in (update_of(plain, RULES[name]), update_of(again, RULES[name])):
        for seed in range(3):
            torch.manual_seed(seed)
            update(batch(seed), batch(seed))
    assert_same(plain, again)


@pytest.mark.parametrize("options", [{}, {"codebook": MovingAverage(0.8)}])
def test_several_quantizers_and_nested_inputs_are_as_in_a_loop_by_hand(options):
    torch.manual_seed(0)
    module = TwoLevels(**options)
    twin = copy.deepcopy(module)
    update = update_of(module, Joint(**WEIGHTS), of_image)
    upper = codebook_parameters(twin)
    optimizers = [AdamW(network_parameters(twin), lr=1e-2)]
    optimizers += [AdamW(upper, lr=3e-2)] if upper else []
    given = []
    for quantizer in (twin.fine, twin.coarse):
        quantizer.register_forward_hook(lambda *found: given.append(found[2]))
    for seed in range(3):
        x = {"image": batch(seed).float(), "label": torch.arange(24) % 3}
        y = (x["image"], [None])
        step = update(x, y)
        given.clear()
        total = of_image(twin(x), y)
        for quantized in given:
            total = total + 0.3 * quantized.commitment_loss + 0.7 * quantized.codebook_loss
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        twin.fine.update()
        twin.coarse.update()
    for one, two in zip(module.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two)
    assert set(step.quantized) == {"fine", "coarse"}
    torch.testing.assert_close(step.commitment, sum(q.commitment_loss for q in given).detach())
    assert torch.equal(step.quantized["coarse"][0].codes, step.output["top"])
    assert torch.equal(step.codes, step.output["top"])  # of the quantizer that is called first
    assert not step.output["image"].requires_grad


def test_every_level_has_its_parameters():
    module = TwoLevels(codebook_dim=2)
    upper = {id(p) for p in codebook_parameters(module)}
    assert upper == {id(q.codebook.weight) for q in (module.fine, module.coarse)}
    lower = {id(p) for p in network_parameters(module)}
    assert not lower & upper
    assert lower | upper == {id(p) for p in module.parameters()}
    whole = network()
    assert network_parameters(whole) == list(whole.network_parameters())
    assert codebook_parameters(whole) == list(whole.codebook_parameters())


def test_the_task_gradient_reaches_projected_codewords_and_no_masked_ones():
    """ν z_q − sg(ν z_q) in front of what comes after the quantizer, by hand."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantizer = VectorQuantizer(5, 6, codebook_dim=3)

        def forward(self, x):
            return self.quantizer(x["z"], x["mask"]).z_q

    torch.manual_seed(0)
    module, mask = Masked(), torch.arange(24) % 3 > 0
    x = {"z": torch.randn(24, 6), "mask": mask}
    weight = module.quantizer.codebook.weight
    out = weight @ module.quantizer.project_out.weight.detach().T
    codes = module.quantizer.encode(x["z"], mask)
    words = torch.zeros(24, 6).index_put((mask.nonzero()[:, 0],), out[codes[mask]])
    z_q = module(x).detach() + 0.5 * (words - words.detach())
    (expected,) = torch.autograd.grad(z_q.square().mean(), weight)
    before = weight.detach().clone()
    rule = Synchronous(nu=0.5, commitment_weight=0.0, codebook_weight=0.0)
    update_of(module, rule, lambda output, y: output.square().mean(), SGD)(x, None)
    torch.testing.assert_close(before - weight.detach(), 3e-2 * expected)


LOOKING = [Meta(), Meta(look_ahead=Kept()), MetaNetwork(), MetaBoth(), Unquantized(), Ema()]


@pytest.mark.parametrize("rule", LOOKING, ids=repr)
def test_rules_that_need_encoder_and_decoder_say_so(rule):
    with pytest.raises(MqvaeError, match=r"needs a VQNetwork\(encoder, quantizer, decoder\), got"):
        update_of(Plain(network()), rule)


def test_a_module_whose_quantizers_are_not_called_is_told():
    class Idle(Plain):
        def forward(self, x):
            return self.decoder(self.encoder(x))

    with pytest.raises(MqvaeError, match="called none of its quantizers"):
        update_of(Idle(network()), Joint())(batch(), batch())
    with pytest.raises(MqvaeError, match="parts=2 cuts what encoder and decoder"):
        update_of(Plain(network()), Joint()).step(batch(), batch(), parts=2)
    with pytest.raises(MqvaeError, match="judges the codebook by no batch of its own"):
        update_of(network(), Joint()).step(batch(), batch(), above=(batch(), batch()))
    with pytest.raises(MqvaeError, match="upper_batch is next: hand that batch over"):
        update_of(network(), Meta(upper_batch="next")).step(batch(), batch())


def test_the_rule_called_with_a_network_is_the_update_of_it():
    one, two = network(), network()
    first = Meta(
        one,
        mse_loss,
        lower=AdamW(one.network_parameters(), lr=1e-2),
        upper=AdamW(one.codebook_parameters(), lr=3e-2),
        look_ahead=Kept(),
    )
    second = update_of(two, Meta(look_ahead=Kept()))
    assert isinstance(first, Update) and first.rule == second.rule
    first.step(batch(), batch())
    second(batch(), batch())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_rule_of_ones_own_has_the_options_of_what_it_derives_from():
    class Mine(Meta):
        pass

    assert inspect.signature(Mine) == inspect.signature(Meta)
    assert {"xi", "commitment_weight"} < set(inspect.signature(Mine).parameters)
    net = network()
    update = Mine(net, mse_loss, xi=0.5, **levels_of(net))
    assert update.rule == Mine(xi=0.5) != Meta(xi=0.5) and update.rule.method == "MQ-VAE"


# -- several batches a step ------------------------------------------------------------------------

GATHERING = {
    "Joint": (Joint(**WEIGHTS), {}),
    "Joint, average": (Joint(commitment_weight=0.3), {"codebook": MovingAverage(0.8)}),
    "Synchronous": (Synchronous(**WEIGHTS), {}),
    "Ema": (Ema(decay=0.8), {}),
    "Unquantized": (Unquantized(), {}),
}


@pytest.mark.parametrize("of_module", [False, True])
@pytest.mark.parametrize("name", GATHERING)
def test_a_step_of_several_batches_is_that_of_all_together(name, of_module):
    rule, options = GATHERING[name]
    if of_module and not rule.any_module:
        return
    whole = network(**options)
    whole.encoder[1] = nn.Identity()  # batch norm sees what it sees
    parts = copy.deepcopy(whole)
    whole, parts = (Plain(n) if of_module else n for n in (whole, parts))
    # By SGD: AdamW makes much of a gradient that is nothing but rounding.
    once, often = (update_of(n, rule, kind=SGD) for n in (whole, parts))
    for seed in (0, 3):
        x = [batch(seed + i, 8) for i in range(3)]
        once(torch.cat(x), torch.cat(x))
        before = copy.deepcopy(parts.state_dict())
        for each in x[:2]:
            often.accumulate(each, each)
        assert all(torch.equal(v, before[k]) for k, v in parts.state_dict().items())
        often(x[2], x[2])
    assert_same(whole, parts)


@pytest.mark.parametrize("rule", [Alternated(), Meta(), Meta(look_ahead=Kept()), MetaBoth()])
def test_rules_that_step_between_passes_take_no_several_batches(rule):
    with pytest.raises(MqvaeError, match="hand over the whole batch with parts="):
        update_of(network(), rule).accumulate(batch(), batch())


# -- clipping --------------------------------------------------------------------------------------

CLIPPED = {
    "Joint": Joint(),
    "Synchronous": Synchronous(),
    "Alternated": Alternated(),
    "Ema": Ema(),
    "Meta": Meta(),
    "Meta, kept": Meta(look_ahead=Kept()),
    "Meta, undone": Meta(look_ahead=Undone(optimizer_step=True)),
    "MetaNetwork": MetaNetwork(),
    "MetaBoth": MetaBoth(),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_no_optimizer_steps_along_more_than_the_norm(name):
    longest = []
    for max_norm in (None, 1e9, 1e-3):
        net = network()
        update = update_of(net, CLIPPED[name], kind=SGD, max_norm=max_norm)
        before = [p.detach().clone() for p in net.parameters()]
        update(batch(), batch())
        of = {id(p): (p.detach() - b) for p, b in zip(net.parameters(), before, strict=True)}
        lower = torch.cat([of[id(p)].flatten() for p in network_parameters(net)]).norm() / 1e-2
        upper = of[id(net.quantizer.codebook.weight)].norm() / 3e-2
        longest.append((lower, upper))
    torch.testing.assert_close(longest[0], longest[1], rtol=1e-6, atol=0)
    # The norm that gradients are clipped by is found in float32.
    torch.testing.assert_close(longest[2][0], torch.tensor(1e-3).double(), rtol=2e-3, atol=0)
    if name != "Ema":
        assert 0 < longest[2][1] < 1.001e-3
    assert min(longest[0]) > 2e-3


def test_clipping_is_that_of_torch():
    one, two = network(), network()
    update_of(one, Joint(), max_norm=1e-2)(batch(), batch())
    output = two(batch())
    quantized = output.quantized
    total = mse_loss(output.output, batch()) + 0.1 * quantized.commitment_loss
    (total + quantized.codebook_loss).backward()
    for parameters, lr in ((network_parameters(two), 1e-2), (codebook_parameters(two), 3e-2)):
        nn.utils.clip_grad_norm_(parameters, 1e-2)
        AdamW(parameters, lr=lr).step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_norm_of_nothing_is_refused(max_norm):
    with pytest.raises(MqvaeError, match="max_norm must be above 0"):
        update_of(network(), Joint(), max_norm=max_norm)


# -- float16 ---------------------------------------------------------------------------------------

SCALED = {
    "Joint": Joint(),
    "Synchronous": Synchronous(),
    "Alternated": Alternated(nu=0.5),
    "Ema": Ema(),
    "Unquantized": Unquantized(),
}


@pytest.mark.parametrize("name", SCALED)
def test_a_scaled_step_is_the_step_and_one_that_overflows_is_left_out(name):
    one, two = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain = update_of(one, SCALED[name], kind=SGD, max_norm=0.5)
    scaled = update_of(two, SCALED[name], kind=SGD, max_norm=0.5, scaler=scaler)
    for seed in range(2):
        plain(batch(seed), batch(seed))
        scaled(batch(seed), batch(seed))
    assert_same(one, two)  # a power of two changes no digit

    three, scaler = network().float(), torch.amp.GradScaler("cpu", init_scale=2.0**120)
    update = update_of(three, SCALED[name], scaler=scaler)
    before = [p.detach().clone() for p in network_parameters(three)]
    update(1e6 * batch().float(), batch().float())
    assert all(torch.equal(a, b) for a, b in zip(before, network_parameters(three), strict=True))
    assert scaler.get_scale() == 2.0**119


def test_float16_trains():
    net = network().float()
    scaler = torch.amp.GradScaler("cpu")
    update = update_of(net, Joint(), scaler=scaler)
    x = batch().float()
    with torch.autocast("cpu", torch.float16):
        losses = [float(update(x, x).task) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    assert scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("rule", [Meta(), Meta(look_ahead=Kept()), MetaNetwork(), MetaBoth()])
def test_rules_that_look_ahead_take_no_scaler(rule):
    with pytest.raises(MqvaeError, match="takes no GradScaler"):
        update_of(network(), rule, scaler=torch.amp.GradScaler("cpu"))


# -- a look-ahead around a closure -----------------------------------------------------------------


@pytest.mark.parametrize("look_ahead", [Undone(), Kept()])
def test_a_look_ahead_leaves_no_statistics_behind(look_ahead):
    module = Plain(network(replacement=ReplaceUnused(50)))

    def loss(module, x):
        quantized = module.quantizer(module.encoder(x))
        task = mse_loss(module.decoder(quantized.z_q), x)
        return task + quantized.commitment_loss + quantized.codebook_loss

    codebook = codebook_parameters(module)
    update = GenericMeta(
        module,
        loss,
        codebook=codebook,
        lower=SGD(network_parameters(module), lr=1e-2),
        upper=SGD(codebook, lr=1e-2),
        look_ahead=look_ahead,
    )
    update.step(batch())
    assert int(module.quantizer._pending.counts.sum()) == 24
    assert module.quantizer.recording
