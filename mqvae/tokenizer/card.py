"""The model card of a tokenizer, made of its run."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from mqvae.errors import MqvaeError
from mqvae.files import read_json
from mqvae.places import names_only
from mqvae.tokenizer.codec import Codec

CARD, GRID = "README.md", "reconstructions.png"
GAP = 2  # pixels between originals and reconstructions, as there are between images
SMALL = 64  # height of a strip below which it is enlarged


def card_of(tokenizer: Codec) -> dict[str, bytes]:
    """The files of the card: README.md, and reconstructions.png if the run has pictures."""
    from jinja2 import StrictUndefined, Template

    measured = _measured(tokenizer)
    grid = _grid(tokenizer.run.folder, measured)
    settings, network = tokenizer.settings, tokenizer.network
    data = settings.data
    template = Template(
        Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    text = template.render(
        settings=settings,
        data=data,
        colours="grey" if data.channels == 1 else "colour",
        shape=" × ".join(map(str, tokenizer.code_shape)),
        num_codes=network.quantizer.num_codes,
        parameters=sum(p.numel() for p in network.parameters()),
        step=tokenizer.step,
        grid=grid and GRID,
        measured=measured,
        described=measured.get("figures", {}),
        spelled=spelled,
        listed=lambda values: ", ".join(f"{name} {value}" for name, value in values.items()),
    )
    own = [p for p in (getattr(data, name) for name in reversed(data.places)) if p]
    places = [*own, Path(*own), tokenizer.folder]
    files = {CARD: names_only(text, *places).encode()}
    return files | ({GRID: grid} if grid else {})


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


def spelled(value: Any) -> str:
    """A component as its call is written, without what is left open."""
    if not isinstance(value, dict) or "class_path" not in value:
        return str(value)
    given = [f"{k}={spelled(v)}" for k, v in value["init_args"].items() if v is not None]
    return f"{value['class_path'].rpartition('.')[2]}({', '.join(given)})"


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
