"""How codes are used: counts, usage, perplexity, entropy."""

import math

import torch
from torch import Tensor

from mqvae.core.distributed import from_all_processes


def count_codes(codes: Tensor, num_codes: int, *, groups: int = 1) -> Tensor:
    """How often each code was chosen, (G, K) int64, in codes (...), or (..., G) where G > 1."""
    columns = codes.reshape(-1, groups).T  # (G, N)
    return torch.stack([torch.bincount(c, minlength=num_codes) for c in columns])


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy (in nats) of counts, (G, K), averaged over groups; a scalar."""
    p = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.special.entr(p).sum(1).exp().mean()


def usage(counts: Tensor) -> Tensor:
    """Share of codes chosen at least once, by counts, (G, K); a scalar in [0, 1]."""
    return (counts > 0).double().mean()


PENDING = 2**22  # codes that wait to be counted together


class CodeCounts:
    """Counts of chosen codes in memory that grows with the codes chosen, not with K."""

    def __init__(
        self, num_codes: int, groups: int = 1, *, device: torch.device | str = "cpu"
    ) -> None:
        self.num_codes = num_codes
        self.groups = groups
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        self._counted = [(nothing, nothing)] * groups
        # Counted later, together: counting reads sizes on the host, which a GPU would wait for.
        self._pending: list[Tensor] = []
        self._waiting = 0

    def add(self, codes: Tensor) -> None:
        """Count codes, (...), or (..., G) with more than one group."""
        self._pending.append(codes.detach().reshape(-1, self.groups))
        self._waiting += codes.numel()
        if self._waiting >= PENDING:
            self._count()

    def _count(self) -> None:
        if self._pending:
            columns = torch.cat(self._pending).unbind(1)
            self._pending, self._waiting = [], 0
            for group, codes in enumerate(columns):
                self._take(group, codes, torch.ones_like(codes))

    def _take(self, group: int, codes: Tensor, counts: Tensor) -> None:
        known, of_known = self._counted[group]
        found, place = torch.cat([known, codes]).unique(return_inverse=True)
        summed = torch.zeros_like(found).index_add_(0, place, torch.cat([of_known, counts]))
        self._counted[group] = found, summed

    @property
    def counted(self) -> list[tuple[Tensor, Tensor]]:
        """Of each group the codes that were chosen, ascending, and how often, (n,) int64 each."""
        self._count()
        return self._counted

    def table(self) -> Tensor:
        """Rows of group, code and count, (n, 3) int64, of the codes that were chosen."""
        groups = enumerate(self.counted)
        return torch.cat([torch.stack([torch.full_like(c, g), c, n], 1) for g, (c, n) in groups])

    def add_table(self, rows: Tensor) -> None:
        """Add what `table` gave of other codes."""
        for group, (known, _) in enumerate(self.counted):
            own = rows[rows[:, 0] == group].to(known.device)
            self._take(group, own[:, 1], own[:, 2])

    def of_all_processes(self) -> "CodeCounts":
        """The counts of all processes together. All of them take part."""
        device = self._counted[0][0].device
        both = CodeCounts(self.num_codes, self.groups, device=device)
        both.add_table(from_all_processes(self.table()))
        return both

    @property
    def used(self) -> int:
        """Codes chosen at least once, of all groups together; there are G · K."""
        return sum(len(codes) for codes, _ in self.counted)

    @property
    def usage(self) -> float:
        """As the function `usage`."""
        return self.used / (self.groups * self.num_codes)

    @property
    def perplexity(self) -> float:
        """As the function `perplexity`."""
        return sum(perplexity(n[None]).item() for _, n in self.counted) / self.groups

    def entropy(self, *, corrected: bool = False) -> float:
        """−Σ p log₂ p of code frequencies p in bits, summed over groups.

        Args:
            corrected: Add (codes chosen − 1) / (2 · codes counted · ln 2) to each group, which
                frequencies of few codes lack (Miller 1955), up to log₂ K.
        """
        total = 0.0
        for _, counts in self.counted:
            bits = math.log2(perplexity(counts[None]).item()) if len(counts) else 0.0
            if corrected and len(counts):
                lacking = (len(counts) - 1) / (2 * int(counts.sum()) * math.log(2))
                bits = min(bits + lacking, math.log2(self.num_codes))
            total += bits
        return total
