"""`mqvae presets` and `mqvae methods`."""

from itertools import groupby


def presets() -> int:
    """List the presets: data, network and length."""
    from mqvae.config.presets import PRESETS, listed

    for line in listed(PRESETS):
        print(f"{line.name:<24} {line.title}")
    print("\nmqvae train PRESET --method METHOD; `mqvae methods` lists methods")
    return 0


def methods() -> int:
    """List the methods: quantizer, update rule and the codebook's optimizer."""
    from mqvae.config.presets import METHODS, listed

    for group, lines in groupby(listed(METHODS), lambda line: line.group):
        print(f"{group}:")
        for line in lines:
            print(f"  {line.name:<24} {line.title}")
    print("\nmqvae train PRESET --method METHOD; `mqvae presets` lists presets")
    return 0
