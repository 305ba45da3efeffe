"""`mqvae data`."""

import sys
from pathlib import Path

from mqvae.cli.parser import parser_of
from mqvae.errors import MqvaeError, did_you_mean

MADE = ("photos",)


def data(arguments: list[str]) -> int:
    parser = parser_of(
        "data",
        "Makes a data set of what is on this machine. photos: squares, cut from the "
        "photographs in Debian's wallpaper packages; then --data photos takes those of 256 pixels.",
    )
    parser.add_argument("name", metavar="NAME", help="photos")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="cut all pictures of this folder instead, the largest of each in several sizes",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of a square (default: 256)",
    )
    parser.add_argument("--out", metavar="DIR", help="folder (default: where --data photos looks)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was cut before")
    options = parser.parse_args(arguments)
    if options.name not in MADE:
        raise MqvaeError(
            f"`mqvae data` makes no '{options.name}'.{did_you_mean(options.name, MADE)} It makes: "
            f"{', '.join(MADE)}."
        )
    from mqvae.data.photos import INSTALL, cut_photographs, installed_photographs, photographs_in
    from mqvae.progress import Progress

    if options.source is None:
        photographs, missing = installed_photographs()
        if missing:
            print(
                f"mqvae: not installed, so not among them: {', '.join(missing)}\n  {INSTALL}",
                file=sys.stderr,
            )
    else:
        photographs = photographs_in(Path(options.source).expanduser())
    out = None if options.out is None else Path(options.out).expanduser()
    total = len(photographs)
    with Progress("cutting", 0, total, unit="photographs") as progress:
        cut = cut_photographs(
            photographs, out, side=options.size, overwrite=options.overwrite, show=progress.advance
        )
    if cut.too_small:
        print(f"mqvae: too small, left out: {', '.join(cut.too_small)}", file=sys.stderr)
    for split, count in cut.crops.items():
        print(f"{split:<5} {count:>6,} crops of {cut.photographs[split]:,} photographs")
    if options.size is None:
        preset = "photos-64" + ("" if out is None else f" --root {out}")
    else:
        preset = f"photos-f4 --data {cut.folder}"
    print(f"{cut.folder}\nnext: mqvae train {preset}")
    return 0
