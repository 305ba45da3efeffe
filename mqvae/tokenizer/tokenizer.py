"""A trained run as an object that encodes and decodes, is shared and read again."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqvae.config import Settings
from mqvae.config.settings import inputs_of
from mqvae.core.quantizers import NoQuantizer
from mqvae.errors import MqvaeError
from mqvae.notebook import html_table
from mqvae.runs import Checkpoint, Run
from mqvae.tokenizer.codes import SizedCodes
from mqvae.tokenizer.files import FileCodec
from mqvae.tokenizer.pretrained import located
from mqvae.tokenizer.sharing import downloaded, read, uploaded, write
from mqvae.weights.packaged import packaged


class Tokenizer(FileCodec):
    """A trained network with the preprocessing of its run.

    Args:
        folder: Where it comes from: its run, or what `save_pretrained` wrote.
        settings: The run's settings.
        network: The trained network.
        task: What it was trained for.
        step: Number of training steps it has had.
        model: Fingerprint of its weights.

    Example:
        >>> tokenizer = Tokenizer.from_run("runs/first")
        >>> codes = tokenizer.encode(images)       # PIL images, files, arrays, tensors → (B, h, w)
        >>> images = tokenizer.decode(codes)       # (B, C, H, W)
    """

    @classmethod
    def from_run(
        cls,
        folder: str | Path,
        *,
        checkpoint: str = "last",
        device: torch.device | str | None = None,
    ) -> "Tokenizer":
        """Load a run.

        Args:
            folder: The run's folder.
            checkpoint: "last" or "best".
            device: Where to put it; a GPU if there is one.

        Raises:
            ValueError: if it is not a run, or its checkpoint is missing or damaged.
        """
        run = Run(folder)
        settings = Settings.of_run(run)
        return cls._of(run.folder, settings, run.load(checkpoint, training=False), device)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: torch.device | str | None = None,
    ) -> "Tokenizer":
        """Load a tokenizer of the package, or what `save_pretrained` or `push_to_hub` wrote.

        Args:
            name: One of `mqvae pretrained`, as "photos-f4"; a folder; a repository on the Hugging
                Face Hub, as "somebody/tokenizer"; or a file there of taming-transformers or
                LlamaGen, as "FoundationVision/LlamaGen/vq_ds16_c2i.pt", which is converted.
            revision: Branch, tag or commit of the repository.
            token: Access token for the Hub (default: the one that `hf auth login` kept).
            cache_dir: Where what is downloaded is kept.
            local_files_only: Take what was downloaded before, and ask nobody.
            device: Where to put it; a GPU if there is one.

        Raises:
            ValueError: if there is no such folder or repository, or it holds no tokenizer.
        """
        folder = packaged(str(name)) or Path(name).expanduser()
        if not folder.is_dir():
            asking: Any = {
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
            }
            folder = located(str(name), **asking) or downloaded(str(name), **asking)
        return cls._of(folder, *read(folder), device)

    @classmethod
    def _of(
        cls, folder: Path, settings: Settings, saved: Checkpoint, device: torch.device | str | None
    ) -> "Tokenizer":
        try:
            components = settings.components()
            network = components.network.build(inputs_of(settings.data), components.quantizer)
        except (RuntimeError, MemoryError, OverflowError, ValueError) as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            raise MqvaeError(
                f"the network that the settings of {folder} describe cannot be made ({said}): have "
                "they been changed? A run keeps the sizes it was trained with."
            ) from error
        saved.give_weights(network, folder)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        task = components.task.to(device)
        return cls(folder, settings, network.to(device), task, saved.state["step"], saved.digest)

    def __repr__(self) -> str:
        data, quantizer = self.settings.data, self.network.quantizer
        return (
            f"Tokenizer({str(self.folder)!r}: {data.in_words()}, "
            f"{type(quantizer).__name__}({quantizer.extra_repr()}), step {self.step:,})"
        )

    def _repr_html_(self) -> str:
        data, quantizer = self.settings.data, self.network.quantizer
        items = {
            "from": str(self.folder),
            "inputs": data.in_words(),
            "quantizer": f"{type(quantizer).__name__}({quantizer.extra_repr()})",
            "parameters": f"{sum(p.numel() for p in self.network.parameters()):,}",
            "step": f"{self.step:,}",
        }
        if not isinstance(quantizer, NoQuantizer):
            bits = math.prod(self.code_shape) * math.log2(quantizer.num_codes)
            items["codes"] = f"{' × '.join(map(str, self.code_shape))}, {bits:,.0f} bits an image"
        return html_table("Tokenizer", items)

    # -- sharing -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write what `from_pretrained` reads: weights, config.json, and a model card of the run.

        The card, README.md, has what was measured of these weights on the test images, by training
        or `mqvae evaluate`, and reconstructions.png. A tokenizer that was not made by `from_run`
        hands its card on as it is.

        Args:
            folder: Where the files go, over those of these names.
            half: Write float16, half the bytes; the fingerprint of the weights is another then.
        """
        write(self, Path(folder), half=half)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Tokenizer by mqvae",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Put what `save_pretrained` writes on the Hugging Face Hub; arguments as of its mixins.

        Args:
            repo_id: The repository, as in "me/tokenizer"; it is made if it is not there.
            commit_message: What the commit says.
            private: Whether a new repository is.
            token: Access token for the Hub (default: the one that `hf auth login` kept).
            branch: Where the commit goes, if not to "main".
            create_pr: Make a pull request of it.

        Returns:
            The address of the commit.
        """
        how = {"commit_message": commit_message, "revision": branch, "create_pr": create_pr}
        return uploaded(self, repo_id, private=private, token=token, **how)

    # -- codes as bytes ----------------------------------------------------------------------------

    def compress(self, codes: Tensor | SizedCodes) -> bytes:
        """Codes in as few bytes as an adaptive model of their neighbours makes of them.

        What is learned on the way makes codes cheaper: a batch costs less than its images alone.
        The bytes are read on any machine, whatever its processor.

        Args:
            codes: As `encode` gives them.

        Raises:
            MqvaeError: if they are no codes of this tokenizer, or more than 2^29.
            ExtraMissing: if the package constriction is not installed.

        Example:
            >>> content = tokenizer.compress(tokenizer.encode(images))
            >>> images = tokenizer.decode(tokenizer.decompress(content))
        """
        from mqvae.tokenizer.compression import codewords_of, compressed

        return compressed(self, codes).to_bytes(codewords_of(self))

    def decompress(self, content: bytes) -> Tensor | SizedCodes:
        """Codes that `compress` was given, on the CPU; takes files of `mqvae compress` as well.

        Raises:
            MqvaeError: if it is something else, damaged, or made with other weights.
            ExtraMissing: if the package constriction is not installed.
        """
        from mqvae.coding import Compressed
        from mqvae.tokenizer.compression import codes_of

        return codes_of(self, Compressed.from_bytes(content))
