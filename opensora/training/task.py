"""The interface of a training task: one micro-batch in, losses out. The loop knows nothing else of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from opensora.interfaces import Autoencoder, Denoiser
from opensora.training.discriminator_trainer import DiscriminatorTrainer
from opensora.types import Batch


@dataclass(frozen=True)
class MicroBatchLoss:
    """The losses of one micro-batch."""

    loss_B: Tensor  # per sample; their mean is minimized
    noise_level_B: Tensor | None  # per sample in [0, 1], 0 = clean; None where the task has none
    tokens: int  # latent tokens of the micro-batch
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # what else to log: means over the micro-batch
    discriminator_inputs: tuple[Tensor, Tensor] | None = None  # footage and its reconstruction


class Task(Protocol):
    @property
    def trained(self) -> Denoiser | Autoencoder:
        """The module whose weights change; the engine wraps it."""

    @property
    def autoencoder(self) -> Autoencoder:
        """The one that makes the latents, trained or frozen."""

    @property
    def discriminator(self) -> DiscriminatorTrainer | None:
        """The network that `trained` is trained against; it learns in the same optimizer steps."""

    @property
    def measures_weights(self) -> bool:
        """True if `config` holds measurements of the weights, so that their average needs measurements of its own."""

    def loss(self, model: Callable[..., Any], batch: Batch) -> MicroBatchLoss:
        """`model` is `trained` as the engine runs it."""

    def validate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, tuple[float, int]]:
        """Metrics over `batches`, with randomness of their own: name -> (sum, number of values in it).

        The names are the same on every rank, whatever its batches; the number may be 0.
        """

    def config(self) -> dict[str, Any]:
        """config.json next to the weights: what rebuilds `trained`, and under "run" what must travel with it."""
