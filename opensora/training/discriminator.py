"""The discriminator that an autoencoder is trained against: an engine of its own beside the autoencoder's.

It sits under the same plugin, so precision, sharding and clipping are the run's; its state lies in the same checkpoint.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opensora.parallel import collectives
from opensora.parallel.engine import Engine, is_finite
from opensora.registry import DISCRIMINATORS, build
from opensora.rng import key_seed
from opensora.training import autoencoder_losses
from opensora.training.autoencoder_losses import GanLoss

_PREFIX = "discriminator/"  # of its entries in a checkpoint's state


class Rival:
    """kind: the loss. weight: of its judgement beside the adaptive weight. start: optimizer steps before it joins in.

    Before `start` it costs nothing: nothing is judged and its optimizer stands still.
    """

    def __init__(self, engine: Engine, kind: GanLoss, weight: float, start: int):
        self.engine = engine
        self.kind: GanLoss = kind
        self.weight = weight
        self.start = start
        self.config: Mapping[str, Any] = engine.module.config  # type: ignore[assignment]
        self.base_lr: float = engine.optimizer.param_groups[0]["lr"]
        self._joined = False
        self._statistics: list[Tensor] | None = None  # running ones, as they were before this step

    def judge(self, fake_BCTHW: Tensor, error_B: Tensor, last_layer: nn.Parameter) -> tuple[Tensor, dict[str, Tensor]]:
        """What the autoencoder's loss gains, [B], next to its mean error per number `error_B`; and figures to log."""
        frame_size = fake_BCTHW[0, :, 0].numel()
        logits = self.engine.model(fake_BCTHW, learn=False)
        gan_B = autoencoder_losses.generator_loss(logits, len(fake_BCTHW))
        nll = autoencoder_losses.negative_log_likelihood(error_B, frame_size).mean()
        adaptive = autoencoder_losses.adaptive_weight(nll, gan_B.mean(), last_layer)
        weight = self.weight * adaptive
        return weight * gan_B / frame_size, {"gan_weight": weight}

    def learn(self, real_BCTHW: Tensor, fake_BCTHW: Tensor, share: float, last: bool) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch, which counts for `share`; returns figures to log.

        fake_BCTHW is the reconstruction that was judged, without a graph. `last` as in `Engine.backward`.
        """
        if self._statistics is None:
            self._statistics = [buffer.clone() for buffer in self.engine.module.buffers()]
        real, fake = self.engine.model(real_BCTHW), self.engine.model(fake_BCTHW)
        loss = autoencoder_losses.discriminator_loss(real, fake, self.kind)
        self.engine.backward(loss * share, last=last)
        self._joined = True
        figures = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return {name: value.detach() for name, value in figures.items()}

    def step(self, factor: float, accept: Callable[[float], bool] = is_finite) -> float:
        """Update with `factor` of the base learning rate, once it has joined in; the gradient norm before clipping.

        accept: as in `Engine.step`; asked with 0 before it has joined in.
        """
        if not self._joined:
            accept(0.0)
            return 0.0
        answers: list[bool] = []

        def ask(norm: float) -> bool:
            answers.append(accept(norm) and is_finite(norm))
            return answers[0]

        self.engine.set_lr(self.base_lr * factor)
        norm = self.engine.step(ask)
        if not answers[0]:
            self._restore()
        self._statistics = None
        return norm

    @torch.no_grad()
    def _restore(self) -> None:
        """What was seen in a step that is not made leaves no trace in the running statistics."""
        for buffer, before in zip(self.engine.module.buffers(), self._statistics or [], strict=True):
            buffer.copy_(before)

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint's state, in live tensors; every rank calls it."""
        # each rank's running statistics are of its own clips; they decide nothing while training
        collectives.broadcast_tensors(list(self.engine.module.buffers()))
        return {f"{_PREFIX}{key}": value for key, value in self.engine.state().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over its part of a checkpoint's state."""
        own = {key.removeprefix(_PREFIX): value for key, value in state.items() if key.startswith(_PREFIX)}
        self.engine.load_state(own)

    def weights(self) -> dict[str, Tensor]:
        """Its whole weights on the main rank, {} elsewhere; every rank calls it."""
        return self.engine.full_weights()


def build_discriminator(config: Mapping[str, Any], *, seed: int) -> Any:
    """A discriminator with its weights; initial ones depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, "initial discriminator"))
        return build(DISCRIMINATORS, dict(config)).load()
