"""The training command with bad videos, manifests, folders, disks, weights and learning rates."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from opensora import files
from opensora.config import load
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training import checkpoint
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from tests.dist import run_ranks
from tests.support.command import ROOT, SAMPLE, TRAIN
from tests.support.media_files import write_audio, write_video

CONFIG = str(ROOT / TRAIN)
QUICK = ("plugin=ddp", "ema_decay=none")
GOOD, BAD = 6, 6


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config whose manifest alternates good and bad rows: lines 2, 4, ... are good and 3, 5, ... are bad."""
    folder = tmp_path_factory.mktemp("footage")
    (folder / "zero.mp4").write_bytes(b"")
    whole = Path(write_video(folder / "whole.mp4", 20)).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 3])
    write_audio(folder / "audio.mp4")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    write_video(folder / "one_frame.mp4", 1)
    bad = ["zero.mp4", "truncated.mp4", "audio.mp4", "text.mp4", "one_frame.mp4", "missing.mp4"]
    assert len(bad) == BAD
    lines = ["path,text"]
    for number in range(GOOD):
        write_video(folder / f"good{number}.mp4", 8 + number, tint=(10 * number, 0, 0))
        lines += [f"good{number}.mp4,clip number {number}", f"{bad[number]},bad clip"]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    dataset = f"dict(_delete_=True, type='VideoTextDataset', data_path={str(folder / 'train.csv')!r}, "
    dataset += "num_frames=5, image_size=(16, 16))"
    (folder / "config.py").write_text(f"_base_ = [{CONFIG!r}]\ndataset = {dataset}\n")
    return str(folder / "config.py")


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in read(run_dir / "metrics.jsonl") if "loss" in record]


def saved(run_dir: Path) -> dict[int, dict]:
    """Manifests of the checkpoints, by step."""
    files = sorted((run_dir / "checkpoints").glob("step-*/manifest.json"))
    return {json.loads(file.read_text())["step"]: json.loads(file.read_text()) for file in files}


def error_line(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert "Traceback" not in text
    return errors[0]


def train_here(config: str, overrides: list[str]) -> None:
    """Train to the end on a rank of the pool."""
    training = build_training(load(config, overrides, TrainRun).run, world.current(), config)
    assert train(training)
    training.metrics.close()


def test_bad_rows_are_skipped_and_counted_equally_on_one_and_two_ranks(
    footage: str, tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*QUICK, "steps=4", f"max_bad_rows={BAD}"]
    assert opensora("train", footage, f"run_dir={tmp_path / 'one'}", *options) == 0
    errors = capsys.readouterr().err
    assert "12 rows in, 12 kept" in errors
    for line in range(3, 14, 2):
        assert len(re.findall(rf"WARNING skipped \S*/train\.csv:{line}: ", errors)) == 1, errors
    assert not re.search(r"skipped \S*/train\.csv:(2|4|6|8|10|12): ", errors)
    assert f"(max_bad_rows={BAD})" in errors

    run_ranks(train_here, 2, footage, [f"run_dir={str(tmp_path / 'two')!r}", *options])
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (saved(tmp_path / name)[4]["meta"]["bad_rows"] for name in ("one", "two"))
    assert sorted(one) == sorted(two)
    assert len(one) == BAD


def test_run_stops_above_max_bad_rows_and_resume_keeps_the_count(
    footage: str, tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str]
) -> None:
    # with this seed, two steps read four of the bad rows and the third reads the other two
    options = [f"run_dir={tmp_path}", *QUICK, "seed=44", f"max_bad_rows={BAD - 1}"]
    assert opensora("train", footage, *options, "steps=2") == 0
    assert len(saved(tmp_path)[2]["meta"]["bad_rows"]) == 4
    capsys.readouterr()
    assert opensora("train", footage, *options, "steps=3") == 1
    errors = capsys.readouterr().err
    line = error_line(errors)
    assert f"{BAD} rows" in line
    assert re.search(r"/train\.csv:\d+: ", line)
    assert f"allowed: max_bad_rows={BAD - 1}; " in line
    assert len(re.findall("WARNING skipped", errors)) == 2


