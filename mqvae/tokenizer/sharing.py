"""A tokenizer as a folder to share, here or on the Hugging Face Hub."""

import hashlib
import re
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mqvae import __version__
from mqvae.errors import MqvaeError
from mqvae.extras import require
from mqvae.runs import Checkpoint, read_json, write_json, write_whole
from mqvae.settings import Settings
from mqvae.tensors import packed, unpacked
from mqvae.tokenizer.card import CARD, GRID, card_of

if TYPE_CHECKING:
    from mqvae.tokenizer.tokenizer import Tokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS, CARD, GRID)


def write(tokenizer: "Tokenizer", folder: Path) -> None:
    """Write weights, config.json and the card."""
    card = _copied(tokenizer.folder) if _is_shared(tokenizer.folder) else card_of(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    # As a checkpoint writes them, so that their fingerprint is the run's.
    weights = packed(tokenizer.network.state_dict())
    config = {
        "mqvae": __version__,
        "step": tokenizer.step,
        "settings": _without_places(tokenizer.settings.config()),
    }
    write_json(folder / CONFIG, config)
    write_whole(folder / WEIGHTS, weights)
    for name in (CARD, GRID):
        if name in card:
            write_whole(folder / name, card[name])
        else:  # of another tokenizer
            (folder / name).unlink(missing_ok=True)


def read(folder: Path) -> tuple[Settings, Checkpoint]:
    """What `write` wrote.

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
        weights = unpacked(content)
    except Exception as error:
        raise MqvaeError(f"{folder} holds no tokenizer that can be read: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    return settings, Checkpoint(weights, {}, {"step": config["step"]}, digest=digest)


def downloaded(
    name: str,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    """The folder that the files of a repository are in.

    Raises:
        ValueError: if they cannot be had.
        ExtraMissing: if huggingface_hub is not installed.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise MqvaeError(
            f"there is no folder {name}: pass one that Tokenizer.save_pretrained wrote, or a "
            "repository on the Hugging Face Hub, as in 'somebody/tokenizer'."
        )
    try:
        return Path(
            _hub().snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        )
    except OSError as error:  # the Hub's errors are derived from it
        raise MqvaeError(
            f"there is no folder {name}, nor could it be had from the Hugging Face Hub: {error}"
        ) from error


def uploaded(
    tokenizer: "Tokenizer",
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None,
    token: str | None,
    branch: str | None,
    create_pr: bool | None,
) -> str:
    """Put what `write` writes into a repository; returns the commit's address."""
    api = _hub().HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as folder:
        write(tokenizer, Path(folder))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    return str(commit.commit_url)


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


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """Settings without the folders of this machine, which say nothing elsewhere."""
    data, start = config["data"], config["from"]
    data["root"] = None
    data["name"] = PurePath(data["name"]).name
    if start is not None:
        start["run"] = PurePath(start["run"]).name
    return config
