"""Tokenizers by name: those of the package, and those of other projects on the Hub."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mqvae.cache import cache_folder
from mqvae.config import Settings
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.runs import Checkpoint, Run
from mqvae.tokenizer.convert import converted
from mqvae.tokenizer.sharing import from_hub, read, store
from mqvae.weights.packaged import CONFIG, WEIGHTS, config_of, packaged, packaged_names

ENDINGS = (".ckpt", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Elsewhere:
    """A tokenizer of taming-transformers or LlamaGen on the Hugging Face Hub.

    Attributes:
        title: What it is.
        file: Repository and file in it, as in "owner/repository/file.pt".
        sha256: Of the file; None where nobody has checked one.
    """

    title: str
    file: str
    sha256: str | None = None


ELSEWHERE: Mapping[str, Elsewhere] = {
    "llamagen-f8": Elsewhere(
        "LlamaGen VQ-8: ImageNet, 16,384 codes, 8 × 8 pixels each",
        "FoundationVision/LlamaGen/vq_ds8_c2i.pt",
    ),
    "llamagen-f16": Elsewhere(
        "LlamaGen VQ-16: ImageNet, 16,384 codes, 16 × 16 pixels each",
        "FoundationVision/LlamaGen/vq_ds16_c2i.pt",
    ),
}


def located(name: str, **asking: Any) -> Path | None:
    """The folder of a tokenizer by its name, downloaded and converted where it is on the Hub.

    Args:
        name: Of the package, of `ELSEWHERE`, "owner/repository/path/of/file.pt" on the Hub, or a
            folder that `Tokenizer.save_pretrained` wrote.
        asking: `revision`, `token`, `cache_dir` and `local_files_only` of `hf_hub_download`.

    Raises:
        ValueError: if the Hub does not give the file, it has another SHA-256 than the one that is
            known, or it is no tokenizer of taming-transformers or LlamaGen.
        ExtraMissing: if huggingface_hub is not installed.
    """
    if folder := packaged(name):
        return folder
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    known = ELSEWHERE.get(name, Elsewhere("", name))
    if known.file.count("/") < 2 or not known.file.endswith(ENDINGS) or name[0] in "./~":
        return None
    owner, repository, file = known.file.split("/", 2)
    path = from_hub(f"{owner}/{repository}", file, **asking)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if known.sha256 not in (None, digest):
        raise MqvaeError(
            f"{path} is not the file that {name} is: expected the SHA-256 {known.sha256}, got "
            f"{digest}. Delete it, and it is downloaded again."
        )
    folder = cache_folder("tokenizers") / f"{Path(file).stem}-{digest[:12]}"
    if not (folder / CONFIG).is_file():
        settings, checkpoint, _ = converted(path)
        store(folder, settings, checkpoint.model, step=0)
    return folder


def run_of(
    name: str, out: str | Path, *, data: str | None = None, overwrite: bool = False
) -> tuple[Run, Settings]:
    """Make a run of a tokenizer: it is measured, used and fine-tuned as any other.

    Args:
        name: As of `located`.
        out: The run folder to make.
        data: The images that it is measured on, if not those that it was trained on.
        overwrite: Replace a run at `out`.

    Raises:
        ValueError: as `located`, if there is no such tokenizer, or `out` is in use.
    """
    folder = located(name)
    if folder is None:
        names = [*packaged_names(), *ELSEWHERE]
        raise MqvaeError(
            f"there is no tokenizer '{name}'.{did_you_mean(name, names)} Tokenizers: "
            f"{', '.join(names)}, or a file on the Hugging Face Hub as in "
            f"{ELSEWHERE['llamagen-f8'].file}."
        )
    settings, saved = read(folder)
    config = settings.config()
    if data is not None:
        place = Path(data).expanduser()
        config["data"]["init_args"] |= {
            "name": str(place.absolute()) if place.is_dir() else data,
            **dict.fromkeys(("root", "validation", "limit", "classes")),
        }
    weights = {k: t.float() if t.is_floating_point() else t for k, t in saved.model.items()}
    run = Run.create(out, config, overwrite=overwrite)
    run.save("last", Checkpoint(weights, {}, {"step": saved.state["step"], "imported": name}))
    return run, settings


def run_folder(name: str) -> str:
    """The folder of a run; of a tokenizer by its name, of a run in the cache.

    Args:
        name: A run's folder, or as of `located`.

    Raises:
        ValueError: as `located`.
    """
    if (Path(name) / "config.yaml").is_file() or (folder := located(name)) is None:
        return name
    # Of these weights: those of another version have a run of their own.
    kept = cache_folder("runs") / read(folder)[1].digest[:12] / Path(name).name
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as made:
            run, _ = run_of(name, Path(made) / "run")
            with suppress(OSError):  # another process was faster
                run.folder.rename(kept)
    return str(kept)


def listed() -> Iterator[str]:
    """A line for each tokenizer."""
    for name in packaged_names():
        folder = packaged(name)
        assert folder is not None
        config = config_of(folder)
        data, quantizer = (config["settings"][part]["init_args"] for part in ("data", "quantizer"))
        colours = "grey" if data["channels"] == 1 else "colour"
        height = config["codes"][0]
        stride, size = data["side"] // height, (folder / WEIGHTS).stat().st_size / 1e6
        yield (
            f"{name:<14} {data['name']}, {colours}: {quantizer['num_codes']:,} codes, {stride} × "
            f"{stride} pixels each; PSNR {config['metrics']['psnr']:.2f} dB at {data['side']} × "
            f"{data['side']}; {size:.1f} MB"
        )
    for name, each in ELSEWHERE.items():
        yield f"{name:<14} {each.title}; from the Hub, {each.file}"
