"""Tensors as the bytes of a safetensors file; what shares memory is stored once."""

import json
from collections.abc import Mapping

from torch import Tensor

TIED = "tied"  # in a file's metadata: the names whose tensor is stored under another


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as a safetensors file, one of several names of the same tensor (tied weights)."""
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


def unpacked(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file under all their names.

    Raises:
        SafetensorError: if it is none, or damaged.
    """
    from safetensors.torch import load

    tensors = load(content)
    length = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    for name, other in json.loads(told.get(TIED, "{}")).items():
        tensors[name] = tensors[other]
    return tensors
