"""Clips with pictures behind their frames, from the data set to loss and gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.config import load
from opensora.datasets.joint_dataset import JointDataset
from opensora.datasets.loader import build_loader
from opensora.datasets.table import write_table
from opensora.errors import BadClip, ConfigError
from opensora.registry import DATASETS, build
from opensora.rng import Draw, generator, key_seed
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from opensora.types import Batch
from tests.dist import one_rank
from tests.support.command import ROOT
from tests.support.media_files import write_picture, write_video

JOINT = str(ROOT / "configs/latte_t2v/train/debug_joint.py")
VIDEOS = {"type": "MovingShapes", "clips": 5, "num_frames": 5, "image_size": (16, 16)}
PICTURES = {"type": "MovingShapes", "clips": 7, "num_frames": 1, "image_size": (16, 12)}


def joint(**changes: Any) -> JointDataset:
    config = {"videos": VIDEOS, "pictures": PICTURES, "use_image_num": 2, "ae_stride": 2, "ae_stride_t": 2}
    return JointDataset(**{**config, **changes})


def test_a_clip_its_pictures_and_their_captions() -> None:
    """Row 4 takes the second of the three whole groups that are not the last: pictures 2 and 3."""
    dataset, draw = joint(), Draw(1, 2, 3)
    clip = dataset.clip(4, draw)
    alone = build(DATASETS, VIDEOS).clip(4, draw)
    assert clip.video_CTHW.shape == (3, 7, 16, 16)
    assert torch.equal(clip.video_CTHW[:, :5], alone.video_CTHW)
    assert (clip.caption, clip.fps, clip.row) == (alone.caption, alone.fps, 4)
    pictures = build(DATASETS, PICTURES)
    for place, row in enumerate((2, 3)):
        own = pictures.clip(row, Draw(key_seed(1, "picture", place), 2, 3))
        assert torch.equal(clip.video_CTHW[:, 5 + place, :, :12], own.video_CTHW[:, 0])
        assert clip.video_CTHW[:, 5 + place, :, 12:].abs().max() == 0
        assert clip.image_captions[place] == own.caption
        assert own.caption in dataset.captions(4)
    assert clip.valid_THW is not None
    assert clip.valid_THW.shape == (5, 8, 8)
    assert clip.valid_THW[:3].all()
    assert clip.valid_THW[3:, :, :6].all()
    assert not clip.valid_THW[3:, :, 6:].any()


def test_pictures_of_the_clip_itself() -> None:
    dataset = joint(pictures=None, use_image_num=3)
    clip = dataset.clip(0, Draw(0, 0, 0))
    assert clip.valid_THW is None
    for place, frame in enumerate((0, 2, 4)):
        assert torch.equal(clip.video_CTHW[:, 5 + place], clip.video_CTHW[:, frame])
    assert clip.image_captions == (clip.caption,) * 3
    assert not dataset.padded


def test_a_batch_lists_captions_clip_by_clip() -> None:
    dataset = joint()
    batch = next(build_loader(dataset, seed=3, batch_size=2, micro_batches=1, steps=1))
    clips = [dataset.clip(row, Draw(3, 0, place)) for place, row in enumerate(batch.rows)]
    assert batch.captions == [caption for clip in clips for caption in (clip.caption, *clip.image_captions)]
    assert (batch.num_images, batch.clip_size) == (2, (5, 16, 16))
    assert batch.valid_BTHW is not None
    assert batch.valid_BTHW.shape == (2, 5, 8, 8)


def test_rows_of_both_are_reported(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_picture(tmp_path / name)
    (tmp_path / "pictures.csv").write_text("path,text\na.png,one\nb.png,two\nc.png,three\nd.png,\n")
    pictures = {"type": "VideoTextDataset", "data_path": str(tmp_path / "pictures.csv"), "num_frames": 1}
    dataset = joint(pictures={**pictures, "image_size": (16, 16)})
    report = dataset.report()
    assert (report.rows, report.kept) == (6, 5)
    assert list(report.dropped) == ["image, empty caption"]
    assert report.buckets == {"5x16x16": 5, "1x16x16, images": 3}
    assert dataset.clip(0, Draw(0, 0, 0)).image_captions == ("one", "two")
    assert not dataset.padded


def test_a_bad_picture_is_a_bad_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = joint()
    good = dataset.images.clip

    def clip(row: int, draw: Draw) -> Any:
        if row == 2:
            raise BadClip("pictures.csv:4: damaged")
        return good(row, draw)

    monkeypatch.setattr(dataset.images, "clip", clip)
    assert dataset.clip(0, Draw(0, 0, 0)).image_captions
    with pytest.raises(BadClip, match="damaged"):
        dataset.clip(1, Draw(0, 0, 0))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_image_num": 0}, r"use_image_num=0, .*1 or more"),
        ({"use_image_num": 7}, r"7 pictures.* 7"),
        ({"pictures": {**PICTURES, "num_frames": 3}}, r"dataset\.pictures\.num_frames.*3.*allowed: 1"),
        ({"videos": {**VIDEOS, "clip": 3}}, r"'dataset\.videos\.clip'.*'clips'"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        joint(**changes)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model"], r"images.*STDiT.*clips"),
        (["scheduler.type=rflow"], r"'scheduler'.*rflow.*allowed: iddpm"),
        (["dataset.ae_stride=4"], r"'dataset\.ae_stride': found \(2, 4\); allowed: \(2, 2\)"),
    ],
)
def test_a_run_that_cannot_use_it_is_refused(tmp_path: Path, overrides: list[str], expected: str) -> None:
    config = JOINT
    if overrides == ["model"]:
        config = str(tmp_path / "config.py")
        Path(config).write_text(f"_base_ = [{JOINT!r}]\nmodel = dict(_delete_=True, type='STDiT', hidden_size=32)\n")
        overrides = []
    run = load(config, [f"run_dir={str(tmp_path / 'run')!r}", *overrides], TrainRun).run
    with one_rank() as world, pytest.raises(ConfigError, match=expected):
        build_training(run, world, config)


def test_loss_and_gradients_are_those_composed_by_hand(tmp_path: Path) -> None:
    run = load(JOINT, [f"run_dir={str(tmp_path)!r}", "plugin=ddp", "ema_decay=None"], TrainRun).run
    with one_rank() as world:
        training = build_training(run, world, JOINT)
        task, model, batch = training.task, training.task.trained, next(training.batches)
        with torch.no_grad():  # open the gates: shut, they would hide captions and neighbors from this test
            for place, weights in enumerate(model.parameters()):
                weights += 0.1 * torch.randn(weights.shape, generator=generator(5, place))
        loss = task.loss(model, batch)
        loss.loss_B.mean().backward()
        gradients = [weights.grad.clone() for weights in model.parameters()]
        model.zero_grad()

        losses = [by_hand(task, model, batch, sample) for sample in range(2)]
        torch.testing.assert_close(loss.loss_B, torch.cat(losses), rtol=1e-5, atol=1e-6)
        torch.cat(losses).mean().backward()
        for weights, expected in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(weights.grad, expected, rtol=1e-4, atol=1e-6)
        assert loss.tokens == 2 * (3 + 2) * 4 * 4
        training.metrics.close()


def by_hand(task: Any, model: Any, batch: Batch, sample: int) -> Tensor:
    """One sample: a clip of 5 frames, then two pictures with 8 of 12 columns of pixels."""
    draw = Draw(task.seed, batch.step, batch.sample_ids[sample])
    frames, vae = batch.video_BCTHW[sample : sample + 1], task.codec.vae
    with torch.no_grad():
        parts = [vae.encode(frames[:, :, :5], [draw.rng("latent")])]
        for place in range(2):
            rng = draw.rng(f"latent of picture {place}")
            parts.append(vae.encode(frames[:, :, 5 + place : 6 + place], [rng]))
    x0 = torch.cat(parts, dim=2)
    texts = [task.codec.text_encoder.encode([caption]) for caption in batch.captions[3 * sample : 3 * sample + 3]]
    y = torch.cat([text.text_B1LC[0] for text in texts])[None]
    mask = torch.cat([text.mask_BL for text in texts])[None]
    valid = torch.ones(1, 5, 8, 8)
    valid[:, 3:, :, 6:] = 0
    t_B = torch.randint(1000, (1,), generator=draw.rng("timestep"))
    noise = torch.randn(x0.shape[1:], generator=draw.rng("noise"))[None]
    x_t = task.scheduler.add_noise(x0, noise, t_B)
    answer = model(x_t, t_B.float(), y, mask, use_image_num=2, attention_mask=valid)
    loss = task.scheduler.training_loss(lambda *_, **__: answer, x0, t_B=t_B, noise=noise, valid_BTHW=valid)
    squared = ((answer[:, :4] - noise) ** 2 * valid[:, None]).sum() / x0.numel()
    torch.testing.assert_close(loss.terms["mse"], squared[None].detach())
    return loss.loss_B


def test_a_run_through_the_loop(tmp_path: Path) -> None:
    """Two micro-batches on one rank: losses below the noise's variance, for padding counts as no error."""
    run = load(JOINT, [f"run_dir={str(tmp_path)!r}", "steps=2", "save_every=0", "plugin=ddp"], TrainRun).run
    with one_rank() as world:
        training = build_training(run, world, JOINT)
        assert train(training)
        training.metrics.close()
    records = [record for record in read(tmp_path / "metrics.jsonl") if "loss" in record]
    assert [record["tokens"] for record in records] == [4 * 5 * 4 * 4] * 2
    assert all(0.5 < record["loss"] < 1.0 for record in records)


