"""A store for the ranks of one start, when the server behind it has served an earlier start.

torchrun keeps one server over its restarts (torch 2.14). Without a store of their own, the ranks would take the addresses
that an earlier start left there for their own. The number of restarts does not identify a start: every machine counts for
itself.
"""

import time
import uuid

import torch.distributed as dist

from opensora.errors import RankLost

_POLL_SECONDS = 0.02


def restart_store(store: dist.Store, rank: int, size: int, timeout_seconds: float) -> dist.Store:
    """The part of `store` that only these ranks use; every rank calls it. Old contents of the store do no harm.

    Each rank publishes a random token; rank 0 replies with this restart's ID until all ranks have acknowledged it.
    Raises RankLost, with the ranks that did not come, after `timeout_seconds`.
    """
    token, deadline = uuid.uuid4().hex, time.monotonic() + timeout_seconds
    if rank == 0:
        restart_id = token
        _serve_id(store, restart_id, set(range(1, size)), deadline, timeout_seconds)
    else:
        restart_id = _request_id(store, rank, token, deadline, timeout_seconds)
    return dist.PrefixStore(f"start-{restart_id}", store)


def _serve_id(store: dist.Store, restart_id: str, missing: set[int], deadline: float, timeout_seconds: float) -> None:
    replied: dict[int, bytes] = {}
    while missing:
        for rank in sorted(missing):
            if store.check([f"restart/{restart_id}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"restart/token/{rank}"]):
                token = store.get(f"restart/token/{rank}")
                if token != replied.get(rank):  # it may be an earlier start's; the rank will overwrite it
                    store.set(f"restart/reply/{rank}", f"{token.decode()} {restart_id}")
                    replied[rank] = token
        if time.monotonic() > deadline:
            few = ", ".join(map(str, sorted(missing)[:8]))
            raise RankLost(
                f"start: rank(s) {few} did not come within {timeout_seconds} s; look at their logs and machines"
            )
        if missing:
            time.sleep(_POLL_SECONDS)


def _request_id(store: dist.Store, rank: int, token: str, deadline: float, timeout_seconds: float) -> str:
    store.set(f"restart/token/{rank}", token)
    while True:
        if store.check([f"restart/reply/{rank}"]):
            replied_token, restart_id = store.get(f"restart/reply/{rank}").decode().split()
            if replied_token == token:
                store.set(f"restart/{restart_id}/{rank}", "here")
                return restart_id
        if time.monotonic() > deadline:
            raise RankLost(f"start: rank 0 did not come within {timeout_seconds} s; look at its log and machine")
        time.sleep(_POLL_SECONDS)
