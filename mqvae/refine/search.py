"""The search for codes that decode to a lower loss, set up by `Refinement`."""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from mqvae.core.bilevel import Loss
from mqvae.core.nearest import nearest as nearest_codes
from mqvae.core.network import VQNetwork
from mqvae.core.passes import full
from mqvae.refine.choices import Choices
from mqvae.refine.curvature import Curvature
from mqvae.refine.refinement import Prior, Refinement

DAMPING = 1.0  # of curvature at first
FEW, CAREFUL = 5, 1.5  # with so few passes there is no time to err
WORSE, BETTER = 1.3, 0.9  # its factor after a step
STEPS = 10  # of this kind at most; all passes before are annealing
CANDIDATES = 8  # codes that annealing chooses from
HOT, COLD = 1.0, 0.4  # its first and last temperature
RATE, MOMENTS = 0.3, (0.9, 0.999)  # Adam's
SCORES = 2**22  # distances at once, 16 MiB of float32
TINY = 1e-20  # gradients may be: of a loss of one image by the logit of one of many codes


class Passed(NamedTuple):
    """What a pass tells of options."""

    objective: Tensor  # of each image, (B,)
    gradient: Tensor  # of its loss by z_q, (B, ..., D)
    # Bits of an image with each option in one place, (B, ..., S, K), under a prior.
    prices: Tensor | None
    ratio: Tensor  # loss by squared error, (B,)


