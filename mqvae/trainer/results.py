"""What a run is measured with, and the files of it."""

import platform

import torch

from mqvae import __version__
from mqvae.core.network import VQNetwork
from mqvae.data import Images
from mqvae.metrics import Evaluation, evaluating
from mqvae.runs import (
    Run,
)

SAMPLES = 16


def write_evaluation_files(
    run: Run, network: VQNetwork, images: Images, result: Evaluation
) -> None:
    """code_counts.csv and the sample strips of a run."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    from mqvae.runs import write_whole

    lines = ["group,code,count"]
    for group, counts in enumerate(result.code_counts.tolist()):
        lines += [f"{group},{code},{count}" for code, count in enumerate(counts)]
    write_whole(run.folder / "code_counts.csv", "\n".join(lines) + "\n")

    pixels, _ = images.take(torch.arange(min(SAMPLES, len(images))))
    device = next(network.parameters()).device
    x = pixels.to(device) / 255
    with evaluating(network), torch.no_grad():
        output = network(x).output.float().clamp(0, 1)
    for name, shown in (("originals", x), ("reconstructions", output)):
        path = run.folder / "samples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        strip = make_grid(shown.cpu(), nrow=len(shown), padding=2)[:, 2:-2, 2:-2]
        to_pil_image(strip).save(path)


def versions() -> dict[str, str]:
    """What a figure was computed with."""
    return {"mqvae": __version__, "torch": torch.__version__, "python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
