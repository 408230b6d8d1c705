"""Dry run: `opensora check CONFIG [world=N] [gpu=NAME] [gpus_per_node=N] [key=value ...]`. Needs no weights and no accelerator.

With gpu=h100 (or another of opensora/planning/device_specs.py) also the time that N of them take, and the smallest layout that
fits. With --no-data it plans by the config alone, where the manifest is on another machine; with --table it prints only
the table of docs/parallelism.md, for the config's model and gpu.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opensora.cli.run_main import run_main
from opensora.config import explain, load, parse_override
from opensora.errors import ConfigError
from opensora.planning.device_specs import Gpu, gpu_named
from opensora.registry import PLUGINS, build
from opensora.schema import TrainRun


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora check", description=__doc__)
    parser.add_argument("config", help="a training config")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="world=N plans for N ranks, gpu=NAME for these"
    )
    parser.add_argument("--table", action="store_true", help="sizes of clips and numbers of GPUs, as markdown")
    parser.add_argument(
        "--no-data", action="store_true", help="plan by the config alone, where the manifest is elsewhere"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.table:
        return run_main(lambda: table_command(arguments.config, arguments.overrides))
    return run_main(lambda: check_command(arguments.config, arguments.overrides, data=not arguments.no_data))


MACHINE_KEYS = ("world", "gpu", "gpus_per_node")  # what the command line says of the machines, not of the run


def machines(overrides: Sequence[str]) -> tuple[int, Gpu | None, list[str]]:
    """(ranks, accelerator or None, what is left for the config); the last of each key counts."""
    given = dict(parse_override(each) for each in overrides if each.partition("=")[0] in MACHINE_KEYS)
    world = whole_number("world", given.get("world", 1))
    gpu = None
    if "gpu" in given:
        gpu = gpu_named(str(given["gpu"]))
    if "gpus_per_node" in given:
        if gpu is None:
            raise ConfigError("command line: key 'gpus_per_node': found without gpu; allowed: with it; add gpu=h100")
        gpu = replace(gpu, per_node=whole_number("gpus_per_node", given["gpus_per_node"]))
    return world, gpu, [each for each in overrides if each.partition("=")[0] not in MACHINE_KEYS]


def whole_number(name: str, value: Any) -> int:
    """A value of the command line; ConfigError unless it is a whole number from 1."""
    if type(value) is not int or value < 1:
        raise ConfigError(f"command line: key '{name}': found {value!r}; allowed: a whole number from 1")
    return value


def table_command(config: str, overrides: Sequence[str]) -> int:
    """Print the table of docs/parallelism.md for the config's model, autoencoder, text encoder and plugin options."""
    if any(each.partition("=")[0] == "world" for each in overrides):
        raise ConfigError(
            "command line: key 'world': found with --table; allowed: without, it has rows for several; remove it"
        )
    _, gpu, rest = machines(overrides)
    gpu = gpu or gpu_named("h100")
    loaded = load(config, rest, TrainRun)

    from opensora.cli.check_layouts import searched
    from opensora.planning.layout_table import markdown, rows
    from opensora.training.plan import chosen, layout_of, subject_of

    check_options(loaded.run, gpu)
    run = replace(chosen(on_gpu(loaded.run, gpu)), batch_size=1)
    plugins = searched(run.task)
    if run.plugin not in plugins:  # its options are of no use to others
        run = replace(run, plugin=plugins[0], plugin_config={})
    layout = layout_of(run, 1, gloo=gpu.name == "cpu")
    found = rows(lambda clip: (subject_of(run, clip), layout), gpu, plugins)
    sys.stdout.write(markdown(found) + "\n")
    return 0


def check_options(run: TrainRun, gpu: Gpu | None) -> None:
    """ConfigError for values in plugin_config that the plugin itself refuses, anywhere or on the CPU."""
    plugin = build(PLUGINS, {"type": run.plugin, **run.plugin_config})
    if gpu is not None and gpu.name == "cpu":
        import torch

        from opensora.parallel.world import World

        tensor = run.plugin_config.get("tp_size", 1)
        plugin.check(World(0, tensor, 0, 1, 0, torch.device("cpu"), sequence_size=tensor))


