"""The stages of autoencoder recipes, a step each at the size of a test: every one begins with the weights before it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opensora.config import load
from opensora.errors import ConfigError
from opensora.models.vae.st_lpips import STLPIPS
from opensora.models.weights import read_config
from opensora.parallel import dcp
from opensora.schema import TrainRun
from opensora.training import build
from tests.dist import one_rank
from tests.support.command import ROOT
from tests.support.short_runs import train_to

FOLDER = ROOT / "configs/vae/train"
SHAPES = "{{'_delete_': True, 'type': 'MovingShapes', 'clips': 4, 'num_frames': {}, 'image_size': (16, 16)}}"
CAUSAL = ["vae.hidden_size=4", "vae.hidden_size_mult=(1,2)", "vae.z_channels=4", "vae.embed_dim=4", "vae.norm_groups=2"]
CAUSAL += [
    f"vae.{half}={blocks}"
    for half, blocks in {
        "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock3D"],
        "encoder_spatial_downsample": ["Downsample", ""],
        "encoder_temporal_downsample": ["TimeDownsampleRes2x", ""],
        "decoder_resnet_blocks": ["ResnetBlock3D"] * 2,
        "decoder_spatial_upsample": ["", "SpatialUpsample2x"],
        "decoder_temporal_upsample": ["", "TimeUpsampleRes2x"],
    }.items()
]
IMAGE = {
    "block_out_channels": (4, 8),
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(build, "STATISTICS_CLIPS", 2)
    monkeypatch.setattr(dcp, "save_sharded", lambda *_: None)  # nothing is resumed here
    with one_rank():
        yield


def stage(name: str, run_dir: Path, frames: int, *overrides: str) -> None:
    """Train one step of a config on drawn clips."""
    data = [f"dataset={SHAPES.format(frames)}", f"validation_dataset={SHAPES.format(frames)}", "micro_batches=1"]
    few = ["batch_size=1", "validation_batches=1", "plugin=ddp", "dtype=fp32", "background_save=False"]
    train_to(str(FOLDER / f"{name}.py"), str(run_dir), *data, *few, *overrides, "steps=1")


def weights(run_dir: Path, name: str = "model") -> dict[str, Tensor]:
    return load_file(run_dir / f"checkpoints/step-00000001/weights/{name}/model.safetensors")


def test_causal_stages(tmp_path: Path) -> None:
    image, first, second, third = (tmp_path / name for name in ("image", "1", "2", "3"))
    stage("small_image", image, 1, f"vae.config={IMAGE}", "ema_decay=0.5")
    stage("small_stage1", first, 5, *CAUSAL, f"tail_init={image}", "optimizer.lr=0", "lr_groups.time=0")
    still = weights(first)["decoder.conv_out.conv.weight"]
    assert (still[:, :, -1] == weights(image, "ema")["module.decoder.conv_out.weight"]).all()
    assert not still[:, :, :-1].any()
    stage("small_stage2", second, 9, *CAUSAL, f"load={first}", "warmup_steps=0")
    stage(
        "small_stage3", third, 9, *CAUSAL, f"load={second}", "warmup_steps=0", "discriminator.width=2", "disc_start=0"
    )
    # Adam's first step is the learning rate: 4e-4 where "time" is in the name
    for run_dir, before in ((second, 2.0), (third, 0.5)):
        trained = weights(run_dir)
        moved = [abs(each.item() - before) for name, each in trained.items() if name.endswith("mix_factor")]
        assert moved == [pytest.approx(4e-4, rel=1e-2)] * 2
    shifts = [
        read_config(third / f"checkpoints/step-00000001/weights/{name}")["latent_shift"] for name in ("model", "ema")
    ]
    assert shifts[0] != shifts[1]
    assert shifts[0] == pytest.approx(shifts[1], abs=0.1)


@pytest.mark.parametrize("recipe", ["causal", "small"])
def test_each_stage_loads_the_one_before(recipe: str) -> None:
    runs = [load(str(FOLDER / f"{recipe}_stage{number}.py"), [], TrainRun).run for number in (1, 2, 3)]
    assert [run.load for run in runs] == [None, runs[0].run_dir, runs[1].run_dir]
    assert [run.dataset["num_frames"] for run in runs] == [9, 25, 25]
    assert [run.kl_weight for run in runs] == [9e-6, 25e-6, 25e-6]
    assert [run.reset_mix_factor for run in runs] == [None, None, 0.5]
    assert [run.discriminator is not None for run in runs] == [False, False, True]
    assert all("time" in run.lr_groups for run in runs)
    assert len({run.run_dir for run in runs}) == 3
    if recipe == "causal":
        assert {run.optimizer["lr"] for run in runs} == {1e-5}
        assert {(run.batch_size, run.micro_batches) for run in runs} == {(1, 8)}
    else:
        image = load(str(FOLDER / "small_image.py"), [], TrainRun).run
        assert runs[0].tail_init == image.run_dir


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lr_groups={'tyme': 1}", r"key 'lr_groups': found 'tyme', which is in no name of a trained weight"),
        ("validation_perceptual={'type': 'STLPIPS'}", r"key 'validation_perceptual': STLPIPS: frames of \[16, 16\]"),
    ],
)
def test_what_would_fail_late_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, expected: str
) -> None:
    monkeypatch.setattr(STLPIPS, "load", lambda self: self)
    with pytest.raises(ConfigError, match=expected):
        stage("small_stage1", tmp_path, 5, *CAUSAL, "tail_init=none", override)


def test_open_sora_1_2_stages(tmp_path: Path) -> None:
    image, first, second, third = (tmp_path / name for name in ("image", "1", "2", "3"))
    stage("small_image", image, 1, f"vae.config={IMAGE}", "ema_decay=0.5")
    part = [f"vae.spatial={{'from_pretrained': {str(image)!r}, 'config': {IMAGE}}}", "vae.micro_frame_size=3"]
    sizes = {"filters": 2, "num_groups": 2, "in_out_channels": 4, "latent_embed_dim": 4, "embed_dim": 4}
    part += [f"vae.temporal={sizes}", "warmup_steps=0"]
    stage("small_1_2_stage1", first, 4, *part, "image_ratio=1.0")
    stage("small_1_2_stage2", second, 4, *part, f"load={first}", "image_ratio=0.0")
    stage("small_1_2_stage3", third, 6, *part, f"load={second}", "image_ratio=0.0")
    logged = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (first, second, third)]
    assert [set(each.get("figures", {})) for each in logged] == [{"latents", "identity"}, {"latents"}, set()]
    name = "spatial_vae.module.decoder.conv_out.weight"
    original = weights(image, "ema")[name.removeprefix("spatial_vae.")]
    spatial = [weights(run_dir)[name] for run_dir in (first, second, third)]
    assert [torch.equal(each, original) for each in spatial] == [True, True, False]
    config = read_config(third / "checkpoints/step-00000001/weights/model")
    assert (
        config["spatial"]["latent_scale"]
        == read_config(image / "checkpoints/step-00000001/weights/ema")["latent_scale"]
    )


@pytest.mark.parametrize("recipe", ["open_sora_1_2", "small_1_2"])
def test_each_stage_of_open_sora_1_2_loads_the_one_before(recipe: str) -> None:
    runs = [load(str(FOLDER / f"{recipe}_stage{number}.py"), [], TrainRun).run for number in (1, 2, 3)]
    assert [run.load for run in runs] == [None, runs[0].run_dir, runs[1].run_dir]
    assert [run.reconstruct for run in runs] == ["latents", "latents", "pixels"]
    assert [run.identity_weight for run in runs] == [1.0, 0.0, 0.0]
    assert [run.vae["freeze_spatial"] for run in runs] == [True, True, False]
    assert [(run.dataset["num_frames"], run.min_frames) for run in runs] == [(17, None), (17, None), (34, 2)]
    assert {run.image_ratio for run in runs} == {0.2}
