"""A store of their own for the ranks of one start, when the server behind it has served an earlier start.

torchrun keeps one server over its restarts (torch 2.14). The addresses that the ranks of the start before left there would
be taken for those of the ranks now. The number of restarts cannot tell the starts apart: every machine
counts for itself.
"""

import time
import uuid

import torch.distributed as dist

from opensora.errors import RankLost

_POLL_SECONDS = 0.02


def restart_store(store: dist.Store, rank: int, size: int, timeout_seconds: float) -> dist.Store:
    """The part of `store` that these ranks alone use; every rank calls it. Whatever is in the store does not matter.

    Every rank says a word nobody has said before; rank 0 answers each with the name of this start until all have
    taken it. Raises RankLost, with the ranks that did not come, after `timeout_seconds`.
    """
    name, until = uuid.uuid4().hex, time.monotonic() + timeout_seconds
    if rank == 0:
        _answer(store, name, set(range(1, size)), until, timeout_seconds)
    else:
        name = _ask(store, rank, word=name, until=until, timeout_seconds=timeout_seconds)
    return dist.PrefixStore(f"start-{name}", store)


def _answer(store: dist.Store, name: str, missing: set[int], until: float, timeout_seconds: float) -> None:
    answered: dict[int, bytes] = {}
    while missing:
        for rank in sorted(missing):
            if store.check([f"round/{name}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"round/word/{rank}"]) and (word := store.get(f"round/word/{rank}")) != answered.get(
                rank
            ):
                store.set(f"round/answer/{rank}", f"{word.decode()} {name}")
                answered[rank] = word
        if time.monotonic() > until:
            few = ", ".join(map(str, sorted(missing)[:8]))
            raise RankLost(
                f"start: rank(s) {few} did not come within {timeout_seconds} s; look at their logs and machines"
            )
        if missing:
            time.sleep(_POLL_SECONDS)


def _ask(store: dist.Store, rank: int, word: str, until: float, timeout_seconds: float) -> str:
    store.set(f"round/word/{rank}", word)
    while True:
        if store.check([f"round/answer/{rank}"]):
            heard, name = store.get(f"round/answer/{rank}").decode().split()
            if heard == word:
                store.set(f"round/{name}/{rank}", "here")
                return name
        if time.monotonic() > until:
            raise RankLost(f"start: rank 0 did not come within {timeout_seconds} s; look at its log and machine")
        time.sleep(_POLL_SECONDS)
