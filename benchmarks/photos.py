"""Squares of real photographs, cut from Debian's wallpapers or a folder: the data set photos.

    python -m benchmarks.photos [--size 256 --from FOLDER --out FOLDER --overwrite]

Without --from it takes the photographs of the wallpaper packages that are installed; `photos.yaml`
lists them. Without --out it writes where `--data photos` looks, which reads squares of 256.
"""

import argparse
import hashlib
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mqvae.data import DataNotFound, cache_folder, image_files
from mqvae.data.decoding import guarded, head, open_image
from mqvae.data.photos import INSTALL, SIDE
from mqvae.errors import MqvaeError
from mqvae.files import read_yaml
from mqvae.progress import Progress

# What the shorter side of a photograph is resized to before it is cut, in sides of a square, up to
# so many pixels; never enlarged.
SCALES = (1, 2, 3, 4, 6, 8, 12, 16)
LONGEST = 2048
TEST_EVERY = 8
# Grey levels that neighbours differ by in a square shrunk to 32 × 32, on average; where it is less,
# there is nothing on it but sky or blur.
BLANK = 2.0
SHARE = Path("/usr/share")
PACKAGES: Mapping[str, list[str]] = read_yaml(Path(__file__).with_name("photos.yaml"))


@dataclass(frozen=True)
class Cut:
    """What `cut_photographs` has written.

    Attributes:
        folder: Where train/ and test/ are.
        photographs: How many there are, by split.
        crops: How many there are, by split.
        too_small: Photographs left out, as their shorter side is below that of a square.
    """

    folder: Path
    photographs: Mapping[str, int]
    crops: Mapping[str, int]
    too_small: tuple[str, ...]


