"""LatteT2V where the original recorded nothing: how images, padding, sizes and refusals work."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.latte_t2v.latte_t2v import LatteT2V
from opensora.models.latte_t2v.positions import frame_scale, sincos_frames, sincos_patches
from opensora.models.latte_t2v.validation import ALLOWED
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.shape_checks import ShapeError
from opensora.registry import MODELS, build
from opensora.rng import generator

TOKENS, CHANNELS = 5, 6


def denoiser(**changes: Any) -> LatteT2V:
    """With every gate open."""
    sizes = dict(input_size=(3, 4, 6), num_layers=2, num_attention_heads=2, attention_head_dim=8)
    model = LatteT2V(**{**sizes, "caption_channels": CHANNELS, "model_max_length": TOKENS, **changes})
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator(0, name))
    return model.eval()


def random_tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_images_joined_to_a_clip_equal_images_alone() -> None:
    """Each with its own caption, caption mask and padding; the clip does not know of them."""
    model, images = denoiser(), 2
    x, y, t = (
        random_tensor(2, 4, 3 + images, 4, 6),
        random_tensor(2, 1 + images, TOKENS, CHANNELS, seed=2),
        torch.tensor([30.0, 700.0]),
    )
    mask = torch.tensor([[[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]] * 2)
    counts = torch.ones(2, 3 + images, 4, 6)
    counts[:, 3, :, 4:] = 0  # the first image is narrower
    both = model(x, t, y, mask, use_image_num=images, attention_mask=counts)
    clip = model(x[:, :, :3], t, y[:, :1], mask[:, 0])
    torch.testing.assert_close(both[:, :, :3], clip)
    for i in range(images):
        here = slice(3 + i, 4 + i)
        image = model(x[:, :, here], t, y[:, 1 + i, None], mask[:, 1 + i], attention_mask=counts[:, here])
        torch.testing.assert_close(both[:, :, here], image)


@torch.no_grad()
def test_an_image_is_sampled_past_the_blocks_along_time() -> None:
    model, x, y, t = (
        denoiser(),
        random_tensor(1, 4, 1, 4, 6),
        random_tensor(1, 1, TOKENS, CHANNELS),
        torch.tensor([5.0]),
    )
    usual = model(x, t, y)
    assert torch.equal(usual, model(x, t, y, enable_temporal_attentions=False))
    through = model(x, t, y, enable_temporal_attentions=True)  # one frame, though the model knows three
    assert through.shape == usual.shape
    assert not torch.allclose(through, usual)


@pytest.mark.parametrize("factor", [1, 2])
@torch.no_grad()
def test_padding_changes_no_output(factor: int) -> None:
    model = denoiser(input_size=(3, 8, 8), compress_kv_factor=factor)
    x, y, t = random_tensor(1, 4, 3, 8, 8), random_tensor(1, 1, TOKENS, CHANNELS), torch.tensor([5.0])
    counts = torch.ones(1, 3, 8, 8)
    counts[..., 4:] = 0
    before = model(x, t, y, attention_mask=counts)
    other = x.clone()
    other[..., 4:] += 10.0
    after = model(other, t, y, attention_mask=counts)
    torch.testing.assert_close(after[..., :4], before[..., :4])
    assert not torch.allclose(model(other, t, y)[..., :4], model(x, t, y)[..., :4], atol=1e-3)


@torch.no_grad()
def test_a_frame_of_padding_alone_looks_at_itself() -> None:
    model, x, y, t = (
        denoiser(),
        random_tensor(1, 4, 3, 4, 6),
        random_tensor(1, 1, TOKENS, CHANNELS),
        torch.tensor([5.0]),
    )
    counts = torch.ones(1, 3, 4, 6)
    counts[:, 2] = 0
    torch.testing.assert_close(model(x, t, y, attention_mask=counts), model(x, t, y))


@torch.no_grad()
def test_frames_of_another_size_are_stretched_to_the_models() -> None:
    """With sample_size 128 x 128, and for a native size that is not square."""
    model = denoiser(input_size=(3, 8, 12), sample_size=(128, 128), video_length=33)
    assert model.input_size == (3, 8, 12)
    assert (model.patch_scale, model.frame_scale) == (2, 2)
    assert torch.equal(model.pos_embed.pos_embed[0], torch.as_tensor(sincos_patches(16, 4, 6, 64, 2)).float())
    wide = denoiser(input_size=(3, 8, 12))
    assert torch.equal(wide.pos_embed.pos_embed[0], torch.as_tensor(sincos_patches(16, 4, 6, 4, 1)).float())
    x, y, t = random_tensor(1, 4, 2, 4, 8), random_tensor(1, 1, TOKENS, CHANNELS), torch.tensor([5.0])
    scaled = denoiser(input_size=(2, 4, 8), sample_size=(8, 12), video_length=3)
    torch.testing.assert_close(wide(x, t, y), scaled(x, t, y))
    assert not torch.allclose(wide(x, t, y), denoiser(input_size=(2, 4, 8))(x, t, y))


def test_positions_along_time_are_divided_by_the_length() -> None:
    assert [frame_scale(n) for n in (1, 16, 17, 31, 32, 33, 56, 129)] == [1, 1, 1, 1, 2, 2, 3, 8]
    model = denoiser(interpolation_scale_1d=1.5)
    assert torch.equal(model.temp_pos_embed[0], torch.as_tensor(sincos_frames(16, 3, 1.5)).float())


@torch.no_grad()
def test_a_fresh_model_is_an_image_model_that_answers_nothing() -> None:
    torch.manual_seed(0)
    fresh = LatteT2V((3, 4, 6), num_layers=2, num_attention_heads=2, attention_head_dim=8, caption_channels=CHANNELS)
    x, y, t = random_tensor(1, 4, 3, 4, 6), random_tensor(1, 1, TOKENS, CHANNELS), torch.tensor([5.0])
    assert not fresh(x, t, y).any()
    nn.init.normal_(fresh.proj_out.weight)
    assert torch.equal(fresh(x, t, y), fresh(x, t, y + 1))
    fresh.temp_pos_embed.zero_()
    torch.testing.assert_close(fresh(x, t, y)[:, :, :1], fresh(x[:, :, :1], t, y))


@torch.no_grad()
def test_sampling_computes_keys_of_the_prompt_once() -> None:
    model, y, t = denoiser(), random_tensor(2, 1, TOKENS, CHANNELS), torch.tensor([5.0, 5.0])
    mask, steps = (
        torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
        [random_tensor(2, 4, 3, 4, 6, seed=i) for i in range(3)],
    )
    plain = [model(x, t, y, mask) for x in steps]
    calls = {"text": 0, "within": 0}
    block: Any = model.transformer_blocks[0]
    block.attn2.to_k.register_forward_hook(lambda *_: calls.update(text=calls["text"] + 1))
    block.attn1.to_k.register_forward_hook(lambda *_: calls.update(within=calls["within"] + 1))
    cache = ClipCache()
    cached = [model(x, t, y, mask, clip_cache=cache) for x in steps]
    torch.testing.assert_close(cached, plain)
    assert calls == {"text": 1, "within": 3}


@pytest.mark.parametrize("key", ALLOWED)
def test_other_values_of_inert_keys_are_refused(key: str) -> None:
    for value in ALLOWED[key]:
        denoiser(**{key: value})
    with pytest.raises(ConfigError, match=f"LatteT2V {key}: 'another'"):
        denoiser(**{key: "another"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 8}, "cross_attention_dim: 8; .* width, 16"),
        ({"compress_kv_factor": 2, "use_rope": True}, "compress_kv_factor: 2 with use_rope=True"),
        ({"interpolation_scale_1d": 0.5}, "interpolation_scale_1d: 0.5"),
        ({"input_size": None, "video_length": 3}, "input_size.*sample_size.*video_length"),
        ({"video_length": 2}, "video_length.*2 .*3"),
        ({"input_size": (3, 5, 6)}, "5 .*multiple of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=message):
        denoiser(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_mask": torch.ones(1, 3, dtype=torch.bool)}, "x_mask"),
        ({"x": torch.zeros(1, 3, 3, 4, 6)}, r"latents \[1, 3, 3, 4, 6\]"),
        ({"x": torch.zeros(1, 4, 4, 4, 6)}, "4 latent frames.*3"),
        ({"x": torch.zeros(1, 4, 3, 4, 5)}, "5 .*multiple of 2"),
        ({"use_image_num": 3}, "use_image_num=3 of 3 latent frames"),
        ({"use_image_num": 1}, r"captions \[1, 1, 5, 6\]"),
        ({"use_image_num": 1, "y": torch.zeros(1, 2, 5, 6), "mask": torch.ones(1, 5)}, r"mask \[1, 5\]"),
        ({"attention_mask": torch.ones(1, 3, 2, 3)}, r"attention_mask \[1, 3, 2, 3\]"),
        ({"drop_B": torch.tensor([True])}, "null caption"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    inputs = {"x": torch.zeros(1, 4, 3, 4, 6), "timestep": torch.zeros(1), "y": torch.zeros(1, 1, TOKENS, CHANNELS)}
    with pytest.raises(ShapeError, match=message):
        denoiser()(**{**inputs, **changes})


def test_released_sizes() -> None:
    with torch.device("meta"):
        models = [build(MODELS, {"type": f"LatteT2V-{size}/122", "input_size": (2, 4, 4)}) for size in ("XL", "D64-XL")]
    assert [model.transformer_blocks[0].attn1.num_heads for model in models] == [16, 18]
    assert [model.head_dim for model in models] == [72, 64]
    assert [len(model.temporal_transformer_blocks) for model in models] == [28, 28]
