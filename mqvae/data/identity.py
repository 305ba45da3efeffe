"""Which images a split has: what a run keeps of them, and what has changed since."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mqvae.data.images import Images

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Difference:
    """What is different between two sets of images.

    Attributes:
        added: Images that only the later one has.
        gone: Images that only the earlier one has.
        changed: Images of another size in bytes under the same name.
        other: They are different, and no images can be counted: the pixels or the order are others.
        names: Names of the first few that were added or changed.
    """

    added: int = 0
    gone: int = 0
    changed: int = 0
    other: str = ""
    names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed or self.other)

    def __str__(self) -> str:
        """As in "3 images added, 1 gone, 2 changed (a.png, b.png, c.png, …)"."""
        counts = {"added": self.added, "gone": self.gone, "changed": self.changed}
        parts = [f"{count:,} {word}" for word, count in counts.items() if count]
        if self.other:
            parts.append(self.other)
        more = ", …" if self.added + self.changed > len(self.names) else ""
        named = f" ({', '.join(self.names)}{more})" if self.names else ""
        return (", ".join(parts) or "no difference") + named


@dataclass(frozen=True)
class Identity:
    """Which images a split has, without the images.

    Attributes:
        count: How many there are.
        digest: BLAKE2b of their names and sizes in bytes, in order; of pixels and labels where
            they have no names. 32 hexadecimal digits.
        names: Hash of each name, (count,) uint64; None where they have none, or it is not known.
        sizes: Bytes of each, (count,) int64; None with `names`.
        named: The names, for messages; empty where they are not known.
    """

    count: int
    digest: str
    names: np.ndarray | None = field(default=None, repr=False, compare=False)
    sizes: np.ndarray | None = field(default=None, repr=False, compare=False)
    named: Sequence[str] = field(default=(), repr=False, compare=False)

    def compare(self, later: "Identity") -> Difference:
        """What has changed from this one to a later one."""
        if self == later:
            return Difference()
        if self.names is None or self.sizes is None or later.names is None or later.sizes is None:
            if self.count == later.count:
                return Difference(other=f"{self.count:,} images, but not the same")
            return Difference(other=f"{self.count:,} images then, {later.count:,} now")
        common, then, now = np.intersect1d(self.names, later.names, return_indices=True)
        changed = now[self.sizes[then] != later.sizes[now]]
        added = np.isin(later.names, common, invert=True).nonzero()[0]
        gone = int(np.isin(self.names, common, invert=True).sum())
        shown = [*added.tolist(), *np.sort(changed).tolist()][:_SHOWN] if later.named else []
        same = not (len(added) or gone or len(changed))
        return Difference(
            added=len(added),
            gone=gone,
            changed=len(changed),
            other="the same images in another order" if same else "",
            names=tuple(later.named[i] for i in shown),
        )

    def to_json(self) -> dict[str, Any]:
        """Count and digest, as `state.json` and `summary.json` have them."""
        return {"count": self.count, "digest": self.digest}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Identity":
        """What `to_json` gave."""
        return cls(int(content["count"]), str(content["digest"]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What it takes to say what has changed; nothing where images have no names."""
        if self.names is None or self.sizes is None:
            return {}
        return {"names": self.names, "sizes": self.sizes}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> "Identity":
        """The same with what `to_arrays` gave; without it, if that is of other images."""
        if {"names", "sizes"} <= arrays.keys():
            names, sizes = arrays["names"], arrays["sizes"]
            if _digest(names, sizes) == self.digest:
                return Identity(self.count, self.digest, names, sizes)
        return self


def identity_of(images: Images) -> Identity:
    """Which images these are: names and sizes of files, else their pixels and labels.

    Files are asked for their sizes, and not read.
    """
    files = images.files
    if files is not None:
        names, sizes = files.name_hashes, files.sizes()
        return Identity(len(images), _digest(names, sizes), names, sizes, images.names)
    return Identity(len(images), images.digest)


def _digest(names: np.ndarray, sizes: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for values, kind in ((names, "<u8"), (sizes, "<i8")):
        digest.update(values.astype(kind).tobytes())
    return digest.hexdigest()
