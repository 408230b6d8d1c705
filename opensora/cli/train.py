"""Train from a config: `torchrun --nproc_per_node N -m opensora.cli.train CONFIG key=value ...`.

The same command again goes on from the newest good checkpoint in `run_dir`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.config import load
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.schema import TrainRun


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora.cli.train", description=__doc__)
    parser.add_argument("config", help="a .py config file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example steps=100 optimizer.lr=1e-4")
    arguments = parser.parse_args(argv)
    return run_main(lambda: train_command(arguments.config, arguments.overrides))


def train_command(config: str, overrides: Sequence[str]) -> int:
    """Check, build, train; returns the exit code."""
    with report_on_main_rank_only():
        run = load(config, overrides, TrainRun).run

    # heavy, and not needed to answer a typo
    from opensora import log
    from opensora.models.layers.kernels import use_kernels
    from opensora.parallel import world as worlds
    from opensora.parallel.watchdog.watchdog import watching
    from opensora.platforms import select
    from opensora.sampling.preview import build_previews
    from opensora.training.build import build_training, check_world
    from opensora.training.loop import train
    from opensora.training.parallel_sizes import sequence_size

    with report_on_main_rank_only():
        rank, size = worlds.rank_from_environment()
        sp_size = sequence_size(run, size, worlds.local_size_from_environment(), config)
        check_world(run, size // sp_size, config)
    log.setup(rank)
    platform = select()
    use_kernels(platform)
    run = replace(run, dtype=platform.choose_dtype(run.dtype))
    world = worlds.init(platform, run.timeout_seconds, sp_size)
    log.logger().info("%d rank(s), plugin %s, %s, device %s", size, run.plugin, run.dtype, world.device)
    if sp_size > 1:
        log.logger().info("%d data rank(s); %d ranks share each sample (%s)", world.data_size, sp_size, run.sp_mode)
    with watching(world, run.timeout_seconds) as watch:
        training = build_training(run, world, config)
        training.preview = build_previews(training)
        per_step = run.micro_batches // world.data_size
        training.batches = watch.track(training.batches, training.start_step, per_step)
        try:
            finished = train(training)
        except BaseException:
            training.metrics.close(failed=True)  # the numbers of the last minutes tell why
            raise
        training.metrics.close()
    log.logger().info("done: %s" if finished else "stopped on request, saved: %s", Path(run.run_dir).resolve())
    worlds.shutdown()
    return 0


if __name__ == "__main__":
    exit_process(main())
