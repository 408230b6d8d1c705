"""Output of `opensora check` about accelerators: arithmetic, traffic, time, and the smallest layout that fits."""

from collections.abc import Iterator, Sequence

from opensora.parallel.plugins.base import plugin_class
from opensora.planning.device_specs import EFFICIENCY, LINK_EFFICIENCY, Gpu
from opensora.planning.estimate import Estimate, StepModel, seconds
from opensora.planning.search import RESERVE, RULE, Search, smallest_layout, usable_bytes
from opensora.registry import PLUGINS, names
from opensora.schema import TrainRun

GIB, GB, TERA = 2**30, 1e9, 1e12
HOST_UPDATES = "the update not counted: the host makes it"


def step_lines(estimate: Estimate, gpu: Gpu | None) -> Iterator[str]:
    """Lines about arithmetic and traffic of a rank, and with an accelerator about their time."""
    yield (
        f"arithmetic of one step on each rank: {estimate.model_flops / TERA:,.4g} TFLOP of the trained model, "
        f"{estimate.frozen_flops / TERA:,.4g} TFLOP of the frozen networks"
    )
    sent = {
        "gradients": estimate.traffic.gradients,
        "weights": estimate.traffic.weights,
        "tokens between the ranks that share samples": estimate.sequence_bytes,
    }
    parts = [f"{size / GB:,.4g} GB of {name}" for name, size in sent.items() if size]
    if parts:
        yield f"sent by each rank in one step: {', '.join(parts)}"
    if gpu is None:
        return
    duration = seconds(estimate, gpu)
    update = HOST_UPDATES if estimate.host else f"update {duration.update:,.3f}"
    yield (
        f"expected on {estimate.layout.world} x {gpu.name}, {gpu.per_node} to a machine (a plan from data sheets, not a "
        f"measurement): {duration.total:,.3f} s a step (arithmetic {duration.compute:,.3f}, gradients and weights "
        f"{duration.exchange:,.3f}, tokens {duration.sequence:,.3f}, {update}), "
        f"{estimate.tokens / duration.total:,.0f} tokens/s"
    )
    yield (
        f"stated rates: {gpu.tflops(estimate.layout.dtype):,g} TFLOP/s {estimate.layout.dtype}, {gpu.memory_gb:,g} GB at "
        f"{gpu.memory_gbs:,g} GB/s, {gpu.node_gbs:,g} GB/s inside a machine, {gpu.network_gbs:,g} GB/s between machines; "
        f"assumed: {EFFICIENCY:.0%} of the TFLOP/s, {LINK_EFFICIENCY:.0%} of the links, nothing overlaps"
    )


def run_lines(run: TrainRun, step: StepModel, estimate: Estimate, gpu: Gpu | None) -> Iterator[str]:
    """Lines about the whole run: with an accelerator its time, and the size of its checkpoints."""
    if gpu is not None:
        hours = run.steps * seconds(estimate, gpu).total / 3600
        yield (
            f"the run: {run.steps:,} steps in {_hours(hours)}, {_hours(hours * estimate.layout.world)} of {gpu.name}, "
            "without validation, previews and saves"
        )
    size = checkpoint_bytes(step)
    saves = max(1, -(-run.steps // run.save_every)) if run.save_every else 1
    kept = min(saves, run.keep_last) if run.keep_last else saves
    yield f"a checkpoint: {size / GB:,.4g} GB; kept at the end: {kept} of {saves}, {kept * size / GB:,.4g} GB"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours < 100 else f"{hours:,.0f} hours"


def checkpoint_bytes(step: StepModel) -> int:
    """Bytes of a checkpoint with an optimizer of two moments: the state to resume from, and whole weights."""
    copies = 1 + step.ema  # the weights, and their average
    sizes = step.sizes
    total = 4 * sizes.trained * (1 + 2 + step.ema) + 4 * sizes.fixed + copies * 4 * (sizes.trained + sizes.fixed)
    if step.discriminator is not None:
        total += 4 * step.discriminator.trained * (1 + 2 + 1)
    return total


def fit_lines(
    step: StepModel, estimate: Estimate, micro_batches: int, gpu: Gpu, plugins: Sequence[str]
) -> Iterator[str]:
    """Lines that compare the layout with the accelerator's memory and name the smallest layout that fits."""
    limit = usable_bytes(gpu)
    usable = f"the {limit / GIB:,.1f} GiB that are left of {gpu.memory_gb:,g} GB after {RESERVE:.0%} for the framework"
    over = estimate.total - limit
    word = "fits into" if over <= 0 else f"needs {over / GIB:,.1f} GiB more than"
    yield f"this layout ({estimate.layout.describe()}): {estimate.total / GIB:,.1f} GiB, {word} {usable}"
    yield recommendation(smallest_layout(step, estimate.layout, micro_batches, gpu, plugins), gpu)


def searched_plugins(task: str) -> list[str]:
    """The plugins among which the smallest layout is searched: those that can train the task."""
    plugins = {name: plugin_class(name) for name in names(PLUGINS)}
    return [name for name, each in plugins.items() if each.in_search and task not in each.refused_tasks]


def recommendation(search: Search, gpu: Gpu) -> str:
    """A line with the settings to use, or with the missing memory."""
    if search.best is None:
        return (
            f"nothing fits: of {search.tried} layouts the nearest ({search.nearest.layout.describe()}) needs "
            f"{search.nearest.total / GIB:,.1f} GiB, {search.missing / GIB:,.1f} GiB too much; take a smaller batch_size or "
            "clip, more ranks, or an accelerator with more memory"
        )
    duration = seconds(search.best, gpu)
    left_out = f", {HOST_UPDATES}" if search.best.host else ""
    return (
        f"smallest layout that fits: {search.best.layout.describe()} with {search.best.total / GIB:,.1f} GiB, "
        f"{duration.total:,.3f} s a step, {search.best.tokens / duration.total:,.0f} tokens/s{left_out} (order: {RULE})"
    )
