from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.models.build import load_autoencoder
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.open_sora_1_2 import OpenSoraVAE_V1_2
from opensora.models.weights import save_weights

SPATIAL: dict[str, Any] = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
}
TEMPORAL: dict[str, Any] = {"filters": 4, "num_res_blocks": 1, "num_groups": 2}


def v1_2(**changes: Any) -> OpenSoraVAE_V1_2:
    torch.manual_seed(0)
    return OpenSoraVAE_V1_2(**{"spatial": {"config": SPATIAL}, "temporal": TEMPORAL, **changes}).eval()


def video(frames: int, height: int = 8, width: int = 12, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def test_v1_2_as_released() -> None:
    with torch.device("meta"):
        model = OpenSoraVAE_V1_2()
    frames = {1: 1, 17: 5, 34: 10, 51: 15, 102: 30, 18: 6}
    assert {t: model.latent_size((t, 240, 426)) for t in frames} == {t: (n, 30, 53) for t, n in frames.items()}
    assert (model.micro_frame_size, model.spatial_vae.micro_batch_size) == (17, 4)
    assert model.spatial_vae.latents.factor == 0.18215
    assert v1_2().shift.flatten().tolist() == pytest.approx([-0.10, 0.34, 0.27, 0.98])
    assert v1_2().scale.flatten().tolist() == pytest.approx([3.85, 2.32, 2.33, 3.06])


@pytest.mark.parametrize("frames", [1, 4, 5, 6, 7, 10])
@torch.no_grad()
def test_v1_2_sizes_there_and_back(frames: int) -> None:
    model, x = v1_2(micro_frame_size=5), video(frames)
    z = model.encode(x)
    assert tuple(z.shape[2:]) == model.latent_size((frames, 8, 12))
    assert model.decode(z, frames).shape == model(x)[0].shape == x.shape


@torch.no_grad()
def test_v1_2_codes_clips_for_themselves() -> None:
    model, x = v1_2(micro_frame_size=5), video(8)
    parts = [x[:, :, :5], x[:, :, 5:]]
    z = torch.cat([model.encode(part) for part in parts], dim=2)
    torch.testing.assert_close(model.encode(x), z)
    torch.testing.assert_close(
        model.decode(z, 8), torch.cat([model.decode(z[:, :, :2], 5), model.decode(z[:, :, 2:], 3)], dim=2)
    )
    assert torch.equal(model.decode(z, 3), model.decode(z)[:, :, :3])
    assert model.decode(z).shape[2] == 6  # the shortest clip with three latent frames
    with pytest.raises(ShapeError, match=r"10 frames.*3 latent frames.* 9"):
        model.decode(z, 10)
    assert not torch.allclose(v1_2(micro_frame_size=None).encode(x), z[:, :, :2])


@torch.no_grad()
def test_v1_2_normalizes_by_weights_or_measured_statistics() -> None:
    x = video(5)
    plain = v1_2(shift=0.0, scale=1.0)
    z = plain.encode(x)
    model = v1_2()
    shift, scale = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in ([-0.1, 0.34, 0.27, 0.98], [3.85, 2.32, 2.33, 3.06]))
    torch.testing.assert_close(model.encode(x), (z - shift) / scale)
    model.load_state_dict({**model.state_dict(), "shift": shift + 1})
    torch.testing.assert_close(model.encode(x), (z - shift - 1) / scale)
    measured = v1_2(latent_shift=[0.5] * 4, latent_scale=[2.0] * 4)
    torch.testing.assert_close(measured.encode(x), (z - 0.5) * 2.0)
    for each in (plain, model, measured):
        torch.testing.assert_close(each.decode(each.encode(x), 5), plain.decode(z, 5))


