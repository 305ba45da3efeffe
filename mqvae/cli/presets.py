"""`mqvae presets` and `mqvae methods`."""

from itertools import groupby

from mqvae.cli.parser import parser_of


def presets(arguments: list[str]) -> int:
    parser_of("presets", "Lists the presets: data, network and length.").parse_args(arguments)
    from mqvae.config.presets import PRESETS, listed

    for line in listed(PRESETS):
        print(f"{line.name:<24} {line.title}")
    print("\nmqvae train PRESET --method METHOD; `mqvae methods` lists methods")
    return 0


def methods(arguments: list[str]) -> int:
    parser_of(
        "methods", "Lists the methods: quantizer, update rule and the codebook's optimizer."
    ).parse_args(arguments)
    from mqvae.config.presets import METHODS, listed

    for group, lines in groupby(listed(METHODS), lambda line: line.group):
        print(f"{group}:")
        for line in lines:
            print(f"  {line.name:<24} {line.title}")
    print("\nmqvae train PRESET --method METHOD; `mqvae presets` lists presets")
    return 0
