"""A tokenizer as a folder to share, here or on the Hugging Face Hub."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from mqvae.config import Settings
from mqvae.config.classes import find
from mqvae.core.quantizers import NoQuantizer
from mqvae.errors import MqvaeError
from mqvae.files import packed, read_json, unpacked, write_json, write_whole
from mqvae.optional import require
from mqvae.places import without_places
from mqvae.provenance import code
from mqvae.runs import Checkpoint
from mqvae.tokenizer.card import CARD, GRID, card_of, metrics_of
from mqvae.tokenizer.codec import Codec
from mqvae.weights.packaged import CONFIG, WEIGHTS

FILES = (CONFIG, WEIGHTS, CARD, GRID)
# Whose errors say that the Hub cannot be asked, or does not do what it is asked.
CLIENTS = ("huggingface_hub", "httpx", "httpx2", "requests", "urllib3")


def write(tokenizer: Codec, folder: Path, *, half: bool = False) -> None:
    """Write weights, config.json and the card."""
    card = _copied(tokenizer.folder) if _is_shared(tokenizer.folder) else card_of(tokenizer)
    weights = tokenizer.network.state_dict()
    if half:
        weights = {k: t.half() if t.is_floating_point() else t for k, t in weights.items()}
    told = {}
    if not isinstance(tokenizer.network.quantizer, NoQuantizer):
        told = {"codes": list(tokenizer.code_shape), "metrics": metrics_of(tokenizer)}
    store(folder, tokenizer.settings, weights, step=tokenizer.step, **told)
    for name in (CARD, GRID):
        if name in card:
            write_whole(folder / name, card[name])
        else:  # of another tokenizer
            (folder / name).unlink(missing_ok=True)


def store(
    folder: Path, settings: Settings, tensors: Mapping[str, Tensor], *, step: int, **more: Any
) -> None:
    """Write weights and config.json, with more in it."""
    folder.mkdir(parents=True, exist_ok=True)
    # As a checkpoint writes them, so that their fingerprint is the run's.
    weights = packed(tensors)
    config = {
        "mqvae": code().version,
        "step": step,
        "settings": _shared(settings.config()),
        "sha256": hashlib.sha256(weights).hexdigest(),
        **more,
    }
    write_whole(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)


def read(folder: Path) -> tuple[Settings, Checkpoint]:
    """Read what `write` wrote.

    Raises:
        ValueError: if it is something else, or damaged.
    """
    if not _is_shared(folder):
        run = (folder / "config.yaml").is_file()
        advice = (
            f"it is a run: Tokenizer.from_run({str(folder)!r}) loads it"
            if run
            else ("pass a folder that Tokenizer.save_pretrained wrote")
        )
        raise MqvaeError(f"{folder} holds no {CONFIG} of a tokenizer: {advice}.")
    config = read_json(folder / CONFIG)
    try:
        settings = Settings.of(config["settings"])
        content = (folder / WEIGHTS).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if config["sha256"] != digest:
            raise MqvaeError(f"{WEIGHTS} is not what was written")
        weights, step = unpacked(content), int(config["step"])
    except Exception as error:
        raise MqvaeError(f"{folder} holds no tokenizer that can be read: {error}") from error
    return settings, Checkpoint(weights, {}, {"step": step}, digest=digest)


def downloaded(name: str, **asking: Any) -> Path:
    """The folder that the files of a repository are in; the rest as of `snapshot_download`.

    Raises:
        ValueError: if they cannot be had.
        ExtraMissing: if huggingface_hub is not installed.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise MqvaeError(
            f"there is no folder {name}: pass one that Tokenizer.save_pretrained wrote, or a "
            "repository on the Hugging Face Hub, as in 'somebody/tokenizer'."
        )
    hub = _hub()
    with _asking(
        f"there is no folder {name}, nor could it be had from the Hugging Face Hub",
        "check the name and the network; a private repository needs `hf auth login`, and what was "
        "downloaded before is found by local_files_only=True",
    ):
        return Path(hub.snapshot_download(name, allow_patterns=list(FILES), **asking))


def from_hub(repository: str, file: str, **asking: Any) -> Path:
    """A file of a repository, downloaded if it is not there yet.

    Raises:
        ValueError: if it cannot be had.
        ExtraMissing: if huggingface_hub is not installed.
    """
    hub = _hub()
    with _asking(
        f"{file} of {repository} could not be had from the Hugging Face Hub",
        "check the name and the network; what was downloaded before is found by "
        "local_files_only=True",
    ):
        return Path(hub.hf_hub_download(repository, file, **asking))


def uploaded(
    tokenizer: Codec, repo_id: str, *, private: bool | None, token: str | None, **commit: Any
) -> str:
    """Put what `write` writes into a repository; returns the commit's address.

    The rest is as of `HfApi.upload_folder`.

    Raises:
        ValueError: if the Hub does not take it, or there is no network.
        ExtraMissing: if huggingface_hub is not installed.
    """
    api = _hub().HfApi(token=token)
    asking = _asking(
        f"the tokenizer could not be pushed to {repo_id} on the Hugging Face Hub",
        "check the network, and by `hf auth whoami` who you are there; offline, "
        "save_pretrained(FOLDER) writes the same files, which `hf upload` takes later",
    )
    with TemporaryDirectory() as folder:
        write(tokenizer, Path(folder))
        with asking:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            made = api.upload_folder(repo_id=repo_id, folder_path=folder, **commit)
    return str(made.commit_url)


@contextmanager
def _asking(failed: str, advice: str) -> Iterator[None]:
    """Inside, what the Hub, its client or the network refuses is the user's to mend.

    Args:
        failed: What was not done.
        advice: What to do.
    """
    try:
        yield
    except Exception as error:
        client = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and client not in CLIENTS:
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise MqvaeError(f"{failed}: {said.rstrip('.')}. To do: {advice}.") from error


def _hub() -> Any:
    require("huggingface_hub")
    import huggingface_hub

    return huggingface_hub


def _is_shared(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
        return {"mqvae", "step", "settings"} <= config.keys()
    except (OSError, ValueError, AttributeError):
        return False


def _copied(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (CARD, GRID) if (folder / name).exists()}


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without the folders of this machine, which say nothing elsewhere."""
    data, start = config["data"]["init_args"], config["from"]
    kind: Any = find(config["data"]["class_path"])
    for name in kind.places:
        own = data[name] if name != "root" else None
        data[name] = own and PurePath(own).name
    if start is not None:
        start["run"] = PurePath(start["run"]).name
    shared: dict[str, Any] = without_places(config)
    return shared
