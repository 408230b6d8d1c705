"""Training in buckets of clip sizes depends on config, manifest and seed alone, on any ranks and after a resume."""

from pathlib import Path
from typing import Any

import pytest

from opensora.config import load
from opensora.datasets.table import write_table
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from tests.dist import run_ranks
from tests.support.media_files import write_picture, write_video
from tests.support.text_models import shared_bert

ROOT = Path(__file__).resolve().parents[2]
DEBUG = str(ROOT / "configs/stdit2/train/debug_buckets.py")
STEPS = 6


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rectangular and square videos and pictures, a row without a size, and an empty file."""
    folder = tmp_path_factory.mktemp("footage")
    rows: list[dict[str, Any]] = []
    for number in range(12):
        height, width = ((16, 32), (20, 20))[number % 2]
        columns = {"text": f"clip {number}", "height": height, "width": width}
        if number % 3 == 0:
            path = write_picture(folder / f"{number}.png", number, (height, width))
            rows.append({"path": path, "num_frames": 1, **columns})
        else:
            path = write_video(folder / f"{number}.mp4", 8, size=(height, width), tint=(10 * number, 0, 0))
            rows.append({"path": path, "num_frames": 8, "fps": 8.0, **columns})
    rows.append({"path": rows[1]["path"], "text": "of no size", "start": 0.5})
    Path(rows[4]["path"]).write_bytes(b"")
    write_table(str(folder / "train.parquet"), rows)
    return str(folder / "train.parquet")


@pytest.fixture(scope="module")
def config(manifest: str) -> str:
    """debug_buckets.py with the manifest as its data set."""
    path = Path(manifest).with_name("config.py")
    path.write_text(
        f"_base_ = [{DEBUG!r}]\n"
        f"dataset = dict(_delete_=True, type='VideoTextDataset', data_path={manifest!r}, crop='random')\n"
        "bucket_config = {'_delete_': True, '16x32': {1: (1.0, 1), 5: (0.5, 1)}, '16x16': {1: (1.0, 1), 5: (1.0, 1)}}\n"
        "plugin, grad_clip = 'ddp', 0.05\n"
    )
    return str(path)


def train_to(config: str, run_dir: str, *arguments: str, until: int = STEPS) -> list[list[tuple[int, int]]]:
    """Train; stop after step `until` without saving. Returns (sample id, row) of this rank's samples of each step."""
    keys = [f"run_dir={run_dir!r}", f"steps={STEPS}", "save_every=2", f"text_encoder.from_pretrained={shared_bert()!r}"]
    run = load(config, [*keys, *arguments], TrainRun).run
    training = build_training(run, world.current(), config)
    samples: dict[int, list[tuple[int, int]]] = {}
    task_loss = training.task.loss

    def loss_and_record(model: Any, batch: Any) -> Any:
        samples.setdefault(batch.step, []).extend(zip(batch.sample_ids, batch.rows, strict=True))
        return task_loss(model, batch)

    training.task.loss = loss_and_record  # type: ignore[method-assign]
    if until < STEPS:
        log = training.metrics.log

        def log_then_stop(record: Any) -> None:
            log(record)
            if record.step == until:
                raise Killed

        training.metrics.log = log_then_stop  # type: ignore[method-assign]
    try:
        train(training)
    except Killed:
        pass
    finally:
        training.metrics.close()
    return [sorted(samples[step]) for step in sorted(samples)]


class Killed(BaseException):
    pass


def kill_after_three(config: str, run_dir: str) -> list[list[tuple[int, int]]]:
    return train_to(config, run_dir, until=3)


def kill_after_five(config: str, run_dir: str) -> list[list[tuple[int, int]]]:
    return train_to(config, run_dir, until=5)


def records(run_dir: Path) -> list[tuple[int, float, int]]:
    logged = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    return [(record["tokens"], record["loss"], record["grad_norm"]) for record in logged]


def together(ranks: list[list[list[tuple[int, int]]]]) -> list[list[tuple[int, int]]]:
    """The global batch of each step."""
    return [sorted(sample for rank in step for sample in rank) for step in zip(*ranks, strict=True)]


def test_resume_across_buckets_on_other_ranks(tmp_path: Path, config: str) -> None:
    """Runs on 1 rank, on 2 ranks, and on 1, 2, 1 ranks with kills in between have equal losses and samples."""
    [alone] = run_ranks(train_to, 1, config, str(tmp_path / "one"), "save_every=0")
    expected = records(tmp_path / "one")
    assert len({tokens for tokens, _, _ in expected}) > 1  # buckets change
    assert all(row not in (4, 12) for step in alone for _, row in step)

    on_two = together(run_ranks(train_to, 2, config, str(tmp_path / "two"), "save_every=0"))
    assert on_two == alone
    run_ranks(kill_after_three, 1, config, str(tmp_path / "cut"))  # saved after 2
    after_two = together(run_ranks(kill_after_five, 2, config, str(tmp_path / "cut")))  # saved after 4
    [after_four] = run_ranks(train_to, 1, config, str(tmp_path / "cut"))
    assert after_two == alone[2:5]
    assert after_four == alone[4:]
    for folder in ("two", "cut"):
        for record, expected_record in zip(records(tmp_path / folder), expected, strict=True):
            assert record == pytest.approx(expected_record, rel=1e-5)


def test_warming_up_changes_nothing(tmp_path: Path) -> None:
    """Losses and weights are bit-equal with and without it, on two ranks."""
    for warm in ("true", "false"):
        run_ranks(train_to, 2, DEBUG, str(tmp_path / warm), "plugin=zero2", "save_every=0", f"warmup_buckets={warm}")
    assert records(tmp_path / "true") == records(tmp_path / "false")
    weights = [next((tmp_path / warm).rglob("step-00000006/weights/model/*.safetensors")) for warm in ("true", "false")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
