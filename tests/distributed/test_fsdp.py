"""Plugin fsdp: its training, and the conversion between its parameter ranges and the even shards of checkpoints."""

from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from opensora.errors import ConfigError
from opensora.parallel import collectives, world
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.parallel.plugins import fsdp
from opensora.parallel.plugins.fsdp import FullyShardedDataParallel
from opensora.parallel.reshard import chunk_ranges, redistribute
from opensora.registry import MODELS, PLUGINS, build
from opensora.training.replay import per_sample_grad_norms
from tests.dist import run_ranks
from tests.distributed import tiny
from tests.support.small_models import inputs, open_gates, small


def redistribute_and_back() -> tuple[list[float], list[float], list[float]]:
    """(this rank's piece, its even piece, the piece converted back) of a tensor of 7 and one of 2 numbers."""
    ranks = collectives.world_size()
    uneven = {"a": [(0, 5), (5, 5), (5, 7), (7, 7)][:ranks], "b": [(0, 0), (0, 2), (2, 2), (2, 2)][:ranks]}
    if ranks == 2:
        uneven["a"][1] = (5, 7)
    even = {"a": chunk_ranges(7), "b": chunk_ranges(2)}
    whole = {"a": torch.arange(7.0), "b": torch.arange(2.0) + 10}
    uneven_pieces = {name: whole[name][slice(*uneven[name][collectives.rank()])] for name in whole}
    even_pieces = redistribute(uneven_pieces, uneven, even)
    for name, piece in even_pieces.items():
        assert torch.equal(piece, collectives.shard(whole[name]))
    back = redistribute(even_pieces, even, uneven)
    return tuple(torch.cat([each["a"], each["b"]]).tolist() for each in (uneven_pieces, even_pieces, back))


def test_redistribute_any_ranges_and_back() -> None:
    two = run_ranks(redistribute_and_back, 2)
    assert [even for _, even, _ in two] == [[0, 1, 2, 3, 10], [4, 5, 6, 11]]
    four = run_ranks(redistribute_and_back, 4)
    assert [even for _, even, _ in four] == [[0, 1, 10], [2, 3, 11], [4, 5], [6]]
    assert all(piece == back for piece, _, back in two + four)


def build_model() -> Any:
    torch.manual_seed(0)
    return open_gates(build(MODELS, small("STDiT3-XL/2")))


def train_model(plugin: str, checkpointed: bool) -> tuple[list[float], list[int]]:
    """(norms of three steps, [largest number of elements on this rank, elements it keeps, elements of the model])."""
    model = build_model()
    if checkpointed:
        checkpoint_activations(model.checkpoint_blocks())
    kwargs, blocks = inputs(model), model.checkpoint_blocks()
    engine = build(PLUGINS, {"type": plugin}).apply(model, tiny.options(grad_clip=1.0))
    gathered: list[int] = []

    def count(*_: Any) -> None:
        gathered.append(sum(local_numel(each) for each in model.parameters()))

    for block in blocks:
        block.register_forward_hook(count)
    norms = []
    for _ in range(3):
        with engine.accumulating(last=True):
            out = engine.model(**kwargs)
            weight = torch.linspace(-1, 1, out.numel()).view_as(out) * (1 + world.current().data_rank)
            engine.backward((out * weight).sum() / out.numel() ** 0.5)
        norms.append(tiny.update(engine))
    kept = sum(piece.numel() for _, piece in engine.master_shards())
    return norms, [max(gathered), kept, sum(shape.numel() for shape in engine.shapes.values())]


def local_numel(parameter: nn.Parameter) -> int:
    """Number of elements on this rank: those of a shard, or all of a gathered parameter."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()


def test_fsdp_trains_like_ddp() -> None:
    expected, _ = run_ranks(train_model, 2, "ddp", False)[0]
    for checkpointed in (False, True):
        for norms, (gathered, kept, whole) in run_ranks(train_model, 2, "fsdp", checkpointed):
            torch.testing.assert_close(norms, expected, rtol=1e-5, atol=1e-6)
            assert abs(kept - whole / 2) < 0.01 * whole
            assert gathered < 0.95 * whole, f"{gathered} of {whole}"


def validate_then_load() -> tuple[list[float], list[float]]:
    """Outputs without gradients after new weights were loaded: (of this engine, of the engine that had them)."""
    engine, other = tiny.make_engine("fsdp"), tiny.make_engine("fsdp", seed=3)
    x, t, _ = tiny.micro_batch(0, 0)
    with torch.no_grad():
        before = engine.model(x, t, touch=True)  # leaves gathered weights behind
        engine.load_state(other.state())
        after, expected = engine.model(x, t, touch=True), other.model(x, t, touch=True)
    assert not torch.equal(before, after)
    return after.flatten().tolist(), expected.flatten().tolist()


def test_forward_without_backward_keeps_no_stale_weights() -> None:
    for after, expected in run_ranks(validate_then_load, 2):
        assert after == expected


def train_offloaded(steps: int) -> dict[str, Any]:
    """Train with CPU offload on the CPU, without pinned memory."""
    with (
        mock.patch.object(FullyShardedDataParallel, "check"),
        mock.patch.object(fsdp, "CPUOffloadPolicy", partial(CPUOffloadPolicy, False)),
    ):
        return tiny.train("fsdp", "fp32", steps, {"cpu_offload": True})


@pytest.mark.parametrize("ranks", [1, 2])
def test_offloaded_gradients_accumulate(ranks: int) -> None:
    losses, norms, weights = tiny.run_plainly(4)
    results = run_ranks(train_offloaded, ranks, 4)
    for result in results:
        torch.testing.assert_close(result["losses"], losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["norms"], norms, rtol=1e-5, atol=1e-6)
    trained = tiny.without_noise(results[0]["weights"])
    torch.testing.assert_close(trained, tiny.without_noise(weights), rtol=1e-4, atol=1e-5)


def measure_samples() -> None:
    run: Any = SimpleNamespace(plugin="fsdp")
    t: Any = SimpleNamespace(engine=tiny.make_engine("fsdp"), world=world.current(), run=run)
    with pytest.raises(ConfigError, match=r"gradients=true.*'fsdp'.*1 rank.*plugin=ddp"):
        per_sample_grad_norms(t, [], 0)


def test_per_sample_gradients_are_refused() -> None:
    run_ranks(measure_samples, 1)
