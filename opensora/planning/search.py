"""The search for the smallest layout that fits an accelerator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from opensora.parallel.plugins.base import plugin_class
from opensora.planning.device_specs import Gpu
from opensora.planning.estimate import Estimate, StepModel, estimate
from opensora.planning.parallel_layout import ParallelLayout, takes_option

RESERVE = 0.1  # share of the memory for the framework and for fragmentation
RULE = (
    "state in device memory before host memory, then the fewest ranks per sample, then without recomputation before "
    "with it, then the fewest bytes sent"
)


@dataclass(frozen=True)
class Search:
    """The result for one accelerator; `best` is None where nothing fits, and `nearest` exceeds the limit least."""

    best: Estimate | None
    nearest: Estimate
    limit: int  # bytes of a rank that may be used
    tried: int

    @property
    def missing(self) -> int:
        """Bytes by which the nearest exceeds the limit."""
        return max(0, self.nearest.total - self.limit)


def usable_bytes(gpu: Gpu) -> int:
    return int((1 - RESERVE) * gpu.memory_bytes)


def smallest_layout(
    step: StepModel, current: ParallelLayout, micro_batches: int, gpu: Gpu, plugins: Sequence[str]
) -> Search:
    """Try layouts in the order of RULE until one fits.

    current: the run's own, of which other options are kept. micro_batches: of the whole step, over all ranks.
    """
    limit, nearest, tried = usable_bytes(gpu), None, 0
    saved: dict[bool, int] = {}  # saved activations of a whole sample, by grad_checkpoint
    for layout, offload in _without_plugin(current, micro_batches, step):
        if saved.get(layout.grad_checkpoint, 0) > layout.sp_size * limit:
            continue  # each of n ranks saves at least 1/n of a sample's activations, so it cannot fit
        estimates = [estimate(step, candidate) for candidate in _with_plugins(layout, offload, plugins)]
        if not estimates:
            continue
        tried += len(estimates)
        saved.setdefault(layout.grad_checkpoint, min(each.saved_activations for each in estimates) * layout.sp_size)
        fitting = [each for each in estimates if each.total <= limit]
        if fitting:
            best = min(fitting, key=lambda each: each.bytes_sent)
            return Search(best, best, limit, tried)
        nearest = min([*estimates, *([nearest] if nearest else [])], key=lambda each: each.total)
    assert nearest is not None  # the first iteration always has candidates
    return Search(None, nearest, limit, tried)


def _without_plugin(
    current: ParallelLayout, micro_batches: int, step: StepModel
) -> Iterator[tuple[ParallelLayout, bool]]:
    """Yield (layout, cpu_offload) in the order of RULE, before a plugin is chosen."""
    for offload in (False,) if current.gloo else (False, True):  # the CPU has one memory
        for sp_size in sequence_sizes(current, micro_batches, step):
            for recompute in (False, True):
                per_rank = micro_batches * sp_size // current.world
                yield replace(current, sp_size=sp_size, grad_checkpoint=recompute, micro_batches=per_rank), offload


def sequence_sizes(current: ParallelLayout, micro_batches: int, step: StepModel) -> list[int]:
    """Numbers of ranks that may share a sample. They divide the ranks, the number of groups divides the micro-batches, and
    every rank of a group has work, except for the number that the run itself uses."""
    busy = range(1, min(current.world, step.max_sequence_ranks) + 1)
    return [
        size
        for size in sorted({*busy, current.sp_size * current.tp_size})
        if current.world % size == 0 and micro_batches % (current.world // size) == 0
    ]


def _with_plugins(layout: ParallelLayout, offload: bool, plugins: Sequence[str]) -> Iterator[ParallelLayout]:
    """Yield the layout under each plugin that it suits; where ranks share tokens, zero1-seq stands for zero1."""
    classes = {name: plugin_class(name) for name in plugins}
    sharing = [each for each in classes.values() if each.shares_tokens]
    for name, each in classes.items():
        if offload and not takes_option(name, "cpu_offload"):
            continue
        replaced = each not in sharing and any(issubclass(other, each) for other in sharing)
        if replaced if layout.sp_size > 1 else each in sharing:
            continue
        yield layout.with_plugin(name, cpu_offload=offload)
