"""Every registered plugin passes these tests; a new one is tested once it is registered."""

import inspect
import math
from pathlib import Path

import pytest
import torch

from opensora import config
from opensora.errors import ConfigError
from opensora.parallel.engine import Engine
from opensora.parallel.plugins.base import plugin_class
from opensora.registry import PLUGINS, constructor, names
from opensora.schema import TrainRun
from opensora.training import checkpoint
from tests.dist import run_ranks
from tests.distributed import tiny

EVERY = names(PLUGINS)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_options_have_types_and_defaults() -> None:
    for plugin in EVERY:
        for option in inspect.signature(constructor(PLUGINS, plugin)).parameters.values():
            assert option.annotation is not inspect.Parameter.empty, (plugin, option.name)
            assert option.default is not inspect.Parameter.empty, f"{plugin}: {option.name}: may be left out"


@pytest.mark.parametrize("plugin", EVERY)
def test_trains_like_plain_pytorch(plugin: str) -> None:
    losses, norms, _ = tiny.run_plainly(3)
    for ranks in (1, 2):
        for result in run_ranks(tiny.train, ranks, plugin, "fp32", 3, {}):
            torch.testing.assert_close(result["losses"], losses, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(result["norms"], norms, rtol=1e-5, atol=1e-6)


def test_gemini_is_refused_and_alternatives_are_named(tmp_path: Path) -> None:
    debug = str(CONFIGS / "stdit/train/debug.py")
    with pytest.raises(ConfigError, match=r"'plugin'.*'gemini'.*ddp.*'fsdp'.*'zero2'"):
        config.load(debug, ["plugin=gemini", f"run_dir={str(tmp_path)!r}"], TrainRun)


@pytest.mark.parametrize("override", ["plugin=fsdp", "text_encoder_parallel=shard"])
def test_keys_that_autoencoders_cannot_use_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{override.split('=')[0]}'.*'(autoencoder|diffusion)'"):
        config.load(str(CONFIGS / "vae/train/debug.py"), [override, f"run_dir={str(tmp_path)!r}"], TrainRun)


def gradients(plugin: str) -> dict[str, list[float]] | None:
    """Gradients of one micro-batch before ranks exchange them; None if the engine cannot compute them."""
    engine = tiny.make_engine(plugin)
    x, t, _ = tiny.micro_batch(0, 0)
    loss = engine.model(x, t, touch=True).square().mean()
    if not engine.sees_gradients:
        return None
    gradients = torch.autograd.grad(loss, list(engine.trainable.values()), allow_unused=True)
    return {name: grad.flatten().tolist() for name, grad in zip(engine.trainable, gradients) if grad is not None}


@pytest.mark.parametrize("plugin", EVERY)
def test_gradients_of_a_micro_batch_are_exact_or_refused(plugin: str) -> None:
    one, two = run_ranks(gradients, 2, plugin)
    assert one == two == (None if plugin == "fsdp" else run_ranks(gradients, 1, "ddp")[0])


def interface(plugin: str, dtype: str) -> None:
    engine = tiny.make_engine(plugin, dtype)
    assert isinstance(engine, Engine)
    for name, piece in engine.master_shards():
        assert piece.dtype is torch.float32, name
        assert piece.dim() == 1, name
        assert not piece.requires_grad, name
    modes = set()
    engine.module.embed.register_forward_pre_hook(
        lambda layer, _: modes.add((layer.weight.dtype, torch.is_autocast_enabled("cpu")))
    )
    losses, norms = tiny.run_steps(engine, 0, 2)
    # autocast is around float32 weights only, where every device narrows the same operations
    narrow = dtype == "bf16" and not plugin_class(plugin).autocasts
    assert modes == {(torch.bfloat16 if narrow else torch.float32, dtype == "bf16" and not narrow)}
    assert all(map(math.isfinite, losses + norms))
    assert all(value.dtype is not torch.bfloat16 for value in engine.gather_state_dict().values())
    assert all(value.dtype is not torch.bfloat16 for value in engine.state().values())


@pytest.mark.parametrize("plugin", EVERY)
def test_masters_and_saved_tensors_are_float32(plugin: str) -> None:
    for dtype in ("fp32", "bf16"):
        run_ranks(interface, 2, plugin, dtype)


def save(folder: str, plugin: str) -> list[float]:
    engine = tiny.make_engine(plugin)
    tiny.run_steps(engine, 0, 2)
    checkpoint.save(folder, 2, engine.state(), {}, {}, {}, 0)
    return tiny.run_steps(engine, 2, 4)[0]


def load(folder: str, plugin: str) -> list[float]:
    engine = tiny.make_engine(plugin, seed=9)
    saved = checkpoint.find(folder)
    assert saved is not None
    state = engine.state()
    checkpoint.load(saved, state)
    engine.load_state(state)
    return tiny.run_steps(engine, 2, 4)[0]


@pytest.mark.parametrize("plugin", EVERY)
def test_checkpoint_of_two_ranks_loads_on_one_and_two(tmp_path: Path, plugin: str) -> None:
    expected = run_ranks(save, 2, str(tmp_path), plugin)[0]
    assert run_ranks(load, 2, str(tmp_path), plugin)[0] == expected
    torch.testing.assert_close(run_ranks(load, 1, str(tmp_path), plugin)[0], expected, rtol=1e-5, atol=1e-6)


def test_each_loads_a_checkpoint_of_ddp(tmp_path: Path) -> None:
    expected = run_ranks(save, 1, str(tmp_path), "ddp")[0]
    for plugin in EVERY:
        torch.testing.assert_close(run_ranks(load, 2, str(tmp_path), plugin)[0], expected, rtol=1e-5, atol=1e-6)


def discard(plugin: str, dtype: str, backwards: int, measured: bool) -> tuple[list[float], list[float]]:
    """(losses, norms) of steps 0 to 3, with a discarded step of 0, 1 or 2 backward passes after step 0.

    The discarded step uses a parameter that step 1 does not; if a gradient of it stayed, weight decay would change it.
    """
    engine = tiny.make_engine(plugin, dtype)
    losses, norms = tiny.run_steps(engine, 0, 1)
    for m in range(backwards):
        x, t, _ = tiny.micro_batch(2, m)
        with engine.accumulating(last=m == 1):
            engine.backward((engine.model(x, t, touch=True) * 3).square().mean())
    if measured:
        assert 0 < engine.grad_norm() < math.inf
    engine.discard_gradients()
    later = tiny.run_steps(engine, 1, 4)
    return losses + later[0], norms + later[1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("plugin", EVERY)
def test_discarded_step_leaves_no_trace(plugin: str, dtype: str) -> None:
    expected = run_ranks(discard, 2, plugin, dtype, 0, False)
    for backwards, measured in ((2, True), (2, False), (1, False)):
        assert run_ranks(discard, 2, plugin, dtype, backwards, measured) == expected


def replace_weights(plugin: str, dtype: str, replaced: bool) -> tuple[list[float], list[float]]:
    """(outputs with the weights of another seed, losses of the steps after they are swapped back)."""
    engine = tiny.make_engine(plugin, dtype)
    tiny.run_steps(engine, 0, 2)
    outputs: list[float] = []
    if replaced:
        other = tiny.make_engine("ddp", "fp32", seed=5)
        x, t, _ = tiny.micro_batch(0, 0)
        pieces = {name: piece.clone() for name, piece in engine.master_shards()}
        engine.from_even_shards(pieces, dict(other.master_shards()))  # ddp's are cut evenly
        with torch.no_grad(), engine.swapped_weights(pieces):
            outputs = engine.model(x, t, touch=True).flatten().tolist()
        expected = other.model(x, t, touch=True).flatten().tolist()
        rounding = dict(rtol=1e-5, atol=1e-6) if dtype == "fp32" else dict(rtol=0.05, atol=0.05)
        torch.testing.assert_close(outputs, expected, **rounding)
    return outputs, tiny.run_steps(engine, 2, 4)[0]


@pytest.mark.parametrize("plugin", EVERY)
def test_swapped_weights_are_restored(plugin: str) -> None:
    for dtype in ("fp32", "bf16"):
        with_it, without = (run_ranks(replace_weights, 2, plugin, dtype, replaced) for replaced in (True, False))
        assert [later for _, later in with_it] == [later for _, later in without], dtype
        assert all(outputs for outputs, _ in with_it), dtype
