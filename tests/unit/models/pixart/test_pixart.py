from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.layers.embed import sincos_spatial
from opensora.models.pixart.pixart import PixArt, PixArtMS
from opensora.models.shape_checks import ShapeError

SIZE: dict[str, Any] = {
    "input_size": (1, 4, 8),
    "hidden_size": 24,
    "depth": 1,
    "num_heads": 2,
    "caption_channels": 6,
    "model_max_length": 3,
}


def opened(cls: type[PixArt], **changes: Any) -> Any:
    torch.manual_seed(0)
    model = cls(**{**SIZE, **changes})
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model.eval()


def inputs(rows: int = 4, columns: int = 8, frames: int = 1) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, frames, rows, columns, generator=rng)
    return {"x": x, "timestep": torch.tensor([5.0, 700.0]), "y": torch.randn(2, 1, 3, 6, generator=rng)}


def size_conditions(height: float, width: float) -> dict[str, Tensor]:
    return {"height": torch.tensor([height]), "width": torch.tensor([width]), "ar": torch.tensor([height / width])}


def test_fresh_weights_give_nothing_and_hear_no_caption() -> None:
    model = PixArt(**SIZE)
    assert not model(**inputs()).any()
    assert not model.blocks[0].cross_attn.proj.weight.any()
    assert model.blocks[0].attn.proj.weight.any()
    assert model.t_block[1].weight.std().item() == pytest.approx(0.02, rel=0.1)
    multi = PixArtMS(**SIZE)
    assert multi.csize_embedder.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert multi.ar_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_attention_is_joint_over_frames() -> None:
    model = opened(PixArt, input_size=(3, 4, 8))
    clip = inputs(frames=3)
    before = model(**clip)
    clip["x"][:, :, 2] += 1.0
    assert not torch.allclose(model(**clip)[:, :, 0], before[:, :, 0])


def test_frames_without_positions_are_interchangeable() -> None:
    clip = inputs(frames=3)
    swapped = {**clip, "x": clip["x"].flip(2)}
    for ignored in (True, False):
        model = opened(PixArt, input_size=(3, 4, 8), no_temporal_pos_emb=ignored)
        same = torch.allclose(model(**swapped).flip(2), model(**clip), atol=1e-5)
        assert same is ignored


def test_positions_are_stretched_to_the_square_of_equal_area() -> None:
    table = opened(PixArt, space_scale=2.0).pos_embed[0]
    torch.testing.assert_close(table, torch.as_tensor(sincos_spatial(24, 2, 4, 2.0, base_size=2)).float())
    named = opened(PixArt, base_size=8).pos_embed[0]
    torch.testing.assert_close(named, torch.as_tensor(sincos_spatial(24, 2, 4, 1.0, base_size=4)).float())


def test_given_frames_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"PixArt.*x_mask"):
        opened(PixArt)(**inputs(), x_mask=torch.ones(2, 1, dtype=torch.bool))


def test_messages_name_the_class_that_was_built() -> None:
    """torch's fully_shard gives an object a class of another name."""
    model = opened(PixArt)
    model.__class__ = type("FSDPPixArt", (PixArt,), {})
    with pytest.raises(ShapeError, match=r"^PixArt: latents of \[4, 3, "):
        model(**inputs(frames=3))


def test_multi_size_uses_each_size_condition() -> None:
    model = opened(PixArtMS)
    first = model(**inputs(), **size_conditions(512, 1024))
    for name in ("height", "width", "ar"):
        other = size_conditions(512, 1024)
        other[name] = other[name] * 1.5
        assert not torch.allclose(model(**inputs(), **other), first), name


def test_multi_size_takes_any_grid_and_gives_it_back() -> None:
    """A size the patches do not divide is padded and cut again; the base of positions stays the constructed one."""
    model = opened(PixArtMS)
    assert model(**inputs(5, 6), **size_conditions(40, 48)).shape == (2, 8, 1, 5, 6)
    tall = model(**inputs(8, 4), **size_conditions(64, 32))
    rebuilt = opened(PixArtMS, input_size=(1, 8, 4), base_size=4)  # the same base of 2 patches
    rebuilt.load_state_dict({**model.state_dict(), "pos_embed": rebuilt.pos_embed})
    torch.testing.assert_close(rebuilt(**inputs(8, 4), **size_conditions(64, 32)), tall)


def test_multi_size_has_its_number_of_frames() -> None:
    with pytest.raises(ShapeError, match=r"2 latent frames.*1"):
        opened(PixArtMS)(**inputs(frames=2), **size_conditions(32, 64))


def test_multi_size_needs_a_width_of_three_parts() -> None:
    with pytest.raises(ShapeError, match=r"20 .*multiple of 3"):
        PixArtMS(**{**SIZE, "hidden_size": 20})
