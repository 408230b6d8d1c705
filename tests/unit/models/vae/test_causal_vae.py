from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from opensora.errors import ConfigError, OpenSoraError, WeightsError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.causal_blocks import CausalConv3d
from opensora.models.vae.causal_temporal import double_frames
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.weights import save_weights

TINY: dict[str, Any] = {"hidden_size": 4, "hidden_size_mult": (1, 1, 2, 2), "num_res_blocks": 1, "norm_groups": 2}
# Two levels: one halving in space and one in time.
SHALLOW: dict[str, Any] = {
    "hidden_size": 4,
    "hidden_size_mult": [1, 2],
    "num_res_blocks": 1,
    "norm_groups": 2,
    "z_channels": 3,
    "embed_dim": 3,
    "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock3D"],
    "encoder_spatial_downsample": ["SpatialDownsample2x", ""],
    "encoder_temporal_downsample": ["TimeDownsample2x", ""],
    "decoder_resnet_blocks": ["ResnetBlock3D", "ResnetBlock3D"],
    "decoder_spatial_upsample": ["", "SpatialUpsample2x"],
    "decoder_temporal_upsample": ["", "TimeUpsample2x"],
}


def make(**changes: Any) -> CausalVAEModel:
    torch.manual_seed(0)
    return CausalVAEModel(**{**TINY, **changes})


def video(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(1, 3, frames, height, width) * 2 - 1


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9, 10])
@torch.no_grad()
def test_latent_size_is_what_encoding_gives(frames: int) -> None:
    model = make()
    z = model.encode(video(frames, 17, 24))
    assert tuple(z.shape[2:]) == model.latent_size((frames, 17, 24))


@torch.no_grad()
def test_two_levels_and_other_channels() -> None:
    model = make(**SHALLOW)
    assert model.compression == (2, 2, 2)
    assert model.latent_channels == 3
    reconstruction, posterior = model(video(3))
    assert posterior.mean.shape == (1, 3, 2, 8, 12)
    assert reconstruction.shape == (1, 3, 3, 16, 24)


def test_attention_at_a_resolution() -> None:
    """resolution 32, halved three times: attn_resolutions=[16] means level 1 of both halves."""
    model = make(attn_resolutions=[16], resolution=32)
    actual = {name.rsplit(".attn.", 1)[0] for name in model.state_dict() if ".attn." in name}
    assert actual == {"encoder.down.1", "decoder.up.1"}


def test_training_frames_must_survive() -> None:
    with pytest.raises(ShapeError, match=r"10 frames.*4 k \+ 1.* 9"):
        make()(video(10))


def test_clips_that_are_no_clips() -> None:
    with pytest.raises(ShapeError, match="3 channels"):
        make().encode(torch.zeros(1, 4, 1, 16, 16))
    with pytest.raises(ShapeError, match="at least 8 rows"):
        make().encode(torch.zeros(1, 3, 1, 4, 16))


@torch.no_grad()
def test_frames_are_cut_but_not_invented() -> None:
    model = make()
    z = model.encode(video(5))
    assert torch.equal(model.decode(z, num_frames=3), model.decode(z)[:, :, :3])
    with pytest.raises(ShapeError, match=r"6 frames.*2 latent frames.* 5"):
        model.decode(z, num_frames=6)


@torch.no_grad()
def test_a_causal_convolution_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    conv, x = CausalConv3d(2, 2, 3, padding=1), torch.randn(1, 2, 5, 4, 4)
    changed = x.clone()
    changed[:, :, 3:] = 0
    assert torch.equal(conv(x)[:, :, :3], conv(changed)[:, :, :3])
    assert not torch.equal(conv(x)[:, :, 3], conv(changed)[:, :, 3])


def test_doubled_frames_are_torch_s_interpolation() -> None:
    x = torch.randn(1, 2, 4, 3, 3)
    rest = torch.nn.functional.interpolate(x[:, :, 1:], scale_factor=(2.0, 1.0, 1.0), mode="trilinear")
    torch.testing.assert_close(double_frames(x), torch.cat([x[:, :, :1], rest], dim=2))
    assert torch.equal(double_frames(x[:, :, :1]), x[:, :, :1])


@torch.no_grad()
def test_from_a_folder(tmp_path: Path) -> None:
    """Sizes and latent statistics come from config.json, weights from `load()`; a saved loss is passed over."""
    model = make(**SHALLOW, latent_shift=[0.1, 0.2, 0.3], latent_scale=[1.0, 2.0, 3.0]).eval()
    state = {**model.state_dict(), "loss.logvar": torch.zeros(1)}
    save_weights(tmp_path, state, {**model.config, "loss_type": "none", "lr": 1e-5})
    torch.manual_seed(7)
    built = CausalVAEModel(from_pretrained=str(tmp_path))
    assert built.latents == model.latents
    assert not torch.equal(built.last_layer, model.last_layer)
    assert torch.equal(built.load().eval().encode(video(3)), model.encode(video(3)))
    with torch.device("meta"):
        meta = CausalVAEModel(from_pretrained=str(tmp_path))
    assert torch.equal(meta.load().eval().encode(video(3)), model.encode(video(3)))


def test_arguments_with_from_pretrained(tmp_path: Path) -> None:
    save_weights(tmp_path, make().state_dict(), make().config)
    same = CausalVAEModel(from_pretrained=str(tmp_path), hidden_size=4, scaling_factor=0.5)
    assert same.latents.factor == 0.5
    with pytest.raises(ConfigError, match="hidden_size=8"):
        CausalVAEModel(from_pretrained=str(tmp_path), hidden_size=8)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        CausalVAEModel(from_pretrained=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_groups": 3}, "norm_groups=3"),
        ({"encoder_conv_in": "Conv4d"}, "'CausalConv3d', 'Conv2d'"),
        ({"encoder_mid_resnet": "Resnet"}, "'ResnetBlock2D', 'ResnetBlock3D'"),
        ({"encoder_spatial_downsample": ["Downsample"] * 4}, "last level"),
        ({"encoder_spatial_downsample": ["Downsample", ""]}, "2 .*hidden_size_mult.*4"),
        ({"decoder_temporal_upsample": ["", "", "", "TimeUpsample2x"]}, "upsampling"),
    ],
)
def test_layouts_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OpenSoraError, match=message):
        make(**changes)


@torch.no_grad()
def test_weights_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building reads no hub: the arguments name the layout. Only the subfolder is fetched."""
    model = make()
    save_weights(tmp_path / "vae", model.state_dict(), {})
    calls: list[Any] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        calls.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    torch.manual_seed(9)
    built = CausalVAEModel(from_pretrained="somebody/some-model", subfolder="vae", **TINY)
    assert not calls
    assert "subfolder" not in built.config
    assert torch.equal(built.load().eval().encode(video(5)), model.eval().encode(video(5)))
    assert calls == [("somebody/some-model", ["vae/*.json", "vae/*.safetensors", "vae/*.ckpt"])]
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"somebody/some-model: .*folder.*hub"):
        built.load()


@torch.no_grad()
def test_a_folder_may_lie_in_another(tmp_path: Path) -> None:
    model = make()
    save_weights(tmp_path / "model" / "vae", model.state_dict(), model.config)
    built = CausalVAEModel(from_pretrained=str(tmp_path / "model"), subfolder="vae")
    assert built.config == {**model.config, "hidden_size_mult": [1, 1, 2, 2]} | {
        key: list(value) if isinstance(value, tuple) else value for key, value in model.config.items()
    }
    assert torch.equal(built.load().eval().encode(video(5)), model.eval().encode(video(5)))
