"""Codes that decode to a lower loss than the nearest ones do."""

import torch
from torch import Tensor

from mqvae.core.bilevel import Loss
from mqvae.core.network import VQNetwork
from mqvae.core.passes import full
from mqvae.errors import MqvaeError
from mqvae.refine.choices import choices_of
from mqvae.refine.curvature import Curvature
from mqvae.refine.refinement import Refinement
from mqvae.refine.search import Search


def refined(
    network: VQNetwork,
    x: Tensor,
    loss: Loss,
    how: Refinement,
    curvature: Curvature,
    *,
    target: Tensor | None = None,
) -> Tensor:
    """Codes of images that are no worse than the nearest ones, by the loss of each image.

    No parameter, buffer or gradient of the network, which is in eval mode, changes. Images are
    (B, C, H, W), so many that memory holds the decoder's graph; the loss is a mean over them. The
    output is compared with `target`, at its start where that is smaller (default: x).

    Raises:
        MqvaeError: if the quantizer is of a kind that has no choices, or bits have a weight and it
            does not know them.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone() if x.is_inference() else x
        target = x if target is None else target.clone() if target.is_inference() else target
        features = network.encoder(x)
        codes = network.quantizer.encode(network.channels_last(features))
        choices = choices_of(network.quantizer)
        if how.prior is not None and len(choices.each) != network.quantizer.groups:
            raise MqvaeError(
                f"a code of {type(network.quantizer).__name__} is several levels at once, which a "
                "prior does not count apart: leave out the prior and bits_weight."
            )
        unknown = how.prior is None and any(choice.bits is None for choice in choices.each)
        if how.bits_weight and unknown:
            raise MqvaeError(
                f"bits_weight {how.bits_weight:g} weighs the bits of codes, which a prior knows, "
                "or a quantizer that was trained with a rate (quantizer.rate RateAware): leave it "
                "out, or add a prior."
            )
        # Where codes are not chosen by distance, others are tried that are near to the chosen.
        z_e = full(network.placed(features)) if choices.by_distance else None
        search = Search(network, loss, target, how, curvature, choices)
        return choices.join(search.run(z_e, choices.split(codes)))
