"""`mqvae pretrained`."""

import shlex
from typing import Annotated

from mqvae.errors import MqvaeError


def pretrained(
    name: str | None = None,
    *,
    out: Annotated[str | None, "RUN"] = None,
    overwrite: bool = False,
    data: Annotated[str | None, "NAME"] = None,
) -> int:
    """List the pretrained tokenizers; with a name, make a run of one.

    The run is measured, used and fine-tuned as any other.

    Args:
        name: A tokenizer, or OWNER/REPOSITORY/FILE on the Hub.
        out: The run's folder.
        overwrite: Replace the run at --out.
        data: Images that it is measured on: a data set or a folder (default: its own).
    """
    from mqvae.tokenizer.pretrained import listed, run_of

    if name is None:
        print("\n".join(listed()))
        print('\nmqvae.Tokenizer.from_pretrained("NAME"), or mqvae pretrained NAME --out RUN')
        return 0
    if out is None:
        raise MqvaeError(
            f"pretrained needs a folder for the run: mqvae pretrained {name} --out RUN."
        )
    run, settings = run_of(name, out, data=data, overwrite=overwrite)
    folder, trained = shlex.quote(str(run.folder)), settings.data
    print(
        f"{name}: trained on {trained.name}, {trained.side} × {trained.side} pixels, "
        f"{settings.quantizer['init_args'].get('num_codes', '')} codes: {run.folder}\n"
        f"next: mqvae evaluate {folder} --data photos/\n"
        f"      mqvae encode {folder} photos/ --fit --out codes/\n"
        f"      mqvae train photos/ --from {folder} --out runs/tuned"
    )
    return 0
