"""`mqvae data`."""

import sys
from pathlib import Path
from typing import Annotated

from mqvae.errors import MqvaeError, did_you_mean

MADE = ("photos",)


def data(
    name: str,
    *,
    from_: Annotated[str | None, "DIR"] = None,
    size: Annotated[int | None, "PIXELS"] = None,
    out: Annotated[str | None, "DIR"] = None,
    overwrite: bool = False,
) -> int:
    """Makes a data set of what is on this machine.

    photos: squares, cut from the photographs in Debian's wallpaper packages; then --data photos
    takes those of 256 pixels.

    Args:
        name: The data set: photos.
        from_: Cut all pictures of this folder instead, the largest of each in several sizes.
        size: Side of a square (default: 256).
        out: Folder (default: where --data photos looks).
        overwrite: Replace what was cut before.
    """
    if name not in MADE:
        raise MqvaeError(
            f"`mqvae data` makes no '{name}'.{did_you_mean(name, MADE)} It makes: "
            f"{', '.join(MADE)}."
        )
    from mqvae.data.photos import INSTALL, cut_photographs, installed_photographs, photographs_in
    from mqvae.progress import Progress

    if from_ is None:
        photographs, missing = installed_photographs()
        if missing:
            print(
                f"mqvae: not installed, so not among them: {', '.join(missing)}\n  {INSTALL}",
                file=sys.stderr,
            )
    else:
        photographs = photographs_in(Path(from_).expanduser())
    folder = None if out is None else Path(out).expanduser()
    with Progress("cutting", 0, len(photographs), unit="photographs") as progress:
        cut = cut_photographs(
            photographs, folder, side=size, overwrite=overwrite, show=progress.advance
        )
    if cut.too_small:
        print(f"mqvae: too small, left out: {', '.join(cut.too_small)}", file=sys.stderr)
    for split, count in cut.crops.items():
        print(f"{split:<5} {count:>6,} crops of {cut.photographs[split]:,} photographs")
    if size is None:
        preset = "photos-64" + ("" if folder is None else f" --root {folder}")
    else:
        preset = f"photos-f4 --data {cut.folder}"
    print(f"{cut.folder}\nnext: mqvae train {preset}")
    return 0
