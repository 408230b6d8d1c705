"""The sizes of a training step, and the forms in which a plugin states its memory and traffic for them.

The formulas are in parallel/plugins/, next to the code whose costs they state; tests/distributed/test_plan_memory.py
compares them with measurements. docs/parallelism.md explains them.
"""

from collections.abc import Callable
from dataclasses import dataclass

WIDTHS = {"bf16": 2, "fp32": 4}  # bytes of an element


@dataclass(frozen=True)
class StepSizes:
    """Elements of the trained module, and the ranks and micro-batches of one optimizer step."""

    trained: int
    fixed: int = 0  # parameters and buffers that are not trained
    largest: int = 0  # of one trained parameter
    blocks: int = 0  # of the largest checkpoint block
    outside: int = 0  # of all parameters outside of the checkpoint blocks
    tensor_sharded: int = 0  # of all that tensor parallelism divides, in the whole model
    ranks: int = 1
    micro_batches: int = 1  # of one rank
    dtype: str = "bf16"
    gloo: bool = False  # the CPU's collectives, which copy what they gather or scatter once more

    @property
    def width(self) -> int:
        """Bytes of an element in the run's dtype."""
        return WIDTHS[self.dtype]

    @property
    def share(self) -> float:
        """Trained elements of one rank when all ranks divide them."""
        return self.trained / self.ranks


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one rank besides activations. Pairs are (gradients, communication buffers)."""

    state: dict[str, float]  # on the device from step to step; EMA is not part of it
    waiting: int  # gradients of earlier micro-batches when the last one begins; 0 if there are none
    backward: Callable[[int], tuple[float, float]]  # in the last backward, by the gradient elements that it has made
    update: list[tuple[float, float]]  # after the backward, point by point; the last is the update of the weights
    update_bytes: float  # read and written by the optimizer
    host: float = 0  # in host memory; if it is not 0, the update runs there and EMA is there too


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one optimizer step."""

    gradients: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        return self.gradients + self.weights


def ring_elements(elements: int, ranks: int) -> float:
    """Elements that a rank passes on in a reduce-scatter or an all-gather by ring; an all-reduce passes on twice that.

    Source: Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002.
    """
    return elements * (ranks - 1) / ranks


def replicated_memory(sizes: StepSizes, local: float, averaged: float) -> StepMemory:
    """Memory of a plugin whose ranks hold `local` float32 elements, their own masters, and average `averaged` of their
    gradients by parallel/reducer.py."""
    waiting = int(4 * local) if sizes.micro_batches > 1 else 0

    def backward(elements: int) -> tuple[float, float]:
        new = 4 * elements
        return max(waiting, new), new * averaged / local  # the reducer's flat copies stay until all are received

    return StepMemory(
        state={"weights": 4 * local + 4 * sizes.fixed, "optimizer moments": 8 * local},
        waiting=waiting,
        backward=backward,
        update=[(4 * local, 4 * averaged)],
        update_bytes=28 * local,  # gradient, weight and two moments are read, all but the gradient written
    )
