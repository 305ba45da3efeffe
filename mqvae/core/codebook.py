"""What the codewords are a function of."""

from abc import ABC, abstractmethod
from copy import deepcopy
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from mqvae.core.averages import Averages
from mqvae.errors import MqvaeError, at_least, below_one


class Codebook(nn.Module, ABC):
    """Codewords as a function of parameters, which the upper level trains.

    What a quantizer is given, such as `Affine()`, holds options alone; the quantizer builds a copy.
    Called, the built one gives the codewords, (rows, d).
    """

    def built(self, rows: int, dim: int) -> Self:
        """A copy with parameters of its own, for `rows` codewords of `dim` dimensions."""
        copy = deepcopy(self)
        copy.build(rows, dim)
        return copy

    @abstractmethod
    def build(self, rows: int, dim: int) -> None:
        """Make parameters and buffers."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The codewords, (rows, dim)."""

    @abstractmethod
    def assign(self, codewords: Tensor) -> None:
        """Make `codewords`, (rows, dim), the codebook."""

    @property
    def like(self) -> Tensor:
        """A tensor of its type, where it is."""
        return next(chain(self.parameters(), self.buffers()))

    @property
    def learns(self) -> bool:
        """Whether anything trains it."""
        return any(p.requires_grad for p in self.parameters())

    def translate(self, by: Tensor) -> None:
        """Move every codeword by a row of `by`, (rows, dim), and by nothing else.

        Raises:
            ValueError: if a codeword cannot move without others.
        """
        raise MqvaeError(
            f"a codeword of {type(self).__name__} cannot move by itself, they share parameters: "
            "use Table() or HyperNetwork()."
        )

    def require_movable(self) -> None:
        """Refuse what `translate` refuses."""
        if type(self).translate is Codebook.translate:
            self.translate(torch.zeros(()))


class Table(Codebook):
    """C is the parameter itself: one row per codeword."""

    weight: Tensor

    def build(self, rows: int, dim: int) -> None:
        self.weight = nn.Parameter(_spread(rows, dim))

    def forward(self) -> Tensor:
        return self.weight

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        self.weight.copy_(codewords)

    @torch.no_grad()
    def translate(self, by: Tensor) -> None:
        self.weight.add_(by)


class MovingAverage(Table):
    """C is a moving average (EMA) of the embeddings that choose each codeword (Eq. 17).

        N_k ← γ N_k + (1 − γ) n_k        m_k ← γ m_k + (1 − γ) Σ z_e        e_k = m_k / N_k

    `quantizer.update()` takes the step. The codewords are no parameters: no optimizer has them, and
    the codebook loss trains nothing. One that no embedding chose stays where it is, and ε, the
    smoothing of N, pulls no codeword to the origin.

    `quantizer.requires_grad_(False)`, that of a `VQNetwork`, and `--freeze codebook` hold it still.
    The same call on another module around it reaches parameters alone, of which this is none.

    Args:
        decay: γ. 0.99 is usual; 0.9 follows an encoder that learns fast.
        epsilon: ε, in embeddings.

    Raises:
        MqvaeError: if `decay` is not in [0, 1), or `epsilon` is negative.

    Source: van den Oord et al. 2017, Appendix A.1.
    """

    learns = True

    def __init__(self, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        super().__init__()
        below_one(decay=decay)
        at_least(0, epsilon=epsilon)
        self.decay = decay
        self.epsilon = epsilon

    def extra_repr(self) -> str:
        return f"decay={self.decay}, epsilon={self.epsilon}"

    def build(self, rows: int, dim: int) -> None:
        self.register_buffer("weight", _spread(rows, dim))
        self.averages = Averages(self.weight, self.decay, self.epsilon)


class Affine(Codebook):
    """C = mean + scale ⊙ table: scale and mean, of one dimension each, move all codewords.

    So codewords that nothing selects follow the others.

    Source: Huh et al. 2023, "Straightening out the straight-through estimator", Section 4.1.
    """

    def build(self, rows: int, dim: int) -> None:
        self.weight = nn.Parameter(_spread(rows, dim))
        self.scale = nn.Parameter(torch.ones(dim))
        self.mean = nn.Parameter(torch.zeros(dim))

    def forward(self) -> Tensor:
        return self.mean + self.scale * self.weight

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        self.weight.copy_(codewords)
        self.scale.fill_(1)
        self.mean.zero_()


class LinearMap(Codebook):
    """C = table · W: the table stays as it was initialized, W (dim × dim) is trained.

    Source: Zhu et al. 2024, "Addressing representation collapse in vector quantized models with
    one linear layer" (SimVQ).
    """

    table: Tensor

    def build(self, rows: int, dim: int) -> None:
        self.register_buffer("table", _spread(rows, dim))
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self) -> Tensor:
        return self.table @ self.weight

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        self.table.copy_(codewords)
        self.weight.copy_(torch.eye(len(self.weight)))


class HyperNetwork(Codebook):
    """C = base + MLP(embedding), with tanh: the network's parameters and embedding are trained.

    `base` is what the codebook was initialized to; the last layer starts at zero.

    Args:
        embedding_dim: Dimensions of the embedding of a code.
        width: Hidden units.
    """

    base: Tensor

    def __init__(self, embedding_dim: int = 32, width: int = 128) -> None:
        super().__init__()
        at_least(1, embedding_dim=embedding_dim, width=width)
        self.embedding_dim = embedding_dim
        self.width = width

    def extra_repr(self) -> str:
        return f"embedding_dim={self.embedding_dim}, width={self.width}"

    def build(self, rows: int, dim: int) -> None:
        self.register_buffer("base", _spread(rows, dim))
        self.embedding = nn.Parameter(torch.randn(rows, self.embedding_dim))
        self.hidden = nn.Linear(self.embedding_dim, self.width)
        self.out = nn.Linear(self.width, dim)
        self._start()

    def _start(self) -> None:
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self) -> Tensor:
        return self.base + self.out(self.hidden(self.embedding).tanh())

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        self.base.copy_(codewords)
        self._start()

    @torch.no_grad()
    def translate(self, by: Tensor) -> None:
        self.base.add_(by)


def _spread(rows: int, dim: int) -> Tensor:
    # Of the norm of a freshly initialized layer's output; `assign` replaces it.
    return torch.randn(rows, dim) / dim**0.5
