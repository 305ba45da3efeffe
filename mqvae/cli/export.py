"""`mqvae export`."""

from mqvae.cli.parser import add_run, folder_for, parser_of
from mqvae.cli.terminal import quiet


def export(arguments: list[str]) -> int:
    parser = parser_of(
        "export",
        "A run's encoder and decoder as programs that run without mqvae: encoder.pt2 and "
        "decoder.pt2 for torch.export, encoder.onnx and decoder.onnx.",
    )
    add_run(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of the files (default: RUN/export)")
    parser.add_argument("--overwrite", action="store_true", help="replace files at --out")
    parser.add_argument(
        "--formats",
        default="pt2,onnx",
        metavar="NAME,…",
        help="pt2, onnx, or both (default: pt2,onnx)",
    )
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    options = parser.parse_args(arguments)
    out = folder_for(options.out or f"{options.run}/export", overwrite=options.overwrite)
    from mqvae.tokenizer import Tokenizer
    from mqvae.tokenizer.export import export

    quiet()
    # Programs keep the device they were made on, and every machine has a CPU.
    tokenizer = Tokenizer.from_run(options.run, checkpoint=options.checkpoint, device="cpu")
    formats = [name.strip() for name in options.formats.split(",") if name.strip()]
    written = export(tokenizer, out, formats=formats)
    codes = " × ".join(map(str, tokenizer.code_shape))
    data = tokenizer.settings.data
    print(
        f"{data.in_words()} (B, D) → {codes or 1} codes → vectors"
        if data.are_vectors
        else f"images (B, {tokenizer.settings.data.channels}, H, W) in [0, 1], sides multiples of "
        f"{tokenizer.stride} → {codes} codes for {tokenizer.settings.data.side} pixels → images"
    )
    print("\n".join(f"written: {path} ({path.stat().st_size:,} bytes)" for path in written))
    return 0
