"""If a rank dies or hangs, the others end within the timeout with an error that names it."""

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Process
from tests.support.short_runs import DEBUG

TIMEOUT = 4  # seconds
PATIENT = ["timeout_seconds=40"]  # with a save that takes its time
PATIENCE = 60  # seconds for two ranks to start, train four steps, wait TIMEOUT and end, on a busy machine


def hang() -> None:
    while True:
        signal.pause()


def stop_oneself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise KeyError("the disk of this machine")


def run_rank(rank: int, port: int, run_dir: str, where: str, trouble: Any, options: list[str]) -> None:
    """Run `opensora train`; rank 1 calls `trouble` in step 5: in its data, its computation or a block."""
    import torch

    from opensora.cli import train as command
    from opensora.parallel.watchdog.process_exit import exit_process
    from opensora.training import build

    torch.set_num_threads(1)
    with (Path(run_dir) / f"rank-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    real = build.build_training

    def build_with_trouble(*arguments: Any) -> Any:
        training = real(*arguments)
        if where == "data":
            training.batches = (in_trouble(batch) for batch in training.batches)
        elif where == "block":
            batches = []
            training.batches = (batches.append(batch) or batch for batch in training.batches)
            first = next(iter(training.task.trained.checkpoint_blocks()))
            first.register_forward_pre_hook(lambda *_: in_trouble(batches[-1]) and None)
        else:
            loss = training.task.loss
            training.task.loss = lambda model, batch: loss(model, in_trouble(batch))
        return training

    def in_trouble(batch: Any) -> Any:
        if batch.step == 4 and rank == 1:
            trouble()
        return batch

    build.build_training = build_with_trouble
    exit_process(command.main([DEBUG, f"run_dir={run_dir}", f"timeout_seconds={TIMEOUT}", "steps=9", *options]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("where", "trouble", "verdict", "options"),
    [
        ("data", hang, r"rank 1: kept the others waiting( for \d s)?, loading the data of step 5", []),
        (
            "work",
            stop_oneself,
            r"rank 1: sent no sign of life for \d s, (at work on|loading the data of) step [45]",
            [],
        ),
        ("work", die, r"rank 1: sent no sign of life for \d s, (at work on|loading the data of) step [1-5]", []),
        ("data", fail, r"rank 1: failed, loading the data of step 5: KeyError: 'the disk of this machine'", PATIENT),
        (
            "block",
            hang,
            r"rank 1: kept the others waiting( for \d s)?, at work on step 5",
            ["plugin=hybrid", "plugin_config.tp_size=2"],  # whose groups have timeouts of their own
        ),
    ],
    ids=["hangs in its data", "is stopped", "is killed", "fails", "hangs in a group"],
)
def test_other_ranks_end_and_name_the_rank(
    tmp_path: Path, where: str, trouble: Any, verdict: str, options: list[str]
) -> None:
    port = free_port()
    ranks = [Process(run_rank, rank, port, str(tmp_path), where, trouble, options) for rank in range(2)]
    try:
        ranks[0].join(PATIENCE)
        assert ranks[0].exitcode == 1
        if trouble is not stop_oneself:
            ranks[1].join(PATIENCE)
            assert ranks[1].exitcode == (-signal.SIGKILL if trouble is die else 1)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    of_rank_0, of_rank_1 = ((tmp_path / f"rank-{rank}.log").read_text() for rank in range(2))
    errors = [line for line in of_rank_0.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, of_rank_0
    assert re.search(verdict, errors[0]), errors[0]
    assert "start the same command again" in errors[0]
    assert "Traceback" not in of_rank_0
    assert ("step 4 saved" if trouble is fail else "step 2 saved") in of_rank_0
    if trouble is hang:
        assert "rank 1 stands here:" in of_rank_1
        assert "signal.pause()" in of_rank_1
