"""Starts that share a store server do not meet each other."""

import threading

import pytest
import torch.distributed as dist

from opensora.errors import RankLost
from opensora.parallel.watchdog.rendezvous import restart_store


def meet(store: dist.Store, ranks: list[int], size: int) -> list[str]:
    """The value of one key on each rank, written by rank 0 in a start of these ranks."""
    read: dict[int, str] = {}

    def run(rank: int) -> None:
        own_store = restart_store(store, rank, size, timeout_seconds=30)
        if rank == 0:
            own_store.set("address", f"of start {len(starts)}")
        own_store.wait(["address"])
        read[rank] = own_store.get("address").decode()

    starts.append(ranks)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [read[rank] for rank in sorted(read)]


starts: list[list[int]] = []


def test_each_start_sees_only_its_own_keys() -> None:
    store = dist.HashStore()
    for number, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 0, 2]), start=1):
        assert meet(store, order, 3) == [f"of start {number}"] * 3


def test_interrupted_start_leaves_nothing_for_the_next() -> None:
    """Ranks 1 and 2 had published their tokens, and rank 1 had its reply, when that start was killed."""
    store = dist.HashStore()
    for rank in (1, 2):
        store.set(f"restart/token/{rank}", "old-token")
    store.set("restart/reply/1", "old-token old-id")
    starts.clear()
    assert meet(store, [1, 2, 0], 3) == ["of start 1"] * 3


def test_missing_ranks_are_named() -> None:
    with pytest.raises(RankLost, match=r"rank\(s\) 1, 2 did not come within 0\.1 s"):
        restart_store(dist.HashStore(), 0, 3, timeout_seconds=0.1)
    with pytest.raises(RankLost, match=r"rank 0 .* 0\.1 s"):
        restart_store(dist.HashStore(), 2, 3, timeout_seconds=0.1)
