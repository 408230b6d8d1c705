import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from opensora.errors import ConfigError
from opensora.parallel import collectives, world
from opensora.platforms import select
from opensora.platforms.cpu import cores
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
