import json
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError, WeightsError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.autoencoder_kl import VideoAutoencoderKL, VideoAutoencoderKLTemporalDecoder
from opensora.models.weights import save_weights

CONFIG: dict[str, Any] = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
}


def make(**changes: Any) -> VideoAutoencoderKL:
    torch.manual_seed(0)
    return VideoAutoencoderKL(config=CONFIG, **changes).eval()


def video() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 3, 8, 12) * 2 - 1


@torch.no_grad()
def test_frames_are_coded_one_by_one_in_any_grouping() -> None:
    whole, x = make(), video()
    z = whole.encode(x)
    assert z.shape == (2, 4, 3, 4, 6)
    for size in (1, 4):
        parts = make(micro_batch_size=size)
        torch.testing.assert_close(parts.encode(x), z)
        torch.testing.assert_close(parts.decode(z), whole.decode(z))
    torch.testing.assert_close(whole.encode(x[:, :, 1:2]), z[:, :, 1:2])


@torch.no_grad()
def test_the_factor_of_the_diffusers_config_is_not_used() -> None:
    """Open-Sora keeps 0.18215 with the SDXL autoencoder, whose own factor is 0.13025."""
    torch.manual_seed(0)
    model = VideoAutoencoderKL(config={**CONFIG, "scaling_factor": 0.13025}).eval()
    assert torch.equal(model.encode(video()), model.posterior(video()).mode() * 0.18215)


@torch.no_grad()
def test_a_diffusers_folder(tmp_path: Path) -> None:
    model = make()
    model.module.save_pretrained(tmp_path / "vae")
    torch.manual_seed(7)
    built = VideoAutoencoderKL(from_pretrained=str(tmp_path), subfolder="vae")
    assert not torch.equal(built.last_layer, model.last_layer)
    assert torch.equal(built.load().eval().encode(video()), model.encode(video()))


@pytest.mark.parametrize("own", [False, True])
def test_from_pretrained_with_config_of_same_layout(tmp_path: Path, own: bool) -> None:
    """Recipes name the layout behind a hub id, so that planning fetches nothing; a folder may replace the id."""
    model = make()
    if own:
        save_weights(tmp_path, model.state_dict(), {**model.config, "config": dict(model.module.config)})
    else:
        model.module.save_pretrained(tmp_path)
    kwargs = {**CONFIG, "block_out_channels": (4, 8), "sample_size": 256}
    built = VideoAutoencoderKL(from_pretrained=str(tmp_path), config=kwargs)
    assert built.config["config"]["sample_size"] == model.module.config.sample_size
    assert torch.equal(built.load().last_layer, model.last_layer)
    with pytest.raises(ConfigError, match=r"config\.layers_per_block=2.* 1"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path), config={**kwargs, "layers_per_block": 2})
    with pytest.raises(ConfigError, match="'layers_per_blocks'"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path), config={**kwargs, "layers_per_blocks": 2})


@torch.no_grad()
def test_an_exported_folder(tmp_path: Path) -> None:
    model = make(latent_shift=[0.1] * 4, latent_scale=[2.0] * 4)
    save_weights(tmp_path, model.state_dict(), model.config)
    with torch.device("meta"):
        built = VideoAutoencoderKL(from_pretrained=str(tmp_path))
    assert torch.equal(built.load().eval().encode(video()), model.encode(video()))


def test_nothing_to_build_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"from_pretrained.*config"):
        VideoAutoencoderKL()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channel": [4, 8]}, r"'block_out_channel'.*'block_out_channels'"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, r"block_out_channels.*2.*up_block_types.*1"),
        ({"norm_num_groups": 3}, r"diffusers' AutoencoderKL cannot be built .*divisible by num_groups"),
        ({"latent_channels": -1}, r"config\.latent_channels: -1; allowed: whole numbers from 1"),
        ({"block_out_channels": [4, 0]}, r"config\.block_out_channels: \[4, 0\]; allowed: whole numbers from 1"),
        ({"block_out_channels": 4}, r"config\.block_out_channels: 4; allowed: a list of whole numbers from 1"),
        ({"down_block_types": ["Down"] * 2}, r"diffusers' AutoencoderKL cannot be built .*Down does not exist"),
    ],
)
def test_wrong_layout_is_error(changes: dict[str, Any], message: str) -> None:
    """diffusers alone passes over keys that it does not know, and ends in a traceback for the rest."""
    with pytest.raises(ConfigError, match=message):
        VideoAutoencoderKL(config={**CONFIG, **changes})


