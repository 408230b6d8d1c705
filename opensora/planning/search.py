"""The smallest layout that fits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from opensora.planning.device_specs import Gpu
from opensora.planning.estimate import Estimate, StepModel, estimate
from opensora.planning.memory import Layout

RESERVE = 0.1  # of the memory: the framework's own, and what the allocator cannot use
RULE = (
    "state in device memory before host memory, then the fewest ranks per sample, then without recomputation before "
    "with it, then the fewest bytes sent"
)


@dataclass(frozen=True)
class Search:
    """What was found for one accelerator; `best` is None where nothing fits, and `nearest` misses by least."""

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


def smallest(subject: StepModel, current: Layout, micro_batches: int, gpu: Gpu, plugins: Sequence[str]) -> Search:
    """Try layouts in the order of RULE until one fits; `micro_batches` of the whole step stays as it is."""
    limit, nearest, tried = usable_bytes(gpu), None, 0
    first: dict[bool, int] = {}  # what waits for the backward, times the ranks that share it
    for group in _groups(current, micro_batches, subject):
        if first.get(group.grad_checkpoint, 0) > group.sp_size * limit:
            continue  # tokens that n ranks share take an n-th at the least: no need to look
        found = [estimate(subject, layout) for layout in _plugins(group, plugins)]
        tried += len(found)
        first.setdefault(group.grad_checkpoint, min(each.kept for each in found) * group.sp_size)
        fitting = [each for each in found if each.total <= limit]
        if fitting:
            best = min(fitting, key=lambda each: each.bytes_sent)
            return Search(best, best, limit, tried)
        nearest = min([*found, *([nearest] if nearest else [])], key=lambda each: each.total)
    assert nearest is not None  # the first group always has layouts
    return Search(None, nearest, limit, tried)


def _groups(current: Layout, micro_batches: int, subject: StepModel) -> Iterator[Layout]:
    """Layouts apart from the plugin, the smallest first."""
    for offload in (False,) if current.gloo else (False, True):  # the CPU has one memory
        for sp_size in sequence_sizes(current, micro_batches, subject):
            for recompute in (False, True):
                yield replace(
                    current,
                    cpu_offload=offload,
                    sp_size=sp_size,
                    tp_size=1,
                    grad_checkpoint=recompute,
                    micro_batches=micro_batches * sp_size // current.world,
                )


def sequence_sizes(current: Layout, micro_batches: int, subject: StepModel) -> list[int]:
    """Numbers of ranks that may share a sample: they divide the ranks, what is left of these divides the micro-batches,
    and no rank of a group is without work, unless the run itself has it so."""
    may = range(1, min(current.world, subject.max_sequence_ranks) + 1)
    return [
        size
        for size in sorted({*may, current.sp_size * current.tp_size})
        if current.world % size == 0 and micro_batches % (current.world // size) == 0
    ]


def _plugins(layout: Layout, plugins: Sequence[str]) -> Iterator[Layout]:
    for plugin in plugins:
        if layout.cpu_offload and plugin == "ddp":
            continue
        if plugin.endswith("-seq") == (layout.sp_size > 1) or plugin in ("ddp", "fsdp"):
            yield replace(layout, plugin=plugin)
