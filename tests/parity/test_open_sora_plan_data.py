"""Transforms, joint batches and metrics against numbers recorded from Open-Sora-Plan."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from opensora.datasets.joint_padding import (
    JointSample,
    center_crop,
    center_crop_resize,
    collate,
    crop_to_stride,
    long_side_resize,
    select_frames,
)
from opensora.datasets.table import write_table
from opensora.datasets.video import VideoTextDataset
from opensora.evaluation.frechet_distance import clip_for_features, frechet_distance
from opensora.evaluation.psnr import psnr_frames
from opensora.evaluation.ssim import over_clips, ssim_frames
from opensora.rng import Draw
from tests.parity.golden import Golden, assert_parity, directories


def with_record(file: str, key: str) -> list[Any]:
    """The directories with both the tensors `file` and the settings `key`."""
    return directories(lambda golden: golden.has(file) and key in golden.config, what=f"{key} of Open-Sora-Plan")


FRAME_CHOICES = directories(lambda golden: "frame_select" in golden.config, what="frame_select of Open-Sora-Plan")


@pytest.mark.parametrize("golden", with_record("data", "transforms"))
def test_transforms(golden: Golden) -> None:
    sizes, recorded = golden.config["transforms"], golden.tensors("data")
    clip = recorded["clip"].float() / 255
    square = center_crop_resize(clip, sizes["center_crop_resize"]) * 2 - 1
    assert_parity(square, recorded["center_crop_resize"], 1e-6)
    long = crop_to_stride(long_side_resize(clip, sizes["long_side"]), sizes["stride"]) * 2 - 1
    assert_parity(long, recorded["long_side_then_stride"], 1e-6)
    side = sizes["center_crop_video"]
    assert torch.equal(center_crop(clip, side, side), recorded["center_crop_video"])


@pytest.mark.parametrize("golden", FRAME_CHOICES)
def test_frame_choice(golden: Golden) -> None:
    assert golden.config["frame_select"]
    for case in golden.config["frame_select"]:
        assert select_frames(case["start"], case["end"], case["n"]) == case["idx"]


@pytest.mark.parametrize("golden", with_record("data", "collate"))
def test_joint_batch(golden: Golden) -> None:
    """Only the sizes of the pictures were recorded; their pixels are 1 here."""
    settings, recorded = golden.config["collate"], golden.tensors("data")
    samples = []
    for number, (_, images) in enumerate(settings["sizes"]):
        video, ids = recorded[f"col.{number}.video"], recorded[f"col.{number}.ids"]
        samples.append(JointSample(video, [torch.ones(size) for size in images], ids, torch.ones_like(ids)))
    names = ("num_frames", "max_image_size", "ae_stride", "ae_stride_t", "patch_size")
    batch = collate(samples, **{name: settings[name] for name in names})
    shapes: Any = [batch.x_BCTHW, batch.mask_BTHW, batch.input_ids, batch.text_mask]
    assert [list(tensor.shape) for tensor in shapes] == settings["out"]
    assert torch.equal(batch.mask_BTHW, recorded["col.attention_mask"])
    assert torch.equal(batch.input_ids, recorded["col.input_ids"])
    assert torch.equal((batch.x_BCTHW == 0).all(1), recorded["col.pad_is_zero"].bool())
    for x_CTHW, sample in zip(batch.x_BCTHW, samples, strict=True):
        t, h, w = sample.video_CTHW.shape[1:]
        assert torch.equal(x_CTHW[:, :t, :h, :w], sample.video_CTHW)


@pytest.mark.parametrize("golden", with_record("metrics", "psnr"))
def test_psnr_and_ssim(golden: Golden) -> None:
    recorded = golden.tensors("metrics")
    for name, values_BT in (
        ("psnr", psnr_frames(recorded["v1"], recorded["v2"])),
        ("ssim", ssim_frames(recorded["v1"], recorded["v2"])),
    ):
        statistics = over_clips(values_BT)
        for values_T, key in ((statistics.mean_T, name), (statistics.std_T, f"{name}_std")):
            expected = torch.tensor([golden.config[key][str(t)] for t in range(len(values_T))], dtype=torch.float64)
            assert_parity(values_T, expected, 1e-6, key)


@pytest.mark.parametrize("golden", with_record("metrics", "fvd_videogpt"))
def test_frechet_distance_and_its_clips(golden: Golden) -> None:
    recorded = golden.tensors("metrics")
    distance = frechet_distance(recorded["fvd.a"], recorded["fvd.b"])
    assert distance == pytest.approx(golden.config["fvd_videogpt"], rel=1e-6)
    expected = recorded["fvd.video_pre_small"]
    assert_parity(clip_for_features(recorded["fvd.video"], expected.shape[-1]), expected, 1e-6)


@pytest.mark.parametrize("golden", with_record("data", "transforms"))
def test_multi_scale_from_files(golden: Golden, tmp_path: Path) -> None:
    """The data set reads the frames as pictures of a manifest."""
    sizes, recorded = golden.config["transforms"], golden.tensors("data")
    if sizes["stride"] != 16:
        pytest.skip(f"recorded for sides of multiples of {sizes['stride']}; the original's multi_scale has 16")
    rows = []
    for number, frame_CHW in enumerate(recorded["clip"].to(torch.uint8)):
        rows.append({"path": str(tmp_path / f"{number}.png"), "text": "x"})
        Image.fromarray(frame_CHW.permute(1, 2, 0).numpy()).save(rows[-1]["path"])
    write_table(str(tmp_path / "train.csv"), rows)
    side = sizes["long_side"]
    data = VideoTextDataset(str(tmp_path / "train.csv"), num_frames=1, image_size=(side, side), multi_scale=True)
    resized = torch.stack([data.clip(row, Draw(0, 0, 0)).video_CTHW[:, 0] for row in range(len(rows))])
    assert_parity(resized, recorded["long_side_then_stride"], 1e-6)
