"""The start that train, sample and replay share: rank, platform, log, dtype, world and watchdog."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from opensora import log
from opensora.cli.run_main import report_on_main_rank_only
from opensora.parallel import world as worlds
from opensora.parallel.watchdog.watchdog import Watch, watching
from opensora.parallel.world import World
from opensora.platforms import Platform, select
from opensora.schema import SampleRun, TrainRun

Run = TypeVar("Run", TrainRun, SampleRun)


@dataclass(frozen=True)
class RankSetup(Generic[Run]):
    """This rank, ready to meet the others."""

    run: Run  # with the dtype that the platform chose
    platform: Platform
    sp_size: int  # ranks that share each sample


@dataclass(frozen=True)
class Session:
    """The ranks of a command, after they have met."""

    world: World
    watch: Watch


def set_up_rank(run: Run, sequence_size: Callable[[int], int]) -> RankSetup[Run]:
    """Check the sizes, start the log and the platform; waits for no other rank.

    sequence_size: number of ranks -> ranks that share each sample. It raises ConfigError for sizes that do not fit, and
    then the main rank alone reports.
    """
    with report_on_main_rank_only():
        rank, size = worlds.rank_from_environment()
        sp_size = sequence_size(size)
        log.setup(rank)
        platform = select()
        platform.set_numerics(run.tf32, run.deterministic)
    return RankSetup(replace(run, dtype=platform.choose_dtype(run.dtype)), platform, sp_size)


@contextmanager
def session(setup: RankSetup[Run]) -> Iterator[Session]:
    """Join the ranks and watch them. After an error the process is to end, and its groups with it."""
    world = worlds.init(setup.platform, setup.run.timeout_seconds, setup.sp_size)
    with watching(world, setup.run.timeout_seconds) as watch:
        yield Session(world, watch)
    worlds.shutdown()


def training_sequence_size(run: TrainRun, where: str) -> Callable[[int], int]:
    """`sequence_size` for a training run of the config `where`."""
    from opensora.training.build import check_world
    from opensora.training.parallel_sizes import sequence_size

    def checked(size: int) -> int:
        sp_size = sequence_size(run, size, worlds.local_size_from_environment(), where)
        check_world(run, size // sp_size, where)
        return sp_size

    return checked
