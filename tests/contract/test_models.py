"""What every registered denoiser and autoencoder must do. A new one is covered by being registered.

A denoiser is built small through the constructor arguments it shares with `SMALL`; an autoencoder needs an entry in
`SMALL_VAES`.
"""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextCache
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.gaussian import Gaussian
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.registry import MODELS, VAES, build, constructor, names

SMALL = {
    "input_size": (3, 4, 6),
    "in_channels": 4,
    "patch_size": (1, 2, 2),
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 2,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "caption_channels": 12,
    "model_max_length": 5,
}
BY_CLASS = " by class"  # after a name: the same with class labels in place of captions
DENOISERS = names(MODELS) + [
    name + BY_CLASS for name in names(MODELS) if "condition" in inspect.signature(constructor(MODELS, name)).parameters
]
ONE_TOKEN = {"model_max_length": 1}  # conditioned on a pooled caption or a class
# By class, where an argument means something else.
OWN: dict[str, dict[str, Any]] = {"LatteT2V": {"patch_size": 2}, "DiT": ONE_TOKEN, "Latte": ONE_TOKEN}
BLOCKS = {"num_res_blocks": 1, "hidden_size": 8, "hidden_size_mult": (1, 1, 2, 2), "norm_groups": 4}
LEVELS = ["DownEncoderBlock2D", "DownEncoderBlock2D"], ["UpDecoderBlock2D", "UpDecoderBlock2D"]
SPATIAL = {
    "block_out_channels": [8, 16],
    "down_block_types": LEVELS[0],
    "up_block_types": LEVELS[1],
    "norm_num_groups": 4,
}
TEMPORAL = {"in_out_channels": 3, "filters": 4, "num_res_blocks": 1, "num_groups": 2}  # over pixels
SMALL_VAES: dict[str, dict[str, Any]] = {
    "CausalVAEModel": BLOCKS,
    "VideoAutoencoderKL": {"config": SPATIAL, "micro_batch_size": 4},
    "VideoAutoencoderKLTemporalDecoder": {
        # its norms always have 32 groups, and with one layer its middle's attention is never used
        "config": {"block_out_channels": [32, 32], "down_block_types": LEVELS[0], "layers_per_block": 2},
        "micro_batch_size": 4,
    },
    "VAE_Temporal": TEMPORAL,
    "VAE_Temporal_SD": TEMPORAL,
    "OpenSoraVAE_V1_2": {
        "spatial": {"config": SPATIAL},
        "temporal": {**TEMPORAL, "in_out_channels": 4},
        "micro_frame_size": 4,
    },
    "OpenSoraVAE_V1_3": {"hidden_size": 8, "num_res_blocks": 1, "norm_groups": 4},
}


def full(name: str) -> dict[str, Any]:
    """What one of DENOISERS is, at its own size."""
    by_class = {"condition": "label_7"} if name.endswith(BY_CLASS) else {}
    return {"type": name.removesuffix(BY_CLASS), **by_class}


def small(name: str, **more: Any) -> dict[str, Any]:
    named = full(name)
    create = constructor(MODELS, named["type"])
    own = OWN.get(getattr(create, "__wrapped_class__", create).__name__, {})
    known = inspect.signature(create).parameters
    return named | {key: value for key, value in {**SMALL, **own, **more}.items() if key in known}


def no_caption(model: Any) -> Tensor:
    """What stands for no caption, or anything where that is the encoded empty prompt."""
    null_B1LC = model.null_text(1)
    return torch.zeros(1, 1, model.model_max_length, model.caption_channels) if null_B1LC is None else null_B1LC


def open_gates(module: nn.Module) -> nn.Module:
    """Zero-initialised weights would hide most of a network from a test."""
    rng = Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    return module


def denoiser(name: str) -> Any:
    torch.manual_seed(0)
    return open_gates(build(MODELS, small(name)))


def inputs(model: Any, batch: int = 2) -> dict[str, Any]:
    rng = Generator().manual_seed(2)
    y = torch.randn(batch, 1, model.model_max_length, model.caption_channels, generator=rng)
    if getattr(model, "num_classes", None) is not None:
        y = torch.arange(1, batch + 1)
    mask = torch.arange(model.model_max_length).expand(batch, -1) < torch.tensor([[2], [5]])
    return {
        "x": torch.randn(batch, model.in_channels, *model.input_size, generator=rng),
        "timestep": torch.tensor([3.5, 812.0]),
        "y": y,
        "mask": mask.long(),
        **clip_conditioning(model, (17, 32, 48), torch.tensor([8.0, 24.0])[:batch]),
        **frame_conditioning(model, batch),
    }


def one_of(given: dict[str, Any], i: int) -> dict[str, Any]:
    """The inputs of one sample of a batch."""
    return {key: value[i : i + 1] if isinstance(value, Tensor) else value for key, value in given.items()}


