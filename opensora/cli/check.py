"""Dry run: `opensora check CONFIG [world=N] [gpu=NAME] [gpus_per_node=N] [key=value ...]`. Needs no weights and no accelerator.

With gpu=h100 (or another of opensora/planning/device_specs.py) it also estimates the time on N of them, and finds the
smallest layout that fits. With --no-data it reads the config alone, for a manifest on another machine. With --table it
prints only the table of docs/planning.md, for the config's model and gpu. With --quiet it leaves out keys at their default.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opensora.cli.command_parser import CommandParser
from opensora.cli.run_main import run_main
from opensora.config import LoadedConfig, explain, load, parse_override
from opensora.errors import ConfigError, DataError
from opensora.planning.device_specs import Gpu, gpu_named
from opensora.registry import PLUGINS, build
from opensora.schema import TrainRun

if TYPE_CHECKING:
    from rich.table import Table

    from opensora.planning.dry_run import DryRun
    from opensora.planning.estimate import Estimate

KeyRow = tuple[str, str, str]  # key, value, origin
MIB, GIB = 2**20, 2**30
VALUE_WIDTH = 28  # characters that values and borders need at least
MOST_MEASURED = 30_000_000  # parameters of an autoencoder that codes a few clips in seconds on a CPU


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="opensora check", description=__doc__)
    parser.add_argument("config", help="a training config")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="world=N: ranks; gpu=NAME: accelerator; or settings of the config",
    )
    parser.add_argument(
        "--table", action="store_true", help="print a Markdown table over clip sizes and numbers of GPUs"
    )
    parser.add_argument(
        "--no-data", action="store_true", help="use the config alone, for a manifest on another machine"
    )
    parser.add_argument("--quiet", action="store_true", help="leave out the keys that have their default")
    arguments = parser.read(argv)
    if arguments.table:
        return run_main(lambda: table_command(arguments.config, arguments.overrides))
    return run_main(
        lambda: check_command(
            arguments.config, arguments.overrides, data=not arguments.no_data, defaults=not arguments.quiet
        )
    )


MACHINE_KEYS = ("world", "gpu", "gpus_per_node")  # keys of the command line that are not keys of the config


def parse_machine_args(overrides: Sequence[str]) -> tuple[int, Gpu | None, list[str]]:
    """(ranks, accelerator or None, overrides of the config); the last value of a key counts."""
    values = dict(parse_override(each) for each in overrides if each.partition("=")[0] in MACHINE_KEYS)
    world = whole_number("world", values.get("world", 1))
    gpu = None
    if "gpu" in values:
        gpu = gpu_named(str(values["gpu"]))
    if "gpus_per_node" in values:
        if gpu is None:
            raise ConfigError("command line: key 'gpus_per_node': found without gpu; allowed: with it; add gpu=h100")
        gpu = replace(gpu, per_node=whole_number("gpus_per_node", values["gpus_per_node"]))
    return world, gpu, [each for each in overrides if each.partition("=")[0] not in MACHINE_KEYS]


def whole_number(name: str, value: object) -> int:
    """Return a value of the command line; ConfigError unless it is a whole number from 1."""
    if type(value) is not int or value < 1:
        raise ConfigError(f"command line: key '{name}': found {value!r}; allowed: a whole number from 1")
    return value


def table_command(config: str, overrides: Sequence[str]) -> int:
    """Print the table of docs/planning.md for the config's model, autoencoder, text encoder and plugin options."""
    if any(each.partition("=")[0] == "world" for each in overrides):
        raise ConfigError(
            "command line: key 'world': found with --table; allowed: without, the table has rows for several; remove it"
        )
    _, gpu, rest = parse_machine_args(overrides)
    gpu = gpu or gpu_named("h100")
    loaded = load(config, rest, TrainRun)

    from opensora.cli.check_layouts import searched_plugins
    from opensora.planning.dry_run import config_layout, model_step, resolve_defaults
    from opensora.planning.layout_table import markdown, rows

    check_options(loaded.run, gpu)
    run = replace(resolve_defaults(on_gpu(loaded.run, gpu)), batch_size=1)
    plugins = searched_plugins(run.task)
    if run.plugin not in plugins:  # other plugins do not take its options
        run = replace(run, plugin=plugins[0], plugin_config={})
    layout = config_layout(run, 1, gloo=gpu.name == "cpu")
    lines = rows(lambda clip: (model_step(run, clip, layout)[1], layout), gpu, plugins)
    sys.stdout.write(markdown(lines) + "\n")
    return 0


