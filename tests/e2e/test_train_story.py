"""A user's days: train on two ranks, lose the machine, go on, be asked to stop, finish on one rank, sample."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from opensora.training.metrics import read
from tests.support.command import ROOT, SAMPLE, TORCHRUN, TRAIN, running

STEPS = 14
PROMPTS = ("a red circle moves left", "a blue square moves up")


def train_command(run_dir: Path) -> list[str]:
    options = [f"run_dir={run_dir}", f"steps={STEPS}", "keep_last=20"]
    return [*TORCHRUN, "-m", "opensora.cli.train", TRAIN, *options]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """All that was logged of steps except wall time."""
    found = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    for record in found:
        assert record.pop("seconds") > 0
    return found


def checkpoints(run_dir: Path) -> list[int]:
    """Steps of the finished checkpoints; anything unfinished in the folder fails the test."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run_dir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: str) -> Path:
    """A run that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("whole")
    with running(*train_command(run_dir), python=warm) as command:
        assert command.finish() == 0, "\n".join(command.lines)
    assert [record["step"] for record in records(run_dir)] == list(range(1, STEPS + 1))
    assert checkpoints(run_dir) == list(range(2, STEPS + 1, 2))
    return run_dir


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run: killed, stopped through torchrun, stopped through one rank, always started by the same command."""
    run_dir = tmp_path_factory.mktemp("disturbed")
    kill_torchrun(run_dir)
    terminate_torchrun(run_dir)
    terminate_one_rank(run_dir)
    return run_dir


def kill_torchrun(run_dir: Path) -> None:
    with running(*train_command(run_dir)) as command:
        command.read_until("step 2 saved")
        os.kill(command.process.pid, signal.SIGKILL)
        # comes back only when the ranks are gone too: they hold the pipe
        assert command.finish() == -signal.SIGKILL
        assert not command.lines_with("done:")


def terminate_torchrun(run_dir: Path) -> None:
    """torchrun passes the signal on and leaves with an error of its own, but the ranks have saved."""
    with running(*train_command(run_dir), "num_workers=1") as command:  # who get the signal as well
        command.read_until(" saved: ")
        assert command.lines_with("resumed from")
        command.process.terminate()
        assert command.finish() == 1
        assert stopped_at(command.lines) == max(checkpoints(run_dir)) == records(run_dir)[-1]["step"]


def terminate_one_rank(run_dir: Path) -> None:
    """A rank that is asked tells the others: all of them finish the step, save it once and leave with 0."""
    with running(*train_command(run_dir)) as command:
        command.read_until(" saved: ")
        os.kill(command.ranks()[1], signal.SIGTERM)
        assert command.finish() == 0, "\n".join(command.lines)
        assert stopped_at(command.lines) == max(checkpoints(run_dir)) == records(run_dir)[-1]["step"]


def stopped_at(lines: list[str]) -> int:
    """The step whose save was the last before leaving."""
    text = "\n".join(lines)
    assert "stopped on request" in text, text
    return int(re.findall(r"step (\d+) saved: ", text)[-1])


def test_interruptions_leave_no_trace_in_the_numbers(whole: Path, disturbed: Path) -> None:
    """Every loss, norm, rate and bin of every step, bit for bit, on the same number of ranks."""
    found = records(disturbed)
    assert 6 <= len(found) < STEPS
    assert found == records(whole)[: len(found)]
    same = max(set(checkpoints(disturbed)) & set(checkpoints(whole)))
    assert same >= 4
    for name in ("model", "ema"):
        file = f"checkpoints/step-{same:08d}/weights/{name}/model.safetensors"
        assert (disturbed / file).read_bytes() == (whole / file).read_bytes()


def test_one_rank_goes_on_where_two_stopped(whole: Path, disturbed: Path, opensora) -> None:
    options = [f"run_dir={disturbed}", f"steps={STEPS}", "keep_last=20"]
    assert opensora("train", str(ROOT / TRAIN), *options) == 0
    for one, two in zip(records(disturbed), records(whole), strict=True):
        assert (one["step"], one["tokens"], one["lr"]) == (two["step"], two["tokens"], two["lr"])
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["loss_per_bin"] == pytest.approx(two["loss_per_bin"], rel=1e-5)
    assert max(checkpoints(disturbed)) == STEPS


def test_sampling_is_the_same_on_one_and_two_ranks_and_skips_what_is_done(
    whole: Path, tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str], warm: str
) -> None:
    """As console command and under torchrun: byte-identical mp4s; the second run starts no work."""
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
    assert len({one[name] for name in one if name.endswith(".mp4")}) >= 2  # what it learnt so far is to ignore the text

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    assert opensora("sample", *options("one")) == 0
    said = capsys.readouterr()
    assert "4 of 4 videos" in said.err
    assert len(said.out.split()) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before
