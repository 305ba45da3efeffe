"""What a run is measured with, and the files of it."""

import csv
import dataclasses
import io
import platform
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from mqvae import __version__
from mqvae.metrics import Evaluation
from mqvae.runs import Run, write_json, write_whole
from mqvae.tasks import Picture, Strip

GAP = 2  # pixels between the images of a strip


def write_evaluation(
    run: Run, file: str, result: Evaluation, further: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures as a JSON file of the run, code_counts.csv and the pictures.

    Args:
        run: The run.
        file: summary.json or evaluation.json.
        result: What was measured.
        further: What else the file says.

    Returns:
        The file's contents.
    """
    lines = ["group,code,count"]
    for group, counts in enumerate(result.code_counts.tolist()):
        lines += [f"{group},{code},{count}" for code, count in enumerate(counts)]
    write_whole(run.folder / "code_counts.csv", "\n".join(lines) + "\n")
    content = {
        **result.figures,
        **further,
        "protocol": result.protocol,
        "figures": {key: dataclasses.asdict(f) for key, f in result.described.items()},
        "pictures": [_write_picture(run, picture) for picture in result.pictures],
        "versions": versions(),
    }
    write_json(run.folder / file, content)
    return content


def _write_picture(run: Run, picture: Picture) -> dict[str, Any]:
    """The picture as a file of the run; returns what it is."""
    (run.folder / "samples").mkdir(exist_ok=True)
    if isinstance(picture, Strip):
        file = f"samples/{picture.name}.png"
        pixels = (picture.images.cpu().clamp(0, 1) * 255).byte().expand(-1, 3, -1, -1)
        strip = torch.cat([*torch.nn.functional.pad(pixels, (0, GAP))], dim=-1)[..., :-GAP]
        Image.fromarray(strip.permute(1, 2, 0).numpy()).save(run.folder / file)  # (H, W, 3)
        kind = {"kind": "strip", "reference": picture.reference}
    else:
        file = f"samples/{picture.name}.csv"
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows(picture.counts.tolist())
        write_whole(run.folder / file, written.getvalue())
        kind = {"kind": "matrix", "rows": picture.rows, "columns": picture.columns}
    return {**kind, "file": file, "title": picture.title}


def versions() -> dict[str, str]:
    """What a figure was computed with."""
    return {"mqvae": __version__, "torch": torch.__version__, "python": platform.python_version()}


def device_name(device: torch.device, processes: int = 1) -> str:
    """A device in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{device.type}, {threads} thread{'s' * (threads > 1)}"
    return f"{processes} × {name}" if processes > 1 else name
