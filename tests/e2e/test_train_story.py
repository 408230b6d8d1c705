"""A whole project: train on two ranks, get killed, resume, get a stop signal, finish on one rank, sample."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from opensora.training.metrics import read
from tests.support.command import ROOT, SAMPLE, TORCHRUN, running
from tests.support.short_runs import DEBUG

STEPS = 14
PROMPTS = ("a red circle moves left", "a blue square moves up")


def train_command(run_dir: Path) -> list[str]:
    options = [f"run_dir={run_dir}", f"steps={STEPS}", "keep_last=20"]
    return [*TORCHRUN, "-m", "opensora.cli.train", DEBUG, *options]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The logged records of steps, without wall time."""
    logged = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    for record in logged:
        assert record.pop("seconds") > 0
    return logged


def checkpoints(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints; anything unfinished in the folder fails the test."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run_dir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: str) -> Path:
    """A run that is not interrupted."""
    run_dir = tmp_path_factory.mktemp("whole")
    with running(*train_command(run_dir), python=warm) as command:
        assert command.finish() == 0, "\n".join(command.lines)
    assert [record["step"] for record in records(run_dir)] == list(range(1, STEPS + 1))
    assert checkpoints(run_dir) == list(range(2, STEPS + 1, 2))
    return run_dir


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, warm: str) -> Path:
    """The same command, run three times: killed, stopped through torchrun, stopped through one rank.

    Ranks that are to notice that their parent is gone start cold.
    """
    run_dir = tmp_path_factory.mktemp("disturbed")
    kill_torchrun(run_dir, warm)
    terminate_torchrun(run_dir, warm)
    terminate_one_rank(run_dir, warm)
    return run_dir


def kill_torchrun(run_dir: Path, warm: str) -> None:
    with running(*train_command(run_dir), python=warm, ranks=sys.executable) as command:
        command.read_until("step 2 saved")
        os.kill(command.process.pid, signal.SIGKILL)
        # returns only after the ranks have exited too, because they hold the pipe
        assert command.finish() == -signal.SIGKILL
        assert not command.lines_with("done:")


def terminate_torchrun(run_dir: Path, warm: str) -> None:
    """torchrun forwards the signal and exits with its own error; the ranks save first."""
    with running(
        *train_command(run_dir), "num_workers=1", python=warm
    ) as command:  # loader workers get the signal as well
        command.read_until(" saved: ")
        assert command.lines_with("resumed from")
        command.process.terminate()
        assert command.finish() == 1
        assert stopped_at(command.lines) == max(checkpoints(run_dir)) == records(run_dir)[-1]["step"]


def terminate_one_rank(run_dir: Path, warm: str) -> None:
    """A signal to one rank stops all: they finish the step, save it once and exit with 0."""
    with running(*train_command(run_dir), ranks=warm) as command:
        command.read_until(" saved: ")
        os.kill(command.ranks()[1], signal.SIGTERM)
        assert command.finish() == 0, "\n".join(command.lines)
        assert stopped_at(command.lines) == max(checkpoints(run_dir)) == records(run_dir)[-1]["step"]


def stopped_at(lines: list[str]) -> int:
    """The step of the last save before the exit."""
    text = "\n".join(lines)
    assert "stopped on request" in text, text
    return int(re.findall(r"step (\d+) saved: ", text)[-1])


def test_interruptions_leave_no_trace_in_the_numbers(whole: Path, disturbed: Path) -> None:
    """All logged numbers of all steps are bit-equal on the same number of ranks."""
    logged = records(disturbed)
    assert 6 <= len(logged) < STEPS
    assert logged == records(whole)[: len(logged)]
    same = max(set(checkpoints(disturbed)) & set(checkpoints(whole)))
    assert same >= 4
    for name in ("model", "ema"):
        file = f"checkpoints/step-{same:08d}/weights/{name}/model.safetensors"
        assert (disturbed / file).read_bytes() == (whole / file).read_bytes()


def test_one_rank_resumes_a_run_of_two(whole: Path, disturbed: Path, opensora) -> None:
    options = [f"run_dir={disturbed}", f"steps={STEPS}", "keep_last=20"]
    assert opensora("train", DEBUG, *options) == 0
    for one, two in zip(records(disturbed), records(whole), strict=True):
        assert (one["step"], one["tokens"], one["lr"]) == (two["step"], two["tokens"], two["lr"])
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["loss_per_bin"] == pytest.approx(two["loss_per_bin"], rel=1e-5)
    assert max(checkpoints(disturbed)) == STEPS


def test_sampling_is_equal_on_one_and_two_ranks_and_skips_existing_videos(
    whole: Path, tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str], warm: str
) -> None:
    """The console command and torchrun write byte-identical mp4s; a second run samples nothing."""
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]

    def options(folder: str) -> list[str]:
        return [
            *(str(ROOT / SAMPLE), "--load", str(whole), "--save-dir", str(tmp_path / folder)),
            *("--num-sample", "2", *prompts),
        ]

    with running("-m", "opensora.cli.main", "sample", *options("one"), python=warm) as command:
        assert command.finish() == 0, "\n".join(command.lines)
        assert command.process.stdout is not None
        assert sorted(command.process.stdout.read().split()) == sorted(map(str, (tmp_path / "one").glob("*.mp4")))
    with running(*TORCHRUN, "-m", "opensora.cli.sample", *options("two"), python=warm) as command:
        assert command.finish() == 0, "\n".join(command.lines)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert sorted(Path(name).suffix for name in one) == [".json"] * 4 + [".mp4"] * 4
    # two noises give two videos; after so few steps the model ignores the text
    assert len({one[name] for name in one if name.endswith(".mp4")}) >= 2

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    assert opensora("sample", *options("one")) == 0
    printed = capsys.readouterr()
    assert "4 of 4 videos" in printed.err
    assert len(printed.out.split()) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before