def on_gpu(run: TrainRun, gpu: Gpu | None) -> TrainRun:
    """The run, with float32 where it says auto and the accelerator is slower in bfloat16."""
    slower = gpu is not None and gpu.bf16_tflops < gpu.fp32_tflops
    return replace(run, dtype="fp32") if slower and run.dtype == "auto" else run


def check_command(config: str, overrides: Sequence[str], data: bool = True) -> int:
    """Print the resolved config, parameters, tokens, rows and memory; with a gpu, time and the smallest layout.

    data: False leaves the manifest unopened; sizes are the config's.
    """
    world, gpu, rest = machines(overrides)
    loaded = load(config, rest, TrainRun)

    from rich.console import Console
    from rich.table import Table

    from opensora.cli.check_layouts import fit_lines, searched, step_lines
    from opensora.training.build import build_masks, build_scheduler, check_world
    from opensora.training.clip_plan import build_buckets
    from opensora.training.parallel_sizes import sequence_size
    from opensora.training.plan import dry_run_without_data, plan

    run = on_gpu(loaded.run, gpu)
    check_options(run, gpu)
    sp_size = sequence_size(run, world, min(world, gpu.per_node) if gpu else world, config)
    data_size = world // sp_size
    check_world(run, data_size, config)
    build_buckets(run, config)
    if run.task == "diffusion":
        build_scheduler(run)
        build_masks(run, config)
    console = Console(soft_wrap=True)
    keys = Table(title=f"{config}, {world} rank(s)")
    for heading in ("key", "value", "from"):
        keys.add_column(heading, overflow="fold")
    for row in explain(loaded):
        keys.add_row(*row)
    console.print(keys)

    make = plan if data else dry_run_without_data
    found = make(run, world, sp_size, gloo=gpu is not None and gpu.name == "cpu")
    console.print(found.report.table() if data else "rows: not looked at (--no-data)")
    console.print(
        f"model: {found.model}, {found.parameters:,} parameters"
        + (f" (frozen autoencoder: {found.frozen_parameters:,})" if found.frozen_parameters else "")
    )
    sizes = " x ".join(str(n) for n in found.latent_size)
    if run.bucket_config is not None:
        console.print("what follows is of the bucket with the largest micro-batch")
    beside = f", with the {found.num_images} pictures beside each clip" if found.num_images else ""
    console.print(f"latents: {sizes} (frames x rows x columns), {found.tokens_per_sample:,} tokens per sample{beside}")
    per_rank = run.micro_batches // data_size
    console.print(
        f"one optimizer step: {found.samples_per_step} samples, {found.samples_per_step * found.tokens_per_sample:,} "
        f"tokens; {per_rank} micro-batch(es) of {found.samples_per_step // run.micro_batches} on each rank"
        + (f", whose tokens {sp_size} ranks share" if sp_size > 1 else "")
    )
    estimate = found.estimate
    memory = Table(f"memory per rank {estimate.when}, when it is fullest (estimate)", "MiB")
    for name, value in estimate.memory.items():
        memory.add_row(name, f"{value / 2**20:,.1f}")
    memory.add_row("total, without the framework", f"{estimate.total / 2**20:,.1f}")
    console.print(memory)
    if estimate.host:
        console.print(f"in host memory, for each rank: {estimate.host / 2**20:,.1f} MiB")
    if found.text_parameters is None:
        console.print("not counted: the text encoder, whose size nothing here tells")
    for recomputed in (False, True):
        other = found.with_layout(grad_checkpoint=recomputed)
        console.print(
            f"activations of a micro-batch with grad_checkpoint={recomputed}: {other.kept / 2**20:,.1f} MiB wait for the "
            f"backward, {other.activations / 2**20:,.1f} MiB at most"
        )
    lines = list(step_lines(estimate, gpu))
    if run.perceptual is not None or run.discriminator is not None:
        lines.append("not counted: arithmetic and exchange of the perceptual network and the discriminator")
    if gpu is not None:
        lines += fit_lines(found.subject, estimate, run.micro_batches, gpu, searched(run.task))
    for line in lines:
        console.print(line)
    return 0
