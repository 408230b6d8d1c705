"""The process group, from torchrun's environment or for one process alone, and its sequence groups.

`init` is called once per process; `current` returns its result afterwards. The ranks form a mesh of data x sequence:
`sp_size` consecutive ranks are a sequence group, and share the tokens of the same samples.
"""

import ctypes
import os
import resource
import signal
import sys
import warnings
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.async_save import join_all
from opensora.parallel.launch import LAUNCHER
from opensora.parallel.rank_environment import integer, local_size_from_environment, rank_from_environment
from opensora.parallel.watchdog.rendezvous import restart_store
from opensora.platforms import Platform
from opensora.platforms.cpu import cores

LAZY_RANKS = 256
OPEN_FILES = 65_536
WATCHDOG_SECONDS = 120  # by which the watchdog of the ranks comes before that of a process group
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class World:
    """This process's place in the mesh. Data ranks see different samples; all of them share one optimizer step.

    The ranks of a sequence group have the same data rank. Gradients are averaged over all `size` ranks.
    """

    global_rank: int
    size: int
    data_rank: int
    data_size: int
    local_rank: int  # among the ranks of this machine
    device: torch.device
    sequence_rank: int = 0  # in the sequence group
    sequence_size: int = 1
    sequence_group: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)  # None: a group of one
    timeout: timedelta | None = field(default=None, compare=False, repr=False)  # of a collective; None: the backend's

    @property
    def is_main(self) -> bool:
        """This rank writes logs and weights."""
        return self.global_rank == 0

    @property
    def is_group_leader(self) -> bool:
        """This rank loads, writes and counts for its sequence group."""
        return self.sequence_rank == 0


_current: World | None = None


def init(platform: Platform, timeout_seconds: float, sp_size: int = 1) -> World:
    """Join the ranks torchrun started, or make a group of one. A collective that takes `timeout_seconds` fails.

    sp_size: ranks in a sequence group. A second call returns the world of the first.
    Raises ConfigError when the environment contradicts itself, or `sp_size` does not divide the number of ranks.
    """
    if _current is not None:
        return _current
    rank, size = rank_from_environment()
    local_rank = integer("LOCAL_RANK", rank) if size > 1 else integer("LOCAL_RANK", 0)
    local_size = local_size_from_environment()
    check_sequence_size(sp_size, size, "world")
    if platform.name != "cpu" and local_rank >= platform.device_count():
        raise ConfigError(
            f"world: local rank {local_rank} has no {platform.name} device; this machine has "
            f"{platform.device_count()}; lower --nproc_per_node"
        )
    on_device = platform.name != "cpu"
    if local_size > 1 and ("OMP_NUM_THREADS" not in os.environ or (on_device and _threads_set_by_torchrun())):
        torch.set_num_threads(max(1, cores() // local_size))  # by default every rank takes every core
    _allow_connections(size)
    _die_with_parent()
    if size > 1 or "RANK" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout_seconds)))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            store = restart_store(store, rank, size, timeout_seconds)
    else:
        store = dist.HashStore()  # in memory: no port that another run could hold
    return init_process_group(store, rank, size, local_rank, platform, timeout_seconds, sp_size)


def _threads_set_by_torchrun() -> bool:
    """True if OMP_NUM_THREADS=1 is no choice of the user: torchrun sets it where its own environment has none.

    Ranks that compute on a device have the cores to themselves, and offloaded optimizers run on them.
    """
    if os.environ.get("OMP_NUM_THREADS") != "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        given_to_torchrun = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in given_to_torchrun)


