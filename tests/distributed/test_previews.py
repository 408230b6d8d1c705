"""Validation and preview videos during training: they are correct, and they do not change the run."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from opensora.cli.sample import sample_command
from opensora.config import load
from opensora.datasets.decode import probe
from opensora.errors import ConfigError, OpenSoraError
from opensora.parallel import world
from opensora.sampling import preview
from opensora.sampling.grid import read_frames_of
from opensora.sampling.preview import build_previews
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from opensora.training.step_stats import BINS, bin_name
from tests.dist import run_ranks
from tests.support.command import ROOT, SAMPLE
from tests.support.short_runs import DEBUG

STEPS = 4
PROMPTS = ["a red circle moves left", "a blue square moves up", "a green cross moving down"]
VALIDATE = (
    "validation_dataset={'type': 'MovingShapes', 'clips': 6, 'num_frames': 5, 'image_size': (16, 16)}",
    "validate_every=2",
    "validation_batches=2",
    "preview_every=2",
    f"preview_prompts={PROMPTS!r}",
    "preview_steps=2",
)


def go(run_dir: str, *overrides: str) -> None:
    keys = [f"steps={STEPS}", f"run_dir={run_dir!r}", "keep_last=9", *overrides]
    t = build_training(load(DEBUG, keys, TrainRun).run, world.current(), DEBUG)
    t.preview = build_previews(t)
    train(t)
    t.metrics.close()


def learnt(run_dir: Path) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in read(run_dir / "metrics.jsonl") if "loss" in record]


def weights(run_dir: Path) -> list[bytes]:
    files = sorted((run_dir / "checkpoints").glob("*/weights/*/model.safetensors"))
    assert len(files) == 4
    return [path.read_bytes() for path in files]


@pytest.mark.parametrize(("ranks", "plugin", "dtype"), [(2, "zero2", "bf16"), (2, "fsdp", "fp32")], ids=str)
def test_evaluation_does_not_change_the_run(tmp_path: Path, ranks: int, plugin: str, dtype: str) -> None:
    """Losses, norms and the weights and averages of every checkpoint are bit-equal; dropout is on."""
    keys = (f"plugin={plugin}", f"dtype={dtype}", "model.class_dropout_prob=0.5")
    run_ranks(go, ranks, str(tmp_path / "with"), *keys, *VALIDATE)
    run_ranks(go, ranks, str(tmp_path / "without"), *keys)
    assert learnt(tmp_path / "with") == learnt(tmp_path / "without")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    figures = [r["validation"] for r in read(tmp_path / "with" / "metrics.jsonl") if "validation" in r]
    assert len(figures) == 2
    for each in figures:
        assert list(each) == ["loss", *(f"loss_bin/{bin_name(index)}" for index in range(BINS))]
        assert each["loss"] == pytest.approx(sum(each[f"loss_bin/{bin_name(i)}"] for i in range(BINS)) / BINS)
    assert figures[0] != figures[1]
    for step in (2, 4):
        files = sorted(path.name for path in (tmp_path / "with" / "previews" / f"step-{step:08d}").iterdir())
        assert [name[:4] + name[-4:] for name in files] == [
            f"{i:04d}{end}" for i in range(3) for end in ("json", ".mp4")
        ]
    for path in (tmp_path / "with" / "previews").rglob("*.mp4"):
        info = probe(str(path))
        assert (info.num_frames, info.height, info.width) == (5, 16, 16)


def test_validation_is_the_same_on_any_ranks(tmp_path: Path) -> None:
    figures = []
    for ranks in (1, 2):
        run_ranks(go, ranks, str(tmp_path / str(ranks)), "plugin=ddp", *VALIDATE[:3], "validation_levels=3", "steps=2")
        figures.append([r["validation"] for r in read(tmp_path / str(ranks) / "metrics.jsonl") if "validation" in r])
    for one, two in zip(*figures, strict=True):
        assert two == pytest.approx(one, rel=1e-5)
        assert 3 <= len(one) - 1 <= BINS


def sample_from(checkpoint: str, folder: str, average: bool) -> None:
    keys = [f"load={checkpoint!r}", f"save_dir={folder!r}", f"ema={average}", "scheduler.num_sampling_steps=2"]
    assert sample_command(str(ROOT / SAMPLE), keys, PROMPTS[1:2]) == 0


@pytest.mark.parametrize("average", [True, False])
def test_a_preview_is_what_sampling_makes_of_the_same_weights(tmp_path: Path, average: bool) -> None:
    """With averaged or plain weights, a preview has the frames of a video of `opensora sample` from the checkpoint."""
    run_ranks(go, 1, str(tmp_path / "run"), "plugin=zero1", *VALIDATE[3:], f"preview_ema={average}", "ema_decay=0.5")
    run_ranks(sample_from, 1, str(tmp_path / "run/checkpoints/step-00000002"), str(tmp_path / "videos"), average)
    sampled = read_frames_of(next((tmp_path / "videos").glob("*.mp4"))).tolist()
    shown = {path.parent.name: read_frames_of(path).tolist() for path in (tmp_path / "run/previews").rglob("0001*.mp4")}
    assert shown["step-00000002"] == sampled != shown["step-00000004"]


def fail_one(run_dir: str) -> None:
    """Train with one prompt whose video is NaN, and one whose video meets an unexpected error when it is written."""
    plain, write = preview.generate, preview.write_sample

    def generate(requests: Any, *args: Any) -> Any:
        if requests[0].prompt == PROMPTS[0]:
            raise OpenSoraError("the model produced NaN")
        return plain(requests, *args)

    def write_sample(video_CTHW: Any, request: Any, *args: Any) -> Any:
        if request.prompt == PROMPTS[2]:
            raise ValueError("no such encoder")
        return write(video_CTHW, request, *args)

    with mock.patch.object(preview, "generate", generate), mock.patch.object(preview, "write_sample", write_sample):
        go(run_dir, "plugin=ddp", *VALIDATE[3:])


def test_a_preview_that_fails_is_left_out_and_training_goes_on(tmp_path: Path) -> None:
    run_ranks(fail_one, 1, str(tmp_path))
    assert [record["step"] for record in learnt(tmp_path)] == list(range(1, STEPS + 1))
    assert sorted(path.name[:4] for path in (tmp_path / "previews/step-00000004").glob("*.mp4")) == ["0001"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["preview_every=2"], "keys 'preview_every', 'preview_prompts': found 2 and 0 prompts"),
        (["preview_prompts=['a cat']"], "keys 'preview_every', 'preview_prompts': found 0 and 1 prompts"),
        (["preview_every=-1", "preview_prompts=['a cat']"], "key 'preview_every': found -1; allowed: 0 or more"),
        (["validation_levels=0"], "key 'validation_levels': found 0"),
    ],
)
def test_keys_are_checked(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load(DEBUG, words, TrainRun)
