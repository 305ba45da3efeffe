"""What the paper does not say, and what was taken."""

from collections.abc import Mapping

QUOTE = (
    "“The training configurations for other baselines were kept the same as those for our method. "
    "The learning rate for the lower layer (i.e., the encoder-decoder pair) was set to 3 × 10⁻⁴, "
    "and the learning rate for the upper layer (i.e., the codebook) was set to 6 × 10⁻².”"
)
TAKEN: Mapping[str, str] = {
    "Learning rate of a baseline's codebook": "both readings: one AdamW at the network's for "
    "everything, and 6e-2 for every codebook",
    "Number of training steps, but for Table 8": "3,000 for reconstruction, 1,500 for "
    "classification at the scale `cpu`, 20,000 at the scale `paper`",
    "Virtual step": "its text has descent of size ξ, the lower learning rate; here it is AdamW's "
    "own step, undone, and ξ = 1 scales the indirect term, as its base library does it and as the "
    "lengths of its Figure 6 suggest: the direct term is 4 times as long as the indirect one "
    "there, and over a thousand times with descent of 3e-4 here",
    "Difference of Eq. 13": "one-sided, radius 0.01 over the length of v, codes frozen; printed is "
    "a central one, in which codes may change",
    "β of + alt": "0.1, as everywhere; the paper has 0 (line 285), which is a row of its own",
    "ν of + sync": "1",
    "+ replace": "a codeword that 50 training steps have not chosen becomes an embedding of the "
    "batch",
    "+ group": "four groups with a codebook of 1,024 each; one for all is a row of its own",
    "Gumbel-VQ": "weight of the divergence 5e-4, temperature 1 to 1/16 over the run, k-means at "
    "the start, arg-max in evaluation; its source differs, see `GumbelQuantizer`",
    "Size of the VQ-VAE": "“directly follows” van den Oord 2017: width 256 and two residual blocks "
    "at the scale `paper`, width 32 at `cpu`",
    "Stem of the ResNet18": "3 × 3 without pooling for images of 28 and 32 pixels at the scale "
    "`cpu`, torchvision's own at `paper`; the 128 channels after the second macroblock go to the "
    "codes' 512 dimensions by a 1×1 convolution, and back",
    "VQ-GAN": "network and losses of its authors; the discriminator starts after 2,000 of 10,000 "
    "steps; a batch of 512 as Appendix I has it of all experiments, in parts",
    "Classifier's batch and the gap": "how the gap is summed over a batch is not said: the paper's "
    "Table 2 has values a hundred times ours, its Table 1 like ours; only ratios are compared",
    "PixelCNN": "its size, its length and the number of samples",
    "Images of the metrics": "test images; the reference of FID and what stands for it are the "
    "preprocessed originals",
}
