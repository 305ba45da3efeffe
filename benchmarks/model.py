"""What many GPUs would take for a step: compute over rate, bytes over bandwidth."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.table import Cell

RATE = 300e12  # FLOP/s: 30% of an H100's 989 in bfloat16, as convolutions reach it
OVERLAP = 2 / 3  # of the compute, the backward pass, is what a plain reduction hides behind


@dataclass(frozen=True)
class Cluster:
    """GPUs and what is between them.

    Attributes:
        gpus: How many.
        bandwidth: Bytes per second that an all-reduce moves from each GPU to its neighbour.
        latency: Seconds that a reduction takes however little it sends.
    """

    gpus: int
    bandwidth: float
    latency: float

    def seconds(self, sent: float, reductions: int) -> float:
        """Of reductions of so many bytes together, 2(n − 1)/n of which pass each GPU."""
        share = 2 * (self.gpus - 1) / self.gpus
        return share * sent / self.bandwidth + reductions * self.latency


# Of an H100's NVLink, 450 GB/s each way; of eight adapters of 400 Gb/s a machine, 400 GB/s; of one
# of 100 Gb/s, 12.5 GB/s, which the eight GPUs of a machine share: 80 to 90% of it all.
CLUSTERS: Mapping[str, Cluster] = {
    "8 GPUs, NVLink": Cluster(8, 360e9, 30e-6),
    "64 GPUs, InfiniBand 8 × 400 Gb/s": Cluster(64, 320e9, 100e-6),
    "64 GPUs, Ethernet 100 Gb/s": Cluster(64, 11e9, 300e-6),
}


@dataclass(frozen=True)
class Count:
    """What one step of a rule does, counted.

    Attributes:
        flops: Floating-point operations for an image.
        sent: Bytes that a process gives to reductions, whatever its batch.
        reductions: How many there are.
        hidden: Whether they run beside the backward pass, as those of
            `DistributedDataParallel` do. The rules wait for theirs.
    """

    flops: float
    sent: int
    reductions: int
    hidden: bool = False


def efficiency(count: Count, images: float, cluster: Cluster) -> float:
    """Time without the others over time with them, for a number of images on each GPU."""
    compute = images * count.flops / RATE
    behind = OVERLAP * compute if count.hidden else 0.0
    return compute / (compute + max(0.0, cluster.seconds(count.sent, count.reductions) - behind))


def images_for(wanted: float, count: Count, cluster: Cluster) -> float:
    """Images on each GPU by which the efficiency is `wanted`."""
    # compute = e (compute + sending − hidden share × compute), solved for compute
    behind = OVERLAP if count.hidden else 0.0
    sending = cluster.seconds(count.sent, count.reductions)
    compute = wanted * sending / (1 - wanted * (1 - behind))
    return compute * RATE / count.flops


def rows(counts: Mapping[str, Count], images: int) -> list[dict[str, Cell]]:
    """The table: how each step scales on each cluster."""
    return [
        {
            "step": name,
            "GFLOP an image": count.flops / 1e9,
            "MB sent": count.sent / 1e6,
            "reductions": count.reductions,
            "on": where,
            "compute, ms": 1e3 * images * count.flops / RATE,
            "sending, ms": 1e3 * cluster.seconds(count.sent, count.reductions),
            "efficiency": efficiency(count, images, cluster),
            "images a GPU for 0.9": images_for(0.9, count, cluster),
        }
        for where, cluster in CLUSTERS.items()
        for name, count in counts.items()
    ]
