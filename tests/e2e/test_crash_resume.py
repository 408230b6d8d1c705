"""kill -9 at random moments of training: no saved step is lost, and the numbers stay the same."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from opensora.training import checkpoint
from opensora.training.metrics import read
from tests.dist import one_rank
from tests.support.command import ROOT

KILLS = {1: 4, 2: 2}  # by number of ranks, which are killed at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def counts(folder: Path, warm: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [warm, "-m", "bench.crash_resume", str(folder), *map(str, KILLS.values())],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_restart_after_kill_resumes_from_last_save(counts: list[dict[str, Any]]) -> None:
    assert {each["ranks"]: each["kills"] for each in counts} == KILLS
    for each in counts:
        assert each["starts_after_a_kill"] == each["kills"]
        assert each["failures"] == []
        for never in ("failed_to_resume", "damaged_checkpoints", "saved_steps_lost"):
            assert each[never] == 0, never
        assert each["most_steps_lost"] <= each["most_steps_allowed"]
    assert sum(each["while_starting"] for each in counts) < sum(KILLS.values())  # some were killed while training


def test_killed_runs_log_the_numbers_of_an_undisturbed_one(folder: Path, counts: list[dict[str, Any]]) -> None:
    compared = 0
    for each in counts:
        whole = logged(folder / f"whole-{each['ranks']}")
        assert [record["step"] for record in whole] == list(range(1, len(whole) + 1))
        assert len({record["loss"] for record in whole}) == len(whole)
        for run_dir in folder.glob(f"run-{each['ranks']}-*"):
            assert logged(run_dir) == whole
            compared += 1
        assert each["runs_identical"] == each["runs_finished"]
    assert compared == sum(each["runs_finished"] for each in counts) >= 2


def test_only_complete_checkpoints_are_left(folder: Path, counts: list[dict[str, Any]]) -> None:
    with one_rank():
        for run_dir in folder.glob("run-*"):
            latest = checkpoint.find(run_dir)
            assert latest is not None
            assert latest.step == logged(run_dir)[-1]["step"]
            assert all(path.name.startswith("step-") for path in (run_dir / "checkpoints").iterdir())


def logged(run_dir: Path) -> list[dict[str, Any]]:
    records = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
