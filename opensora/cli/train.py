"""Train from a config: `opensora train CONFIG key=value ...`, on N devices `opensora train --ranks N CONFIG ...`, and on
several machines `torchrun ... -m opensora.cli.train CONFIG ...` on each.

The same command resumes from the newest good checkpoint in `run_dir`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora.cli.command_parser import CommandParser, run_on_ranks
from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.config import load
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.schema import TrainRun


def main(argv: Sequence[str] | None = None) -> int:
    code = run_on_ranks("opensora.cli.train", argv)
    if code is not None:
        return code
    parser = CommandParser(prog="opensora train", description=__doc__)
    parser.add_ranks()
    parser.add_argument("config", help="a .py config file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example steps=100 optimizer.lr=1e-4")
    arguments = parser.read(argv)
    return run_main(lambda: train_command(arguments.config, arguments.overrides))


def train_command(config: str, overrides: Sequence[str]) -> int:
    """Check, build, train; returns the exit code."""
    with report_on_main_rank_only():
        loaded = load(config, overrides, TrainRun)
    with loaded.naming_origins():
        return _train(loaded.run, config)


def _train(run: TrainRun, config: str) -> int:
    # These imports take seconds; a typo in the config is reported before them.
    from opensora.cli.session import session, set_up_rank, training_sequence_size
    from opensora.log import logger
    from opensora.sampling.preview import build_previews
    from opensora.training.build import build_training
    from opensora.training.loop import train

    setup = set_up_rank(run, training_sequence_size(run, config))
    run = setup.run
    with session(setup) as ranks:
        world = ranks.world
        logger().info("%d rank(s), plugin %s, %s, device %s", world.size, run.plugin, run.dtype, world.device)
        if setup.sp_size > 1:
            logger().info(
                "%d data rank(s); %d ranks share each sample (%s)", world.data_size, setup.sp_size, run.sp_mode
            )
        built = build_training(run, world, config)
        per_step = run.micro_batches // world.data_size
        state = replace(
            built,
            batches=ranks.watch.track(built.batches, built.start_step, per_step),
            preview=build_previews(built),
        )
        try:
            finished = train(state)
        except BaseException:
            state.metrics.close(failed=True)  # the numbers of the last minutes say why
            raise
        state.metrics.close()
        logger().info("done: %s" if finished else "stopped on request, saved: %s", Path(run.run_dir).resolve())
    return 0


if __name__ == "__main__":
    exit_process(main())
