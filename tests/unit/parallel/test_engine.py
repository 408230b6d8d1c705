import math

import pytest
import torch
from torch import Tensor, nn

from opensora.parallel import world
from opensora.parallel.engine import Engine, EngineOptions, PrecisionWrapper, clip_factor, squared_norm
from opensora.registry import PLUGINS, build
from tests.dist import one_rank


class Spy(nn.Module):
    def forward(self, x: Tensor, *, t_B: Tensor, mask: Tensor) -> tuple:
        return x.dtype, t_B.dtype, mask.dtype, (x @ x.t()).dtype, torch.is_autocast_enabled("cpu")


def call(dtype: str, bf16_weights: bool) -> tuple:
    forward = PrecisionWrapper(Spy(), dtype, torch.device("cpu"), bf16_weights)  # type: ignore[arg-type]
    return forward(torch.zeros(2, 2), t_B=torch.zeros(2), mask=torch.ones(2, 2, dtype=torch.bool))


def test_bfloat16_reaches_products_but_never_timesteps() -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    assert call("fp32", True) == call("fp32", False) == (fp32, fp32, torch.bool, fp32, False)
    assert call("bf16", False) == (fp32, fp32, torch.bool, bf16, True)
    assert call("bf16", True) == (bf16, fp32, torch.bool, bf16, False)


def test_clipping_shrinks_only_what_is_too_long() -> None:
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(4.0, 1.0) == pytest.approx(0.25)
    assert clip_factor(4.0, 0.0) == 1.0  # off


def test_the_norm_covers_all_tensors() -> None:
    assert squared_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).sqrt() == 5.0
    assert squared_norm([]) == 0.0


def engine(optimizer: type[torch.optim.Optimizer], **options: float) -> Engine:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(1, 1)})
    return build(PLUGINS, {"type": "ddp"}).apply(
        model, EngineOptions(lambda parameters: optimizer(parameters, **options), "fp32", 0.0, world.current())
    )


def train(trained: Engine) -> list[float]:
    losses = []
    for step in range(3):
        with trained.accumulating(last=True):
            loss = (trained.module["used"](torch.ones(1, 2) * (step + 1)) - 3).square().mean()
            trained.backward(loss)
        losses.append(loss.item())
        assert math.isfinite(trained.grad_norm())
        trained.update()
    return losses


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.AdamW, {"lr": 0.1, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
        (torch.optim.SGD, {"lr": 0.01}),
    ],
)
def test_state_carries_any_optimizer_over(optimizer: type, options: dict) -> None:
    with one_rank():
        old = engine(optimizer, **options)
        train(old)
        new = engine(optimizer, **options)
        new.load_state(old.state())
        assert train(new) == train(old)


def test_reading_the_state_changes_nothing() -> None:
    """Parameters without a gradient so far get moments, of zero, and may not move."""
    with one_rank():
        plain, inspected = (engine(torch.optim.AdamW, lr=0.1, weight_decay=0.5) for _ in range(2))
        before = inspected.gather_state_dict()
        assert torch.count_nonzero(inspected.state()["optimizer/exp_avg/idle.weight"].to_local()) == 0
        assert inspected.state()["optimizer/step/idle.weight"] == 0
        torch.testing.assert_close(inspected.gather_state_dict(), before, rtol=0, atol=0)
        losses = train(plain)
        for _ in range(2):
            inspected.state()
        assert train(inspected) == losses
        torch.testing.assert_close(inspected.gather_state_dict(), plain.gather_state_dict(), rtol=0, atol=0)
