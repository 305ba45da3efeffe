"""mqvae.diagnosis against Lloyd's fixed points, brute force and loops."""

import itertools

import pytest
import torch
from problems import QUANTIZERS
from torch import nn

from mqvae import Cosine, Euclidean, RateAware, VectorQuantizer, VQNetwork
from mqvae.core.codebook import Table
from mqvae.core.nearest import nearest
from mqvae.data import InMemory
from mqvae.diagnosis import best_of_nearest, refitted
from mqvae.diagnosis.choice import Search, losses_of_images, nearest_candidates
from mqvae.diagnosis.refit import lloyd
from mqvae.tasks import Classification, Reconstruction


def pictures(count, side=8, split="test"):
    """Blurred noise, so that patches have something in common."""
    noise = torch.rand(count, 1, side, side)
    noise = nn.functional.avg_pool2d(noise, 3, 1, 1) * 2
    labels = torch.arange(count) % 3
    return InMemory("made", split, (noise * 255).clamp(0, 255).byte(), labels, "made by the test")


def patches(quantizer, images, patch=4):
    """A network of patches in an orthonormal basis: its MSE is its quantization error."""
    encoder = nn.Conv2d(1, patch**2, patch, patch, bias=False)
    decoder = nn.ConvTranspose2d(patch**2, 1, patch, patch, bias=False)
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(patch**2, patch**2)).Q.view(-1, 1, patch, patch)
        encoder.weight.copy_(basis)
        decoder.weight.copy_(basis)
    network = VQNetwork(encoder, quantizer, decoder)
    network.initialize_codebook(images.pixels / 255)
    return network


def mixing(dim=4, codes=6, **options):
    """A network in which what is best at a position depends on the others."""
    encoder = nn.Sequential(nn.Conv2d(1, dim, 4, 4), nn.BatchNorm2d(dim))
    decoder = nn.Sequential(
        nn.ConvTranspose2d(dim, 8, 4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Conv2d(8, 1, 5, padding=2)
    )
    return VQNetwork(encoder, VectorQuantizer(codes, dim, **options), decoder)


def state_of(network):
    modes = [part.training for part in network.modules()]
    gradients = [p.grad for p in network.parameters()]
    return {k: t.clone() for k, t in network.state_dict().items()}, modes, gradients


def same_state(one, other):
    return one[1:] == other[1:] and all(torch.equal(t, other[0][k]) for k, t in one[0].items())


# -- the codebook refitted -----------------------------------------------------------------------


@pytest.mark.parametrize("distance", [Euclidean(), Cosine()], ids=["euclidean", "cosine"])
def test_lloyd_ends_at_a_fixed_point(distance):
    samples = distance.place(torch.randn(400, 3, dtype=torch.float64))
    centres = distance.place(torch.randn(12, 3, dtype=torch.float64))
    centres[4:7] = distance.place(torch.tensor([[50.0, 60.0, 70.0]], dtype=torch.float64))
    start = centres.clone()
    fit = lloyd(
        samples, centres, distance, generator=torch.Generator(), tolerance=0.0, iterations=500
    )
    assert torch.equal(centres, start)
    assert fit.converged
    # What repeats another, or lies far away, had nothing.
    used = nearest(samples, start).unique()
    assert fit.unused == 12 - len(used) >= 2
    codes = nearest(samples, fit.centres)
    assert len(codes.unique()) == 12
    for code in range(12):
        mean = distance.place(samples[codes == code].mean(0))
        torch.testing.assert_close(fit.centres[code], mean, rtol=0, atol=1e-12)
    error = (samples - fit.centres[codes]).square().mean().item()
    assert fit.errors[-1] == pytest.approx(error, rel=1e-12)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(fit.errors))
    assert fit.errors[-1] < 0.9 * fit.errors[0]


def test_lloyd_stops_when_it_must_and_when_samples_are_few():
    samples = torch.randn(300, 2, dtype=torch.float64)
    options = {"generator": torch.Generator(), "tolerance": 0.0}
    fit = lloyd(samples, samples[:20].clone(), Euclidean(), iterations=2, **options)
    assert (len(fit.errors), fit.converged) == (3, False)
    # Three kinds of samples: all of them are found, the other codewords stay.
    few = torch.eye(3, dtype=torch.float64).repeat(5, 1)
    far = torch.full((7, 3), 9.0, dtype=torch.float64)
    fit = lloyd(few, far, Euclidean(), iterations=50, **options)
    assert fit.converged
    assert fit.errors[-1] == 0