def check_options(run: TrainRun, gpu: Gpu | None) -> None:
    """ConfigError for values in plugin_config that the plugin refuses, everywhere or on the CPU."""
    plugin = build(PLUGINS, {"type": run.plugin, **run.plugin_config})
    if gpu is not None and gpu.name == "cpu":
        import torch

        from opensora.parallel.world import World

        group_size = plugin.tp_size
        plugin.check(World(0, group_size, 0, 1, 0, torch.device("cpu"), sequence_size=group_size))


def on_gpu(run: TrainRun, gpu: Gpu | None) -> TrainRun:
    """The run with float32 in place of dtype "auto" where the accelerator is slower in bfloat16."""
    slower = gpu is not None and gpu.bf16_tflops < gpu.fp32_tflops
    return replace(run, dtype="fp32") if slower and run.dtype == "auto" else run


def check_command(config: str, overrides: Sequence[str], data: bool = True, defaults: bool = True) -> int:
    """Print the resolved config, parameters, tokens, rows and memory; with a gpu, time and the smallest layout.

    data: False does not open the manifest; sizes are the config's. defaults: also the keys that have their default.
    """
    world, gpu, rest = parse_machine_args(overrides)
    loaded = load(config, rest, TrainRun)
    with loaded.naming_origins():
        return _check(loaded, config, world, gpu, data, defaults)


def _check(loaded: LoadedConfig[TrainRun], config: str, world: int, gpu: Gpu | None, data: bool, defaults: bool) -> int:
    from rich.console import Console

    from opensora.cli.check_layouts import fit_lines, run_lines, searched_plugins, step_lines
    from opensora.planning.dry_run import dry_run, dry_run_without_data
    from opensora.training.build import build_masks, build_scheduler, check_world
    from opensora.training.clip_plan import build_buckets
    from opensora.training.parallel_sizes import sequence_size

    run = on_gpu(loaded.run, gpu)
    check_options(run, gpu)
    sp_size = sequence_size(run, world, min(world, gpu.per_node) if gpu else world, config)
    data_size = world // sp_size
    check_world(run, data_size, config)
    build_buckets(run, config)
    if run.task == "diffusion":
        build_scheduler(run)
        build_masks(run, config)
    make_dry_run = dry_run if data else dry_run_without_data
    try:
        result = make_dry_run(run, world, sp_size, gloo=gpu is not None and gpu.name == "cpu")
    except DataError as error:
        if not all(map(os.path.exists, data_paths(run.dataset))):
            raise DataError(f"{error}; or add --no-data, which plans without the data") from error
        raise

    console = Console(soft_wrap=True, markup=False)
    set_keys, default_keys = key_rows(loaded)
    console.print(key_table(f"{config}, {world} rank(s)", set_keys, console.width))
    console.print(result.report.table() if result.report is not None else "rows: not read (--no-data)")
    for line in summary_lines(result, run, data_size, sp_size):
        console.print(line)
    estimate = result.estimate
    console.print(memory_table(estimate))
    lines = [*memory_lines(result), *step_lines(estimate, gpu)]
    if run.perceptual is not None or run.discriminator is not None:
        lines.append("not counted: arithmetic and exchange of the perceptual network and the discriminator")
    lines += run_lines(run, result.step, estimate, gpu)
    if gpu is not None:
        lines += fit_lines(result.step, estimate, run.micro_batches, gpu, searched_plugins(run.task))
    for line in [*lines, *reconstruction_lines(result, run)]:
        console.print(line)
    if defaults:
        console.print(key_table("keys that have their default", default_keys, console.width))
    return 0


def data_paths(dataset: Mapping[str, Any]) -> Iterator[str]:
    """The manifests of a data set's config, also of those inside it."""
    for key, value in dataset.items():
        if isinstance(value, Mapping):
            yield from data_paths(value)
        elif key == "data_path":
            yield str(value)


def key_rows(loaded: LoadedConfig[TrainRun]) -> tuple[list[KeyRow], list[KeyRow]]:
    """(key, value, origin) of the keys that are set, each with what the command line changed in it, and of the defaults."""
    values = dataclasses.asdict(loaded.run)
    rows = explain(loaded)
    parts = [key for key, _, _ in rows if "." in key]
    set_keys: list[KeyRow] = []
    default_keys: list[KeyRow] = []
    for key, value, origin in rows:
        inside = [part for part in parts if part.partition(".")[0] == key]
        if "." in key:
            continue
        (default_keys if origin == "default" and not inside else set_keys).append((key, value, origin))
        set_keys += [(part, _value_at(values, part), loaded.origins[part]) for part in inside]
    return set_keys, default_keys


