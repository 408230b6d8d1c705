"""Private attributes of colossalai that zero_adapter.py uses have the expected contents."""

from typing import Any

import pytest
import torch

from opensora.parallel import collectives
from opensora.parallel.colossal.zero_adapter import ZeroShards
from opensora.parallel.plugins.zero import Zero
from tests.dist import run_ranks
from tests.distributed import tiny


def read_and_write_shards(stage: str) -> None:
    engine = tiny.make_engine(stage, "bf16")
    shards = ZeroShards(engine._zero)
    for name, parameter in engine.trainable.items():
        padded = shards.master(parameter)
        own = shards.own(parameter, padded)
        assert padded.dtype is torch.float32
        assert padded.numel() == collectives.shard_length(parameter.numel())
        assert own.numel() == collectives.shard(parameter.detach().view(-1)).numel()
        whole = collectives.gather_shards(own, parameter.numel())
        torch.testing.assert_close(whole.to(torch.bfloat16).view(parameter.shape), parameter.detach(), msg=name)
        own.fill_(3.0 + collectives.rank())
    shards.sync_from_masters(list(engine.trainable.values()))
    for parameter in engine.trainable.values():
        length = collectives.shard_length(parameter.numel())
        expected = 3.0 + torch.arange(parameter.numel()) // length
        torch.testing.assert_close(parameter.detach().float().view(-1), expected)


def test_shards_are_chunks_of_the_flat_parameter() -> None:
    for ranks in (1, 2, 4):
        run_ranks(read_and_write_shards, ranks, "zero1")
        run_ranks(read_and_write_shards, ranks, "zero2")


def gradient_elements(stage: str) -> int:
    """Number of gradient elements on this rank between the backward pass and the step."""
    engine = tiny.make_engine(stage)
    x, t, _ = tiny.micro_batch(0, 0)
    with engine.accumulating(last=True):
        engine.backward(engine.model(x, t, touch=False).square().mean())
    stores = engine._zero.pg_to_grad_store.values()
    return sum(
        piece.numel()
        for store in stores
        for group in store._grads_of_params.values()
        for pieces in group.values()
        for piece in pieces
    )


def test_stage_2_keeps_only_its_part_of_the_gradients() -> None:
    whole, part = run_ranks(gradient_elements, 2, "zero1"), run_ranks(gradient_elements, 2, "zero2")
    assert whole == [2 * part[0], 2 * part[1]]


def train_with_overlap(stage: str, dtype: str) -> dict[str, Any]:
    """As on a device, where a second stream carries the gradients during the backward; here streams do nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Zero, "check", lambda plugin, world: None)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        return tiny.train(stage, dtype, 4, {"overlap_communication": True})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "dtype"), [("zero1", "fp32"), ("zero1", "bf16"), ("zero2", "fp32"), ("zero2", "bf16")]
)
def test_overlapped_exchange_gives_the_same_training(stage: str, dtype: str) -> None:
    overlapped, plain = (
        run_ranks(train, 2, *arguments)[0]
        for train, arguments in ((train_with_overlap, (stage, dtype)), (tiny.train, (stage, dtype, 4, {})))
    )
    rtol = 1e-5 if dtype == "fp32" else 2e-2
    for figure in ("losses", "norms"):
        assert overlapped[figure] == pytest.approx(plain[figure], rel=rtol), figure
    weights, expected = (tiny.without_noise(each["weights"]) for each in (overlapped, plain))
    torch.testing.assert_close(weights, expected, rtol=rtol, atol=rtol)
