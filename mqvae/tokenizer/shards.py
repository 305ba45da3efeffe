"""Codes of any number of images: a folder of shards, written in constant memory."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.data import Images, fitting, these
from mqvae.data.identity import identity_of
from mqvae.errors import MqvaeError
from mqvae.files import read_json, write_json
from mqvae.progress import watched
from mqvae.refine.refinement import Refinement
from mqvae.tokenizer.codec import BATCH_SIZE, at_once
from mqvae.tokenizer.codes import Codes, form_of
from mqvae.tokenizer.files import FileCodec, is_inside

SHARD = 10_000  # images of 64 × 64; fewer of larger ones
INDEX = "index.json"


class Shards:
    """A folder of codes that is written shard by shard, and resumed after a kill.

    A shard is a file as `Codes.save` writes it, of images in their order; `index.json` names the
    shards in theirs, and says whether all of them are there. A shard that is there is kept while
    its images have the names, sizes and times of change they had, and those it skipped still
    cannot be read; else it is written anew.

    Args:
        folder: The folder.
        tokenizer: What encodes.
        images: What is encoded.
        size: Images in a shard (default: `SHARD` of 64 × 64, or as many as have the pixels; fewer
            of those that are refined, so that a shard takes about as long).
        refine: How codes are refined; None for the nearest.

    Raises:
        ValueError: if the folder holds something else; `overwrite` in `begin` replaces other codes.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: FileCodec,
        images: Images,
        *,
        size: int | None = None,
        refine: Refinement | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.images = images
        self.refine = refine
        self._refined = "" if refine is None else str(refine)
        most = SHARD if refine is None else max(SHARD // refine.passes, BATCH_SIZE)
        self.size = size = size or fitting(most, images.shape)
        side, channels = form_of(images.shape)
        count = -(-len(images) // size)
        # What does not change when images are added, removed or replaced.
        self._fixed = {
            "piece": size,
            "num_codes": tokenizer.network.quantizer.num_codes,
            "side": side,
            "channels": channels,
            "model": tokenizer.model,
            "refined": self._refined,
            "of": images.name,
            "split": images.split,
        }
        self.index: dict[str, Any] = {
            "images": len(images),
            "pieces": [f"codes-{i:06d}.npz" for i in range(count)],
            **self._fixed,
            "complete": False,
        }
        self._fingerprints = _fingerprints(images, size)

    def check(self, *, overwrite: bool) -> bool:
        """Whether there are shards of the same codes to go on with.

        Raises:
            ValueError: if the folder holds something else that must or should not be replaced.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return False
        if not self.folder.is_dir():
            raise MqvaeError(f"{self.folder} is a file: --out takes a folder, or a new FILE.npz.")
        there = _read(self.folder) if (self.folder / INDEX).is_file() else None
        if there is None:
            raise MqvaeError(
                f"{self.folder} is a folder that holds other files than codes: choose another "
                "--out, a new folder or a FILE.npz."
            )
        same = all(there.get(key) == value for key, value in self._fixed.items())
        if not same and not overwrite:
            raise MqvaeError(
                f"{self.folder} holds codes {_differing(there, self._fixed)}: choose another "
                "--out, or add --overwrite."
            )
        return same and not overwrite

    def begin(self, *, going_on: bool) -> None:
        """Make the folder, or clear it of the codes in it. One process does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not going_on:
            (self.folder / INDEX).unlink(missing_ok=True)
        kept = self.index["pieces"] if going_on else ()
        for path in self.folder.glob("codes-*.npz*"):
            if path.name not in kept:
                path.unlink()
        self._write_index(complete=False)

    def encode(self, *, rank: int = 0, world_size: int = 1) -> int:
        """Write the shards that are not there yet or are of other images.

        Returns:
            How many images these shards are of.

        Args:
            rank: This process; they take whole shards by turns.
            world_size: How many processes there are.
        """
        mine = range(rank, len(self.index["pieces"]), world_size)
        missing = [number for number in mine if not self._is_there(number)]
        batches = self._batches(missing)
        total = sum(-(-len(self._range(number)) // self._batch_size) for number in missing)
        parts: list[np.ndarray] = []
        writing: Future[None] | None = None
        # Compressed beside the encoding of the next shard.
        with ThreadPoolExecutor(1) as writer:
            for number, x in watched(batches, total, "encoding"):
                parts.append(self.tokenizer.encode_batch(x, refine=self.refine).cpu().numpy())
                if sum(map(len, parts)) == len(self._range(number)):
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self._save, number, np.concatenate(parts))
                    parts = []
            if writing is not None:
                writing.result()
        return sum(len(self._range(number)) for number in missing)

    def finish(self) -> int:
        """Say that all shards are there. One process does.

        Returns:
            How many images have codes: those that could not be read have none.
        """
        codes = sum(len(Codes.load(self.folder / name).names) for name in self.index["pieces"])
        self.index["codes"] = codes
        self._write_index(complete=True)
        return codes

    @property
    def _batch_size(self) -> int:
        return BATCH_SIZE if self.refine is None else at_once(self.images.shape, self.refine)

    def _range(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, len(self.images)))

    def _batches(self, numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        # One after another without a pause between shards; none has images of two.
        parts = [
            (number, part)
            for number in numbers
            for part in _indices(self._range(number)).split(self._batch_size)
        ]
        taken = these(self.images, (part for _, part in parts), device=self.tokenizer.device)
        return ((number, x) for (number, _), (x, _) in zip(parts, taken, strict=True))

    def _is_there(self, number: int) -> bool:
        path, mine = self.folder / self.index["pieces"][number], self._range(number)
        try:
            found = Codes.load(path)
        except ValueError:
            return False  # not there, or damaged: written anew
        of = found.model, found.refined, found.images, len(found.names) + len(found.skipped)
        wanted = self.index["model"], self._refined, self._fingerprints[number], len(mine)
        if of != wanted:
            return False
        # What could not be read then may be readable now, by other rights or from another disk.
        skipped = set(found.skipped)
        for i in mine if skipped else ():
            if self.images.names[i] in skipped:
                self.images.take([i])
        return skipped <= set(self.images.skipped)

    def _save(self, number: int, codes: np.ndarray) -> None:
        mine = self._range(number)
        digits = len(str(len(self.images) - 1))
        names = tuple(
            self.images.names[i] if self.images.names else f"{i:0{digits}d}" for i in mine
        )
        made = self.tokenizer.as_file(codes, *form_of(self.images.shape), names=names)
        made = replace(
            made.without(self.images.skipped),
            images=self._fingerprints[number],
            refined=self._refined,
        )
        made.save(self.folder / self.index["pieces"][number])

    def _write_index(self, *, complete: bool) -> None:
        write_json(self.folder / INDEX, {**self.index, "complete": complete}, indent=1)


def shards_of(folder: str | Path) -> Iterator[Codes]:
    """The codes in a folder, shard by shard.

    Raises:
        ValueError: if it holds no codes, or not all of them yet.
    """
    folder = Path(folder)
    index = _read(folder)
    if index is None:
        raise MqvaeError(
            f"{folder} holds no codes: expected a folder that `mqvae encode` wrote, with an "
            f"{INDEX}, or a file."
        )
    if not index["complete"]:
        raise MqvaeError(
            f"{folder} does not hold all of its codes yet: run the same `mqvae encode` again, "
            "which resumes it."
        )
    return (Codes.load(folder / name) for name in index["pieces"])


def decode_shards(tokenizer: FileCodec, codes: str | Path, folder: str | Path) -> int:
    """Write the images of a folder of codes as PNG files; returns how many.

    A file is called as its image, with `.png` after the whole name if it does not end so already:
    nothing has to be known of the other shards.

    Raises:
        ValueError: for what `Tokenizer.check_codes` refuses.
    """
    if tokenizer.settings.data.are_vectors:
        found = list(shards_of(codes))
        names = tuple(name for shard in found for name in shard.names)
        rows = np.concatenate([shard.codes for shard in found])
        whole = replace(found[0], codes=rows, names=names)
        return tokenizer.decode_to_files(whole, folder)
    done = 0
    for shard in shards_of(codes):
        if shard.names:
            paths = [_png(name, done + i) for i, name in enumerate(shard.names)]
            done += tokenizer.decode_to_files(shard, folder, paths=paths)
    return done


def _png(name: str, number: int) -> Path:
    path = Path(f"{name.removesuffix('.png')}.png")
    return path if is_inside(path) else Path(f"{number:08d}.png")


def _indices(mine: range) -> Tensor:
    return torch.arange(mine.start, mine.stop)


def _read(folder: Path) -> Mapping[str, Any] | None:
    try:
        index = read_json(folder / INDEX)
        # Names of its own: an index that somebody else wrote leads nowhere else.
        named = all(re.fullmatch(r"codes-\d{6,}\.npz", name) for name in index["pieces"])
        return index if named and {"complete", "model"} <= index.keys() else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _differing(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The difference between codes, in words: of images or refinement."""
    if there.get("refined") != wanted["refined"]:
        then, now = (of.get("refined") or "the nearest ones" for of in (there, wanted))
        return f"that were refined otherwise ({then}; wanted: {now})"
    then, now = (f"{of.get('of')} ({of.get('split')})" for of in (there, wanted))
    images = f" (those of {then}, not of {now})" if then != now else ""
    return f"of other images or of other weights{images}"


def _fingerprints(images: Images, size: int) -> list[str]:
    """Fingerprint of the images of each shard: of their names, sizes and times of change."""
    if images.files is None:
        columns = [np.arange(len(images))]
        start = identity_of(images).digest
    else:
        columns = [images.files.name_hashes, images.files.sizes(), images.files.times()]
        start = ""
    found = []
    for first in range(0, len(images), size):
        digest = hashlib.blake2b(start.encode(), digest_size=16)
        for column in columns:
            digest.update(column[first : first + size].astype("<u8").tobytes())
        found.append(digest.hexdigest())
    return found
