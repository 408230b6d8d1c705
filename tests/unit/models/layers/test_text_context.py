"""The text cache of one clip keeps what depends on its captions alone, and changes no number."""

import torch
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.layers.text_context import TextContext, text_context
from opensora.models.stdit.stdit import STDiT
from opensora.rng import generator


def denoiser() -> STDiT:
    model = STDiT(input_size=(2, 4, 4), hidden_size=24, depth=2, num_heads=2, caption_channels=6, model_max_length=7)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator(0, name))
    return model.eval()


def captions(rows: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    mask = torch.zeros(rows, 7, dtype=torch.long)
    mask[0, :3] = mask[1:, :5] = 1
    return {"y": torch.randn(rows, 1, 7, 6, generator=rng), "mask": mask}


def calls_of(model: STDiT) -> dict[str, int]:
    counts = {"text": 0, "kv": 0, "q": 0}

    def count(name: str) -> object:
        return lambda *_: counts.update({name: counts[name] + 1})

    model.y_embedder.register_forward_hook(count("text"))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, CrossAttention):
            module.kv_linear.register_forward_hook(count("kv"))  # type: ignore[arg-type]
            module.q_linear.register_forward_hook(count("q"))  # type: ignore[arg-type]
    return counts


@torch.no_grad()
def test_cache_computes_text_once_per_clip() -> None:
    model, text, cache = denoiser(), captions(), ClipCache()
    x, times = torch.randn(2, 4, 2, 4, 4), [torch.full((2,), t) for t in (900.0, 500.0, 100.0)]
    plain = [model(x, t, **text) for t in times]
    counts = calls_of(model)
    cached = [model(x, t, **text, clip_cache=cache) for t in times]
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-5)
    assert counts == {"text": 1, "kv": 2, "q": 6}


@torch.no_grad()
def test_each_cache_holds_its_own_captions() -> None:
    model, text = denoiser(), captions()
    x, t = torch.randn(2, 4, 2, 4, 4), torch.full((2,), 500.0)
    other = {**text, "y": text["y"] + 1.0}
    one, two = ClipCache(), ClipCache()
    first = model(x, t, **text, clip_cache=one)
    second = model(x, t, **other, clip_cache=two)
    assert torch.equal(model(x, t, **text, clip_cache=one), first)
    assert torch.equal(model(x, t, **other, clip_cache=two), second)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, model(x, t, **other), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cache_cuts_padding_and_drops_full_mask() -> None:
    model, text = denoiser(), captions()
    context = text_context(lambda: model.embed_text(text["y"], text["mask"]), ClipCache())
    assert context.y_BLD.shape == (2, 5, 24)
    assert context.mask_BL is not None
    assert context.mask_BL.sum(1).tolist() == [3, 5]
    same = text["mask"][1:].repeat(2, 1)
    context = text_context(lambda: model.embed_text(text["y"], same), ClipCache())
    assert (context.y_BLD.shape[1], context.mask_BL) == (5, None)


def test_context_without_cache_keeps_nothing() -> None:
    """Training calls a layer anew each time: kept keys would carry the gradients of an older step."""
    layer, y_BLD = CrossAttention(6, 2), torch.randn(1, 3, 6)
    plain, kept = TextContext(y_BLD), TextContext(y_BLD, keep=True)
    assert plain.keys_values(layer)[0] is not plain.keys_values(layer)[0]
    assert kept.keys_values(layer)[0] is kept.keys_values(layer)[0]
