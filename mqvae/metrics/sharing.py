"""How many vectors share all of their codes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mqvae.core.distributed import from_all_processes
from mqvae.tasks import metrics_of

SHARED = metrics_of("shared")


def shared(
    codes: Sequence[Tensor], groups: int, *, device: torch.device | str, together: bool
) -> dict[str, float]:
    """The metrics of `SHARED`.

    Args:
        codes: Batches of codes, (B,) or (B, G) with more than one group.
        groups: G.
        device: Where they are.
        together: Processes share the split: all of them call this.
    """
    nothing = torch.zeros(0, groups, dtype=torch.int64, device=device)
    rows = torch.cat([nothing, *(each.reshape(-1, groups) for each in codes)])
    rows = from_all_processes(rows) if together else rows
    counts = rows.unique(dim=0, return_counts=True)[1]
    return {"unique_codes": len(counts) / len(rows), "collisions": float(counts[counts > 1].sum())}