def frame_conditioning(model: Any, batch: int) -> dict[str, Any]:
    """For a model that embeds latents that are given: its first frame, which attends to another caption."""
    if not model.conditioned:
        return {}
    rng = Generator().manual_seed(3)
    cond = torch.randn(batch, model.in_channels, *model.input_size, generator=rng)
    y_null = torch.randn(batch, 1, model.model_max_length, model.caption_channels, generator=rng)
    return {"cond": cond, "cond_mask": (cond > 0).float(), "mask_index": [0], "y_null": y_null}


def vae(name: str) -> Any:
    assert name in SMALL_VAES, f"add a small {name} to SMALL_VAES"
    torch.manual_seed(0)
    return open_gates(build(VAES, {"type": name, **SMALL_VAES[name]}))


def clip(model: Any) -> Tensor:
    frames = model.compression[0] + 1
    return torch.rand(2, 3, frames, 16, 24, generator=Generator().manual_seed(3)) * 2 - 1


def rngs() -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in (5, 6)]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    assert loss.isfinite()
    loss.backward()
    found = {}
    for key, p in model.named_parameters():
        if not p.requires_grad:  # stored with the weights, but never trained
            continue
        assert p.grad is not None, f"no gradient reaches {key}"
        assert p.grad.isfinite().all(), f"the gradient of {key} is not finite"
        assert p.grad.any(), f"the gradient of {key} is all zero"
        found[key] = p.grad
    return found


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_builds_on_meta(name: str) -> None:
    """At its full size, allocating nothing; called as training calls it, for a run is planned so."""
    with torch.device("meta"):
        model = build(MODELS, full(name) | {"input_size": (4, 32, 32)})
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    out = model(
        torch.zeros(1, model.in_channels, *model.input_size, device="meta"),
        torch.zeros(1, device="meta"),
        no_caption(model).to("meta"),
        drop_B=torch.zeros(1, dtype=torch.bool, device="meta"),
        **clip_conditioning(model, (17, 256, 256), torch.zeros(1, device="meta")),
    )
    assert out.shape == (1, model.out_channels, *model.input_size)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_forward_and_gradients(name: str) -> None:
    model = denoiser(name)
    out = model(**inputs(model))
    assert out.shape == (2, model.out_channels, *model.input_size)
    assert out.dtype == torch.float32
    gradients(model, out.square().mean())


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_says_where_it_may_be_cut(name: str) -> None:
    """tests/distributed/test_sequence_parallel.py then splits it there."""
    with torch.device("meta"):
        model = build(MODELS, small(name))
    seams = [module for module in model.modules() if isinstance(module, Seam)]
    assert [(seam.kind, seam.dim) for seam in seams if seam.kind != "switch"] == [("split", 2), ("gather", 2)]
    assert any(seam.kind == "switch" for seam in seams)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_samples_do_not_mix(name: str) -> None:
    model = denoiser(name).eval()
    both = inputs(model)
    with torch.no_grad():
        together = model(**both)
        alone = torch.cat([model(**one_of(both, i)) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_ignores_masked_tokens(name: str) -> None:
    model, given = denoiser(name).eval(), {}
    if model.model_max_length == 1:
        pytest.skip("its one token always counts")
    with torch.no_grad():
        given = inputs(model)
        before = model(**given)
        given["y"][0, :, 2:] = 100.0  # only two tokens of the first caption count
        torch.testing.assert_close(model(**given), before)
        given["y"][1, :, 4:] = 100.0
        assert not torch.allclose(model(**given)[1], before[1])


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_drops_captions_where_told(name: str) -> None:
    model = denoiser(name).train()
    given = inputs(model)
    given["mask"] = torch.ones_like(given["mask"])
    if model.null_text(1) is None:
        with pytest.raises(ShapeError, match="null caption"):
            model(**given, drop_B=torch.tensor([True, False]))
        assert torch.equal(model(**given, drop_B=torch.tensor([False, False])), model(**given))
        return
    with torch.no_grad():
        dropped = model(**given, drop_B=torch.tensor([True, False]))
        kept = model(**given)
        given["y"] = torch.cat([model.null_text(1), given["y"][1:]])
        torch.testing.assert_close(dropped, model(**given))
    assert not torch.allclose(dropped[0], kept[0])
    torch.testing.assert_close(dropped[1], kept[1])


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_state_round_trip(name: str) -> None:
    model = denoiser(name).eval()
    torch.manual_seed(9)
    other = build(MODELS, small(name)).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(**inputs(model)), model(**inputs(model)))


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_checkpointed_equals_plain(name: str) -> None:
    plain = denoiser(name)
    checkpointed = copy.deepcopy(plain)
    assert plain.checkpoint_blocks()
    checkpoint_activations(checkpointed.checkpoint_blocks())
    expected = gradients(plain, plain(**inputs(plain)).square().mean())
    actual = gradients(checkpointed, checkpointed(**inputs(plain)).square().mean())
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_in_bf16(name: str) -> None:
    """Within 5 % of the largest float32 value: about ten roundings of 2^-8 each."""
    model = denoiser(name).eval()
    given = inputs(model)
    with torch.no_grad():
        exact = model(**given)
        rounded = copy.deepcopy(model).to(torch.bfloat16)(**given)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", names(VAES))
def test_vae_builds_on_meta(name: str) -> None:
    with torch.device("meta"):
        model = build(VAES, {"type": name, **SMALL_VAES.get(name, {})})
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert constructor(VAES, model.config["type"]) is type(model)  # a preset's config names its class and all sizes


@pytest.mark.parametrize("name", names(VAES))
def test_vae_sizes(name: str) -> None:
    model = vae(name)
    x = clip(model)
    with torch.no_grad():
        z = model.encode(x)
        assert model.decode(z).shape == x.shape
        assert model.decode(z, num_frames=1).shape == (2, 3, 1, 16, 24)
    assert z.shape == (2, model.latent_channels, *model.latent_size(tuple(x.shape[2:])))
    assert z.dtype == torch.float32


@pytest.mark.parametrize("name", names(VAES))
def test_vae_trains(name: str) -> None:
    model = vae(name)
    x = clip(model)
    reconstruction, posterior = model(x, rngs())
    assert isinstance(posterior, Gaussian)
    assert reconstruction.shape == x.shape
    found = gradients(model, (reconstruction - x).square().mean() + 1e-3 * posterior.kl().mean())
    assert any(p is model.last_layer for p in model.parameters())
    assert len(found) == len(list(model.parameters()))


@pytest.mark.parametrize("name", names(VAES))
def test_vae_draws_belong_to_samples(name: str) -> None:
    """A clip's latents depend on its own generator, not on its neighbours in the batch."""
    model = vae(name).eval()
    x = clip(model)
    with torch.no_grad():
        together = model.encode(x, rngs())
        alone = torch.cat([model.encode(x[i : i + 1], rngs()[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together, model.encode(x))


@pytest.mark.parametrize("name", names(VAES))
def test_vae_rebuilds_from_its_config(name: str) -> None:
    model = vae(name).eval()
    torch.manual_seed(9)
    other = build(VAES, model.config).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    x = clip(model)
    with torch.no_grad():
        assert torch.equal(other.encode(x), model.encode(x))


@pytest.mark.parametrize("name", names(VAES))
def test_vae_checkpointed_equals_plain(name: str) -> None:
    plain = vae(name)
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed.checkpoint_blocks())
    x = clip(plain)
    expected = gradients(plain, (plain(x, rngs())[0] - x).square().mean())
    actual = gradients(checkpointed, (checkpointed(x, rngs())[0] - x).square().mean())
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", names(VAES))
def test_vae_in_bf16(name: str) -> None:
    """Within 10 % of the largest float32 value, on random weights: norms over few values enlarge roundings."""
    model = vae(name).eval()
    x = clip(model)
    with torch.no_grad():
        exact, rounded = model(x)[0], copy.deepcopy(model).to(torch.bfloat16)(x)[0]
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", DENOISERS)
@torch.no_grad()
def test_denoiser_embeds_text_once_per_clip(name: str) -> None:
    """Sampling keeps what depends on the prompt alone: the same numbers, and no layer over the text runs twice."""
    model = denoiser(name).eval()
    given = inputs(model)
    moments = [given["timestep"], given["timestep"] / 2, given["timestep"] / 3]
    plain = [model(**{**given, "timestep": t}) for t in moments]
    asked: list[int] = []
    for module in model.modules():
        if hasattr(module, "keys_values"):
            original = module.keys_values
            module.keys_values = lambda *args, original=original: (asked.append(id(original)), original(*args))[1]
    cache = TextCache()
    kept = [model(**{**given, "timestep": t}, text_cache=cache) for t in moments]
    first = len(asked)
    model(**given, text_cache=cache)
    torch.testing.assert_close(kept, plain, rtol=1e-5, atol=1e-5)
    assert len(asked) == first
    texts = 2 if model.conditioned else 1  # the caption, and the null caption of given frames
    assert len(asked) == texts * sum(hasattr(module, "keys_values") for module in model.modules())


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_trains_under_autocast(name: str) -> None:
    """As plugin ddp does in bf16: float32 weights, narrower products; within 5 % of the largest float32 value."""
    model = denoiser(name)
    given = inputs(model)
    exact = model(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(**given)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()
    gradients(model, rounded.square().mean())
