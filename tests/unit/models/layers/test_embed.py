import pytest
import torch

from opensora.models.layers.embed import (
    CaptionEmbedder,
    LabelEmbedder,
    SizeEmbedder,
    TimestepEmbedder,
    sincos_any_size,
    sincos_spatial,
    timestep_features,
)
from opensora.models.shape_checks import ShapeError


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
