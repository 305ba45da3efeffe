"""Tokenizers that are in the package, by name: folders as `Tokenizer.save_pretrained` writes."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from mqvae.files import unpacked

FOLDER = Path(__file__).parent / "tokenizers"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@cache
def packaged_names() -> tuple[str, ...]:
    """The tokenizers of the package."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG}")))


def packaged(name: str) -> Path | None:
    """The folder of a tokenizer of the package; None if it is of none, or here is one so called."""
    here = any((Path(name) / file).is_file() for file in (CONFIG, "config.yaml"))
    return FOLDER / name if name in packaged_names() and not here else None


def config_of(folder: Path) -> Mapping[str, Any]:
    """What config.json of a tokenizer of the package says: step, settings, metrics."""
    found: Mapping[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return found


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a tokenizer of the package, in float32."""
    tensors = unpacked((folder / WEIGHTS).read_bytes())
    return {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
