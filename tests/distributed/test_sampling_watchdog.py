"""Ranks that sample together: all end with the number of a rank that dies or hangs; a slow rank is waited for."""

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_watchdog import PATIENCE, die, free_port, hang
from tests.support.processes import Process
from tests.support.short_runs import ROOT

TIMEOUT = 4  # seconds
STEPS = 4
CONFIG = f"""
_base_ = ["{ROOT}/configs/_base_/tiny_vae.py"]
text_encoder = dict(type="classes", names=["circle", "square"])
model = dict(type="Latte", condition="label_2", hidden_size=32, depth=2, num_heads=2, patch_size=(1, 2, 2))
scheduler = dict(type="rflow", num_sampling_steps={STEPS}, cfg_scale=2.0)
num_frames, image_size, fps, dtype = 5, (16, 16), 8, "fp32"
prompt = ["circle", "square"]
timeout_seconds = {TIMEOUT}
"""


def be_slow() -> None:
    threading.Event().wait(1.5 * TIMEOUT / STEPS)


def run_rank(rank: int, port: int, folder: str, sp_size: int, trouble: Any) -> None:
    """Run `opensora sample`; rank 1 calls `trouble` after the second denoising step, or `be_slow` after each."""
    import torch

    from opensora.cli import sample as command
    from opensora.parallel.watchdog.process_exit import exit_process
    from opensora.sampling import sample

    torch.set_num_threads(1)
    for name, number in (("out", 1), ("log", 2)):
        with Path(folder, f"rank-{rank}.{name}").open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    real = sample.generate

    def generate_in_trouble(batch: Any, sampler: Any, guidance_scale: Any, progress: Any) -> Any:
        def step(done: int, steps: int) -> None:
            progress(done, steps)
            if rank == 1 and (done == 2 or trouble is be_slow):
                trouble()

        return real(batch, sampler, guidance_scale, step)

    sample.generate = generate_in_trouble
    exit_process(command.main([str(Path(folder, "config.py")), f"save_dir={folder}/videos", f"sp_size={sp_size}"]))


def sample_on_two_ranks(folder: Path, sp_size: int, trouble: Any) -> tuple[list[int | None], str]:
    """(exit codes, the log of rank 0)."""
    (folder / "config.py").write_text(CONFIG)
    port = free_port()
    ranks = [Process(run_rank, rank, port, str(folder), sp_size, trouble) for rank in range(2)]
    try:
        for process in ranks:
            process.join(PATIENCE)
        return [process.exitcode for process in ranks], (folder / "rank-0.log").read_text()
    finally:
        for process in ranks:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("sp_size", "trouble", "verdict"),
    [
        (1, hang, r"rank 1: kept the others waiting( for \d s)?, at work on step 2"),
        (1, die, r"rank 1: sent no sign of life for \d s, (starting|at work on step [12])"),
        (2, hang, r"rank 1: kept the others waiting( for \d s)?, at work on step 2"),
    ],
    ids=["hangs", "is killed", "hangs in its part of a video"],
)
def test_other_ranks_end_and_name_the_rank(tmp_path: Path, sp_size: int, trouble: Any, verdict: str) -> None:
    codes, log = sample_on_two_ranks(tmp_path, sp_size, trouble)
    assert codes == [1, -signal.SIGKILL if trouble is die else 1], log
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, log
    assert re.search(verdict, errors[0]), errors[0]


def test_slow_rank_is_waited_for(tmp_path: Path) -> None:
    """The whole rank takes longer than the timeout, but no step does."""
    codes, log = sample_on_two_ranks(tmp_path, 1, be_slow)
    assert codes == [0, 0], log
    assert len((tmp_path / "rank-0.out").read_text().splitlines()) == 2
