from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.temporal_vae import VAE_Temporal
from opensora.models.weights import save_weights

TINY: dict[str, Any] = {"in_out_channels": 3, "filters": 4, "num_res_blocks": 1, "num_groups": 2}


def make(**changes: Any) -> VAE_Temporal:
    torch.manual_seed(0)
    return VAE_Temporal(**{**TINY, **changes}).eval()


def video(frames: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(1, 3, frames, 4, 6) * 2 - 1


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 8, 9])
@torch.no_grad()
def test_sizes_there_and_back(frames: int) -> None:
    model, x = make(), video(frames)
    z = model.encode(x)
    assert tuple(z.shape[2:]) == model.latent_size((frames, 4, 6)) == (-(-frames // 4), 4, 6)
    assert model.decode(z, frames).shape == model(x)[0].shape == x.shape


@torch.no_grad()
def test_filling_is_zero_frames_in_front() -> None:
    model, x = make(), video(5)
    filled = torch.cat([torch.zeros(1, 3, 3, 4, 6), x], dim=2)
    z = model.encode(x)
    assert torch.equal(z, model.encode(filled))
    assert torch.equal(model.decode(z, 5), model.decode(z, 8)[:, :, 3:])


@torch.no_grad()
def test_decode_num_frames() -> None:
    """Without a number it is the shortest clip with these latents; fewer frames are its first ones."""
    model, z = make(), make().encode(video(6))
    assert torch.equal(model.decode(z), model.decode(z, 5))
    assert torch.equal(model.decode(z, 2), model.decode(z, 5)[:, :, :2])
    with pytest.raises(ShapeError, match=r"9 frames.*2 latent frames.* 8"):
        model.decode(z, 9)


@torch.no_grad()
def test_convolutions_are_causal() -> None:
    """Norms take means over all frames, so only the convolutions can be looked at."""
    model, x = make(num_groups=1), video(8)
    changed = x.clone()
    changed[:, :, 4:] += 1.0
    for module in (model.encoder.conv_in, model.encoder.conv_blocks[1], model.decoder.conv_blocks[2]):
        channels = module.conv.in_channels
        before, after = (module(clip[:, :1].repeat(1, channels, 1, 1, 1)) for clip in (x, changed))
        kept = 4 * before.shape[2] // 8
        assert torch.equal(before[:, :, :kept], after[:, :, :kept])
        assert not torch.equal(before[:, :, kept], after[:, :, kept])


@torch.no_grad()
def test_two_frames_lie_next_to_each_other_on_channels() -> None:
    double = make().decoder.conv_blocks[1]
    double.conv.weight.zero_()
    double.conv.bias.copy_(torch.arange(len(double.conv.bias)))
    out = double(torch.zeros(1, double.conv.in_channels, 3, 1, 1))
    assert out[0, 0].flatten().tolist() == [0, 1] * 3
    assert out[0, 5].flatten().tolist() == [10, 11] * 3


@torch.no_grad()
def test_an_exported_folder(tmp_path: Path) -> None:
    model = make(latent_shift=[0.1] * 4, latent_scale=[2.0] * 4)
    save_weights(tmp_path, model.state_dict(), model.config)
    with torch.device("meta"):
        built = VAE_Temporal(from_pretrained=str(tmp_path))
    z = built.load().eval().encode(video(5))
    assert torch.equal(z, model.encode(video(5)))
    assert torch.equal(z, (model.posterior(video(5)).mode() - 0.1) * 2.0)


def test_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"temporal_downsample.*2 .*4 channel_multipliers"):
        make(temporal_downsample=(True, True))
    with pytest.raises(ConfigError, match=r"4 channels.*num_groups=3"):
        make(num_groups=3)
    with pytest.raises(ShapeError, match=r"1 channels.*3"):
        make().encode(torch.zeros(1, 1, 4, 4, 4))