def multi_scale_config(folder: Path) -> str:
    """Videos and pictures that lie or stand, in a square of 32 pixels."""
    videos, pictures = [], []
    for number, size in enumerate([(32, 64), (64, 32), (32, 32)]):
        videos.append({"path": write_video(folder / f"{number}.mp4", 8, size=size), "text": f"clip {number}"})
        pictures.append(
            {"path": write_picture(folder / f"{number}.png", number, size[::-1]), "text": f"still {number}"}
        )
    for name, rows in (("videos", videos), ("pictures", pictures)):
        write_table(str(folder / f"{name}.csv"), rows)
    part = "type='VideoTextDataset', image_size=(32, 32), multi_scale=True, start='first'"
    (folder / "config.py").write_text(
        f"_base_ = [{JOINT!r}]\n"
        "dataset = dict(_delete_=True, type='JointDataset', use_image_num=2, ae_stride=2, ae_stride_t=2,\n"
        f"    videos=dict(data_path={str(folder / 'videos.csv')!r}, num_frames=5, {part}),\n"
        f"    pictures=dict(data_path={str(folder / 'pictures.csv')!r}, num_frames=1, {part}))\n"
    )
    return str(folder / "config.py")


def test_multi_scale_clips_are_padded_and_masked(tmp_path: Path) -> None:
    """A lying clip of 16x32 pixels has 8x16 latents of 16x16, its upright pictures 16x8; the rest counts for nothing."""
    config = multi_scale_config(tmp_path)
    run = load(config, [f"run_dir={str(tmp_path / 'run')!r}", "steps=1", "save_every=0", "plugin=ddp"], TrainRun).run
    dataset = build(DATASETS, run.dataset)
    assert dataset.padded
    clip = dataset.clip(0, Draw(0, 0, 0))
    assert clip.video_CTHW.shape == (3, 7, 32, 32)
    assert clip.valid_THW is not None
    assert clip.valid_THW.shape == (5, 16, 16)
    expected = torch.zeros(5, 16, 16)
    expected[:3, :8] = 1  # the clip
    expected[3, :, :8] = 1  # an upright picture and a lying one
    expected[4, :8, :] = 1
    assert torch.equal(clip.valid_THW, expected)
    assert not clip.video_CTHW[:, :5, 16:].any()
    with one_rank() as world:
        training = build_training(run, world, config)
        assert train(training)
        training.metrics.close()
    [record] = [record for record in read(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert 0 < record["loss"] < 1


def test_multi_scale_clips_make_no_batch_by_themselves(tmp_path: Path) -> None:
    config = multi_scale_config(tmp_path)
    run = load(config, [f"run_dir={str(tmp_path / 'run')!r}"], TrainRun).run
    with one_rank() as world, pytest.raises(ConfigError, match=r"'dataset'.*multi_scale=True.*JointDataset"):
        build_training(replace(run, dataset=run.dataset["videos"]), world, config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["validation_dataset.ae_stride=4"], r"'validation_dataset\.ae_stride': found \(2, 4\); allowed: \(2, 2\)"),
        (["model"], r"'validation_dataset'.*JointDataset.*STDiT"),
        (["task=autoencoder"], r"'validation_dataset'.*JointDataset.*'autoencoder'"),
    ],
)
def test_validation_clips_with_pictures_are_checked_as_well(tmp_path: Path, changes: list[str], expected: str) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = [{JOINT!r}]\n"
        "validation_dataset = {{_base_.dataset}}\n"
        "dataset = dict(_delete_=True, type='MovingShapes', clips=8, num_frames=5, image_size=(16, 16))\n"
        + ("model = dict(_delete_=True, type='STDiT', hidden_size=32)\n" if changes == ["model"] else "")
    )
    overrides = [change for change in changes if change != "model"]
    run = load(str(config), [f"run_dir={str(tmp_path / 'run')!r}", *overrides], TrainRun).run
    with one_rank() as world, pytest.raises(ConfigError, match=expected):
        build_training(run, world, str(config))


def test_an_autoencoder_does_not_train_on_clips_with_pictures(tmp_path: Path) -> None:
    run = load(JOINT, [f"run_dir={str(tmp_path / 'run')!r}", "task=autoencoder"], TrainRun).run
    with (
        one_rank() as world,
        pytest.raises(ConfigError, match=r"'dataset'.*JointDataset.*'autoencoder'"),
    ):
        build_training(run, world, JOINT)
