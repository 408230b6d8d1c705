"""What every registered denoiser and autoencoder must do. A new one is covered by being registered.

One case per architecture: `small_models` builds them, and names of other sizes of the same network are left to
`test_denoisers_build_on_meta`.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextCache
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.gaussian import Gaussian
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.registry import MODELS, VAES, build, constructor, names
from tests.support.small_models import (
    DENOISERS,
    SMALL_VAES,
    architectures,
    clip,
    denoiser,
    full,
    inputs,
    no_caption,
    one_of,
    rngs,
    small,
    vae,
)

ARCHITECTURES = architectures()


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


def build_on_meta(name: str) -> None:
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


def test_denoisers_build_on_meta() -> None:
    """Every registered name, aliases and conditions by class too."""
    failures = []
    for name in DENOISERS:
        try:
            build_on_meta(name)
        except Exception as error:
            failures.append(f"{name}: {error!r}")
    assert failures == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_forward_and_gradients(name: str) -> None:
    model = denoiser(name)
    out = model(**inputs(model))
    assert out.shape == (2, model.out_channels, *model.input_size)
    assert out.dtype == torch.float32
    gradients(model, out.square().mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_says_where_it_may_be_cut(name: str) -> None:
    """tests/distributed/test_sequence_parallel.py then splits it there."""
    with torch.device("meta"):
        model = build(MODELS, small(name))
    seams = [module for module in model.modules() if isinstance(module, Seam)]
    assert [(seam.kind, seam.dim) for seam in seams if seam.kind != "switch"] == [("split", 2), ("gather", 2)]
    assert any(seam.kind == "switch" for seam in seams)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_samples_do_not_mix(name: str) -> None:
    model = denoiser(name).eval()
    both = inputs(model)
    with torch.no_grad():
        together = model(**both)
        alone = torch.cat([model(**one_of(both, i)) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_state_round_trip(name: str) -> None:
    model = denoiser(name).eval()
    torch.manual_seed(9)
    other = build(MODELS, small(name)).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(**inputs(model)), model(**inputs(model)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_checkpointed_equals_plain(name: str) -> None:
    plain = denoiser(name)
    checkpointed = copy.deepcopy(plain)
    assert plain.checkpoint_blocks()
    checkpoint_activations(checkpointed.checkpoint_blocks())
    expected = gradients(plain, plain(**inputs(plain)).square().mean())
    actual = gradients(checkpointed, checkpointed(**inputs(plain)).square().mean())
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
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
