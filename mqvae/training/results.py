"""A run's measurements, and their files."""

import csv
import dataclasses
import io
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mqvae.files import read_json, write_json, write_whole
from mqvae.metrics import Evaluation
from mqvae.provenance import code
from mqvae.runs import Run
from mqvae.runs.images import Found
from mqvae.tasks import Picture, Strip

EVALUATIONS = "evaluations"
GAP = 2  # pixels between the images of a strip
# What must agree for metrics to be of the same images.
SAME = ("split", "images")


def write_evaluation(
    run: Run,
    result: Evaluation,
    found: Found,
    *,
    checkpoint: str,
    step: int,
    weights: str,
    device: str,
    refined: str = "",
) -> Path:
    """Merge what was measured into the file of its split and checkpoint, `evaluations/NAME.json`.

    Metrics that the file has and that were not measured now stay, if they were of the same weights
    and of the same images; otherwise it begins afresh. Code counts and pictures lie beside it.

    Images of other data than the run's are in DATA-DIGEST-CHECKPOINT, and what was measured with
    refined codes in NAME-refined. `weights` is the fingerprint of those that were measured.
    """
    name = f"{result.protocol['split']}-{checkpoint}"
    if found.data:
        name = f"{found.data}-{found.identity.digest[:8]}-{checkpoint}"
    if refined:
        name = f"{name}-refined"
    path = run.folder / EVALUATIONS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    identity = found.identity.to_json()
    same = {key: result.protocol[key] for key in SAME}
    before = _of_the_same(path, weights, identity, refined, same)
    described = {key: dataclasses.asdict(metric) for key, metric in result.described.items()}
    all_described = {**before.get("figures", {}), **described}
    names = list(result.metrics)
    now = {"figures": names, "device": device, "versions": versions()}
    content = {
        **({"data": found.data} if found.data else {}),
        "split": result.protocol["split"],
        "checkpoint": checkpoint,
        "step": step,
        "weights": weights,
        "images": identity,
        "source": found.images.source,
        **({"refined": refined} if refined else {}),
        **({"accepted_changes": dict(found.changes)} if found.changes else {}),
        **{key: before[key] for key in before.get("figures", {})},
        **result.metrics,
        "protocol": result.protocol,
        "figures": all_described,
        "codes": _write_counts(run, name, result),
        "pictures": [_write_picture(run, name, picture) for picture in result.pictures],
        "device": device,
        "versions": now["versions"],
        "measured": [*_left_of(before.get("measured", []), names), now],
    }
    write_json(path, content)
    return path


def write_summary(
    run: Run, result: Evaluation, found: Found, step: int, further: dict[str, Any]
) -> dict[str, Any]:
    """Write what was measured of a run's last checkpoint, and summary.json; returns the latter."""
    path = write_evaluation(
        run,
        result,
        found,
        checkpoint="last",
        step=step,
        weights=run.load("last", training=False, weights=False).digest,
        device=further["device"],
    )
    evaluation = read_json(path)
    content = {
        **result.metrics,
        **further,
        "evaluation": path.relative_to(run.folder).as_posix(),
        "figures": {key: evaluation["figures"][key] for key in result.metrics},
        **{key: evaluation[key] for key in ("protocol", "codes", "pictures", "versions")},
    }
    write_json(run.folder / "summary.json", content)
    return content


def _of_the_same(
    path: Path, weights: str, images: Mapping[str, Any], refined: str, protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """Contents of a file if it is about these weights and images; else, or if damaged, empty."""
    try:
        content = read_json(path)
        same = content["weights"] == weights and content["images"] == images
        same = same and content.get("refined", "") == refined
        same = same and protocol.items() <= content["protocol"].items()
        if same and all(key in content for key in content["figures"]):
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _left_of(measured: Sequence[Mapping[str, Any]], now: Sequence[str]) -> list[dict[str, Any]]:
    """Earlier measurements, without the metrics that were measured again."""
    left = [{**each, "figures": [f for f in each["figures"] if f not in now]} for each in measured]
    return [each for each in left if each["figures"]]


def not_finite(result: Evaluation) -> list[str]:
    """A sentence about each metric that is not a finite number."""
    where = f"the {result.protocol['images']:,} {result.protocol['split']} images"
    return [
        f"{name} is {value} on {where}."
        for name, value in result.metrics.items()
        if not math.isfinite(value)
    ]


def _write_counts(run: Run, name: str, result: Evaluation) -> dict[str, Any]:
    """Write code counts as a file of the run; returns its description."""
    counts = result.code_counts
    file = f"{EVALUATIONS}/{name}-code_counts.csv"
    lines = ["group,code,count", *(",".join(map(str, row)) for row in counts.table().tolist())]
    write_whole(run.folder / file, "\n".join(lines) + "\n")
    return {
        "file": file,  # codes that were never chosen have no row
        "num_codes": counts.num_codes,
        "groups": counts.groups,
        "used": counts.used,
    }


def _write_picture(run: Run, name: str, picture: Picture) -> dict[str, Any]:
    """The picture as a file of the run; returns what it is."""
    folder = f"samples/{name}"
    (run.folder / folder).mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Strip):
        file = f"{folder}/{picture.name}.png"
        write_strip(run.folder / file, picture.images)
        kind = {"kind": "strip", "reference": picture.reference}
    else:
        file = f"{folder}/{picture.name}.csv"
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows(picture.counts.tolist())
        write_whole(run.folder / file, written.getvalue())
        kind = {"kind": "matrix", "rows": picture.rows, "columns": picture.columns}
    return {**kind, "file": file, "title": picture.title}


def write_strip(file: Path, images: torch.Tensor) -> None:
    """Images (N, C, S, S) in [0, 1] side by side in a PNG file, as the report reads them."""
    pixels = (images.cpu().clamp(0, 1) * 255).byte().expand(-1, 3, -1, -1)
    strip = torch.cat([*torch.nn.functional.pad(pixels, (0, GAP))], dim=-1)[..., :-GAP]
    image = io.BytesIO()
    Image.fromarray(strip.permute(1, 2, 0).numpy()).save(image, "PNG")  # (H, W, 3)
    write_whole(file, image.getvalue())


def versions() -> dict[str, str]:
    """Versions of the software that a metric was computed with."""
    running = code()
    return {
        "mqvae": running.version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **running.described(),
    }


def device_name(device: torch.device, processes: int = 1) -> str:
    """A device in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{device.type}, {threads} thread{'s' * (threads > 1)}"
    return f"{processes} × {name}" if processes > 1 else name
