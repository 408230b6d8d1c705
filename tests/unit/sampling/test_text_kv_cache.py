"""What is remembered per prompt, and that it changes no number."""

import torch
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention
from opensora.models.stdit.stdit import STDiT
from opensora.rng import generator
from opensora.sampling.text_kv_cache import prompt_cache


def denoiser() -> STDiT:
    model = STDiT(input_size=(2, 4, 4), hidden_size=24, depth=2, num_heads=2, caption_channels=6, model_max_length=7)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator(0, name))
    return model.eval()


def asked(rows: int = 2) -> dict[str, Tensor]:
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
def test_steps_give_the_same_numbers_and_ask_the_text_once() -> None:
    model, text = denoiser(), asked()
    x, times = torch.randn(2, 4, 2, 4, 4), [torch.full((2,), t) for t in (900.0, 500.0, 100.0)]
    plain = [model(x, t, **text) for t in times]
    counts = calls_of(model)
    with prompt_cache(model):
        cached = [model(x, t, **text) for t in times]
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-5)
    assert counts == {"text": 1, "kv": 2, "q": 6}


@torch.no_grad()
def test_another_prompt_is_another_answer() -> None:
    model, text = denoiser(), asked()
    x, t = torch.randn(2, 4, 2, 4, 4), torch.full((2,), 500.0)
    other = {**text, "y": text["y"] + 1.0}
    with prompt_cache(model):
        first, second, again = model(x, t, **text), model(x, t, **other), model(x, t, **text)
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, model(x, t, **other), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_is_cut_and_a_full_mask_dropped() -> None:
    model, text = denoiser(), asked()
    with prompt_cache(model):
        y_BLD, mask_BL = model.embed_text(text["y"], text["mask"])
        assert y_BLD.shape == (2, 5, 24)
        assert mask_BL is not None
        assert mask_BL.sum(1).tolist() == [3, 5]
        same = text["mask"][1:].repeat(2, 1)
        y_BLD, mask_BL = model.embed_text(text["y"], same)
        assert (y_BLD.shape[1], mask_BL) == (5, None)
    y_BLD, mask_BL = model.embed_text(text["y"], text["mask"])
    assert y_BLD.shape[1] == 7


@torch.no_grad()
def test_nothing_stays_when_the_context_closes_even_by_an_error() -> None:
    model, text = denoiser(), asked()
    counts = calls_of(model)
    try:
        with prompt_cache(model):
            model.embed_text(text["y"], text["mask"])
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    model.embed_text(text["y"], text["mask"])
    assert counts["text"] == 2
    assert "embed_text" not in vars(model)
