import pytest
import torch
from torch import nn

from opensora.models.layers.embed import CaptionEmbedder, TimestepEmbedder, spatial_table, timestep_features
from opensora.models.layers.modulation import FinalLayer
from opensora.models.layers.patch import PatchEmbed3D, unpatchify
from opensora.models.layers.seam import Seam
from opensora.models.shapes import ShapeError, triple


def test_timestep_features_start_with_cosines_and_pad_odd_widths() -> None:
    features = timestep_features(torch.tensor([0.0, 2.5]), 9)
    assert features.shape == (2, 9)
    assert features[0].tolist() == [1.0] * 4 + [0.0] * 5
    assert features[1, 8] == 0.0


def test_timesteps_above_256_stay_apart_in_bf16() -> None:
    """Rounding t itself to bf16 would make these three the same."""
    embedder = TimestepEmbedder(16).to(torch.bfloat16)
    a, b, c = embedder(torch.tensor([997.0, 998.0, 998.6]))
    assert a.dtype == torch.bfloat16
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)


def test_null_caption_is_a_buffer() -> None:
    embedder = CaptionEmbedder(6, 8, 4)
    assert "y_embedding" in embedder.state_dict()
    assert "y_embedding" not in dict(embedder.named_parameters())
    assert torch.equal(embedder.null(2)[1, 0], embedder.y_embedding)


def test_dropping_needs_captions_of_full_length() -> None:
    embedder = CaptionEmbedder(6, 8, 4)
    with pytest.raises(ShapeError, match=r"\[4, 6\]"):
        embedder(torch.zeros(2, 1, 3, 6), torch.tensor([True, False]))
    assert embedder(torch.zeros(2, 1, 3, 6)).shape == (2, 1, 3, 8)


def test_spatial_table_puts_the_column_first() -> None:
    table = spatial_table(8, rows=2, columns=3)
    assert (table[1, :4] != table[0, :4]).any()  # token 1 is the next column ...
    assert (table[1, 4:] == table[0, 4:]).all()
    assert (table[3, :4] == table[0, :4]).all()  # ... token 3 the next row
    with pytest.raises(ShapeError, match="not a multiple of 4"):
        spatial_table(6, 2, 2)


def test_patches_come_back() -> None:
    """With identity weights, cutting and putting together is the identity."""
    embed = PatchEmbed3D((2, 1, 3), in_channels=2, hidden_size=12)
    with torch.no_grad():
        features = torch.eye(12).view(2, 1, 3, 2, 12).permute(4, 3, 0, 1, 2)  # channel fastest
        embed.proj.weight.copy_(features)
        nn.init.zeros_(embed.proj.bias)
    x = torch.randn(2, 2, 4, 3, 6)
    torch.testing.assert_close(unpatchify(embed(x), (2, 1, 3), 2), x)


def test_sizes_that_do_not_divide_are_padded_at_the_end() -> None:
    embed = PatchEmbed3D((1, 2, 2), 1, 4)
    x = torch.randn(1, 1, 2, 3, 5)
    assert embed(x).shape == (1, 2, 2, 3, 4)
    torch.testing.assert_close(embed(x), embed(nn.functional.pad(x, (0, 1, 0, 1))))


def test_final_layer_modulates_conditioning_frames_twice() -> None:
    torch.manual_seed(0)
    layer = FinalLayer(8, 4)
    x, t, still = torch.randn(1, 2, 3, 8), torch.randn(1, 8), torch.randn(1, 8)
    out = layer(x, t, torch.tensor([[True, False]]), still)
    torch.testing.assert_close(out[:, :1], layer(x, t)[:, :1])
    shift, scale = (layer.scale_shift_table + t).unbind(0)
    once = layer.norm(x) * (1 + scale) + shift
    torch.testing.assert_close(out[:, 1:], layer(once, still)[:, 1:])


def test_a_seam_is_the_identity_without_parameters() -> None:
    x = torch.randn(2, 3)
    assert Seam("split", dim=1)(x) is x
    assert not Seam("gather", dim=1).state_dict()
    assert (Seam("switch", dim=1, other=2).dim, Seam("switch", dim=1, other=2).other) == (1, 2)


@pytest.mark.parametrize(("kind", "other"), [("switch", None), ("split", 2)])
def test_only_a_switch_names_two_dimensions(kind: str, other: int | None) -> None:
    with pytest.raises(ValueError, match="only a switch"):
        Seam(kind, dim=1, other=other)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 0), (1, 2, 1.5)])
def test_triples(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="three positive whole numbers"):
        triple("here", sizes)
    assert triple("here", [1, 2, 3]) == (1, 2, 3)