class Search:
    """The codes of a batch, as options (B, ..., S) of each choice."""

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        target: Tensor,
        how: Refinement,
        curvature: Curvature,
        choices: Choices,
    ) -> None:
        self.network, self.loss, self.target, self.how = network, loss, target, how
        self.choices, self.join = choices.each, choices.join
        # Bits of the quantizer itself, the same at every place; a prior's are not.
        self.own_bits = [
            each.bits if how.bits_weight and how.prior is None else None for each in choices.each
        ]
        middle = curvature.blocks.shape[-1] // 2
        self.own = curvature.blocks[:, :, middle, middle]  # (D, D)
        self.others = curvature.blocks.clone()
        self.others[:, :, middle, middle] = 0
        self.scale = curvature.scale * 2 / target[0].numel()  # of a mean squared error
        self.books: list[Tensor] = []
        self.prices: list[Tensor] = []
        for choice, bits in zip(self.choices, self.own_bits, strict=True):
            table, own = choice.table, self.own[choice.dims, choice.dims]
            quadratic = (table @ own * table).sum(1)
            if bits is not None:
                table = torch.cat([table, bits[:, None].to(table)], 1)
            self.books.append(table)
            # `nearest` minimizes ½ ‖e_k‖² + ½ price_k − z·e_k; this leaves the curvature's.
            self.prices.append(quadratic - table.square().sum(1))

    def run(self, z_e: Tensor | None, nearest: Tensor) -> Tensor:
        """The best options found, from those of the nearest codes on, (B, ..., S).

        Placed embeddings are (B, ..., D); None for the vectors of the nearest codes.
        """
        annealed = self.annealed(z_e, nearest) if self.how.passes > STEPS else None
        return self.stepped(nearest, annealed)

    def annealed(self, z_e: Tensor | None, options: Tensor) -> Tensor:
        """The likeliest options after all passes before the last; arguments as of `run`."""
        count, passes = len(options), self.how.passes - STEPS
        vectors = self._vectors(options)
        left = torch.zeros_like(vectors) if z_e is None else z_e - vectors
        near, logits = [], []
        for number, choice in enumerate(self.choices):
            costs, found = self._near(left[..., choice.dims], options[..., number], number)
            behind = (costs - costs[..., :1]).view(count, -1)
            spread = behind.mean(1, keepdim=True).clamp(min=torch.finfo(behind.dtype).tiny)
            near.append(found)
            logits.append((-behind / spread).view(costs.shape))
        moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in logits]
        sources = [self._source(image) for image in self.target]
        for step in range(passes):
            temperature = HOT * (COLD / HOT) ** (step / max(1, passes - 1))
            noisy = []
            for each in logits:
                size = each[0].numel()
                drawn = [torch.empty(size).exponential_(generator=s) for s in sources]
                noise = torch.stack(drawn).clamp(min=TINY).log().view(each.shape)
                noisy.append((each - noise.to(each)) / temperature)
            prices = None
            if self.how.prior is not None:
                prices = self._under_prior(self.how.prior, _likeliest(near, logits))[1]
            gradients = self._soft(near, noisy, prices)
            for each, gradient, (mean, square) in zip(logits, gradients, moments, strict=True):
                mean.lerp_(gradient, 1 - MOMENTS[0])
                square.lerp_(gradient.square(), 1 - MOMENTS[1])
                first, second = (
                    moment / (1 - decay ** (step + 1))
                    for moment, decay in zip((mean, square), MOMENTS, strict=True)
                )
                each -= RATE * first / (second.sqrt() + TINY)
        return _likeliest(near, logits)

    def _near(self, left: Tensor, options: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Costs and options nearest to what one choice stands for, (B, ..., M) each."""
        choice = self.choices[number]
        table, price = choice.table, choice.price
        count, offsets = min(CANDIDATES, len(table)), table.square().sum(1) + price
        wanted = (left + table[options]).flatten(0, -2)
        costs, found = [], []
        for part in wanted.split(max(1, SCORES // len(table))):
            near = torch.addmm(offsets, part, table.T, alpha=-2).topk(count, largest=False).indices
            # Anew, as the sum above loses digits where codewords are far from zero.
            costs.append((part[:, None] - table[near]).square().sum(-1) + price[near])
            found.append(near)
        shape = (*options.shape, count)
        return torch.cat(costs).view(shape), torch.cat(found).view(shape)

    @torch.enable_grad()
    def _soft(
        self, near: list[Tensor], logits: list[Tensor], prices: Tensor | None
    ) -> list[Tensor]:
        """The objective's gradient by logits of mixtures of options."""
        logits = [each.requires_grad_() for each in logits]
        z_q = self.own.new_zeros(*near[0].shape[:-1], len(self.own))
        bits = z_q.new_zeros(())
        parts = zip(self.choices, near, logits, strict=True)
        for number, (choice, found, each) in enumerate(parts):
            weights = each.softmax(-1)
            mixed = (weights[..., None, :] @ choice.table[found])[..., 0, :]  # (B, ..., d)
            after = z_q.shape[-1] - choice.dims.stop
            z_q = z_q + pad(mixed, (choice.start, after))
            if prices is not None:
                bits = bits + (weights * prices[..., number, :].gather(-1, found)).sum()
            elif (own := self.own_bits[number]) is not None:
                bits = bits + (weights * own[found]).sum()
        objective = self.loss(self._output(z_q), self.target) * len(self.target)
        if self.how.bits_weight:
            objective = objective + self.how.bits_weight * bits
        # By what the softmax is of; temperatures are the same for all, which Adam does not feel.
        return list(torch.autograd.grad(objective, logits))

    def stepped(self, nearest: Tensor, annealed: Tensor | None) -> Tensor:
        """The best options that the last passes find, from the better of two on."""
        best, now = nearest, self._pass(nearest)
        scale = self.scale * now.ratio  # (B,)
        at_first = CAREFUL if self.how.passes <= FEW else DAMPING
        damping = torch.full_like(now.objective, at_first)
        start = nearest if annealed is None else annealed
        for number in range(annealed is None, min(self.how.passes, STEPS) + 1):
            options = self._swept(best, now, scale * damping) if number else start
            found = self._pass(options)
            better = found.objective < now.objective
            if number:
                damping = damping * torch.where(better, BETTER, WORSE)
            best = _where(better, options, best)
            now = Passed(*(_where(better, *pair) for pair in zip(found, now, strict=True)))
        return best

    def _swept(self, options: Tensor, now: Passed, damping: Tensor) -> Tensor:
        """Options that each position chooses in its turn, given those of the positions before.

        Neighbours in a grid take different turns; all others are independent of each other. `now`
        is what a pass told of options (B, ..., S); μ, (B,), is in units of the curvature.
        """
        gradient = now.gradient
        grid = gradient.ndim == 4
        mu = damping.view(-1, *[1] * (gradient.ndim - 1))
        slope = gradient / mu  # its change is the curvature times that of z_q
        options = options.clone()
        turns = [(slice(i, None, 2), slice(j, None, 2)) for i in (0, 1) for j in (0, 1)]
        for turn in turns if grid else [()]:
            here = (slice(None), *turn)
            moved = torch.zeros_like(slope)
            left = slope[here].clone()
            for number, choice in enumerate(self.choices):
                dims, own = choice.dims, self.own[choice.dims]  # (d, D)
                before = choice.table[options[(*here, ..., number)]]
                wanted = before @ own[:, dims] - left[..., dims]
                weight = (self.how.bits_weight / mu).expand(*wanted.shape[:-1], 1)
                if self.own_bits[number] is not None:
                    wanted = torch.cat([wanted, -weight], -1)
                each = wanted.flatten(0, -2)
                if now.prices is None:
                    found = nearest_codes(each, self.books[number], self.prices[number])
                else:
                    prices = now.prices[here][..., number, :] * weight
                    found = self._cheapest(each, number, prices.flatten(0, -2))
                found = found.view(wanted.shape[:-1])
                change = choice.table[found] - before
                left += change @ own
                moved[here][..., dims] += change
                options[(*here, ..., number)] = found
            if grid:
                slope = slope + conv2d(moved.movedim(-1, 1), self.others, padding=1).movedim(1, -1)
        return options

    def _cheapest(self, wanted: Tensor, number: int, prices: Tensor) -> Tensor:
        """The option of each place where all have prices of their own, (N, K)."""
        book = self.books[number]
        offsets = (book.square().sum(1) + self.prices[number]) / 2
        size = max(1, SCORES // len(book))
        parts = zip(wanted.split(size), prices.split(size), strict=True)
        scores = (torch.addmm(offsets + price, part, book.T, alpha=-1) for part, price in parts)
        return torch.cat([each.argmin(1) for each in scores])

    def _pass(self, options: Tensor) -> Passed:
        z_q = self._vectors(options).requires_grad_()
        with torch.enable_grad():
            output = self._output(z_q)
            pairs = zip(output.split(1), self.target.split(1), strict=True)
            errors = torch.stack([self.loss(*pair) for pair in pairs])  # (B,)
            (gradient,) = torch.autograd.grad(errors.sum(), z_q)
        errors, bits, prices = errors.detach(), None, None
        if self.how.prior is not None:
            bits, prices = self._under_prior(self.how.prior, options)
        for number, own in enumerate(self.own_bits):
            if own is not None:
                each = own[options[..., number]].flatten(1).sum(1)
                bits = each if bits is None else bits + each
        objective = errors if bits is None else errors + self.how.bits_weight * bits
        squared = (output.detach() - self.target).square().flatten(1).mean(1)
        return Passed(objective, gradient, prices, errors / squared.clamp(min=TINY))

    def _under_prior(self, prior: Prior, options: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of each image, (B,), and with each option in one place, (B, ..., S, K)."""
        bits, prices = prior.prices(self.join(options))
        return bits, prices.view(*options.shape, -1)

    def _output(self, z_q: Tensor) -> Tensor:
        """What the decoder makes of vectors, without what was added to images."""
        output = full(self.network.decoded(z_q))
        return output[..., : self.target.shape[-2], : self.target.shape[-1]]

    def _vectors(self, options: Tensor) -> Tensor:
        """z_q, (B, ..., D)."""
        z_q = self.own.new_zeros(*options.shape[:-1], len(self.own))
        for number, choice in enumerate(self.choices):
            z_q[..., choice.dims] += choice.table[options[..., number]]
        return z_q

    def _source(self, image: Tensor) -> torch.Generator:
        """Of an image's noise, by its pixels as bytes: in every batch, type and device the same."""
        pixels = (image.float().clamp(0, 1) * 255).round().byte().cpu().contiguous()
        told = hashlib.blake2b(pixels.numpy().tobytes(), key=str(self.how.seed).encode())
        return torch.Generator().manual_seed(int.from_bytes(told.digest()[:8], "little"))


def _likeliest(near: list[Tensor], logits: list[Tensor]) -> Tensor:
    """Of candidates, (B, ..., M) of each choice, the options of the highest logits, (B, ..., S)."""
    best = [each.argmax(-1, keepdim=True) for each in logits]
    return torch.stack([n.gather(-1, k)[..., 0] for n, k in zip(near, best, strict=True)], -1)


def _where(better: Tensor, new: Any, old: Any) -> Any:
    """What is better of each image; None of None."""
    return new if new is None else torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
