"""`mqvae export`."""

from typing import Annotated

from mqvae.cli.parser import Checkpoint, RunName, folder_for
from mqvae.cli.terminal import quiet


def export(
    run: RunName,
    *,
    out: Annotated[str | None, "DIR"] = None,
    overwrite: bool = False,
    formats: Annotated[str, "NAME,…"] = "pt2,onnx",
    checkpoint: Checkpoint = "last",
) -> int:
    """Export a run's encoder and decoder as programs that run without mqvae.

    They are encoder.pt2 and decoder.pt2 for torch.export, encoder.onnx and decoder.onnx.

    Args:
        out: Folder of the files (default: RUN/export).
        overwrite: Replace files at --out.
        formats: Which of pt2 and onnx.
    """
    folder = folder_for(out or f"{run}/export", overwrite=overwrite)
    from mqvae.tokenizer import Tokenizer
    from mqvae.tokenizer.export import export as write

    quiet()
    # Programs keep the device they were made on, and every machine has a CPU.
    tokenizer = Tokenizer.from_run(run, checkpoint=checkpoint, device="cpu")
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    written = write(tokenizer, folder, formats=wanted)
    codes = " × ".join(map(str, tokenizer.code_shape))
    data = tokenizer.settings.data
    print(
        f"{data.in_words()} (B, D) → {codes or 1} codes → vectors"
        if data.are_vectors
        else f"images (B, {data.channels}, H, W) in [0, 1], sides multiples of "
        f"{tokenizer.stride} → {codes} codes for {data.side} pixels → images"
    )
    print("\n".join(f"written: {path} ({path.stat().st_size:,} bytes)" for path in written))
    return 0
