"""`mqvae pretrained`."""

import shlex

from mqvae.cli.parser import parser_of
from mqvae.errors import MqvaeError


def pretrained(arguments: list[str]) -> int:
    parser = parser_of(
        "pretrained",
        "Lists the tokenizers that are there; with a name, makes a run of one, which is measured, "
        "used and fine-tuned as any other.",
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a tokenizer, or OWNER/REPOSITORY/FILE on the Hub"
    )
    parser.add_argument("--out", metavar="RUN", help="the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run at --out")
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="images that it is measured on: a data set or a folder (default: its own)",
    )
    options = parser.parse_args(arguments)
    from mqvae.tokenizer.pretrained import listed, run_of

    if options.name is None:
        print("\n".join(listed()))
        print('\nmqvae.Tokenizer.from_pretrained("NAME"), or mqvae pretrained NAME --out RUN')
        return 0
    if options.out is None:
        raise MqvaeError(
            f"pretrained needs a folder for the run: mqvae pretrained {options.name} --out RUN."
        )
    run, settings = run_of(
        options.name, options.out, data=options.data, overwrite=options.overwrite
    )
    folder, data = shlex.quote(str(run.folder)), settings.data
    print(
        f"{options.name}: trained on {data.name}, {data.side} × {data.side} pixels, "
        f"{settings.quantizer['init_args'].get('num_codes', '')} codes: {run.folder}\n"
        f"next: mqvae evaluate {folder} --data photos/\n"
        f"      mqvae encode {folder} photos/ --fit --out codes/\n"
        f"      mqvae train photos/ --from {folder} --out runs/tuned"
    )
    return 0
