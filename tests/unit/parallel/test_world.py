import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from opensora.errors import ConfigError
from opensora.parallel import collectives, world
from opensora.platforms import select
from opensora.platforms.cpu import CpuPlatform, cores
from opensora.platforms.cuda import CudaPlatform
from opensora.platforms.npu import NpuPlatform
from tests.dist import one_rank, run_ranks

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_environment() -> None:
    assert world.rank_from_environment() == (0, 1)
    with one_rank() as here:
        assert (here.global_rank, here.size, here.data_rank, here.data_size) == (0, 1, 0, 1)
        assert here.device == torch.device("cpu")
        assert here.is_main
        assert world.current() is here
        assert world.init(select("cpu"), 60) is here
    with pytest.raises(RuntimeError, match=r"before world.init"):
        world.current()


def test_rank_from_torchrun_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert world.rank_from_environment() == (1, 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"RANK": "2"}, "RANK=2 with WORLD_SIZE=2; allowed: 0 to WORLD_SIZE - 1"),
        ({"RANK": "one"}, "RANK='one'; allowed: a whole number"),
        ({"RANK": "-1"}, "RANK='-1'"),
        ({"WORLD_SIZE": None}, "not WORLD_SIZE"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "not MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_contradicting_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], complaint: str
) -> None:
    for name, value in {**TORCHRUN, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node") as caught:
        world.rank_from_environment()
    assert complaint in str(caught.value)


def test_init_after_shutdown_makes_new_group() -> None:
    for _ in range(2):
        with one_rank() as here:
            assert collectives.world_size() == here.size == 1
    assert collectives.world_size() == 1
    assert collectives.rank() == 0


def start_like_a_launcher(threads: str | None) -> int:
    """torch's thread count when 2 ranks share this machine."""
    with pytest.MonkeyPatch.context() as patch:
        world.shutdown()
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "1")
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", "0")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        if threads is not None:
            patch.setenv("OMP_NUM_THREADS", threads)
        torch.set_num_threads(cores() + 3)
        try:
            world.init(select("cpu"), 60)
            return torch.get_num_threads()
        finally:
            torch.set_num_threads(1)


def test_ranks_share_cores_unless_omp_num_threads() -> None:
    assert run_ranks(start_like_a_launcher, 1, None) == [max(1, cores() // 2)]
    assert run_ranks(start_like_a_launcher, 1, "5") == [cores() + 3]


@pytest.mark.parametrize(
    ("device", "of_rank", "of_torchrun", "expected"),
    [
        ("cuda", "1", b"HOME=/root\0", 4),
        ("cuda", "1", b"HOME=/root\0OMP_NUM_THREADS=1\0", None),
        ("cuda", "3", b"HOME=/root\0", None),
        ("cuda", "1", None, None),
        ("cpu", "1", b"HOME=/root\0", None),
    ],
    ids=["set by torchrun", "set by the user", "another number", "unknown", "on the CPU"],
)
def test_ranks_on_devices_share_cores_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, device: str, of_rank: str, of_torchrun: bytes | None, expected: int | None
) -> None:
    """torchrun sets OMP_NUM_THREADS=1, with which an offloaded optimizer would run on one core."""
    for name, value in {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("OMP_NUM_THREADS", of_rank)
    read, threads = Path.read_bytes, []

    def environment(path: Path) -> bytes:
        if path != Path(f"/proc/{os.getppid()}/environ"):
            return read(path)
        if of_torchrun is None:
            raise PermissionError(path)
        return of_torchrun

    monkeypatch.setattr(Path, "read_bytes", environment)
    monkeypatch.setattr(world, "cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(world, "_die_with_parent", lambda: None)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 1)]))
    monkeypatch.setattr(world, "restart_store", lambda store, *_: store)
    monkeypatch.setattr(world, "init_process_group", lambda *_: None)
    world.init(SimpleNamespace(name=device, device_count=lambda: 2), 60)  # type: ignore[arg-type]
    assert threads == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 10**6), (65_536, 10**6)),
        ((10**5, 10**6), None),
        ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_open_files_are_raised_for_connections(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: tuple[int, int] | None
) -> None:
    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: calls.append(pair))
    world._allow_connections(8)
    assert calls == ([] if raised is None else [raised])


