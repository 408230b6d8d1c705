import pytest
import torch
from torch import nn

from opensora.models.layers.embed import (
    CaptionEmbedder,
    LabelEmbedder,
    SizeEmbedder,
    TimestepEmbedder,
    sincos_any_size,
    sincos_spatial,
    timestep_features,
)
from opensora.models.layers.modulation import FinalLayer, gated_residual
from opensora.models.layers.norm import RMSNorm, norm_modulate
from opensora.models.layers.patch import PatchEmbed3D, unpatchify
from opensora.models.layers.rope import rope_frequencies, rotate_halves, rotate_pairs
from opensora.models.layers.seam import Seam
from opensora.models.shape_checks import ShapeError, as_3_tuple


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
    table = sincos_spatial(8, rows=2, columns=3)
    assert (table[1, :4] != table[0, :4]).any()  # token 1 is the next column ...
    assert (table[1, 4:] == table[0, 4:]).all()
    assert (table[3, :4] == table[0, :4]).all()  # ... token 3 the next row
    with pytest.raises(ShapeError, match="multiple of 4"):
        sincos_spatial(6, 2, 2)


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
    once = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(out[:, 1:], layer(once, still)[:, 1:])


def test_a_seam_is_the_identity_without_parameters() -> None:
    x = torch.randn(2, 3)
    assert Seam("split", dim=1)(x) is x
    assert not Seam("gather", dim=1).state_dict()
    assert (Seam("switch", dim=1, swap_dim=2).dim, Seam("switch", dim=1, swap_dim=2).swap_dim) == (1, 2)


@pytest.mark.parametrize(("kind", "swap_dim"), [("switch", None), ("split", 2)])
def test_only_a_switch_names_two_dimensions(kind: str, swap_dim: int | None) -> None:
    with pytest.raises(ValueError, match="only a switch"):
        Seam(kind, dim=1, swap_dim=swap_dim)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 0), (1, 2, 1.5)])
def test_triples(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="three"):
        as_3_tuple("here", sizes)
    assert as_3_tuple("here", [1, 2, 3]) == (1, 2, 3)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (3, 1, 1, 8), (3, 2, 1, 8), (1, 2, 1, 8)])
def test_norm_modulate_is_norm_then_modulation(shape: tuple[int, ...]) -> None:
    """Whatever the vectors belong to: the batch, a sample, a frame."""
    x, shift, scale = torch.randn(3, 2, 5, 8), torch.randn(shape), torch.randn(shape)
    plain = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(norm_modulate(x, shift, scale), plain)


def test_gated_adds_the_branch_times_the_gate() -> None:
    x, branch, gate = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8), torch.randn(2, 1, 1, 8)
    torch.testing.assert_close(gated_residual(x, gate, branch), x + gate * branch)


def test_rms_norm_computes_in_float32() -> None:
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[3.0, -3.0, 3.0, 3.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[1.0, -2.0, 3.0, 4.0]]))
    tiny = torch.full((1, 4), 1e-3, dtype=torch.bfloat16)  # squares below eps: x / sqrt(1e-6 + 1e-6)
    torch.testing.assert_close(norm.to(torch.bfloat16)(tiny)[0, 0].item(), 0.707, atol=4e-3, rtol=0)


def test_rotations_keep_length_and_turn_by_the_difference() -> None:
    """<R(a) q, R(b) k> depends on a - b only: what makes the embedding relative."""
    q, k, frequencies = torch.randn(6), torch.randn(6), rope_frequencies(6)
    assert frequencies.tolist() == pytest.approx([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    for rotate in (rotate_pairs, rotate_halves):
        turned = rotate(q[None], 3.0 * frequencies[None])
        torch.testing.assert_close(turned.norm(), q.norm())
        near = (turned * rotate(k[None], 1.0 * frequencies[None])).sum()
        far = (rotate(q[None], 12.0 * frequencies[None]) * rotate(k[None], 10.0 * frequencies[None])).sum()
        torch.testing.assert_close(near, far)
    angle = torch.tensor([[torch.pi / 2, 0.0, 0.0]])
    pair = rotate_pairs(torch.tensor([[1.0, 2, 3, 4, 5, 6]]), angle)
    torch.testing.assert_close(pair, torch.tensor([[-2.0, 1, 3, 4, 5, 6]]))
    half = rotate_halves(torch.tensor([[1.0, 2, 3, 4, 5, 6]]), angle)
    torch.testing.assert_close(half, torch.tensor([[-4.0, 2, 3, 1, 5, 6]]))


def test_sizes_are_embedded_one_by_one_and_repeated_as_a_whole() -> None:
    embedder = SizeEmbedder(8)
    sizes = torch.tensor([[16.0, 24.0], [32.0, 48.0]])
    out = embedder.embed(sizes, 4)
    assert out.shape == (4, 16)
    torch.testing.assert_close(out[:2], out[2:])
    torch.testing.assert_close(out[1, 8:], embedder(torch.tensor([48.0]))[0])
    with pytest.raises(ShapeError, match=r"2 .*3 samples"):
        embedder.embed(sizes, 3)


def test_dropped_labels_take_the_null_class() -> None:
    embedder = LabelEmbedder(5, 8, dropout_prob=0.1)
    assert embedder.embedding_table.weight.shape == (6, 8)
    out = embedder(torch.tensor([1, 2]), torch.tensor([True, False]))
    torch.testing.assert_close(out, embedder.embedding_table.weight[[5, 2]])
    assert embedder.null(2).tolist() == [5, 5]
    with pytest.raises(ShapeError, match="null class"):
        LabelEmbedder(5, 8, dropout_prob=0.0).null(1)


def test_dynamic_table_of_a_square_is_the_fixed_one() -> None:
    fixed = torch.as_tensor(sincos_spatial(16, 4, 4, 2.0)).float()
    torch.testing.assert_close(sincos_any_size(16, 4, 4, 2.0, torch.float32, torch.device("cpu")), fixed)


def test_dynamic_table_rounds_its_base_like_python() -> None:
    """sqrt(2 * 3) rounds to 2, so a row is one step of 2/2 and a column one of 2/3."""
    table = sincos_any_size(8, 2, 3, 1.0, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(table[1, 0], torch.tensor(2 / 3).sin())
    torch.testing.assert_close(table[3, 4], torch.tensor(1.0).sin())


def test_norm_modulate_takes_vectors_narrower_than_the_tokens() -> None:
    """As under autocast, where a linear layer gives them and the tokens are still float32."""
    x, shift, scale = torch.randn(2, 2, 5, 8), torch.randn(2, 1, 1, 8).bfloat16(), torch.randn(2, 1, 1, 8).bfloat16()
    plain = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(norm_modulate(x, shift, scale), plain)
