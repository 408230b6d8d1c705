"""The pool of ranks that distributed tests run on."""

import time
from pathlib import Path

import torch.distributed as dist

from opensora.parallel import world
from tests.dist import run_ranks


def left_early(mark: Path) -> bool:
    """Rank 1 is done at once, and leaves a mark when it leaves the group; rank 0 is slow, and looks for the mark."""
    if dist.get_rank() == 1:
        shutdown = world.shutdown

        def leave() -> None:
            world.shutdown = shutdown
            mark.touch()
            shutdown()

        world.shutdown = leave
        return False
    time.sleep(0.2)
    return mark.exists()


def test_a_rank_that_is_done_stays_until_all_are(tmp_path: Path) -> None:
    assert run_ranks(left_early, 2, tmp_path / "mark") == [False, False]
    run_ranks(dist.get_rank, 2)  # the ranks take the next job once they have left
    assert (tmp_path / "mark").exists()
