"""DiT and Latte."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.models.dit.dit import DiT
from opensora.models.latte.latte import Latte
from opensora.models.shape_checks import ShapeError

SIZE: dict[str, Any] = {
    "input_size": (2, 4, 6),
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 6,
}


def opened(cls: type[DiT], **changes: Any) -> Any:
    torch.manual_seed(0)
    model = cls(**{**SIZE, **changes})
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model.eval()


def inputs(y: Tensor | None = None, frames: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, frames, 4, 6, generator=rng)
    text = torch.randn(2, 1, 1, 6, generator=rng)
    return {"x": x, "timestep": torch.tensor([5.0, 700.0]), "y": text if y is None else y}


def test_fresh_blocks_change_nothing_and_give_nothing() -> None:
    model = DiT(**SIZE)
    assert not model(**inputs()).any()
    x = torch.randn(2, 1, 12, 16)
    assert torch.equal(model.blocks[0](x, torch.randn(2, 16)), x)
    by_class = DiT(**SIZE, condition="label_300")
    assert by_class.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("condition", ["label_0", "label_", "label_-3", "labels", "class", ""])
def test_other_conditions_are_refused(condition: str) -> None:
    with pytest.raises(ConfigError, match=r"'text'.*'label_K'"):
        DiT(**SIZE, condition=condition)


def test_captions_of_many_tokens_are_refused_when_built() -> None:
    with pytest.raises(ConfigError, match=r"model_max_length.*120.*one"):
        DiT(**SIZE, model_max_length=120)


@pytest.mark.parametrize("y", [torch.tensor([1.0, 2.0]), torch.zeros(2, 1, 1, 6), torch.zeros(2, 1, dtype=torch.long)])
def test_a_class_model_needs_numbers(y: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"'label_3'.*class"):
        opened(DiT, condition="label_3")(**inputs(y))


@pytest.mark.parametrize("y", [torch.tensor([1, 2]), torch.zeros(2, 1, 3, 6), torch.zeros(2, 1, 1, 5)])
def test_a_text_model_needs_one_token(y: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"\[B, 1, 1, 6\]"):
        opened(DiT)(**inputs(y))


def test_null_labels_are_the_row_after_the_classes() -> None:
    model = opened(DiT, condition="label_3")
    assert model.null_text(2).tolist() == [3, 3]
    labels = inputs(torch.tensor([0, 2]))
    dropped = model(**labels, drop_B=torch.tensor([True, False]))
    torch.testing.assert_close(dropped, model(**inputs(torch.tensor([3, 2]))))
    assert not torch.allclose(dropped[0], model(**labels)[0])
    with pytest.raises(ShapeError, match="null class"):
        opened(DiT, condition="label_3", class_dropout_prob=0.0).null_text(1)


def test_dit_attends_to_all_frames_at_once() -> None:
    model, clip = opened(DiT, depth=1), inputs()
    before = model(**clip)
    clip["x"][:, :, 1, :2, :2] += 1.0  # one patch of the second frame
    change = (model(**clip) - before).abs()
    assert change[:, :, 0].flatten(1).amin() > 0


def test_dit_frames_have_positions_by_default() -> None:
    clip = inputs()
    swapped = {**clip, "x": clip["x"].flip(2)}
    for ignored in (True, False):
        model = opened(DiT, no_temporal_pos_emb=ignored)
        assert torch.allclose(model(**swapped).flip(2), model(**clip), atol=1e-5) is ignored


def test_latte_looks_within_frames_then_along_time() -> None:
    clip, changed = inputs(), inputs()
    changed["x"][:, :, 1, :2, :2] += 1.0  # one patch of the second frame
    one = opened(Latte, depth=1)
    change = (one(**changed) - one(**clip)).abs()
    assert not change[:, :, 0].any()
    assert change[:, :, 1].flatten(1).amin() > 0
    both = opened(Latte)
    both.blocks[0].attn.proj.weight.data.zero_()
    change = (both(**changed) - both(**clip)).abs()
    assert change[:, :, 0, :2, :2].flatten(1).amin() > 0
    assert not change[:, :, 0, 2:].any()


def test_latte_adds_the_frames_positions_once_and_late() -> None:
    """The first block sees frames without positions; the residual carries them from then on."""
    model, recorded = opened(Latte, depth=3), []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, args, out: recorded.append((args[0], out)))
    model(**inputs())
    (first, after_first), (second, after_second), (third, _) = recorded
    torch.testing.assert_close(second - after_first, model.pos_embed_temporal[:, :, None].expand_as(second))
    assert torch.equal(third, after_second)
    tokens = model.embed_patches(inputs()["x"], None).flatten(2, 3) + model.pos_embed_spatial
    torch.testing.assert_close(first, tokens)


def test_latte_ignores_no_temporal_pos_emb() -> None:
    torch.testing.assert_close(opened(Latte, no_temporal_pos_emb=True)(**inputs()), opened(Latte)(**inputs()))
