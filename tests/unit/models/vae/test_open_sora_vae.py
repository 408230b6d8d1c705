from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F

from opensora.errors import ConfigError, WeightsError
from opensora.models.build import load_autoencoder
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.autoencoder_kl import VideoAutoencoderKLTemporalDecoder
from opensora.models.vae.open_sora_1_2 import OpenSoraVAE_V1_2
from opensora.models.vae.open_sora_1_3 import VIDEO_MEAN, VIDEO_STD, OpenSoraVAE_V1_3
from opensora.models.vae.open_sora_1_3_net import CausalAttention
from opensora.models.weights import save_weights

SPATIAL: dict[str, Any] = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
}
TEMPORAL: dict[str, Any] = {"filters": 4, "num_res_blocks": 1, "num_groups": 2}
TINY: dict[str, Any] = {"hidden_size": 4, "num_res_blocks": 1, "norm_groups": 2, "z_channels": 16}


def v1_2(**changes: Any) -> OpenSoraVAE_V1_2:
    torch.manual_seed(0)
    return OpenSoraVAE_V1_2(**{"spatial": {"config": SPATIAL}, "temporal": TEMPORAL, **changes}).eval()


def v1_3(**changes: Any) -> OpenSoraVAE_V1_3:
    torch.manual_seed(0)
    return OpenSoraVAE_V1_3(**{**TINY, **changes}).eval()


def video(frames: int, height: int = 8, width: int = 12, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def released(kind: type) -> Any:
    with torch.device("meta"):
        return kind()


def test_v1_2_as_released() -> None:
    model = released(OpenSoraVAE_V1_2)
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


@torch.no_grad()
def test_weights_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building reads no hub: the arguments name the layout."""
    model = v1_3()
    save_weights(tmp_path, model.state_dict(), {})
    calls: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: calls.append(name) or str(tmp_path))
    torch.manual_seed(9)
    built = OpenSoraVAE_V1_3(from_pretrained="somebody/some-vae", **TINY)
    assert not calls
    assert torch.equal(built.load().eval().encode(video(5)), model.encode(video(5)))
    assert calls == ["somebody/some-vae"]
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"somebody/some-vae: .*folder.*hub"):
        built.load()
    with pytest.raises(WeightsError, match=r"config\.json"):
        OpenSoraVAE_V1_3(from_pretrained="outputs/some/vae")


def test_v1_3_as_released() -> None:
    model = released(OpenSoraVAE_V1_3)
    assert model.compression == (4, 8, 8)
    assert model.latent_size((49, 120, 213)) == (13, 15, 27)
    z = torch.zeros(1, 16, 1, 1, 1)
    expected = -torch.tensor(VIDEO_MEAN) / torch.tensor(VIDEO_STD)
    torch.testing.assert_close(model.latents.normalize(z).flatten(), expected)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 9, 15), (5, 17, 27), (6, 8, 31), (9, 16, 8)])
@torch.no_grad()
def test_v1_3_latent_size_is_what_encoding_gives(size: tuple[int, int, int]) -> None:
    assert tuple(v1_3().encode(video(*size)).shape[2:]) == v1_3().latent_size(size)


@pytest.mark.parametrize(
    ("overlap", "frames", "latents"),
    [(False, 5, 2), (False, 10, 4), (False, 11, 5), (False, 1, 1), (True, 5, 2), (True, 9, 4), (True, 13, 6)],
)
@torch.no_grad()
def test_v1_3_pieces(overlap: bool, frames: int, latents: int) -> None:
    model, whole = v1_3(micro_batch_size=1, micro_frame_size=5, temporal_overlap=overlap), v1_3()
    x = video(frames, batch=2)
    z = model.encode(x)
    assert tuple(z.shape[2:]) == model.latent_size((frames, 8, 12)) == (latents, 1, 2)
    starts = range(0, max(1, frames - overlap), 4 if overlap else 5)
    pieces = [whole.encode(x[:, :, start : start + 5]) for start in starts]
    torch.testing.assert_close(z, torch.cat(pieces, dim=2))
    out = model.decode(z)
    assert out.shape == (2, 3, frames, 8, 16)  # 12 columns are one and a half latents
    decoded = [whole.decode(piece) for piece in pieces]
    torch.testing.assert_close(out[:, :, :4], decoded[0][:, :, :4])
    if overlap and len(pieces) > 1:
        torch.testing.assert_close(out[:, :, 4], (decoded[0][:, :, 4] + decoded[1][:, :, 0]) / 2)
        torch.testing.assert_close(out[:, :, 5:8], decoded[1][:, :, 1:4])


@torch.no_grad()
def test_v1_3_refuses_frames_that_would_be_lost() -> None:
    model = v1_3(micro_batch_size=1, micro_frame_size=5)
    assert model.latent_size((8, 8, 8)) == (2, 1, 1)
    with pytest.raises(ShapeError, match=r"8 frames.* 3 .* 6"):
        model.encode(video(8))
    with pytest.raises(ShapeError, match=r"\[6, 8, 8\].*\[5, 8, 8\].*4 k \+ 1"):
        v1_3()(video(6, 8, 8))
    with pytest.raises(ShapeError, match=r"6 frames.*2 latent frames.* 5"):
        v1_3().decode(v1_3().encode(video(5)), 6)
    with pytest.raises(ShapeError, match="at least 8 rows"):
        v1_3().encode(video(5, 4, 8))


def test_v1_3_what_does_not_fit() -> None:
    for changes, message in (
        ({"micro_frame_size": 5}, "micro_frame_size without micro_batch_size"),
        ({"temporal_overlap": True}, "temporal_overlap without micro_frame_size"),
        ({"micro_frame_size": 8, "micro_batch_size": 1}, r"micro_frame_size: 8; allowed: 4 k \+ 1 .* example 9"),
        ({"down_sampling_layer": [1]}, r"down_sampling_layer=\[1\], temporal_up_layers=\[2, 3\]"),
        ({"down_sampling_layer": [2, 3]}, "of 0 to 2 and of 1 to 3"),
        ({"norm_groups": 3}, "do not fall into norm_groups=3"),
    ):
        with pytest.raises(ConfigError, match=message):
            v1_3(**changes)


@torch.no_grad()
def test_attention_sees_earlier_pixels_only() -> None:
    torch.manual_seed(0)
    block = CausalAttention(8, groups=2).eval()
    q, k, v = (torch.randn(2, 8, 3, 2, 5) for _ in range(3))
    flat = [a.flatten(2).transpose(1, 2) for a in (q, k, v)]
    earlier = torch.ones(30, 30, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(*flat, attn_mask=earlier).transpose(1, 2).view_as(q)
    torch.testing.assert_close(block.mix(q, k, v), expected)


@torch.no_grad()
def test_temporal_decoder_in_groups() -> None:
    """Frames see each other within a group when decoded, never when encoded."""
    config = {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 2}
    torch.manual_seed(0)
    whole = VideoAutoencoderKLTemporalDecoder(config=config).eval()
    parts = VideoAutoencoderKLTemporalDecoder(config=config, micro_batch_size=2).eval()
    parts.load_state_dict(whole.state_dict())
    x = video(3)
    z = whole.encode(x)
    torch.testing.assert_close(parts.encode(x), z)
    expected = torch.cat([whole.decode(z[:, :, :2]), whole.decode(z[:, :, 2:])], dim=2)
    torch.testing.assert_close(parts.decode(z), expected)
    assert not torch.allclose(whole.decode(z), expected)
    assert torch.equal(whole.decode(z, num_frames=2), whole.decode(z)[:, :, :2])
