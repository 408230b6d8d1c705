"""Checkpoints of one process: layout, order, damage, leftovers, errors."""

import errno
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from opensora import files
from opensora.errors import CheckpointError
from opensora.training import checkpoint
from tests.dist import one_rank


def state(value: float = 0.0) -> dict[str, Tensor]:
    return {"master/a": torch.full((5,), value), "optimizer/step/a": torch.tensor(value)}


def save(run_dir: Path, step: int, keep_last: int = 0, **changes: Any) -> Path:
    arguments = {
        "state": state(float(step)),
        "weights": {"model": {"a": torch.full((5,), float(step))}},
        "configs": {"model": {"type": "Tiny", "dim": 5}},
        "meta": {"size": (1, 2), "seed": 3},
        **changes,
    }
    return checkpoint.save(run_dir, step, keep_last=keep_last, **arguments)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_rank():
        yield


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    return caplog


def test_a_run_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert not checkpoint.has_checkpoint(tmp_path)
    (tmp_path / "checkpoints/.partial-step-00000001").mkdir(parents=True)
    assert not checkpoint.has_checkpoint(tmp_path)
    save(tmp_path, 1)
    assert checkpoint.has_checkpoint(tmp_path)


def test_layout_and_contents(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    assert folder == tmp_path / "checkpoints/step-00000100"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"manifest.json", "weights/model/config.json", "weights/model/model.safetensors"} <= files
    assert json.loads((folder / "weights/model/config.json").read_text()) == {"type": "Tiny", "dim": 5}
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert listed.keys() == files - {"manifest.json"}
    assert listed["weights/model/config.json"]["bytes"] == (folder / "weights/model/config.json").stat().st_size


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path) is None
    save(tmp_path, 7)
    saved = checkpoint.find(tmp_path)
    assert saved is not None
    assert (saved.step, saved.meta) == (7, {"size": [1, 2], "seed": 3})
    target = state()
    checkpoint.load(saved, target)
    torch.testing.assert_close(target, state(7.0))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, Path.touch, Path.mkdir, torch.save], ids=lambda call: call.__qualname__)
def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, call: Callable[..., Any]) -> None:
    mark, folder = tmp_path / "mark", save(tmp_path, 1)
    arguments = (1, str(mark)) if call is torch.save else (mark,)
    (folder / "state/.metadata").write_bytes(pickle.dumps(Call(call, *arguments)))
    with pytest.raises(CheckpointError, match=rf"not the index of a checkpoint \(it names .*{call.__name__}"):
        checkpoint.load(checkpoint.Checkpoint(1, folder, {}), state())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (b"", "Ran out of input"),
        (pickle.dumps({"a": 1}, 2), "a dict found"),
        (pickle.dumps(Call(getattr, Metadata, "__init__")), "__init__"),
    ],
    ids=["empty", "another type", "an attribute"],
)
def test_other_pickles_are_no_index(tmp_path: Path, index: bytes, complaint: str) -> None:
    folder = save(tmp_path, 1)
    (folder / "state/.metadata").write_bytes(index)
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(checkpoint.Checkpoint(1, folder, {}), state())


def test_weights_have_the_mode_of_other_files(tmp_path: Path) -> None:
    folder = save(tmp_path, 1) / "weights/model"
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step-00000100", "step-00001000"]