def test_an_optimal_codebook_gains_nothing():
    images = pictures(60)
    network = patches(VectorQuantizer(10, 16), images)
    options = {"tolerance": 0.0, "count": 60}
    first = refitted(network, Reconstruction(), images, images, **options)
    network.quantizer.codebook.assign(first.codebook)
    again = refitted(network, Reconstruction(), images, images, **options)
    assert again.iterations <= 2
    assert again.restarted == 0
    assert again.error_after == pytest.approx(again.error_before, rel=1e-5)
    assert again.error_before == pytest.approx(first.error_after, rel=1e-5)
    assert again.after.metrics["mse"] == pytest.approx(again.before.metrics["mse"], rel=1e-5)


def test_a_damaged_codebook_is_mended():
    train, test = pictures(200, split="train"), pictures(50)
    network = patches(VectorQuantizer(16, 16), train)
    whole = refitted(network, Reconstruction(), train, test)
    with torch.no_grad():
        network.quantizer.codebook.weight[8:] = 100.0
    mended = refitted(network, Reconstruction(), train, test)
    assert mended.restarted == 8
    assert mended.converged
    assert mended.before.metrics["usage"] <= 0.5
    assert mended.after.metrics["usage"] == 1
    for loss in (lambda r: r.error_after, lambda r: r.after.metrics["mse"]):
        assert loss(mended) == pytest.approx(loss(whole), rel=0.1)
    lost = mended.before.metrics["mse"] - whole.after.metrics["mse"]
    assert lost > 0.2 * whole.after.metrics["mse"]
    assert mended.before.protocol["images"] == 50


@pytest.mark.parametrize(
    "kind", sorted(set(QUANTIZERS) - {"residual", "residual maps", "none", "gumbel"})
)
def test_error_and_figure_are_those_of_the_network(kind):
    images = pictures(40)
    quantizer = QUANTIZERS[kind](5, 12 if "groups" in kind else 16)
    if quantizer.dim == 12:
        network = VQNetwork(nn.Conv2d(1, 12, 4, 4), quantizer, nn.ConvTranspose2d(12, 1, 4, 4))
        network.initialize_codebook(images.pixels / 255)
    else:
        network = patches(quantizer, images)
    with torch.no_grad():
        for parameter in quantizer.codebook.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x = images.pixels / 255
    refit = refitted(network, Reconstruction(), images, images, tolerance=0.0)
    before = network(x).quantized.commitment_loss.item()
    assert refit.error_before == pytest.approx(before, rel=1e-4)
    quantizer.codebook.assign(refit.codebook)
    after = network(x)
    assert refit.error_after == pytest.approx(after.quantized.commitment_loss.item(), rel=1e-4)
    assert refit.error_after < refit.error_before
    error = (after.output - x).square().mean().item()
    assert refit.after.metrics["mse"] == pytest.approx(error, rel=1e-4)
    assert refit.codebook.shape == quantizer.table().shape


def test_a_codebook_with_a_rate_is_refitted_at_its_prices():
    images = pictures(60)
    quantizer = VectorQuantizer(24, 16, rate=RateAware(bits=2.0, after=0))
    network = patches(quantizer, images)
    with torch.no_grad():
        quantizer.codebook.weight.mul_(0.7)
        z_e = network.embed(images.pixels / 255).flatten(0, -2)
        for _ in range(50):
            quantizer.record(z_e, quantizer.encode(z_e))
            quantizer.update()
        used = quantizer.encode(z_e).unique()
        prices = quantizer.prices.price()[0]
    assert len(used) < 24
    refit = refitted(network, Reconstruction(), images, images, tolerance=0.0, count=60)
    unused = torch.ones(24, dtype=torch.bool).index_fill(0, used, False)
    # What is never worth its bits stays where it is, and the others lie in the middle of theirs.
    assert (refit.codebook == quantizer.table()).all(1)[unused].any()
    codes = nearest(z_e, refit.codebook, prices)
    for code in codes.unique():
        torch.testing.assert_close(refit.codebook[code], z_e[codes == code].mean(0))

    def cost(codebook, codes):
        return ((z_e - codebook[codes]).square().sum(1) + prices[codes]).mean()

    before = cost(quantizer.table(), quantizer.encode(z_e))
    assert cost(refit.codebook, codes) < 0.95 * before


