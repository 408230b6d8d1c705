"""The discriminator that an autoencoder is trained against, under an engine of its own.

The engine comes from the same plugin as the autoencoder's, so precision, sharding and clipping are the run's. The
autoencoder's task owns it, and its state lies in the same checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opensora.parallel import collectives
from opensora.parallel.engine import Engine
from opensora.registry import DISCRIMINATORS, build
from opensora.rng import key_seed
from opensora.training import autoencoder_losses
from opensora.training.autoencoder_losses import GanLoss

_PREFIX = "discriminator/"  # of its entries in a checkpoint's state


class DiscriminatorTrainer:
    """Trains a discriminator in the optimizer steps of the autoencoder.

    weight: of the generator loss, next to the adaptive weight. start_step: optimizer steps before it joins in; until
    then it costs nothing, and its optimizer stands still.
    """

    def __init__(self, engine: Engine, loss_type: GanLoss, weight: float, start_step: int):
        self.engine = engine
        self.loss_type: GanLoss = loss_type
        self.weight = weight
        self.start_step = start_step
        self.config: Mapping[str, Any] = engine.module.config  # type: ignore[assignment]
        self._statistics: list[Tensor] | None = None  # running ones, as they were before this step

    def generator_loss(
        self, fake_BCTHW: Tensor, error_B: Tensor, last_layer: nn.Parameter
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The autoencoder's adversarial loss, [B], to add to its mean error per number `error_B`; and metrics to log."""
        frame_size = fake_BCTHW[0, :, 0].numel()
        logits = self.engine.model(fake_BCTHW, learn=False)
        gan_B = autoencoder_losses.generator_loss(logits, len(fake_BCTHW))
        nll = autoencoder_losses.negative_log_likelihood(error_B, frame_size).mean()
        adaptive = autoencoder_losses.adaptive_weight(nll, gan_B.mean(), last_layer)
        weight = self.weight * adaptive
        return weight * gan_B / frame_size, {"gan_weight": weight}

    def accumulate(self, real_BCTHW: Tensor, fake_BCTHW: Tensor, scale: float, last: bool) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch, its loss times `scale`; returns metrics to log.

        fake_BCTHW: the reconstruction that `generator_loss` was given, without a graph. last: as `Engine.accumulating`.
        """
        if self._statistics is None:
            self._statistics = [buffer.clone() for buffer in self.engine.module.buffers()]
        with self.engine.accumulating(last):
            real, fake = self.engine.model(real_BCTHW), self.engine.model(fake_BCTHW)
            loss = autoencoder_losses.discriminator_loss(real, fake, self.loss_type)
            self.engine.backward(loss * scale)
        metrics = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return {name: value.detach() for name, value in metrics.items()}

    def grad_norm(self) -> float:
        """As `Engine.grad_norm`."""
        return self.engine.grad_norm()

    def update(self, lr_factor: float = 1.0) -> None:
        """As `Engine.update`."""
        self.engine.update(lr_factor)
        self._statistics = None

    @torch.no_grad()
    def discard_gradients(self) -> None:
        """As `Engine.discard_gradients`; the running statistics go back to what they were before the step as well."""
        self.engine.discard_gradients()
        if self._statistics is not None:
            for buffer, before in zip(self.engine.module.buffers(), self._statistics, strict=True):
                buffer.copy_(before)
        self._statistics = None

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint's state, in live tensors; all ranks call."""
        # each rank's running statistics are of its own clips; they decide nothing while training
        collectives.broadcast_tensors(list(self.engine.module.buffers()))
        return {f"{_PREFIX}{key}": value for key, value in self.engine.state().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load its part of a checkpoint's state; all ranks call."""
        own = {key.removeprefix(_PREFIX): value for key, value in state.items() if key.startswith(_PREFIX)}
        self.engine.load_state(own)

    def weights(self) -> dict[str, Tensor]:
        """Its whole weights on the main rank, {} elsewhere; all ranks call."""
        return self.engine.gather_state_dict()


def build_discriminator(config: Mapping[str, Any], *, seed: int) -> Any:
    """A discriminator with its weights; initial ones depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, "initial discriminator"))
        return build(DISCRIMINATORS, dict(config)).load()
