"""torchrun --max-restarts: the job resumes from its last checkpoint after a rank dies and after a rank hangs.

The launcher of torchrun is called with torchrun's arguments, but it forks its ranks, so that they do not import
everything three times.
"""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from opensora.training.metrics import read
from tests.support.processes import Process
from tests.support.short_runs import DEBUG

STEPS, TIMEOUT = 8, 8  # of a collective, in seconds
SIGNALS = {0: signal.SIGKILL, 1: signal.SIGSTOP}  # restarts so far -> signal that rank 1 sends to itself
TROUBLE_AT = {0: 3, 1: 6}  # restarts so far -> step of the signal


def launch(run_dir: str) -> None:
    """Run like `torchrun --nproc_per_node 2 --max-restarts 2 -m opensora.cli.train`; raise if the job fails."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=2,
        start_method="fork",
        monitor_interval=0.1,
        shutdown_timeout=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="faults",
    )
    elastic_launch(config, run_rank)(run_dir)


def run_rank(run_dir: str) -> None:
    import torch

    from opensora.cli import train as command
    from opensora.parallel.watchdog.process_exit import exit_process
    from opensora.training import build

    rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    trouble = Path(run_dir) / f"trouble-{restarts}"
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the launcher's handler
    os.dup2(os.open(Path(run_dir) / f"rank-{rank}-{restarts}.log", os.O_WRONLY | os.O_CREAT), 2)
    real = build.build_training

    def build_with_trouble(*arguments: Any) -> Any:
        training = real(*arguments)
        training.batches = (in_trouble(batch) for batch in training.batches)
        return training

    def in_trouble(batch: Any) -> Any:
        if rank == 1 and batch.step + 1 == TROUBLE_AT.get(restarts):
            trouble.write_text(str(os.getpid()))
            os.kill(os.getpid(), SIGNALS[restarts])
        return batch

    build.build_training = build_with_trouble
    options = [f"run_dir={run_dir}", f"steps={STEPS}", f"timeout_seconds={TIMEOUT}", "save_every=1", "keep_last=9"]
    code = command.main([DEBUG, *options])
    if code:  # if the function returned, the launcher would wait for its result
        if rank == 0 and SIGNALS[restarts] == signal.SIGSTOP:
            os.kill(int(trouble.read_text()), signal.SIGKILL)  # or the launcher would wait 30 s for it to stop
        exit_process(code)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was restarted twice."""
    folder = tmp_path_factory.mktemp("restarted")
    process = Process(launch, str(folder))
    process.join(300)
    process.kill()
    assert process.exitcode == 0, "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))
    return folder


def test_run_resumes_twice_and_finishes(run_dir: Path) -> None:
    logs = [(run_dir / f"rank-0-{restarts}.log").read_text() for restarts in range(3)]
    assert not list(run_dir.glob("rank-0-3.log"))
    assert "resumed from" not in logs[0]
    for before, after in itertools.pairwise(logs):
        saved = max(int(line.split("step ")[1].split()[0]) for line in before.splitlines() if " saved: " in line)
        resumed = int(after.split("resumed from ")[1].split("at step ")[1].split()[0])
        assert resumed >= saved
    assert "done:" in logs[2]


def test_errors_name_the_rank(run_dir: Path) -> None:
    for restarts in SIGNALS:
        text = (run_dir / f"rank-0-{restarts}.log").read_text()
        assert "error: rank 1: " in text, text
        assert "sign of life" in text
        assert "Traceback" not in text


def test_every_step_was_logged_once(run_dir: Path) -> None:
    records = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