def test_what_diffusers_does_not_know_in_a_folder_is_left_out(tmp_path: Path) -> None:
    """Its other versions may have written it; the record of a run must be one that can be given again."""
    make().module.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_tomorrow": 3}))
    built = VideoAutoencoderKL(from_pretrained=str(tmp_path), subfolder="vae")
    assert "of_tomorrow" not in built.config["config"]
    VideoAutoencoderKL(config=built.config["config"])


@pytest.mark.parametrize("size", [0, -1])
def test_no_frames_at_a_time_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"micro_batch_size.*{size}.*allowed: 1 "):
        make(micro_batch_size=size)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    make().module.save_config(tmp_path)
    with pytest.raises(WeightsError, match="holds no weights"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path)).load()


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = make()
    model.last_layer.data.fill_(torch.nan)
    model.module.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors hold NaN or infinity: decoder\.conv_out\.weight"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path)).load()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"model\.safetensors: a safetensors file that is cut off or damaged"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path)).load()
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match=r"model\.safetensors are Git LFS pointers"):
        VideoAutoencoderKL(from_pretrained=str(tmp_path)).load()


def test_wrong_shapes() -> None:
    with pytest.raises(ShapeError, match=r"1 channels.*3"):
        make().encode(torch.zeros(1, 1, 1, 8, 8))
    with pytest.raises(ShapeError, match=r"4 frames.* 3"):
        make().decode(torch.zeros(1, 4, 3, 4, 4), num_frames=4)


@torch.no_grad()
def test_temporal_decoder_in_groups() -> None:
    """Decoding mixes the frames of a group, encoding mixes none."""
    config = {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 2}
    torch.manual_seed(0)
    whole = VideoAutoencoderKLTemporalDecoder(config=config).eval()
    parts = VideoAutoencoderKLTemporalDecoder(config=config, micro_batch_size=2).eval()
    parts.load_state_dict(whole.state_dict())
    x = video()[:1]
    z = whole.encode(x)
    torch.testing.assert_close(parts.encode(x), z)
    expected = torch.cat([whole.decode(z[:, :, :2]), whole.decode(z[:, :, 2:])], dim=2)
    torch.testing.assert_close(parts.decode(z), expected)
    assert not torch.allclose(whole.decode(z), expected)
    assert torch.equal(whole.decode(z, num_frames=2), whole.decode(z)[:, :, :2])


@torch.no_grad()
def test_tiles_of_one_frame_at_a_time() -> None:
    """diffusers' tiles are of its sample_size; a frame that fits one tile is coded whole."""
    torch.manual_seed(0)
    whole, tiled = (
        VideoAutoencoderKL(config={**CONFIG, "sample_size": 8}, use_tiling=tiles).eval() for tiles in (False, True)
    )
    tiled.load_state_dict(whole.state_dict())
    x = video()  # 8 x 12 pixels
    rows: list[torch.Tensor] = []
    tiled.module.decoder.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0]))
    torch.testing.assert_close(tiled.encode(x[..., :8]), whole.encode(x[..., :8]))
    z = whole.encode(x)
    made = tiled.decode(z)
    assert {tuple(each.shape) for each in rows} <= {(1, 4, 4, 4), (1, 4, 4, 3), (1, 4, 1, 4), (1, 4, 1, 3)}
    assert made.shape == x.shape
    by_frame = [whole.module.tiled_decode(whole.latents.restore(z)[:, :, n]).sample for n in range(3)]
    torch.testing.assert_close(made, torch.stack(by_frame, dim=2))
    assert not torch.allclose(made, whole.decode(z), atol=1e-3)
    assert tiled.config["use_tiling"] is True


def test_a_decoder_of_clips_has_no_tiles() -> None:
    config = {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 2}
    with pytest.raises(
        ConfigError, match=r"TemporalDecoder: use_tiling: found True; allowed: False.*micro_batch_size=N"
    ):
        VideoAutoencoderKLTemporalDecoder(config=config, use_tiling=True)
