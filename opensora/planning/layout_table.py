"""The table of docs/planning.md: the needs of a model at several clip sizes on several numbers of accelerators."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from opensora.datasets.base import ClipSize
from opensora.planning.device_specs import Gpu
from opensora.planning.estimate import Estimate, StepModel, seconds
from opensora.planning.parallel_layout import ParallelLayout
from opensora.planning.search import smallest_layout

# (frames, height, width) in pixels: the last makes 64 x 128 x 128 tokens with OpenSoraVAE_V1_2 and patches of 1 x 2 x 2
CLIPS = ((16, 256, 256), (64, 512, 512), (360, 512, 512), (217, 2048, 2048))
WORLDS = (8, 64, 512)
HEAD = (
    *("clip", "tokens", "GPUs", "smallest layout that fits", "GiB per GPU", "GB sent per step", "TFLOP per step"),
    *("s per step", "tokens/s"),
)


def rows(
    step_at: Callable[[ClipSize], tuple[StepModel, ParallelLayout]], gpu: Gpu, plugins: Sequence[str]
) -> Iterator[list[str]]:
    """Yield the rows. A micro-batch has one sample, and a step one micro-batch for each GPU.

    step_at: the step for clips of a size, and a layout of which the plugin's options are kept.
    """
    for clip in CLIPS:
        step, layout = step_at(clip)
        for world in WORLDS:
            current = replace(layout, world=world, micro_batches=1, sp_size=1)
            search = smallest_layout(step, current, world, gpu, plugins)
            name = "x".join(str(length) for length in clip)
            yield [name, f"{step.tokens:,}", str(world), *_figures(search.best, search.nearest, gpu)]


def _figures(best: Estimate | None, nearest: Estimate, gpu: Gpu) -> list[str]:
    estimate = best or nearest
    layout, duration = estimate.layout, seconds(estimate, gpu)
    words = [layout.plugin, f"sp {layout.sp_size}", "recomputed" if layout.grad_checkpoint else "kept"]
    words += ["offloaded"] if estimate.host else []
    return [
        ("" if best else "none; nearest: ") + ", ".join(words),
        f"{estimate.total / 2**30:,.1f}",
        f"{estimate.bytes_sent / 1e9:,.2f}",
        f"{(estimate.model_flops + estimate.frozen_flops) / 1e12:,.0f}",
        f"{duration.total:,.2f}",
        f"{estimate.tokens / duration.total:,.0f}",
    ]


def markdown(lines: Iterator[list[str]]) -> str:
    """The rows as a Markdown table."""
    text = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)])