def test_the_refit_is_of_a_sample_drawn_by_the_seed():
    images = pictures(60)
    network = patches(VectorQuantizer(10, 16), images)
    first, same, other = [
        refitted(network, Reconstruction(), images, images, count=30, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert first.images == 30
    assert torch.equal(first.codebook, same.codebook)
    assert not torch.equal(first.codebook, other.codebook)


class Deaf(Table):
    """Codewords that cannot be set."""

    def assign(self, codewords):
        pass


def test_what_cannot_be_refitted_is_refused():
    images = pictures(20)
    network = patches(VectorQuantizer(5, 16, codebook=Deaf()), images)
    before = state_of(network)
    with pytest.raises(ValueError, match="of a Deaf cannot be set freely"):
        refitted(network, Reconstruction(), images, images)
    assert same_state(before, state_of(network))
    with torch.no_grad():
        network.encoder.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="numbers of the embeddings are inf or nan"):
        refitted(network, Reconstruction(), images, images)
    with torch.no_grad():
        network.decoder.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="loss is nan: the network has diverged"):
        best_of_nearest(network, Reconstruction(), images)


@pytest.mark.parametrize("kind", ["residual", "gumbel", "none"])
def test_other_quantizers_are_refused(kind):
    images = pictures(20)
    network = patches(QUANTIZERS[kind](5, 16), images)
    with pytest.raises(
        ValueError, match=f"VectorQuantizer, got {type(network.quantizer).__name__}"
    ):
        refitted(network, Reconstruction(), images, images)
    with pytest.raises(ValueError, match="Diagnose another run"):
        best_of_nearest(network, Reconstruction(), images)


# -- the best of the m nearest codes -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["table", "groups", "shared groups", "cosine groups", "affine"])
def test_candidates_are_the_nearest(kind):
    quantizer = QUANTIZERS[kind](7, 6).double()
    z_e = quantizer.place(torch.randn(9, 6, dtype=torch.float64))
    table = quantizer.table().detach()
    found = nearest_candidates(quantizer, z_e, table, 4)  # (N, m, G)
    books = table.split(7)
    for group, part in enumerate(z_e.chunk(quantizer.groups, 1)):
        book = books[0 if quantizer.shared_codebook else group]
        distances = (part[:, None] - book).square().sum(2)
        assert torch.equal(found[:, :, group], distances.argsort(1)[:, :4])


def test_with_all_codes_it_is_brute_force():
    # Two positions of one row, each decoded by itself: what is best together is best apart.
    network = VQNetwork(
        nn.Conv2d(1, 3, 2, 2), VectorQuantizer(5, 3), nn.ConvTranspose2d(3, 1, 2, 2)
    ).double()
    x = torch.randn(7, 1, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        search = Search(network, Reconstruction(), network.embed(x), x, 5)
        start = search.losses.clone()
        search.run(1, 0.0)
        pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5)).view(-1, 1, 2)
        outputs = network.decode(pairs)  # (25, 1, 2, 4)
        losses = (outputs[None] - x[:, None]).square().flatten(2).mean(2)  # (7, 25)
    lowest, best = losses.min(1)
    assert torch.equal(search.codes(), pairs[best])
    torch.testing.assert_close(search.losses, lowest)
    assert (search.losses < start).sum() >= 4


@pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"distance": Cosine()}], ids=["one", "groups", "cosine"]
)
def test_the_descent_is_that_of_a_loop(options):
    network = mixing(**options).double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    network.initialize_codebook(x)
    network.eval()
    task = Reconstruction()
    with torch.no_grad():
        z_e = network.embed(x)
        search = Search(network, task, z_e, x, 3)
        search.run(2, 0.0)
        table = network.quantizer.table()
        near = nearest_candidates(network.quantizer, z_e, table, 3)  # (B·P, m, G)
        groups = network.quantizer.groups
        near = near.view(5, 4, 3, groups).movedim(2, 3).reshape(5, 4 * groups, 3)
        shape = (1, 2, 2, groups) if groups > 1 else (1, 2, 2)
        for image in range(5):
            codes = near[image, :, 0].clone()

            def loss(codes, image=image):
                return task(network.decode(codes.view(shape)), x[image : image + 1]).item()

            least = first = loss(codes)
            for _ in range(2):
                for site in range(len(codes)):
                    for code in near[image, site]:
                        trial = codes.clone()
                        trial[site] = code
                        if loss(trial) < least:
                            least, codes = loss(trial), trial
            assert least < first
            assert torch.equal(search.codes()[image].flatten(), codes)
            assert search.losses[image].item() == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_no_image_is_worse_and_the_codes_give_the_loss(groups):
    images = pictures(150)
    network = mixing(groups=groups)
    network(images.pixels / 255)  # statistics other than the first ones
    network.initialize_codebook(images.pixels / 255)
    before = state_of(network)
    found = best_of_nearest(network, Reconstruction(), images)
    assert same_state(before, state_of(network))
    x = images.pixels / 255
    network.eval()
    with torch.no_grad():
        result = network(x)
        near = (result.output - x).square().flatten(1).mean(1)
        best = (network.decode(found.codes) - x).square().flatten(1).mean(1)
    assert found.codes.shape == result.quantized.codes.shape
    assert (best <= near * (1 + 1e-5)).all()
    assert found.loss_before == pytest.approx(near.mean().item(), rel=1e-5)
    assert found.loss_after == pytest.approx(best.mean().item(), rel=1e-5)
    assert found.loss_after < 0.999 * found.loss_before
    assert found.before["mse"] == pytest.approx(found.loss_before, rel=1e-5)
    assert found.after["mse"] == pytest.approx(found.loss_after, rel=1e-5)
    changed = (found.codes != result.quantized.codes).double().mean().item()
    assert 0.05 < changed == pytest.approx(found.changed)
    assert (found.images, found.candidates) == (150, 4)