@torch.no_grad()
def test_v1_2_draws_for_both_parts() -> None:
    model, x = v1_2(), video(5)

    def rng() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(3)]

    (one,) = rng()
    spatial, latents = torch.randn(4, 5, 4, 6, generator=one), torch.randn(4, 2, 4, 6, generator=one)
    x_z = model.spatial_vae.posterior(x).sample(spatial) * 0.18215
    z = model.temporal_posterior(x_z).sample(latents)
    torch.testing.assert_close(model.encode(x, rng()), model.normalize(z))


def test_v1_2_trains_in_time_only() -> None:
    model = v1_2(freeze_spatial=True)
    model(video(5))[0].sum().backward()
    assert all(p.grad is None for p in model.spatial_vae.parameters())
    assert all(p.grad is not None for p in model.temporal_vae.parameters())


@torch.no_grad()
def test_v1_2_folders(tmp_path: Path) -> None:
    model = v1_2(shift=[1.0] * 4, micro_frame_size=5)
    save_weights(tmp_path / "whole", model.state_dict(), model.config)
    with torch.device("meta"):
        built = OpenSoraVAE_V1_2(from_pretrained=str(tmp_path / "whole"), micro_batch_size=2)
    assert torch.equal(built.load().eval().encode(video(8)), model.encode(video(8)))
    model.spatial_vae.module.save_pretrained(tmp_path / "spatial")
    torch.manual_seed(9)
    other = OpenSoraVAE_V1_2(spatial={"from_pretrained": str(tmp_path / "spatial")}, temporal=TEMPORAL)
    assert not torch.equal(other.last_layer, model.last_layer)
    assert torch.equal(load_autoencoder(other, {"type": "OpenSoraVAE_V1_2"}).last_layer, model.last_layer)


def test_v1_2_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"temporal: .*'filter'.*from_pretrained, in_out_channels"):
        v1_2(temporal={"filter": 4})
    with pytest.raises(ConfigError, match=r"spatial: .*'micro_batch_size'"):
        v1_2(spatial={"config": SPATIAL, "micro_batch_size": 2})
    with pytest.raises(ConfigError, match=r"in_out_channels.*3.*4"):
        v1_2(temporal={**TEMPORAL, "in_out_channels": 3})
    with pytest.raises(ConfigError, match=r"scale: 3 .* 4"):
        v1_2(scale=[1.0] * 3)
    with pytest.raises(ConfigError, match="micro_frame_size: 0"):
        v1_2(micro_frame_size=0)


def test_v1_2_tiles_are_those_of_its_spatial_part(tmp_path: Path) -> None:
    tiled = v1_2(use_tiling=True, micro_batch_size=None)
    assert tiled.spatial_vae.module.use_tiling
    assert tiled.spatial_vae.micro_batch_size == 1
    save_weights(tmp_path, v1_2().state_dict(), v1_2().config)  # trained without: tiles are no part of the layout
    assert OpenSoraVAE_V1_2(from_pretrained=str(tmp_path), use_tiling=True).spatial_vae.module.use_tiling
    assert not OpenSoraVAE_V1_2(from_pretrained=str(tmp_path)).spatial_vae.module.use_tiling
    with pytest.raises(ConfigError, match="spatial: unknown key 'use_tiling'"):
        v1_2(spatial={"config": SPATIAL, "use_tiling": True})


def test_training_on_spatial_latents_leaves_the_spatial_part_alone() -> None:
    model, x = v1_2(micro_frame_size=5), video(8)
    output, posterior, target, latents = model(x, reconstruct_latents=True)
    with torch.no_grad():
        torch.testing.assert_close(target, model.spatial_vae.encode(x))
        torch.testing.assert_close(posterior.mean, model.posterior(x).mean)
        torch.testing.assert_close(model.spatial_vae.decode(output), model(x)[0])
    assert torch.equal(latents, posterior.mode())
    assert output.shape == target.shape
    (output - target).square().mean().backward()
    assert all(p.grad is None for p in model.spatial_vae.parameters())
    assert all(p.grad is not None for p in model.temporal_vae.parameters())
