"""Starts that share a store server do not meet each other."""

import threading

import pytest
import torch.distributed as dist

from opensora.errors import RankLost
from opensora.parallel.watchdog.rendezvous import restart_store


def meet(store: dist.Store, ranks: list[int], size: int) -> list[str]:
    """What each rank reads of what rank 0 wrote under one key, in a start of these ranks."""
    read: dict[int, str] = {}

    def run(rank: int) -> None:
        mine = restart_store(store, rank, size, timeout_seconds=30)
        if rank == 0:
            mine.set("address", f"of start {len(starts)}")
        mine.wait(["address"])
        read[rank] = mine.get("address").decode()

    starts.append(ranks)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [read[rank] for rank in sorted(read)]


starts: list[list[int]] = []


def test_every_start_sees_its_own_keys_alone_in_whatever_order_the_ranks_come() -> None:
    store = dist.HashStore()
    for number, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 0, 2]), start=1):
        assert meet(store, order, 3) == [f"of start {number}"] * 3


def test_a_start_that_broke_off_leaves_nothing_that_the_next_one_takes() -> None:
    """Ranks 1 and 2 had said their words, and rank 1 had its answer, when that start was killed."""
    store = dist.HashStore()
    for rank in (1, 2):
        store.set(f"round/word/{rank}", "old-word")
    store.set("round/answer/1", "old-word old-name")
    starts.clear()
    assert meet(store, [1, 2, 0], 3) == ["of start 1"] * 3


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(RankLost, match=r"rank\(s\) 1, 2 did not come within 0\.1 s"):
        restart_store(dist.HashStore(), 0, 3, timeout_seconds=0.1)
    with pytest.raises(RankLost, match=r"rank 0 did not come within 0\.1 s"):
        restart_store(dist.HashStore(), 2, 3, timeout_seconds=0.1)
