"""Dry run: `opensora check CONFIG [world=N] [key=value ...]`. Needs no weights and no accelerator."""

import argparse
from collections.abc import Sequence

from opensora.cli.report import run_main
from opensora.config import explain, load, parse_override
from opensora.errors import ConfigError
from opensora.schema import TrainRun


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora check", description=__doc__)
    parser.add_argument("config", help="a training config")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="world=N plans for N ranks")
    arguments = parser.parse_args(argv)
    return run_main(lambda: check_command(arguments.config, arguments.overrides))


def check_command(config: str, overrides: Sequence[str]) -> int:
    """Print the resolved config, parameters, tokens, rows and memory."""
    world = 1
    for override in [o for o in overrides if o.startswith("world=")]:
        _, value = parse_override(override)
        if type(value) is not int or value < 1:
            raise ConfigError(f"command line: key 'world': found {value!r}; allowed: a whole number from 1")
        world = value
    loaded = load(config, [o for o in overrides if not o.startswith("world=")], TrainRun)

    from rich.console import Console
    from rich.table import Table

    from opensora.training.buckets import build_buckets
    from opensora.training.build import build_masks, build_scheduler, check_world
    from opensora.training.mesh import sequence_size
    from opensora.training.plan import plan

    sp_size = sequence_size(loaded.run, world, world, config)
    data_size = world // sp_size
    check_world(loaded.run, data_size, config)
    build_buckets(loaded.run, config)
    if loaded.run.task == "diffusion":
        build_scheduler(loaded.run)
        build_masks(loaded.run, config)
    console = Console(soft_wrap=True)
    keys = Table(title=f"{config}, {world} rank(s)")
    for heading in ("key", "value", "from"):
        keys.add_column(heading, overflow="fold")
    for row in explain(loaded):
        keys.add_row(*row)
    console.print(keys)

    found = plan(loaded.run, world, sp_size)
    console.print(found.report.table())
    console.print(
        f"model: {found.model}, {found.parameters:,} parameters"
        + (f" (frozen autoencoder: {found.frozen_parameters:,})" if found.frozen_parameters else "")
    )
    sizes = " x ".join(str(n) for n in found.latent_size)
    if loaded.run.bucket_config is not None:
        console.print("what follows is of the bucket with the largest micro-batch")
    console.print(f"latents: {sizes} (frames x rows x columns), {found.tokens_per_sample:,} tokens per sample")
    per_rank = loaded.run.micro_batches // data_size
    console.print(
        f"one optimizer step: {found.samples_per_step} samples, {found.samples_per_step * found.tokens_per_sample:,} "
        f"tokens; {per_rank} micro-batch(es) of {found.samples_per_step // loaded.run.micro_batches} on each rank"
        + (f", whose tokens {sp_size} ranks share" if sp_size > 1 else "")
    )
    memory = Table("memory per rank (estimate)", "MiB")
    for name, value in found.memory.items():
        memory.add_row(name, f"{value / 2**20:,.1f}")
    memory.add_row("total, without text encoder and framework", f"{found.memory_total / 2**20:,.1f}")
    console.print(memory)
    return 0
