"""Reconstruction with a discriminator and a perceptual loss (VQ-GAN)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from mqvae.core.distributed import mean_across_processes
from mqvae.core.network import VQNetwork
from mqvae.core.optimizer import apply
from mqvae.core.passes import fresh_casts, full
from mqvae.errors import MqvaeError, at_least
from mqvae.networks.discriminator import PatchDiscriminator
from mqvae.tasks.last_layer import LastLayer, without_graph
from mqvae.tasks.perceptual import SMALLEST, PerceptualDistance, PixelAndPerceptualErrors
from mqvae.tasks.reconstruction import Reconstruction
from mqvae.tasks.task import AuxiliaryOptimizer, Measurement, Metric, Task, metrics_of

HIGHEST = 1e4  # that the adaptive weight can be


class Adversarial(Task):
    """VQ-GAN loss: absolute error, perceptual error and an adversarial term.

        L_task  =  l1 · mean|y − x| + perceptual · LPIPS(y, x)  +  λ · adversarial · (−mean D(y))

    λ = ‖∇_W L_rec‖ / (‖∇_W L_gan‖ + 1e-4), from 0 to 10⁴, is a number without a gradient; W is the
    weight of the decoder's last layer, L_rec the first two terms, L_gan the third without its
    weights. D, a `PatchDiscriminator`, is trained by the hinge loss after each update, on the
    output that the network gave before it. Several processes share gradients, D's batch statistics
    and λ: together they do what one does.

    In eval mode it is L_rec: so are validation losses and gradient gaps, whatever D knows by then.
    D and LPIPS take images in [−1, 1], the other terms those in [0, 1].

    Args:
        l1_weight: Weight of the absolute error. Esser et al.'s images are in [−1, 1], as if it
            were 2.
        perceptual_weight: Weight of LPIPS on VGG16; with 0 it needs no trained network.
        adversarial_weight: Weight of the discriminator's term beside λ; with 0 there is none.
        start: Training steps before the discriminator is trained and heard.
        discriminator_lr: Its learning rate, which falls as a cosine to 0.
        discriminator_layers: Its convolutions of stride 2; 3 need images of 24 pixels or more.
        discriminator_width: Channels of the first of them.

    Raises:
        ValueError: if a weight or the learning rate is negative.

    Source:
        Esser et al. 2021, "Taming transformers for high-resolution image synthesis".
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        **Reconstruction.metrics,
        **metrics_of("adversarial"),
    }
    logs = (
        *("l1", "perceptual", "generator", "discriminator"),
        *("adaptive_weight", "logits_real", "logits_generated"),
    )

    updates: Tensor

    def __init__(
        self,
        *,
        l1_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        adversarial_weight: float = 0.8,
        start: int = 0,
        discriminator_lr: float = 3e-4,
        discriminator_layers: int = 3,
        discriminator_width: int = 64,
    ) -> None:
        super().__init__()
        self.l1_weight = l1_weight
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.start = start
        self.discriminator_lr = discriminator_lr
        numbers = ("l1_weight", "perceptual_weight", "adversarial_weight", "start")
        at_least(0, **{name: getattr(self, name) for name in (*numbers, "discriminator_lr")})
        sizes = {"width": discriminator_width, "layers": discriminator_layers}
        self.discriminator = PatchDiscriminator(**sizes)
        self.perceptual: PerceptualDistance | None = None  # read when it is wanted
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._last_layer: LastLayer | None = None
        self._terms: dict[str, Tensor] = {}  # of the first pass of an update
        self._started = False

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        return x

    def images(self, output: Tensor) -> Tensor:
        return output.float().clamp(0, 1)

    def measurement(self) -> Measurement:
        device = self.updates.device
        return PixelAndPerceptualErrors(self._distance(device) if self.perceptual_weight else None)

    def attend(self, network: VQNetwork, x: Tensor) -> None:
        """Record gradients of the decoder's last layer.

        Raises:
            ValueError: if it has none that would do, or the images are too small for the
                discriminator or VGG16.
            WeightsNotFound: if VGG16's weights are wanted and not there.
        """
        height, width = x.shape[-2:]
        if self._last_layer is not None:
            self._last_layer.release()
            self._last_layer = None
        if self.perceptual_weight:
            if min(height, width) < SMALLEST:
                raise MqvaeError(
                    f"the perceptual loss needs images of {SMALLEST} × {SMALLEST} pixels or more, "
                    f"got {height} × {width}: larger images, or perceptual_weight 0."
                )
            self._distance(x.device)
        if self.adversarial_weight:
            self.discriminator.check(height, width)
            self._last_layer = LastLayer(network, x)

    # -- the loss --------------------------------------------------------------------------------

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """L_task, its terms told apart for the log.

        Raises:
            ValueError: if `attend` has not been called with the network that gave the output.
        """
        output = full(output)
        if not self.training:
            self._forget_passes()
            loss, _ = self._reconstruction(output, target)
            return loss
        # λ needs the gradients of the terms by the output, and they are all that the network gets:
        # neither the discriminator nor the perceptual network is gone through twice.
        y = without_graph(output).requires_grad_()
        with torch.enable_grad():
            loss, terms = self._reconstruction(y, target)
            (gradient,) = torch.autograd.grad(loss, y)
            if self._has_started():
                generator = -self._logits(y).mean()
                (of_generator,) = torch.autograd.grad(generator, y)
                adaptive = self._adaptive_weight(gradient, of_generator)
                weight = self.adversarial_weight * adaptive
                loss = loss + weight * generator
                gradient = gradient + weight * of_generator
                terms |= {"generator": generator, "adaptive_weight": adaptive}
        self._forget_passes()
        if not self._terms:
            self._terms = {name: value.detach() for name, value in terms.items()}
        # The value of the loss, and its gradient by the output.
        loss = without_graph(loss) + ((output - without_graph(output)) * gradient).sum()
        if loss.requires_grad:
            loss.register_hook(_refuse_second_derivatives)
        return loss

    def _reconstruction(self, output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_rec and its terms."""
        l1 = (output - target).abs().mean()
        loss, terms = self.l1_weight * l1, {"l1": l1}
        if self.perceptual_weight:
            terms["perceptual"] = self._distance(output.device)(output, target).mean()
            loss = loss + self.perceptual_weight * terms["perceptual"]
        return loss, terms

    def _logits(self, images: Tensor) -> Tensor:
        return full(self.discriminator(2 * images.expand(-1, 3, -1, -1) - 1))

    def _adaptive_weight(self, of_reconstruction: Tensor, of_generator: Tensor) -> Tensor:
        """λ, given both gradients by the output."""
        if self._last_layer is None:
            raise MqvaeError(
                "Adversarial must know the network whose output it judges: call "
                "attend(network, x) once before training."
            )
        found = self._last_layer.weight_gradients([of_reconstruction, of_generator])
        reconstruction, generator = (full(g).norm() for g in mean_across_processes(found))
        return (reconstruction / (generator + 1e-4)).clamp(0, HIGHEST)

    def _distance(self, device: torch.device) -> PerceptualDistance:
        if self.perceptual is None:
            self.perceptual = PerceptualDistance().to(device)
        return self.perceptual

    def _has_started(self) -> bool:
        if not self._started and self.adversarial_weight:
            # Looking waits for the device; once it has started nobody looks any more.
            self._started = int(self.updates) >= self.start
        return self._started

    def _forget_passes(self) -> None:
        if self._last_layer is not None:
            self._last_layer.forget()

    # -- the discriminator -----------------------------------------------------------------------

    def auxiliary_optimizers(self, steps: int) -> Mapping[str, AuxiliaryOptimizer]:
        trained, lr = self.discriminator.parameters(), self.discriminator_lr
        optimizer = AdamW(trained, lr=lr, betas=(0.5, 0.9), weight_decay=0.0)
        schedule = CosineAnnealingLR(optimizer, max(1, steps))
        return {"discriminator": AuxiliaryOptimizer(optimizer, schedule)}

    def step(
        self, auxiliary: Mapping[str, AuxiliaryOptimizer], x: Tensor, y: Tensor, output: Tensor
    ) -> Mapping[str, Tensor]:
        """Train the discriminator: mean max(0, 1 − D(x)) / 2 + mean max(0, 1 + D(output)) / 2."""
        logged, self._terms = self._terms, {}
        self._forget_passes()  # those of graphs that were made again
        parameters = list(self.discriminator.parameters())
        found: list[Tensor | None] = [None] * len(parameters)
        if self._has_started():
            with fresh_casts(), torch.enable_grad():
                real, generated = self._logits(x), self._logits(full(output))
                loss = ((1 - real).relu().mean() + (1 + generated).relu().mean()) / 2
                found = mean_across_processes(list(torch.autograd.grad(loss, parameters)))
            logged |= {
                "discriminator": loss.detach(),
                "logits_real": real.detach().mean(),
                "logits_generated": generated.detach().mean(),
            }
        # Without gradients it changes nothing; the schedule counts these steps too.
        apply(auxiliary["discriminator"].optimizer, parameters, found)
        self.updates += 1
        return logged

    def troubles(self, logged: Mapping[str, float]) -> Mapping[str, str]:
        found = {}
        if "discriminator" in logged:
            real, generated = logged["logits_real"], logged["logits_generated"]
            if logged["discriminator"] < 0.02 and real - generated > 4:
                found["saturated"] = (
                    "the discriminator tells every reconstruction from its image (logits "
                    f"{real:.1f} and {generated:.1f}, loss {logged['discriminator']:.3f}) and has "
                    "no more to teach. Try a lower task.discriminator_lr, fewer "
                    "task.discriminator_layers, a later task.start, or a lower "
                    "task.adversarial_weight."
                )
        if logged.get("adaptive_weight", 0.0) > 0.99 * HIGHEST:
            found["bound"] = (
                f"the adaptive weight of the discriminator is at its bound, {HIGHEST:.0f}: its "
                "gradient has vanished beside the reconstruction's. Try a lower "
                "task.discriminator_lr, a later task.start, or a lower task.adversarial_weight."
            )
        return found


def _refuse_second_derivatives(gradient: Tensor) -> None:
    if torch.is_grad_enabled():
        raise MqvaeError(
            "Adversarial's gradient cannot be differentiated in reverse mode again, as Unrolled "
            "does: use Exact(), which is its equal for one step, or FiniteDifference()."
        )