def installed_photographs(share: Path = SHARE) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The photographs of Debian's packages that are here, by name, and the packages that are not.

    Raises:
        DataNotFound: if there are none.
    """
    found: dict[str, Path] = {}
    missing = []
    for package, entries in PACKAGES.items():
        here = [share / entry for entry in entries if (share / entry).exists()]
        found |= {path.stem: largest(image_files(path)) for path in here}
        if not here:
            missing.append(package)
    if not found:
        raise DataNotFound(
            f"no photographs are here: expected those of Debian's wallpaper packages in {share}; "
            f"install them as root, {INSTALL}, or name a folder of photographs (--from FOLDER)"
        )
    return found, tuple(missing)


def photographs_in(folder: Path) -> dict[str, Path]:
    """All pictures under a folder, by name; of one that is there in several sizes, the largest.

    Sizes of one are files of the same name but for a size at its end, as in `Lake_1920x1080.jpg`,
    or the files of a wallpaper of KDE, `Lake/contents/images/1920x1080.jpg`. Files of the same
    bytes are one too.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if a file cannot be read.
    """
    sizes: dict[str, list[Path]] = {}
    for path in image_files(folder):
        inside = path.relative_to(folder) if path != folder else Path(path.name)
        sizes.setdefault(_name(inside), []).append(path)
    found, seen = {}, set()
    for name, paths in sorted(sizes.items()):
        path = largest(paths)
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in seen:
            seen.add(digest)
            found[name] = path
    return found


def largest(paths: list[Path]) -> Path:
    """The image of most pixels; the first of several."""
    return max(paths, key=lambda path: math.prod(_size(path)))


def cut_photographs(
    photographs: Mapping[str, Path],
    out: Path | None = None,
    *,
    side: int = SIDE,
    overwrite: bool = False,
    show: Callable[[int, str], None] = lambda done, name: None,
) -> Cut:
    """Cut photographs into squares of `side` pixels, as `OUT/photos-SIDE/train/` and `test/`.

    Each is brought to every one of `SCALES` up to `LONGEST` that does not enlarge it, and there cut
    from its centre without overlaps; crops on which there is nothing are left out. A photograph is
    in one of the splits with all its crops: one of eight is for test, by the order of their names'
    hashes. The same photographs give the same files. `photographs.json` says where each came from.

    Args:
        photographs: Files by name.
        out: The folder to write in; None for that which `load("photos", …)` looks in.
        side: Pixels a side of a square.
        overwrite: Replace what is there.
        show: Called with how many are done and the name of the last.

    Raises:
        ValueError: if there are too few, if one cannot be read, or if the folder is in use.
    """
    if side < 8:
        raise MqvaeError(f"squares must have 8 pixels a side or more, got {side}.")
    folder = (cache_folder("photos") if out is None else out) / f"photos-{side}"
    if folder.exists() and not overwrite:
        raise MqvaeError(f"{folder} exists already: choose another --out, or add --overwrite.")
    small = {name for name, path in photographs.items() if min(_size(path)) < side}
    names = sorted(set(photographs) - small)
    if len(names) < 2:
        raise MqvaeError(
            f"there are too few photographs: expected at least 2 whose shorter side is {side} "
            f"pixels or more (one to train, one to test), got {len(names)} of {len(photographs)}; "
            "name a folder of more"
        )
    tests = set(sorted(names, key=_hash)[: max(1, round(len(names) / TEST_EVERY))])
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Moved there as a whole at the end: half a data set would look like another one.
    scratch = Path(tempfile.mkdtemp(prefix="photos-", dir=folder.parent))
    try:
        origins: dict[str, dict[str, str]] = {}
        counts = {"train": 0, "test": 0}
        for done, name in enumerate(names, start=1):
            split = "test" if name in tests else "train"
            (scratch / split).mkdir(exist_ok=True)
            counts[split] += _cut(photographs[name], scratch / split, name, side)
            origins[name] = {"file": str(photographs[name]), "split": split}
            show(done, name)
        text = json.dumps(origins, indent=1, ensure_ascii=False)
        (scratch / "photographs.json").write_text(text + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    held = {"train": len(names) - len(tests), "test": len(tests)}
    return Cut(folder, held, counts, tuple(sorted(small)))


def _name(inside: Path) -> str:
    """What the files of one photograph have in common."""
    parts = [*inside.parent.parts, re.sub(r"[-_ ]?\d{3,5}x\d{3,5}$", "", inside.stem)]
    if "contents" in parts[:-1]:  # a wallpaper of KDE, with its sizes, a dark version, a preview
        parts = parts[: parts.index("contents")] or parts
    return "__".join(part for part in parts if part) or inside.stem


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode()).digest()


def _size(path: Path) -> tuple[int, int]:
    return guarded(lambda: head(path), lambda: str(path))[1:]


def _cut(path: Path, folder: Path, name: str, side: int) -> int:
    """Write the crops of one photograph; returns how many there are."""

    def read() -> Image.Image:
        with open_image(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")

    image, count = guarded(read, lambda: str(path)), 0
    for shorter in (side * scale for scale in SCALES):
        if shorter > min(LONGEST, *image.size):
            break
        factor = shorter / min(image.size)
        width, height = (round(factor * pixels) for pixels in image.size)
        scaled = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = width % side // 2, height % side // 2
        for row in range(height // side):
            for column in range(width // side):
                x, y = left + side * column, top + side * row
                crop = scaled.crop((x, y, x + side, y + side))
                if _detail(crop) >= BLANK:
                    crop.save(folder / f"{name}-{shorter}-{row:02}-{column:02}.png")
                    count += 1
    return count


def _detail(crop: Image.Image) -> float:
    grey = np.asarray(crop.convert("L").resize((32, 32), Image.Resampling.BOX)).astype(np.float64)
    return float(np.mean([np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--size", type=int, default=SIDE, help=f"side of a square (default: {SIDE})"
    )
    parser.add_argument(
        "--from",
        dest="folder",
        type=Path,
        help="cut all pictures of this folder instead, the largest of each in several sizes",
    )
    parser.add_argument("--out", type=Path, help="folder (default: where --data photos looks)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was cut before")
    options = parser.parse_args()
    if options.folder is None:
        photographs, missing = installed_photographs()
        if missing:
            print(f"not installed, so not among them: {', '.join(missing)}", file=sys.stderr)
            print(f"  {INSTALL}", file=sys.stderr)
    else:
        photographs = photographs_in(options.folder.expanduser())
    with Progress("cutting", 0, len(photographs), unit="photographs") as progress:
        cut = cut_photographs(
            photographs,
            options.out and options.out.expanduser(),
            side=options.size,
            overwrite=options.overwrite,
            show=progress.advance,
        )
    if cut.too_small:
        print(f"too small, left out: {', '.join(cut.too_small)}", file=sys.stderr)
    for split, count in cut.crops.items():
        print(f"{split:<5} {count:>6,} crops of {cut.photographs[split]:,} photographs")
    print(cut.folder)


if __name__ == "__main__":
    try:
        main()
    except (MqvaeError, OSError) as error:
        sys.exit(f"error: {error}")