def test_more_sweeps_and_candidates_gain_more_and_one_none():
    images = pictures(30)
    network = mixing()
    network.initialize_codebook(images.pixels / 255)

    def after(**options):
        return best_of_nearest(network, Reconstruction(), images, **options)

    one = after(candidates=1)
    assert one.changed == 0
    assert one.loss_after == one.loss_before
    assert after(candidates=2, sweeps=1).loss_after > after(candidates=99, sweeps=3).loss_after
    assert after(candidates=99).candidates == 6
    # No image goes on after the first sweep when none could have gained enough.
    assert after(tolerance=1.0).loss_after == after(sweeps=1).loss_after
    assert after(count=7).images == 7


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_for_classifiers_too(smoothing):
    images = pictures(30)
    task = Classification(smoothing)
    output = torch.randn(30, 3)
    losses = losses_of_images(task, output, images.labels)
    cross_entropy = nn.functional.cross_entropy(
        output, images.labels, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(losses, cross_entropy)
    network = VQNetwork(
        nn.Conv2d(1, 4, 4, 4), VectorQuantizer(6, 4), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    )
    network.initialize_codebook(images.pixels / 255)
    found = best_of_nearest(network, task, images)
    assert found.loss_after < found.loss_before
    assert set(found.before) == set(found.after) == {"accuracy", "f1", "cross_entropy"}


class Summed(Reconstruction):
    def forward(self, output, target):
        return (output - target).square().sum()


def test_a_loss_that_is_no_mean_over_images_is_refused():
    images = pictures(20)
    network = patches(VectorQuantizer(5, 16), images)
    with pytest.raises(ValueError, match=r"of a Summed task is .* by itself"):
        best_of_nearest(network, Summed(), images)


class Broken(Reconstruction):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, output, target):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("broken")
        return super().forward(output, target)


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize("of", ["best", "refit"])
def test_a_network_is_as_it_was_also_when_something_raises(of, calls):
    images = pictures(20)
    network = mixing()
    network.initialize_codebook(images.pixels / 255)
    network.decoder[1].eval()  # modes of parts are kept
    before, random = state_of(network), torch.get_rng_state()
    task = Broken(calls)
    diagnose = {
        "best": lambda: best_of_nearest(network, task, images),
        "refit": lambda: refitted(network, task, images, images),
    }[of]
    with pytest.raises(RuntimeError, match="broken"):
        diagnose()
    assert same_state(before, state_of(network))
    assert task.training
    task.calls = 10**6
    diagnose()
    assert same_state(before, state_of(network))
    assert torch.equal(random, torch.get_rng_state())


def test_wrong_numbers_are_refused():
    images = pictures(20)
    network = patches(VectorQuantizer(5, 16), images)
    task = Reconstruction()
    none = InMemory("made", "test", images.pixels[:0], images.labels[:0], "made by the test")
    for part in (images, none):
        with pytest.raises(ValueError, match="needs images"):
            best_of_nearest(network, task, part, count=0 if len(part) else 5)
    with pytest.raises(ValueError, match="candidates must be 1 or more"):
        best_of_nearest(network, task, images, candidates=0)
    with pytest.raises(ValueError, match="iterations must be 1 or more"):
        refitted(network, task, images, images, iterations=0)
