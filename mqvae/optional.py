"""Optional packages, by the extra that installs them: `pip install 'mqvae[NAME]'`."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass


class ExtraMissing(ImportError):
    """A package that an extra brings is not installed; the message names the extra."""


@dataclass(frozen=True)
class Extra:
    """Packages that come together."""

    modules: tuple[str, ...]  # what they are imported as
    enables: str  # what they are for, in words that follow "for"

    @property
    def missing(self) -> list[str]:
        """The modules that are not there. Nothing is imported to know it."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


EXTRAS: Mapping[str, Extra] = {
    "compress": Extra(("constriction",), "mqvae compress and mqvae decompress"),
    "datasets": Extra(("datasets",), "datasets of the Hugging Face Hub, --data hf:OWNER/NAME"),
    "fid": Extra(("torch_fidelity",), "FID and the inception score"),
    "hub": Extra(("huggingface_hub",), "tokenizers on the Hugging Face Hub"),
    "onnx": Extra(
        ("onnx", "onnxruntime", "onnxscript"),
        "the ONNX files of mqvae export, which --formats pt2 does without, and running them",
    ),
    "report": Extra(("matplotlib",), "plots"),
    "svhn": Extra(("scipy",), "the data set svhn"),
    "tensorboard": Extra(("tensorboard",), "TensorBoard's curves beside metrics.csv"),
    "trackio": Extra(("trackio",), "--trainer.loggers trackio"),
    "wandb": Extra(("wandb",), "--trainer.loggers wandb"),
}


def require(module: str) -> None:
    """Raise ExtraMissing, which says what to install, if a module of `EXTRAS` is not there."""
    name, extra = next((name, each) for name, each in EXTRAS.items() if module in each.modules)
    if importlib.util.find_spec(module) is None:
        raise ExtraMissing(
            f"the package {module.replace('_', '-')} is not installed. It is for {extra.enables}: "
            f"pip install 'mqvae[{name}]'."
        )
