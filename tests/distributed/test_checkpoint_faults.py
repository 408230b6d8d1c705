"""A fault on one rank is raised on all: no rank hangs, nothing saved is lost."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora import files
from opensora.errors import CheckpointError
from opensora.parallel import collectives, dcp
from opensora.registry import PLUGINS, build
from opensora.training import checkpoint
from tests.dist import run_ranks
from tests.distributed import tiny


def save_steps(folder: str, *steps: int, keep_last: int = 0) -> None:
    engine = tiny.make_engine("zero2")
    for step in steps:
        tiny.run_steps(engine, 0, 1)
        checkpoint.save(
            folder, step, engine.state(), {"model": engine.gather_state_dict()}, {"model": {}}, {"at": step}, keep_last
        )


def find(folder: str) -> tuple[int, dict[str, Any]] | str:
    try:
        latest = checkpoint.find(folder)
    except CheckpointError as error:
        return str(error)
    assert latest is not None
    return latest.step, latest.meta


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_is_skipped_on_all_ranks(tmp_path: Path) -> None:
    run_ranks(save_steps, 2, str(tmp_path), 10, 20)
    assert run_ranks(find, 2, str(tmp_path)) == [(20, {"at": 20})] * 2
    for shard in sorted((tmp_path / "checkpoints/step-00000020/state").glob("__1_*")):  # rank 1's file
        damage(shard)
    assert run_ranks(find, 2, str(tmp_path)) == [(10, {"at": 10})] * 2
    assert run_ranks(find, 1, str(tmp_path)) == [(10, {"at": 10})]
    (tmp_path / "checkpoints/step-00000010/weights/model/model.safetensors").unlink()
    for answer in run_ranks(find, 2, str(tmp_path)):
        assert " 2 checkpoints" in answer


class FullDisk(io.FileIO):
    """A file whose disk is full after 100 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        return super().write(data)


def fill_the_disk_in_the_state() -> None:
    """Let the disk be full for the state file of the last rank."""
    if collectives.rank() == collectives.world_size() - 1:
        dcp.open_file = lambda path, mode: FullDisk(path, mode) if "w" in mode else path.open(mode)


def fill_the_disk_in_the_weights() -> None:
    def fail(path: Path, tensors: Any, metadata: Any) -> None:
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    files.write_tensors = fail


def refuse_the_manifest() -> None:
    def refuse(path: Path, content: Any, sort_keys: bool) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    files.write_json = refuse


def save_in_trouble(folder: str, make_trouble: Callable[[], None]) -> str:
    save_steps(folder, 10)
    kept = dcp.open_file, files.write_tensors, files.write_json
    make_trouble()
    try:
        save_steps(folder, 20, keep_last=1)
    except CheckpointError as error:
        return str(error)
    finally:
        dcp.open_file, files.write_tensors, files.write_json = kept
    return "saved"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("make_trouble", [fill_the_disk_in_the_state, fill_the_disk_in_the_weights])
def test_full_disk_raises_on_every_rank_and_loses_nothing(tmp_path: Path, make_trouble: Any, ranks: int) -> None:
    for text in run_ranks(save_in_trouble, ranks, str(tmp_path), make_trouble):
        assert str(tmp_path) in text
        assert "disk is full" in text
        assert "MiB are free" in text
        assert "step 20" in text
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert run_ranks(find, ranks, str(tmp_path))[0] == (10, {"at": 10})


def test_refused_file_raises_on_every_rank(tmp_path: Path) -> None:
    for text in run_ranks(save_in_trouble, 2, str(tmp_path), refuse_the_manifest):
        assert "cannot be written" in text
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


class Wider(tiny.Tiny):
    """Tiny with one larger and one new parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.extra = torch.nn.Parameter(torch.ones(2))


def load_into_another_model(folder: str) -> str:
    engine = build(PLUGINS, {"type": "zero2"}).apply(Wider(), tiny.options(grad_clip=0.0))
    latest = checkpoint.find(folder)
    assert latest is not None
    try:
        checkpoint.load(latest, engine.state())
    except CheckpointError as error:
        return str(error)
    return "loaded"


def test_checkpoint_of_other_model_is_refused(tmp_path: Path) -> None:
    run_ranks(save_steps, 2, str(tmp_path), 10)
    for text in run_ranks(load_into_another_model, 2, str(tmp_path)):
        assert "does not fit this model" in text
        assert "missing: master/extra" in text
        assert "master/scale ((1,) saved, (2,) wanted)" in text


def save_without_weights_on_other_ranks(folder: str) -> dict[str, Tensor]:
    engine = tiny.make_engine("zero1", "bf16")
    weights = engine.gather_state_dict()
    checkpoint.save(folder, 1, engine.state(), {"model": weights}, {"model": {"dim": 7}}, {}, 1)
    return weights


def test_weights_are_written_as_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = run_ranks(save_without_weights_on_other_ranks, 2, str(tmp_path))[0]
    saved = load_file(tmp_path / "checkpoints/step-00000001/weights/model/model.safetensors")
    torch.testing.assert_close(saved, weights, rtol=0, atol=0)
    assert saved.keys() == tiny.make().state_dict().keys()  # tied ones under both names


def save_on_two_machines(folder: str) -> None:
    """Save; each rank lists only its own files, as a network file system may, and rank 0 those without a rank."""
    listed, own_marker = files.list_files, f"__{collectives.rank()}_"
    files.list_files = lambda path: [
        n for n in listed(path) if own_marker in n or ("__" not in n and not collectives.rank())
    ]
    try:
        save_steps(folder, 10)
    finally:
        files.list_files = listed


def test_manifest_lists_files_of_all_machines(tmp_path: Path) -> None:
    run_ranks(save_on_two_machines, 2, str(tmp_path))
    folder = tmp_path / "checkpoints/step-00000010"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"state/__0_0.distcp", "state/__1_0.distcp"} < files
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == files - {"manifest.json"}


def prepare_one_each(folder: str) -> str:
    try:
        checkpoint.prepare(Path(folder) / str(collectives.rank()))
    except CheckpointError as error:
        return str(error)
    return "prepared"


def test_unshared_run_folder_is_refused(tmp_path: Path) -> None:
    for text in run_ranks(prepare_one_each, 2, str(tmp_path)):
        assert "rank(s) 1 " in text
        assert "all machines" in text
