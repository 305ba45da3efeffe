"""The model card of a tokenizer, made of its run."""

import io
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mqvae.errors import MqvaeError
from mqvae.files import read_json
from mqvae.places import names_only
from mqvae.tokenizer.codec import Codec

CARD, GRID = "README.md", "reconstructions.png"
GAP = 2  # pixels between originals and reconstructions, as there are between images
SMALL = 64  # height of a strip below which it is enlarged

HEAD = {
    "library_name": "mqvae",
    "tags": ["image-tokenizer", "mqvae", "vector-quantization"],
}


def card_of(tokenizer: Codec) -> dict[str, bytes]:
    """The files of the card: README.md, and reconstructions.png if the run has pictures."""
    measured = _measured(tokenizer)
    grid = _grid(tokenizer.run.folder, measured)
    settings = tokenizer.settings
    parts = [
        f"---\n{yaml.safe_dump(HEAD, sort_keys=False)}---\n",
        f"# {settings.name} on {settings.data.title}\n",
        _summary(tokenizer),
    ]
    if grid:
        parts.append(
            f"![Test images above, their reconstructions below]({GRID})\n\n"
            "Test images above, their reconstructions below.\n"
        )
    parts += [USE, _figures(tokenizer, measured), _data(tokenizer, measured), _settings(tokenizer)]
    data = settings.data
    own = [p for p in (getattr(data, name) for name in reversed(data.places)) if p]
    places = [*own, Path(*own), tokenizer.folder]
    files = {CARD: names_only("\n".join(parts), *places).encode()}
    return files | ({GRID: grid} if grid else {})


USE = """## Use

```python
import mqvae

tokenizer = mqvae.Tokenizer.from_pretrained("…")  # this repository or a folder of it
codes = tokenizer.encode(images)  # PIL images, paths, arrays, tensors, or a list of them
images = tokenizer.decode(codes)  # (B, C, H, W), at the images' own size
```
"""


def metrics_of(tokenizer: Codec) -> dict[str, float]:
    """The metrics of the tokenizer's weights on the test images; empty if nothing was measured."""
    try:
        measured = _measured(tokenizer)
    except MqvaeError:  # not made from a run
        return {}
    return {key: measured[key] for key in measured.get("figures", {})}


def _measured(tokenizer: Codec) -> dict[str, Any]:
    """Metrics of the tokenizer's weights on the test images; empty if there are none."""
    folder = tokenizer.run.folder
    for path in [*sorted(folder.glob("evaluations/test-*.json")), folder / "summary.json"]:
        if path.is_file():
            try:
                content = read_json(path)
            except ValueError as error:
                raise MqvaeError(f"{path} is damaged: {error}") from error
            if "refined" in content:  # not what `encode` gives by itself
                continue
            same = content.get("weights") == tokenizer.model
            # The summary is of the last step, whatever weights were saved there.
            if same or ("weights" not in content and content.get("steps") == tokenizer.step):
                return content
    return {}


def _summary(tokenizer: Codec) -> str:
    data, quantizer = tokenizer.settings.data, tokenizer.network.quantizer
    shape = " × ".join(map(str, tokenizer.code_shape))
    parameters = sum(p.numel() for p in tokenizer.network.parameters())
    return (
        f"An image tokenizer: {data.side} × {data.side} pixels of {_colours(data.channels)} become "
        f"{shape} codes of {quantizer.num_codes:,}. {parameters:,} parameters, trained by "
        "[mqvae](https://pypi.org/project/mqvae/).\n"
    )


def _figures(tokenizer: Codec, measured: dict[str, Any]) -> str:
    described: dict[str, Any] = measured.get("figures", {})
    if not described:
        return f"## Metrics\n\nNone were measured at step {tokenizer.step:,}.\n"
    rows = ["## Metrics\n", "| Metric | Value | Better | How it is taken |", "| - | - | - | - |"]
    for key, figure in described.items():
        value = f"{measured[key]:.5g}"
        if figure["unit"]:
            value = f"{measured[key] / figure['scale']:.4g} {figure['unit']}"
        better = figure["better"] or "-"
        rows.append(f"| {figure['title']} | {value} | {better} | {figure['protocol']} |")
    protocol = ", ".join(f"{k} {v}" for k, v in measured["protocol"].items())
    versions = ", ".join(f"{k} {v}" for k, v in measured["versions"].items())
    rows.append(f"\nProtocol: {protocol}; on {measured['device']}, with {versions}.\n")
    return "\n".join(rows)


def _data(tokenizer: Codec, measured: dict[str, Any]) -> str:
    data = tokenizer.settings.data
    source = f", from {measured['source']}" if "source" in measured else ""
    return (
        f"## Data\n\n{data.title}{source}: {data.side} × {data.side} pixels, "
        f"{_colours(data.channels)}, values in [0, 1]; batches of {data.batch_size}, "
        f"{data.validation or 0:,} images held out for validation.\n"
    )


def _settings(tokenizer: Codec) -> str:
    settings = tokenizer.settings
    optimizer = settings.optimizer
    rows = {
        "Network": spelled(settings.network),
        "Quantizer": spelled(settings.quantizer),
        "Task": spelled(settings.task),
        "Update rule": spelled(settings.update),
        "Learning rates": f"{optimizer.network_lr:g}, of the codebook {optimizer.codebook_lr:g}",
        "Training steps": f"{tokenizer.step:,} of {settings.steps:,}",
        "Seed": str(settings.seed),
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"## Settings\n\n| | |\n| - | - |\n{lines}\n\nAll of them: `settings` in config.json.\n"


def spelled(value: Any) -> str:
    """A component as its call is written, without what is left open."""
    if not isinstance(value, dict) or "class_path" not in value:
        return str(value)
    given = [f"{k}={spelled(v)}" for k, v in value["init_args"].items() if v is not None]
    return f"{value['class_path'].rpartition('.')[2]}({', '.join(given)})"


def _colours(channels: int | None) -> str:
    return "grey" if channels == 1 else "colour"


def _grid(folder: Path, measured: dict[str, Any]) -> bytes | None:
    """The run's strips of images below each other, the originals first."""
    strips = [p for p in measured.get("pictures", []) if p["kind"] == "strip"]
    files = [folder / p["file"] for p in sorted(strips, key=lambda p: not p["reference"])]
    try:
        # Only the run's own: a summary that somebody else wrote shares no picture of this machine.
        own = [f.resolve().is_relative_to(folder.resolve()) and f.is_file() for f in files]
    except (OSError, ValueError):  # a name that no file can have
        return None
    if not files or not all(own):
        return None
    images = [Image.open(file, formats=["PNG"]) for file in files]
    width, height = images[0].size
    grid = Image.new(images[0].mode, (width, len(images) * (height + GAP) - GAP))
    for row, image in enumerate(images):
        grid.paste(image, (0, row * (height + GAP)))
        image.close()
    times = max(1, SMALL // height)
    grid = grid.resize((times * grid.width, times * grid.height), Image.Resampling.NEAREST)
    content = io.BytesIO()
    grid.save(content, "PNG")
    return content.getvalue()