@pytest.mark.parametrize(("ranks", "before", "expected"), [(256, None, None), (512, None, "1"), (512, "0", "0")])
def test_many_ranks_connect_when_they_need_to(
    monkeypatch: pytest.MonkeyPatch, ranks: int, before: str | None, expected: str | None
) -> None:
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", before or "")
    if before is None:
        monkeypatch.delenv("TORCH_GLOO_LAZY_INIT")
    world._allow_connections(ranks)
    assert os.environ.get("TORCH_GLOO_LAZY_INIT") == expected


def mesh(sp_size: int) -> tuple[int, ...]:
    """This rank's place in groups of `sp_size`, and the sum of the ranks' numbers over its group."""
    here = world.split_sequence_groups(sp_size)
    assert world.current() is here
    assert here.is_group_leader == (here.sequence_rank == 0)
    assert (here.sequence_group is None) == (sp_size == 1)
    total = torch.tensor(here.global_rank)
    if sp_size > 1:
        total = collectives.sum_over_ranks(total, here.sequence_group)
    return here.data_rank, here.data_size, here.sequence_rank, here.sequence_size, int(total)


def test_consecutive_ranks_are_a_sequence_group() -> None:
    assert run_ranks(mesh, 4, 2) == [(0, 2, 0, 2, 1), (0, 2, 1, 2, 1), (1, 2, 0, 2, 5), (1, 2, 1, 2, 5)]
    assert run_ranks(mesh, 4, 4) == [(0, 1, rank, 4, 6) for rank in range(4)]
    assert run_ranks(mesh, 2, 1) == [(0, 2, 0, 1, 0), (1, 2, 0, 1, 1)]


def join_late(folder: str) -> bool:
    """Rank 1 takes its time to connect; returns on each rank whether it had by the time that this rank was ready."""
    rank, join, late = collectives.rank(), dist.init_process_group, Path(folder, "late")
    world.shutdown()

    def delayed(*args: Any, **options: Any) -> None:
        join(*args, **options)
        if rank == 1:
            time.sleep(0.2)
            late.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "init_process_group", delayed)
        world.init_from_file(Path(folder, "store"), rank, 2, select("cpu"), 60)
    return late.exists()


def test_no_rank_may_leave_before_all_have_connected(tmp_path: Path) -> None:
    assert run_ranks(join_late, 2, str(tmp_path)) == [True, True]


def test_watchdog_comes_before_that_of_nccl_and_hccl() -> None:
    seconds = {each.name: world.collective_timeout(each, 600).total_seconds() for each in (CpuPlatform, CudaPlatform)}
    assert seconds == {"cpu": 600, "cuda": 720}
    assert world.collective_timeout(NpuPlatform, 600) == world.collective_timeout(CudaPlatform, 600)


@pytest.mark.parametrize("sp_size", [2, 3, 5, 0])
def test_sp_size_must_divide_ranks(sp_size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        world.check_sequence_size(sp_size, 9 if sp_size == 2 else 8, "run.py")
    assert f"run.py: key 'sp_size': found {sp_size} on" in str(caught.value)
    assert "(1, 2, 4, 8)" in str(caught.value) or "(1, 3, 9)" in str(caught.value)


def test_failed_init_joins_nothing() -> None:
    with pytest.raises(ConfigError, match=r"key 'sp_size': found 2 on 1 rank\(s\)"):
        world.init(select("cpu"), 60, sp_size=2)
    with pytest.raises(RuntimeError, match=r"before world.init"):
        world.current()


def test_local_world_size_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world.local_size_from_environment() == 1
    for name, value in {**TORCHRUN, "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    assert world.local_size_from_environment() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert world.local_size_from_environment() == 8
