"""A model of a few hundred numbers with every awkward parameter, and the training loop around an engine.

Awkward: sizes that no world divides, one number alone, a parameter no sample uses, one that only some micro-batches
use, a frozen one, tied ones, buffers (float and integer).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opensora.parallel import collectives, world
from opensora.parallel.engine import Engine, EngineOptions, Precision
from opensora.registry import PLUGINS, build
from opensora.rng import generator

MICRO_BATCHES, BATCH_SIZE, GRAD_CLIP = 4, 2, 0.5


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 7)
        self.register_buffer("position", torch.linspace(0, 1, 35).reshape(1, 5, 7) / 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.norm = nn.LayerNorm(7)
        self.qkv = nn.Linear(7, 21)
        self.time = nn.Linear(1, 7)
        self.scale = nn.Parameter(torch.tensor([0.7]))
        self.never = nn.Parameter(torch.ones(5))
        self.sometimes = nn.Parameter(torch.full((7,), 0.1))
        self.frozen = nn.Parameter(torch.full((7,), 1.0 + 2**-12), requires_grad=False)  # not a bfloat16 number
        self.head = nn.Linear(7, 3)
        self.again = self.head

    def forward(self, x_BLC: Tensor, t_B: Tensor, touch: bool) -> Tensor:
        time_B11 = (t_B[:, None, None] / 1000).to(self.time.weight.dtype)
        x = self.embed(x_BLC) * self.frozen + self.position + self.time(time_B11)
        if touch:
            x = x + self.sometimes
        q, k, v = self.qkv(self.norm(x.to(self.qkv.weight.dtype))).chunk(3, dim=-1)
        x = x + self.scale * nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x).float()


def make(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny()


def make_optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1, fused=True)


def options(dtype: Precision = "fp32", grad_clip: float = GRAD_CLIP) -> EngineOptions:
    return EngineOptions(make_optimizer, dtype, grad_clip, world.current())


def make_engine(
    plugin: str, dtype: Precision = "fp32", seed: int = 0, tiny_buckets: bool = False, **config: Any
) -> Engine:
    built = build(PLUGINS, {"type": plugin, **config})
    if tiny_buckets:  # smaller than some parameters, larger than others
        built.bucket_bytes = 64
        built.options = {**getattr(built, "options", {}), "reduce_bucket_size_in_m": 16 / 2**20}
    return built.apply(make(seed), options(dtype))


def micro_batch(step: int, m: int) -> tuple[Tensor, Tensor, bool]:
    """(inputs, timesteps, True if `sometimes` is used: from step 2 on, in one micro-batch)."""
    x = torch.randn(BATCH_SIZE, 5, 3, generator=generator(1, "x", step, m))
    t = torch.rand(BATCH_SIZE, generator=generator(1, "t", step, m)) * 1000
    return x, t, step >= 2 and m == 1


def run_steps(
    engine: Engine, first: int, last: int, after: Callable[[], None] = lambda: None, lr_factor: float = 1.0
) -> tuple[list[float], list[float]]:
    """(losses, gradient norms) of steps first to last - 1; the ranks share MICRO_BATCHES micro-batches."""
    group = world.current()
    indices = [m for m in range(MICRO_BATCHES) if m % group.data_size == group.data_rank]
    losses, norms = [], []
    for step in range(first, last):
        total = torch.zeros(())
        for m in indices:
            x, t, touch = micro_batch(step, m)
            with engine.accumulating(last=m == indices[-1]):
                loss = (engine.model(x, t, touch=touch) - x.flip(1)).square().mean() / len(indices)
                engine.backward(loss)
            total += loss.detach().float()
        losses.append((collectives.sum_over_ranks(total) / group.data_size).item())
        norms.append(update(engine, lr_factor))
        after()
    return losses, norms


def update(engine: Engine, lr_factor: float = 1.0) -> float:
    """End an optimizer step; returns the gradient norm before clipping."""
    norm = engine.grad_norm()
    engine.update(lr_factor)
    return norm


def run_plainly(steps: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """The same run in plain PyTorch on one process; every plugin reproduces it in float32."""
    model = make()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(trained)
    losses, norms = [], []
    for step in range(steps):
        batches = [micro_batch(step, m) for m in range(MICRO_BATCHES)]
        loss = torch.stack([(model(x, t, touch) - x.flip(1)).square().mean() for x, t, touch in batches]).mean()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained, GRAD_CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, model.state_dict()


def train(plugin: str, dtype: Precision, steps: int, config: dict[str, Any]) -> dict[str, Any]:
    """Losses, gradient norms and weights of a run from scratch."""
    engine = make_engine(plugin, dtype, **config)
    losses, norms = run_steps(engine, 0, steps)
    return {"losses": losses, "norms": norms, "weights": engine.gather_state_dict()}


def without_noise(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the key bias: softmax ignores it, its gradient is rounding, and Adam makes full steps of that."""
    keep = torch.cat([torch.arange(7), torch.arange(14, 21)])
    return {**weights, "qkv.bias": weights["qkv.bias"][keep]}