def _value_at(values: Any, path: str) -> str:
    """The value at a dotted path, as Python writes it; "removed" where there is none."""
    for name in path.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return "removed"
        values = values[name]
    return repr(values)


def key_table(title: str, rows: Sequence[KeyRow], width: int) -> "Table":
    """The rows as a table in which an origin stays on one line, if `width` characters leave room for the values."""
    from rich.table import Table

    one_line = width - sum(max((len(row[column]) for row in rows), default=0) for column in (0, 2)) >= VALUE_WIDTH
    table = Table(title=title)
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold", no_wrap=one_line and name != "value")
    for row in rows:
        table.add_row(*row)
    return table


def memory_table(estimate: "Estimate") -> "Table":
    """The parts of a rank's memory at its fullest moment."""
    from rich.table import Table

    unit, size, digits = ("GiB", GIB, 2) if estimate.total >= 10 * GIB else ("MiB", MIB, 1)
    table = Table(f"peak memory per rank, {estimate.peak_stage} (estimate)", unit)
    for name, value in [*estimate.memory.items(), ("total, without the framework", estimate.total)]:
        table.add_row(name, f"{value / size:,.{digits}f}")
    return table


def size_text(size: float) -> str:
    """Bytes in GiB from 10 GiB, otherwise in MiB."""
    return f"{size / GIB:,.1f} GiB" if size >= 10 * GIB else f"{size / MIB:,.1f} MiB"


def reconstruction_lines(result: "DryRun", run: TrainRun) -> Iterator[str]:
    """Lines about the quality of the autoencoder on the data, where its weights are on this machine."""
    from opensora.models.build import build_autoencoder, load_autoencoder
    from opensora.planning.model_sizes import parameter_count
    from opensora.training.checkpoint import resolve_part
    from opensora.training.reconstruction_check import advice, measure

    weights = run.vae.get("from_pretrained")
    if run.task != "diffusion" or result.clips is None or run.load_video_features is not None:
        return
    if not isinstance(weights, str) or not os.path.isdir(weights):
        return
    config = resolve_part(run.vae)
    vae = build_autoencoder(config)
    if parameter_count(vae) > MOST_MEASURED:
        yield "autoencoder: training logs at its start how well it restores the clips; here that would take minutes"
        return
    reconstruction = measure(load_autoencoder(vae, config).eval(), result.clips, run.seed)
    if reconstruction is not None:
        yield reconstruction.line()
        warning = advice(reconstruction, run, result.clips)
        if warning is not None:
            yield f"warning: {warning}"


def summary_lines(result: "DryRun", run: TrainRun, data_size: int, sp_size: int) -> Iterator[str]:
    """Lines about the model and about the samples and tokens of a step."""
    summary, samples = result.summary, result.samples_per_step
    frozen = f" (frozen autoencoder: {summary.frozen_parameters:,})" if summary.frozen_parameters else ""
    yield f"model: {summary.model}, {summary.parameters:,} parameters{frozen}"
    if run.bucket_config is not None:
        yield "the numbers below are of the bucket with the largest micro-batch"
    size = " x ".join(map(str, summary.latent_size))
    images = f", the clip's {summary.num_images} images included" if summary.num_images else ""
    yield f"latents: {size} (frames x rows x columns), {summary.tokens_per_sample:,} tokens per sample{images}"
    shared = f", whose tokens {sp_size} ranks share" if sp_size > 1 else ""
    yield (
        f"one optimizer step: {samples} samples, {samples * summary.tokens_per_sample:,} tokens; "
        f"{run.micro_batches // data_size} micro-batch(es) of {samples // run.micro_batches} on each rank{shared}"
    )


def memory_lines(result: "DryRun") -> Iterator[str]:
    """Lines about the memory that is not in the table."""
    if result.estimate.host:
        yield f"in host memory, for each rank: {size_text(result.estimate.host)}"
    if result.summary.text_parameters is None:
        yield "not counted: the text encoder, whose size is unknown"
    for recomputed in (False, True):
        estimate = result.estimate_with(grad_checkpoint=recomputed)
        yield (
            f"activations of a micro-batch with grad_checkpoint={recomputed}: {size_text(estimate.saved_activations)} "
            f"saved for the backward, {size_text(estimate.peak_activations)} at the peak"
        )
