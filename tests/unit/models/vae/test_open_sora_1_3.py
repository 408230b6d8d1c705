from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from opensora.errors import ConfigError, WeightsError
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.open_sora_1_3 import VIDEO_MEAN, VIDEO_STD, OpenSoraVAE_V1_3
from opensora.models.weights import save_weights


def video(frames: int, height: int = 8, width: int = 12, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


TINY: dict[str, Any] = {"hidden_size": 4, "num_res_blocks": 1, "norm_groups": 2, "z_channels": 16}


def v1_3(**changes: Any) -> OpenSoraVAE_V1_3:
    torch.manual_seed(0)
    return OpenSoraVAE_V1_3(**{**TINY, **changes}).eval()


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
    with torch.device("meta"):
        model = OpenSoraVAE_V1_3()
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
