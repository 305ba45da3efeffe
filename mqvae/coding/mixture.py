"""Adaptive probability of the next bit of a code, in integer arithmetic.

A code of K values is ceil(log2 K) binary decisions. Each is predicted by counts of what followed
in the same contexts: the position, the codes on the left and above, these up to their first bits.
The logits of all contexts are added with weights, which are learned as well (context mixing:
Mahoney 2005, "Adaptive weighing of context models for lossless data compression").

Encoder and decoder make the same predictions from the same past. Every number is an integer, of an
integer operation or a table of `decimal`, whose exponential is rounded correctly everywhere: so
another processor, library or number of threads decodes the same codes.
"""

from collections.abc import Sequence
from decimal import Context, Decimal
from functools import cache

import numpy as np

BITS = 16  # of a probability
ONE = 1 << BITS
PER_NAT = 256  # steps of a logit in a nat
REACH = 2048  # logits lie within ±8 nats
FINE = 12  # bits of a probability whose logit is looked up
MOST = 1023  # a context's counts are halved above it
BUCKETS = 12  # kinds of contexts by how often they were met: each has weights of its own
FIRST = ONE // 6  # the weight of each context at first
RATE = 16  # of learning weights, 2^−RATE
STEEPEST = 1 << (RATE - 8)  # curvature from which on steps of learning are shorter
FACTOR = np.uint64(0xD6E8FEB86659FD93)  # an odd factor that spreads bits well


@cache
def probabilities() -> np.ndarray:
    """Probability of a one by its logit, (2·REACH,) in units of 2^−BITS."""
    exact = Context(prec=30)
    steps = range(-REACH, REACH)
    odds = (exact.exp(exact.divide(Decimal(-step), Decimal(PER_NAT))) for step in steps)
    return np.array([int(exact.divide(Decimal(ONE), 1 + each)) for each in odds], np.int64)


@cache
def logits() -> np.ndarray:
    """Logits by the first FINE bits of a probability, (2^FINE,)."""
    middles = (np.arange(1 << FINE) << (BITS - FINE)) + (1 << (BITS - FINE - 1))
    return np.searchsorted(probabilities(), middles).clip(0, 2 * REACH - 1) - REACH


def spread(h: np.ndarray) -> np.ndarray:
    """uint64 numbers that differ in many bits where those given differ in one."""
    h = h * FACTOR
    return h ^ (h >> np.uint64(32))


def hashed(parts: Sequence[np.ndarray], kind: int) -> np.ndarray:
    """One number, uint64, for what several numbers say together."""
    h = np.full(parts[0].shape, kind + 1, np.uint64)
    for part in parts:
        h = spread(h ^ (part.astype(np.uint64) + np.uint64(1)))
    return h


class Mixture:
    """Predicts bits in contexts, and learns from what they are.

    Args:
        contexts: Number F of contexts that a bit is predicted in.
        kinds: Number of kinds of bits, each with weights of its own.
        size: Logarithm of how many contexts of each sort have counts of their own.
    """

    def __init__(self, contexts: int, kinds: int, size: int) -> None:
        self.shift = np.uint64(64 - size)
        self.counts = np.zeros(contexts << size, np.int64)  # how often << 32 | how often a one
        self.rows = (np.arange(contexts, dtype=np.int64) << size)[:, None]
        self.weights = np.full((kinds, contexts * BUCKETS), FIRST, np.int64)
        self.own = (np.arange(contexts) * BUCKETS)[:, None]
        often = np.arange(MOST + 2)
        self.buckets = np.array([min(int(n).bit_length(), BUCKETS - 1) for n in often])
        self.inverse = (1 << 40) // (4 * often + 2)

    def predict(self, contexts: np.ndarray, kind: int) -> np.ndarray:
        """Probability that each bit of a kind is a one, (B,) in units of 2^−BITS, never 0 nor 1.

        Contexts are their hashes, (F, B) uint64.
        """
        self.places = (spread(contexts) >> self.shift).astype(np.int64) + self.rows
        counts = self.counts[self.places]
        often = counts >> 32
        # (ones + ¼) / (often + ½) as of Krichevsky and Trofimov, with half of their prior.
        share = ((4 * (counts & 0xFFFFFFFF) + 1) * self.inverse[often]) >> (40 - FINE)
        self.logits = logits()[share]
        self.used = self.buckets[often] + self.own
        self.kind = kind
        mixed = (self.weights[kind][self.used] * self.logits).sum(0) >> BITS
        self.said = probabilities()[mixed.clip(-REACH, REACH - 1) + REACH]
        return self.said

    def learn(self, bits: np.ndarray) -> None:
        """Take account of what the bits were that `predict` was last asked for, (B,) int64."""
        slope = np.zeros(self.weights.shape[1], np.int64)
        np.add.at(slope, self.used.ravel(), (((bits << BITS) - self.said) * self.logits).ravel())
        # The curvature of the loss along the slope is this at most: a step never leads beyond the
        # valley, however many bits and contexts say the same.
        variances = (self.said * (ONE - self.said)) >> BITS
        curvature = int((variances * (self.logits**2).sum(0)).sum()) // (ONE * PER_NAT**2)
        slope = slope * STEEPEST // max(curvature, STEEPEST)
        self.weights[self.kind] += slope >> RATE
        places = self.places.ravel()
        np.add.at(self.counts, places, np.broadcast_to((1 << 32) + bits, self.places.shape).ravel())
        over = places[(self.counts[places] >> 32) > MOST]
        while len(over):  # as often as one step has met it
            halved = self.counts[over] >> 1
            self.counts[over] = ((halved >> 32) << 32) | (halved & 0x7FFFFFFF)
            over = over[(self.counts[over] >> 32) > MOST]
