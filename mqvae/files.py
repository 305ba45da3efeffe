"""YAML, JSON and tensors in files: read without trust, written whole or not at all."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from mqvae.errors import MqvaeError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 4 << 20  # bytes of a file of settings, which has a few thousand
MOST_VALUES = 100_000  # that a file of settings may hold, aliases written out
DEEPEST = 64  # lists and mappings in each other
NOT_FINITE = "not_finite"  # in a JSON file: which of its nulls are no finite numbers
TIED = "tied"  # in a file of tensors: the names whose tensor is stored under another
# libyaml's parser where PyYAML was built with it: a tenth of the time.
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Any) -> Any:
    """Read a YAML file: mappings, lists, text, numbers, truth values and null.

    Raises:
        FileNotFoundError: if there is none.
        MqvaeError: if it is not YAML, or holds anything else or more than settings would.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise MqvaeError(f"{path} has more than {LARGEST:,} bytes: it is no file of settings.")
    try:
        return parsed_yaml(content.decode())
    except ValueError as error:
        raise MqvaeError(f"{path} is not valid YAML: {error}") from error


def parsed_yaml(text: str) -> Any:
    """Parse YAML to plain values; a ValueError for all else, and for more than settings hold."""
    try:
        _check_depth(text)
        found = yaml.load(text, Loader=YAML_LOADER)
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # Beside its own errors PyYAML lets some of what it calls pass, for a date or a number.
        raise MqvaeError(" ".join(str(error).split())) from error
    _check_plain(found, [0], 0)
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file; numbers that `only_finite` replaced are restored.

    Raises:
        FileNotFoundError: if there is none.
        MqvaeError: if it is not JSON.
    """
    try:
        return restored(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise MqvaeError(f"{path} is not valid JSON: {error}") from error


def _check_depth(text: str) -> None:
    # Before anything is made of it: PyYAML takes quadratic time for what is nested deeply.
    depth = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise MqvaeError(f"lists and mappings are nested more than {DEEPEST} times")


def _check_plain(value: Any, count: list[int], depth: int) -> None:
    count[0] += 1
    if count[0] > MOST_VALUES or depth > DEEPEST:
        raise MqvaeError(
            f"expected {MOST_VALUES:,} values at most, in each other {DEEPEST} times at most; "
            "aliases count as what they stand for"
        )
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str | int | float | bool | None):
                raise MqvaeError(f"expected a word before the colon, got {key!r}")
            _check_plain(each, count, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_plain(each, count, depth + 1)
    elif not isinstance(value, str | int | float | bool | None):
        raise MqvaeError(
            f"{value} is read as a {type(value).__name__}: expected text (in quotes), a number, "
            "true, false or null"
        )


# -- written whole -------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is at `path` once the block ends and the disk has it; else nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # others may write it too
    partial.unlink(missing_ok=True)  # of a killed process, or a link that leads elsewhere
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)  # a full disk has no room for it
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # nor does it say whose
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; text as UTF-8."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write a JSON file whole or not at all; numbers that are not finite as `only_finite` does."""
    content = only_finite(content)
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def only_finite(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with null for every number that is not finite.

    Under the key `NOT_FINITE` it then says which they were, by JSON pointers (RFC 6901).

    >>> only_finite({"mse": 0.5, "psnr": math.inf})
    {'mse': 0.5, 'psnr': None, 'not_finite': {'/psnr': 'inf'}}
    """
    found: dict[str, str] = {}
    plain = _without(content, "", found)
    return {**plain, NOT_FINITE: found} if found else dict(plain)


def restored(content: Any) -> Any:
    """Undo `only_finite`; anything else comes back as it is.

    >>> restored({"mse": 0.5, "psnr": None, "not_finite": {"/psnr": "inf"}})
    {'mse': 0.5, 'psnr': inf}
    """
    if not isinstance(content, dict) or not isinstance(content.get(NOT_FINITE), dict):
        return content
    for pointer, number in content.pop(NOT_FINITE).items():
        *way, last = _steps(pointer)
        place: Any = content
        try:
            for step in way:
                place = place[int(step) if isinstance(place, list) else step]
            place[int(last) if isinstance(place, list) else last] = float(number)
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # there is no such place (any more)
    return content


def _without(value: Any, pointer: str, found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[pointer] = str(value)
        return None
    if isinstance(value, Mapping):
        return {k: _without(v, f"{pointer}/{_escaped(str(k))}", found) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without(v, f"{pointer}/{i}", found) for i, v in enumerate(value)]
    return value


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _steps(pointer: str) -> Iterator[str]:
    return (step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])


# -- tensors ---------------------------------------------------------------------------------------


def packed(tensors: Mapping[str, "Tensor"]) -> bytes:
    """Tensors as the bytes of a safetensors file; what several names share is stored once."""
    from safetensors.torch import save

    names: dict[object, str] = {}
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in names:
            tied[name] = names[place]
            continue
        names[place] = name
        whole = tensor.cpu().contiguous()
        # A part of another tensor's memory, which safetensors refuses.
        apart = whole.untyped_storage().nbytes() == whole.nbytes
        kept[name] = whole if apart else whole.clone()
    return save(kept, metadata={TIED: json.dumps(tied)} if tied else None)


def unpacked(content: bytes) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file under all their names; SafetensorError if it is damaged."""
    from safetensors.torch import load

    tensors = load(content)
    length = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    for name, other in json.loads(told.get(TIED, "{}")).items():
        tensors[name] = tensors[other]
    return tensors