def test_pruning_counts_from_the_step_just_saved(tmp_path: Path) -> None:
    """Later steps are damaged ones that the run passed over: to count them would delete the good ones."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 21, keep_last=1)
    assert names(tmp_path) == ["step-00000021", "step-00000030"]


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 10, meta={"try": 1})
    save(tmp_path, 10, meta={"try": 2})
    saved = checkpoint.find(tmp_path)
    assert saved is not None
    assert saved.meta == {"try": 2}
    assert names(tmp_path) == ["step-00000010"]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("damage", [flip_a_bit, shorten, Path.unlink])
@pytest.mark.parametrize(
    "pattern", ["state/*.distcp", "state/.metadata", "weights/model/model.safetensors", "manifest.json"]
)
def test_damaged_checkpoint_is_reported_and_skipped(
    tmp_path: Path, damage: Any, pattern: str, warnings: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    victim = next(save(tmp_path, 2).glob(pattern))
    damage(victim)
    saved = checkpoint.find(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert victim.name in warnings.text
    assert "step-00000002" in warnings.text


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r" 2 .*damaged"):
        checkpoint.find(tmp_path)


def test_leftovers_of_killed_saves_go_and_hide_nothing(tmp_path: Path) -> None:
    save(tmp_path, 10)
    root = tmp_path / "checkpoints"
    for name in (".partial-step-00000020", ".pruned-step-00000005", ".replaced-step-00000010"):
        (root / name / "state").mkdir(parents=True)
    assert checkpoint.find(tmp_path).step == 10  # type: ignore[union-attr]
    assert len(names(tmp_path)) == 4  # looking changes nothing: another process may be saving
    checkpoint.prepare(tmp_path)
    assert names(tmp_path) == ["step-00000010"]


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    folder.rename(folder.with_name(".replaced-step-00000010"))
    checkpoint.prepare(tmp_path)
    assert checkpoint.find(tmp_path).step == 10  # type: ignore[union-attr]


def test_prepare_says_when_the_folder_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.prepare(tmp_path / "new")
    assert names(tmp_path / "new") == []
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written.*run_dir"):
        checkpoint.prepare(tmp_path)

    def refuse(path: Path, data: bytes) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be written.*Read-only file system"):
        checkpoint.prepare(tmp_path / "other")


def test_a_full_disk_while_the_manifest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def fill(path: Path, content: Any, **_: Any) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write_json", fill)
    with pytest.raises(CheckpointError, match=r"disk is full.*step 2.*MiB"):
        save(tmp_path, 2, keep_last=1)
    assert names(tmp_path) == ["step-00000001"]


def test_old_ones_that_cannot_be_deleted_do_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)

    def refuse(folder: Path, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    save(tmp_path, 2, keep_last=1)
    assert checkpoint.find(tmp_path).step == 2  # type: ignore[union-attr]
    assert "could not be deleted" in warnings.text


def test_another_model_is_refused_and_extra_parts_are_not(tmp_path: Path) -> None:
    save(tmp_path, 1, state={**state(), "ema/a": torch.zeros(5), "master/b": torch.zeros(2)})
    saved = checkpoint.find(tmp_path)
    assert saved is not None
    with pytest.raises(CheckpointError, match="master/b") as caught:
        checkpoint.load(saved, state())
    assert "ema/a" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"optimizer/x.*master/a .*\(5,\).*\(6,\)"):
        checkpoint.load(saved, {"master/a": torch.zeros(6), "master/b": torch.zeros(2), "optimizer/x": torch.zeros(1)})


def test_checkpoint_deleted_while_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    """A replay reads while the run goes on and keeps the newest only."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    hash_file = files.hash_file

    def prune_then_hash(path: Path) -> str:
        for step in (10, 20):
            shutil.rmtree(tmp_path / f"checkpoints/step-{step:08d}", ignore_errors=True)
        return hash_file(path)

    monkeypatch.setattr(files, "hash_file", prune_then_hash)
    assert checkpoint.find(tmp_path, up_to=29) is None
    assert "damaged" not in warnings.text
    assert checkpoint.find(tmp_path).step == 30  # type: ignore[union-attr]


def test_leftovers_that_cannot_go_do_not_fail_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system where another process still has one of their files open."""
    save(tmp_path, 1)
    stuck = tmp_path / "checkpoints/.pruned-step-00000000"
    (stuck / "state").mkdir(parents=True)
    rmdir = os.rmdir

    def refuse(path: Any, **options: Any) -> None:
        if str(path) == "state" or str(path).startswith(str(stuck)):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    save(tmp_path, 2)
    assert names(tmp_path) == [stuck.name, "step-00000001", "step-00000002"]
