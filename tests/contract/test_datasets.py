"""Every registered data set passes these tests; a new one is tested once it is registered.

A data set is built with its constructor's defaults; `ARGUMENTS` holds values for arguments without a default.
"""

import inspect
from typing import Any

import pytest
import torch

from opensora import registry
from opensora.datasets.loader import build_loader
from opensora.rng import Draw
from tests.support.media_files import write_manifest

ARGUMENTS = {
    "num_frames": 4,
    "image_size": (32, 32),
    "videos": {"type": "MovingShapes", "clips": 6},
    "pictures": {"type": "MovingShapes", "clips": 6, "num_frames": 1},
    "use_image_num": 2,
}
NAMES = registry.names(registry.DATASETS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_manifest(tmp_path_factory.mktemp("manifest"), clips=5)


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest, manifest: str) -> Any:
    parameters = inspect.signature(registry.constructor(registry.DATASETS, request.param)).parameters
    arguments = {name: value for name, value in {**ARGUMENTS, "data_path": manifest}.items() if name in parameters}
    return registry.build(registry.DATASETS, {"type": request.param, **arguments})


def test_known_data_sets_are_registered() -> None:
    assert {"VideoTextDataset", "MovingShapes"} <= set(NAMES)


def test_clip(dataset: Any) -> None:
    clip = dataset.clip(0, Draw(0, 0, 0))
    frames = dataset.num_frames + len(clip.image_captions)
    assert clip.video_CTHW.shape == (3, frames, *dataset.image_size)
    assert clip.video_CTHW.dtype == torch.float32
    assert -1 <= clip.video_CTHW.min() < clip.video_CTHW.max() <= 1
    assert clip.caption
    assert clip.fps > 0
    assert dataset.fps > 0
    assert dataset.where


def test_clip_is_a_function_of_row_and_draw(dataset: Any) -> None:
    first = dataset.clip(1, Draw(0, 3, 5))
    torch.rand(7)  # the global generator does not change a clip
    dataset.clip(0, Draw(0, 0, 0))  # neither do earlier clips
    again = dataset.clip(1, Draw(0, 3, 5))
    assert torch.equal(first.video_CTHW, again.video_CTHW)
    assert first.caption == again.caption
    others = [
        dataset.clip(1, Draw(*draw)).video_CTHW for draw in ((0, 3, 6), (0, 4, 5), (1, 3, 5), (2, 3, 5), (3, 3, 5))
    ]
    assert any(not torch.equal(first.video_CTHW, other) for other in others)


def test_report_counts_add_up(dataset: Any) -> None:
    report = dataset.report()
    assert report.kept == len(dataset) > 0
    assert report.rows == report.kept + sum(len(rows) for rows in report.dropped.values())


def test_ranks_are_disjoint_and_resume_is_exact(dataset: Any) -> None:
    """Two ranks that start at step 1 yield the samples that one rank yields from step 1 on."""
    run = {"seed": 1, "batch_size": 2, "micro_batches": 2, "steps": 3}
    alone = {}
    for batch in build_loader(dataset, **run):
        for sample_id, row, video, caption in zip(batch.sample_ids, batch.rows, batch.video_BCTHW, batch.captions):
            alone[batch.step, sample_id] = (row, video, caption)
    assert len(alone) == 12
    visited = set()
    for rank in (0, 1):
        for batch in build_loader(dataset, **run, data_rank=rank, data_size=2, start_step=1):
            for sample_id, row, video, caption in zip(batch.sample_ids, batch.rows, batch.video_BCTHW, batch.captions):
                assert (batch.step, sample_id) not in visited
                visited.add((batch.step, sample_id))
                expected = alone[batch.step, sample_id]
                assert (row, caption) == (expected[0], expected[2])
                assert torch.equal(video, expected[1])
    assert visited == {key for key in alone if key[0] >= 1}


def test_worker_process_yields_equal_batches(dataset: Any) -> None:
    run = {"seed": 1, "batch_size": 2, "micro_batches": 1, "steps": 2}
    for plain, other in zip(build_loader(dataset, **run), build_loader(dataset, **run, num_workers=1), strict=True):
        assert torch.equal(plain.video_BCTHW, other.video_BCTHW)
