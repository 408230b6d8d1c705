"""The thread of a rank ends it when another one is lost, though no collective breaks."""

import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from opensora.parallel.watchdog import watchdog
from opensora.parallel.watchdog.rank_status import AT_WORK, Progress
from opensora.parallel.watchdog.watchdog import Watch
from tests.dist import one_rank


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_ends_when_another_failed(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Rank 0 judges rank 1, and rank 1 judges rank 0; this rank waits in a collective of NCCL's, which is silent."""
    seconds = itertools.count()
    monkeypatch.setattr(
        watchdog, "time", SimpleNamespace(monotonic=lambda: 0.05 * next(seconds))
    )  # a look takes 0.05 s
    ended, codes = threading.Event(), []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()
        watch._stopped.set()

    with one_rank() as here:
        failed = Progress(7, AT_WORK, 12, left="RuntimeError: CUDA error: ECC")
        store = dist.distributed_c10d._get_default_store()
        store.set(f"watch/{1 - rank}", failed.to_json())
        watch = Watch(replace(here, global_rank=rank, size=2), timeout_seconds=0.2, leave=leave)
        assert ended.wait(60)
        watch._thread.join()
        assert codes == [1]
        assert store.get("watch/verdict").decode() == (
            f"rank {1 - rank}: failed, at work on step 12: RuntimeError: CUDA error: ECC"
        )