def test_every_row_bad(footage: str, tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_text("path,text\nnone.mp4,nothing\nno.mp4,nothing\n")
    options = [f"dataset.data_path={tmp_path / 'train.csv'}", f"run_dir={tmp_path / 'run'}"]
    assert opensora("train", footage, *options, *QUICK) == 1
    assert f"{tmp_path / 'train.csv'}: all 2 rows" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("video,text\na.mp4,b\n", "no column 'path'; found columns 'video', 'text'; needed: 'path', 'text'"),
        ("path,text\n", "no usable row out of 0"),
        ("path,text\na.mp4,\n", "no usable row out of 1 (empty caption: 1, first "),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_manifests_without_usable_rows(
    footage: str,
    tmp_path: Path,
    opensora,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: str,
    expected: str,
) -> None:
    """`train` and `check` both refuse a manifest without usable rows."""
    (tmp_path / "train.csv").write_text(content)
    options = [f"dataset.data_path={tmp_path / 'train.csv'}", f"run_dir={tmp_path / 'run'}"]
    assert opensora(command, footage, *options) == 1
    line = error_line(capsys.readouterr().err)
    assert str(tmp_path / "train.csv") in line
    assert expected in line


def test_run_dir_that_cannot_be_written(tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        assert opensora("train", CONFIG, f"run_dir={run_dir}") == 1
        errors = capsys.readouterr().err
        assert f"{run_dir}/checkpoints: " in error_line(errors)
        assert "choose another run_dir" in errors
        assert "rows in" not in errors  # the error is raised before anything is built
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_keeps_earlier_checkpoints_and_the_same_command_resumes(
    tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*QUICK, "steps=4"]
    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'whole'}", *options) == 0
    write = files.write_tensors

    def full_from_step_four(path: Path, *content: object) -> None:
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *content)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "write_tensors", full_from_step_four)
    capsys.readouterr()
    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'full'}", *options) == 1
    line = error_line(capsys.readouterr().err)
    assert "the disk is full" in line
    assert "earlier checkpoints" in line
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-00000002"]

    monkeypatch.undo()
    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'full'}", *options) == 0
    assert "resumed from" in capsys.readouterr().err
    assert losses(tmp_path / "full") == losses(tmp_path / "whole")


def test_divergence_names_the_steps_and_the_last_good_checkpoint(
    tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"run_dir={tmp_path}", *QUICK, "save_every=1", "warmup_steps=0", "steps=9"]
    assert opensora("train", CONFIG, *options, "optimizer.lr=1e30") == 1
    line = error_line(capsys.readouterr().err)
    divergence = re.search(r"(the loss|the gradient norm) is (nan|inf) between step (\d+) and step (\d+); ", line)
    assert divergence, line
    before, after = int(divergence[3]), int(divergence[4])
    assert after == before + 1 == len(losses(tmp_path)) + 1
    checkpoint_path = re.search(r"last good checkpoint: (\S+);", line)
    assert checkpoint_path
    assert checkpoint_path[1].endswith(f"step-{before:08d}")
    latest = checkpoint.find(tmp_path)
    assert latest is not None
    assert (str(latest.folder), latest.step) == (checkpoint_path[1], before)


def test_weights_and_checkpoints_of_another_model(tmp_path: Path, opensora, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*QUICK, "steps=1"]
    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'small'}", *options) == 0
    wide = [*options, "model.hidden_size=48"]
    capsys.readouterr()
    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'wide'}", f"load={tmp_path / 'small'}", *wide) == 1
    line = error_line(capsys.readouterr().err)
    assert "model.safetensors" in line
    assert re.search(r"\[32[^]]*\] instead of \[48", line), line

    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'small'}", *wide) == 1
    line = error_line(capsys.readouterr().err)
    assert "step-00000001" in line

    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'none'}", f"load={tmp_path / 'nowhere'}", *options) == 1
    assert f"{tmp_path / 'nowhere'}: " in error_line(capsys.readouterr().err)

    half = tmp_path / "half"
    shutil.copytree(next((tmp_path / "small").glob("checkpoints/*")), half)
    for file in half.glob("weights/*/model.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    for words, sentence in (
        ([f"load={tmp_path / 'small'}", "model.hidden_size=48"], "instead of [48"),
        ([f"load={half}"], "model.safetensors"),
        ([f"load={tmp_path / 'nowhere'}"], "no such file or folder"),
        ([f"load={ROOT / 'assets/vae-small'}"], "autoencoder"),
    ):
        videos = tmp_path / "videos"
        assert opensora("sample", str(ROOT / SAMPLE), *words, "--prompt", "a cat", f"save_dir={videos}") == 2
        assert sentence in error_line(capsys.readouterr().err)
        assert not videos.exists()

    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'none'}", "load=assets/vae-small", *options) == 2
    line = error_line(capsys.readouterr().err)
    assert (
        "key 'load': assets/vae-small holds an autoencoder (CausalVAEModel, as its config.json says); allowed: a denoiser"
        in line
    )

    # a run that resumes has its own weights: those that it began with may be gone
    assert opensora("train", CONFIG, f"run_dir={tmp_path / 'small'}", f"load={tmp_path / 'nowhere'}", *options) == 0
