"""Output of `opensora check` about accelerators: arithmetic, traffic, time, and the smallest layout that fits."""

from collections.abc import Iterator, Sequence

from opensora.parallel.plugins.base import plugin_class
from opensora.planning.device_specs import EFFICIENCY, LINK_EFFICIENCY, Gpu
from opensora.planning.estimate import Estimate, StepModel, seconds
from opensora.planning.search import RESERVE, RULE, Search, smallest_layout, usable_bytes
from opensora.registry import PLUGINS, names

GIB, GB, TERA = 2**30, 1e9, 1e12
HOST_UPDATES = "the update not counted: the host makes it"


def step_lines(estimate: Estimate, gpu: Gpu | None) -> Iterator[str]:
    """Lines about arithmetic and traffic of a rank, and with an accelerator about their time."""
    yield (
        f"arithmetic of one step on each rank: {estimate.model_flops / TERA:,.4g} TFLOP of the trained model, "
        f"{estimate.frozen_flops / TERA:,.4g} TFLOP of the frozen networks"
    )
    traffic = estimate.traffic
    yield (
        f"sent by each rank in one step: {traffic.gradients / GB:,.4g} GB of gradients, {traffic.weights / GB:,.4g} GB of "
        f"weights, {estimate.sequence_bytes / GB:,.4g} GB of tokens between the ranks that share samples"
    )
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
