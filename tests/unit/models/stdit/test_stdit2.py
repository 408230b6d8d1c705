from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.shape_checks import ShapeError
from opensora.models.stdit.stdit2 import STDiT2

SIZE: dict[str, Any] = {
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 6,
    "model_max_length": 3,
    "input_sq_size": 32,
}


def make(**changes: Any) -> STDiT2:
    torch.manual_seed(0)
    return STDiT2(**{**SIZE, **changes}).eval()


def opened(**changes: Any) -> STDiT2:
    model = make(**changes)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model


def call(model: STDiT2, size: tuple[int, int, int] = (2, 4, 6), **changes: Any) -> Tensor:
    torch.manual_seed(1)
    height, width = 8.0 * size[1], 8.0 * size[2]
    inputs: dict[str, Any] = {
        "x": torch.randn(1, 4, *size),
        "timestep": torch.tensor([5.0]),
        "y": torch.randn(1, 1, 3, 6),
        "num_frames": torch.tensor([8.0]),
        "height": torch.tensor([height]),
        "width": torch.tensor([width]),
        "ar": torch.tensor([height / width]),
        "fps": torch.tensor([24.0]),
    }
    with torch.no_grad():
        return model(**{**inputs, **changes})


def test_fresh_weights_are_shut_where_pixart_has_nothing() -> None:
    model = make()
    assert not call(model).any()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    plain = call(model)
    assert plain.any()
    for name in ("num_frames", "height", "width", "ar", "fps"):
        if name not in ("height", "width"):  # these two scale the positions as well
            assert torch.equal(call(model, **{name: torch.tensor([3.0])}), plain), name
    swapped = {"height": torch.tensor([48.0]), "width": torch.tensor([32.0])}  # the same area, so the same positions
    assert torch.equal(call(model, **swapped), plain)
    for block in model.blocks:
        assert not block.attn_temp.proj.weight.any()
        assert not block.cross_attn.proj.weight.any()
        assert block.attn.proj.weight.any()


@pytest.mark.parametrize("name", ["num_frames", "height", "width", "ar", "fps"])
def test_every_condition_counts(name: str) -> None:
    model = opened()
    assert not torch.allclose(call(model, **{name: torch.tensor([3.0])}), call(model))


@pytest.mark.parametrize("size", [(1, 4, 6), (3, 5, 7), (4, 2, 9)])
def test_any_size(size: tuple[int, int, int]) -> None:
    """Latents that the patches do not divide are padded with zeros, and the output is cropped."""
    model = opened(patch_size=(2, 2, 2))
    t, h, w = size
    known = {"height": torch.tensor([32.0]), "width": torch.tensor([48.0])}
    torch.manual_seed(1)
    x = torch.randn(1, 4, *size)
    padded = torch.zeros(1, 4, t + t % 2, h + h % 2, w + w % 2)
    padded[:, :, :t, :h, :w] = x
    out = call(model, size, x=x, **known)
    assert out.shape == (1, 8, *size)
    torch.testing.assert_close(out, call(model, size, x=padded, **known)[:, :, :t, :h, :w])


def test_frames_know_their_order() -> None:
    """Without their rotation, exchanging frames would exchange the output."""
    model = opened()
    torch.manual_seed(1)
    x = torch.randn(1, 4, 3, 4, 6)
    turned = call(model, x=x.flip(2)).flip(2)
    assert not torch.allclose(turned, call(model, x=x), atol=1e-4)
    with torch.no_grad():
        model.rope.freqs.zero_()
    torch.testing.assert_close(call(model, x=x.flip(2)).flip(2), call(model, x=x))


def test_the_two_orders_of_rotation_and_norm_differ() -> None:
    before, after = opened(qk_norm_legacy=True), opened(qk_norm_legacy=False)
    torch.testing.assert_close(call(before), call(after))  # with equal gains they are the same
    for model in (before, after):
        for block in model.blocks:
            torch.nn.init.uniform_(block.attn_temp.q_norm.weight, generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(call(before), call(after), atol=1e-5)


def test_given_frames_are_modulated_as_at_timestep_zero() -> None:
    model = opened(depth=1)
    with torch.no_grad():
        model.blocks[0].attn_temp.proj.weight.zero_()  # cut the only path between frames
    recorded: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda _m, _i, out: recorded.append(out))
    for t in (10.0, 900.0):
        call(model, timestep=torch.tensor([t]), x_mask=torch.tensor([[True, False]]))
    assert torch.equal(recorded[0][:, 1], recorded[1][:, 1])
    assert not torch.allclose(recorded[0][:, 0], recorded[1][:, 0])


def test_all_frames_active_is_as_without_a_mask() -> None:
    model = opened()
    torch.testing.assert_close(call(model, x_mask=torch.ones(1, 2)), call(model))


def test_frequencies_are_kept_but_not_trained() -> None:
    model = make()
    assert "rope.freqs" in model.state_dict()
    assert not model.rope.freqs.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 20}, "20 .*multiple of 3"),
        ({"num_heads": 5}, "24 .*multiple of 5"),
        ({"patch_size": (1, 2)}, "three"),
    ],
)
def test_sizes_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make(**changes)


def test_latents_of_another_autoencoder_are_named() -> None:
    with pytest.raises(ShapeError, match=r"16 channels.* 4"):
        call(make(), x=torch.zeros(1, 16, 2, 4, 6))
