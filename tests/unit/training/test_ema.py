"""The average of weights on one rank; tests/distributed has the shared ones."""

import torch
from torch import nn

from opensora.parallel.engine import Engine, EngineOptions
from opensora.registry import PLUGINS, build
from opensora.training.ema import Ema
from tests.dist import one_rank


def engine(world: object) -> Engine:
    torch.manual_seed(0)
    return build(PLUGINS, {"type": "ddp"}).apply(
        nn.Linear(2, 3), EngineOptions(lambda parameters: torch.optim.SGD(parameters, lr=1.0), "fp32", 0.0, world)
    )


def test_one_update_moves_the_average_by_one_minus_decay() -> None:
    with one_rank() as world:
        trained = engine(world)
        ema = Ema(trained, decay=0.75)
        before = trained.gather_state_dict()
        for _, piece in trained.master_shards():
            piece.add_(1.0)
        ema.update()
        for name, value in ema.weights().items():
            torch.testing.assert_close(value, before[name] + 0.25)


def test_the_average_stays_float32_and_small_steps_count() -> None:
    """One step adds 1e-6 to 1, far less than bfloat16 could."""
    with one_rank() as world:
        trained = engine(world)
        for _, piece in trained.master_shards():
            piece.fill_(1.0)
        ema = Ema(trained, decay=0.9999)
        for _, piece in trained.master_shards():
            piece.fill_(1.0 + 1e-2)
        for _ in range(100):
            ema.update()
        for value in ema.weights().values():
            assert value.dtype is torch.float32
            moved = 1e-2 * (1 - 0.9999**100)  # 1e-4
            torch.testing.assert_close(value, torch.full_like(value, 1.0 + moved), rtol=0, atol=1e-5)


def test_state_goes_over_to_another_average() -> None:
    with one_rank() as world:
        trained = engine(world)
        old = Ema(trained, decay=0.5)
        for _, piece in trained.master_shards():
            piece.mul_(3.0)
        old.update()
        new = Ema(trained, decay=0.5)
        assert not torch.equal(new.weights()["weight"], old.weights()["weight"])
        new.load_state(old.state())
        torch.testing.assert_close(new.weights(), old.weights(), rtol=0, atol=0)
        assert set(old.state()) == {"ema/weight", "ema/bias"}