def _allow_connections(size: int) -> None:
    """Make room for gloo's connections: each group connects every rank to every other one, with a socket each.

    Beyond LAZY_RANKS they are made when first used. For fewer ranks that is left off: such a connection to a rank that has
    died waits without an error (pytorch/gloo#520).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if size > LAZY_RANKS:
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


def _die_with_parent() -> None:
    """Have Linux kill this rank when its launcher is killed.

    A launcher gives each rank a session of its own, so `kill -9` of it or of its process group leaves the ranks
    running, and they would go on writing to the folder where the next start resumes.
    """
    if sys.platform == "linux" and ("TORCHELASTIC_RUN_ID" in os.environ or LAUNCHER in os.environ):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def init_process_group(
    store: dist.Store,
    rank: int,
    size: int,
    local_rank: int,
    platform: Platform,
    timeout_seconds: float,
    sp_size: int = 1,
) -> World:
    """Join the ranks that meet at `store`; commands call `init`."""
    global _current
    # torch 2.14 renames two collectives; the new names do not exist in older versions, nor in colossalai
    warnings.filterwarnings("ignore", message=r".*(all_gather_into|reduce_scatter)_tensor", category=FutureWarning)
    device = platform.device(local_rank)
    timeout = collective_timeout(platform, timeout_seconds)
    dist.init_process_group(platform.backend, store=store, rank=rank, world_size=size, timeout=timeout)
    _current = World(rank, size, data_rank=rank, data_size=size, local_rank=local_rank, device=device, timeout=timeout)
    _wait_for_connections()
    return _current if sp_size == 1 else split_sequence_groups(sp_size)


def collective_timeout(platform: Platform, timeout_seconds: float) -> timedelta:
    """The time after which a process group ends a collective by itself.

    Where that kills the process without naming a rank (NCCL, HCCL), the watchdog, whose limit is `timeout_seconds`, comes
    first.
    """
    later = 0 if platform.backend == "gloo" else WATCHDOG_SECONDS
    return timedelta(seconds=timeout_seconds + later)


def _wait_for_connections() -> None:
    """Return when every rank has connected to the others: gloo fails on a rank that still connects to one that leaves."""
    collectives.any_rank(False)


def init_from_file(file: Path, rank: int, size: int, platform: Platform, timeout_seconds: float) -> World:
    """Join ranks of this machine that meet at a file, for starts without torchrun; only they may use the file."""
    return init_process_group(dist.FileStore(str(file), size), rank, size, rank, platform, timeout_seconds)


def split_sequence_groups(sp_size: int) -> World:
    """Split the ranks into sequence groups of `sp_size` consecutive ranks and return the new world. Every rank calls it.

    Raises ConfigError when `sp_size` does not divide the number of ranks.
    """
    global _current
    here = current()
    check_sequence_size(sp_size, here.size, "world")
    group: dist.ProcessGroup | None = None
    for first in range(0, here.size, sp_size) if sp_size > 1 else ():  # all ranks must make every group
        candidate = dist.new_group(list(range(first, first + sp_size)), timeout=here.timeout)
        if isinstance(candidate, dist.ProcessGroup):  # the ranks of other groups get a number
            group = candidate
    if group is not None:
        _wait_for_connections()
    data_rank, sequence_rank = divmod(here.global_rank, sp_size)
    _current = replace(
        here,
        data_rank=data_rank,
        data_size=here.size // sp_size,
        sequence_rank=sequence_rank,
        sequence_size=sp_size,
        sequence_group=group,
    )
    return _current


def set_timeout(timeout: timedelta, group: dist.ProcessGroup | None = None) -> None:
    """Set how long a collective of `group` (None = all ranks) may take from now on."""
    change = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # its name before torch 2.14
    change(timeout, group)


def check_sequence_size(sp_size: int, size: int, where: str) -> None:
    """Raise ConfigError unless `size` ranks make whole sequence groups of `sp_size`."""
    if sp_size < 1 or size % sp_size:
        allowed = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise ConfigError(
            f"{where}: key 'sp_size': found {sp_size} on {size} rank(s); allowed: a divisor of the number of ranks "
            f"({allowed}); change sp_size or start another number of ranks"
        )


def current() -> World:
    """The world that `init` returned; RuntimeError before that."""
    if _current is None:
        raise RuntimeError("world.current() was called before world.init()")
    return _current


def shutdown() -> None:
    """Leave the group; a later `init` may join another."""
    global _current
    _current = None
    join_all()
    if dist.is_initialized():
        dist.destroy_process_group()
