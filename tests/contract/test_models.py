"""Every registered denoiser and autoencoder passes these tests; a new one is tested once it is registered.

There is one case per architecture, built by `small_models`. Names that are other sizes of the same network are built
only by `test_denoisers_build_on_meta`.
"""

import copy
import inspect
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.layers.seam import Seam
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
    open_gates,
    rngs,
    small,
    vae,
)

ARCHITECTURES = architectures()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    assert loss.isfinite()
    loss.backward()
    by_name = {}
    for key, p in model.named_parameters():
        if not p.requires_grad:  # stored with the weights, but never trained
            continue
        assert p.grad is not None, f"no gradient reaches {key}"
        assert p.grad.isfinite().all(), f"the gradient of {key} is not finite"
        assert p.grad.any(), f"the gradient of {key} is all zero"
        by_name[key] = p.grad
    return by_name


def build_on_meta(name: str) -> None:
    """Build a model at its full width on the meta device and call it as training does; planning a run does the same."""
    config = full(name) | {"input_size": (4, 32, 32)}
    depth = (
        "num_layers" if "num_layers" in inspect.signature(constructor(MODELS, config["type"])).parameters else "depth"
    )
    with torch.device("meta"):
        model = build(MODELS, config | {depth: 2})  # all blocks are alike
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
    """All registered names: aliases and class-conditional models too."""
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
def test_denoiser_marks_where_tokens_are_split(name: str) -> None:
    """The seams; tests/distributed/test_sequence_parallel.py runs the model split at them."""
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
    model = denoiser(name).eval()
    if model.model_max_length == 1:
        pytest.skip("its one token always counts")
    with torch.no_grad():
        batch = inputs(model)
        before = model(**batch)
        batch["y"][0, :, 2:] = 100.0  # only two tokens of the first caption count
        torch.testing.assert_close(model(**batch), before)
        batch["y"][1, :, 4:] = 100.0
        assert not torch.allclose(model(**batch)[1], before[1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_drops_captions_of_marked_samples(name: str) -> None:
    model = denoiser(name).train()
    batch = inputs(model)
    batch["mask"] = torch.ones_like(batch["mask"])
    if model.null_text(1) is None:
        with pytest.raises(ShapeError, match="null caption"):
            model(**batch, drop_B=torch.tensor([True, False]))
        assert torch.equal(model(**batch, drop_B=torch.tensor([False, False])), model(**batch))
        return
    with torch.no_grad():
        dropped = model(**batch, drop_B=torch.tensor([True, False]))
        kept = model(**batch)
        batch["y"] = torch.cat([model.null_text(1), batch["y"][1:]])
        torch.testing.assert_close(dropped, model(**batch))
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
    batch = inputs(model)
    with torch.no_grad():
        exact = model(**batch)
        rounded = copy.deepcopy(model).to(torch.bfloat16)(**batch)
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
    by_name = gradients(model, (reconstruction - x).square().mean() + 1e-3 * posterior.kl().mean())
    assert any(p is model.last_layer for p in model.parameters())
    assert len(by_name) == len(list(model.parameters()))


@pytest.mark.parametrize("name", names(VAES))
def test_vae_samples_each_clip_from_its_generator(name: str) -> None:
    """A clip's latents depend on its own generator, not on the other clips of the batch."""
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
    """With a ClipCache the outputs are equal, and each layer over the text runs once per caption."""
    model = denoiser(name).eval()
    batch = inputs(model)
    timesteps = [batch["timestep"], batch["timestep"] / 2, batch["timestep"] / 3]
    plain = [model(**{**batch, "timestep": t}) for t in timesteps]
    calls: list[int] = []
    for module in model.modules():
        if hasattr(module, "keys_values"):
            original = module.keys_values
            module.keys_values = lambda *args, original=original: (calls.append(id(original)), original(*args))[1]
    cache = ClipCache()
    cached = [model(**{**batch, "timestep": t}, clip_cache=cache) for t in timesteps]
    calls_of_first_clip = len(calls)
    model(**batch, clip_cache=cache)
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-5)
    assert len(calls) == calls_of_first_clip
    captions = 2 if model.conditioned else 1  # the caption, and the null caption of conditioning frames
    assert len(calls) == captions * sum(hasattr(module, "keys_values") for module in model.modules())


class CountedOperations(TorchDispatchMode):
    """Counts the operations that torch runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_denoiser_computes_what_steps_share_once(name: str) -> None:
    """A later step looks at no caption, size or given frame again, computes no positions, and changes no bit."""
    more = {"use_rope": True} if name == "LatteT2V" else {}
    torch.manual_seed(0)
    model = open_gates(build(MODELS, small(name, **more))).eval()
    first, cache = inputs(model), ClipCache()
    of_step = {"x", "timestep"}
    if model.takes_x_mask:
        first["x_mask"] = torch.arange(model.input_size[0]).expand(2, -1) > 0
        of_step.add("x_mask")
    later = first | {"x": first["x"] / 2, "timestep": first["timestep"] / 2}
    wrong = {
        key: value if key in of_step or not isinstance(value, Tensor) else torch.zeros_like(value)
        for key, value in later.items()
    }
    model(**first, clip_cache=cache)
    expected = model(**later, clip_cache=ClipCache())
    with CountedOperations() as ran:
        kept = model(**wrong, clip_cache=cache)
    assert torch.equal(kept, expected)
    assert (ran.counts["cos"], ran.counts["sin"]) == (1, 1)  # of the timestep
    assert not torch.equal(kept, model(**wrong, clip_cache=ClipCache()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_denoiser_trains_under_autocast(name: str) -> None:
    """Plugin ddp in bf16 has float32 weights and bfloat16 products: within 5 % of the largest float32 value."""
    model = denoiser(name)
    batch = inputs(model)
    exact = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(**batch)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()
    gradients(model, rounded.square().mean())
