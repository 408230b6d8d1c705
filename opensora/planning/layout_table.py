"""The table of docs/parallelism.md: what a model needs at several sizes of clips on several numbers of accelerators."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from opensora.planning.device_specs import Gpu
from opensora.planning.estimate import Estimate, StepModel, seconds
from opensora.planning.memory import Layout
from opensora.planning.search import smallest

# (frames, height, width) in pixels: the last makes 64 x 128 x 128 tokens with OpenSoraVAE_V1_2 and patches of 1 x 2 x 2
CLIPS = ((16, 256, 256), (64, 512, 512), (360, 512, 512), (217, 2048, 2048))
WORLDS = (8, 64, 512)
HEAD = (
    *("clip", "tokens", "GPUs", "smallest layout that fits", "GiB per GPU", "GB sent per step", "TFLOP per step"),
    *("s per step", "tokens/s"),
)


def rows(
    subject_of: Callable[[tuple[int, int, int]], tuple[StepModel, Layout]], gpu: Gpu, plugins: Sequence[str]
) -> Iterator[list[str]]:
    """One sample to a micro-batch, and in each step as many micro-batches as there are GPUs."""
    for clip in CLIPS:
        subject, layout = subject_of(clip)
        for world in WORLDS:
            current = replace(layout, world=world, micro_batches=1, sp_size=1, tp_size=1)
            search = smallest(subject, current, world, gpu, plugins)
            name = "x".join(str(length) for length in clip)
            yield [name, f"{subject.tokens:,}", str(world), *_figures(search.best, search.nearest, gpu)]


def _figures(best: Estimate | None, nearest: Estimate, gpu: Gpu) -> list[str]:
    found = best or nearest
    layout, spent = found.layout, seconds(found, gpu)
    words = [layout.plugin, f"sp {layout.sp_size}", "recomputed" if layout.grad_checkpoint else "kept"]
    words += ["offloaded"] if layout.cpu_offload else []
    return [
        ("" if best else "none; nearest: ") + ", ".join(words),
        f"{found.total / 2**30:,.1f}",
        f"{found.bytes_sent / 1e9:,.2f}",
        f"{(found.model_flops + found.frozen_flops) / 1e12:,.0f}",
        f"{spent.total:,.2f}",
        f"{found.tokens / spent.total:,.0f}",
    ]


def markdown(lines: Iterator[list[str]]) -> str:
    """A table as documents have it."""
    text = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)])
