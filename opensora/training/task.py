"""What a training task is: one micro-batch in, losses out. The loop knows nothing else of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from opensora.types import Batch


@dataclass(frozen=True)
class StepLoss:
    """The losses of one micro-batch."""

    loss_B: Tensor  # per sample; their mean is what is minimised
    level_B: Tensor | None  # noise level per sample in [0, 1], 0 = clean; None where the task has none
    tokens: int  # latent tokens of the micro-batch
    figures: Mapping[str, Tensor] = field(default_factory=dict)  # what else to log: means over the micro-batch
    pair: tuple[Tensor, Tensor] | None = None  # footage and its reconstruction, for a rival to learn from


class Task(Protocol):
    trained: Any  # the nn.Module whose weights change; the engine wraps it

    @property
    def autoencoder(self) -> Any:
        """The one that makes the latents, trained or frozen."""

    def step(self, model: Callable[..., Any], batch: Batch) -> StepLoss:
        """`model` is `trained` as the engine runs it."""

    def validate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, tuple[float, int]]:
        """Figures over `batches`, with randomness of their own: name -> (sum, how many it is of).

        The names are the same on every rank, whatever its batches; of 0 there may be none.
        """

    def config(self) -> dict[str, Any]:
        """config.json beside the weights: what rebuilds `trained`, and under "run" what must travel with it."""
