"""STDiT blocks under the clock: a training step against the matrix product rate, a guided sampling step with the text
kept against one that computes it anew.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opensora.bench.clock import alternate, measure
from opensora.models.layers.attention import choose_kernel
from opensora.models.stdit.stdit import STDiT
from opensora.platforms import Platform
from opensora.sampling.text_kv_cache import prompt_cache

TEXT_CHANNELS = 4096  # T5-XXL's


@dataclass(frozen=True)
class Case:
    """One model size; latents are frames x rows x columns of 4 channels, cut into patches of 1 x 2 x 2."""

    width: int
    heads: int
    frames: int = 16
    rows: int = 32
    columns: int = 32
    depth: int = 2
    text_tokens: int = 120

    @property
    def tokens(self) -> int:
        return self.frames * self.rows // 2 * self.columns // 2

    def describe(self) -> str:
        return f"width {self.width}, {self.heads} heads, latents {self.frames}x{self.rows}x{self.columns}"


def build(case: Case, device: torch.device, dtype: torch.dtype) -> STDiT:
    """A model none of whose branches is shut, as after some training."""
    torch.manual_seed(0)
    model = STDiT(
        input_size=(case.frames, case.rows, case.columns),
        hidden_size=case.width,
        depth=case.depth,
        num_heads=case.heads,
        caption_channels=TEXT_CHANNELS,
        model_max_length=case.text_tokens,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.to(device, dtype)


def inputs(case: Case, device: torch.device, counted_tokens: int | None = None) -> dict[str, Tensor]:
    """One sample; `counted_tokens` of its text are no padding."""
    mask = (torch.arange(case.text_tokens) < (counted_tokens or case.text_tokens)).long()[None]
    made = {
        "x": torch.randn(1, 4, case.frames, case.rows, case.columns),
        "timestep": torch.tensor([500.0]),
        "y": torch.randn(1, 1, case.text_tokens, TEXT_CHANNELS),
        "mask": mask,
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def training_step(case: Case, platform: Platform, dtype: torch.dtype) -> dict[str, Any]:
    """Forward and backward: seconds, FLOP counted by torch, and their rate as a share of the matrix product's."""
    device = platform.device()
    model, given = build(case, device, dtype).train(), inputs(case, device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**given).square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    timing = measure(step, flops, platform, dtype, (case.tokens, case.width, 4 * case.width))
    least, share, most = timing.shares
    return {
        **asdict(case),
        "dtype": str(dtype).removeprefix("torch."),
        "gflop": flops / 1e9,
        "seconds": timing.seconds,
        "gflop_per_second": flops / timing.seconds / 1e9,
        "matmul_gflop_per_second": timing.matmul_flops_per_second / 1e9,
        "share": share,
        "least_share": least,
        "most_share": most,
    }


@torch.no_grad()
def sampling_step(case: Case, platform: Platform, dtype: torch.dtype, counted_tokens: int) -> dict[str, Any]:
    """One guided denoising step: two plain forwards against one doubled batch whose text is kept from step to step."""
    device = platform.device()
    untouched, model = build(case, device, dtype).eval(), build(case, device, dtype).eval()
    given = inputs(case, device, counted_tokens)
    doubled = {name: torch.cat([tensor, tensor]) for name, tensor in given.items()}
    null = {**given, "y": model.null_text(1).to(device)}
    doubled["y"] = torch.cat([given["y"], null["y"]])

    def plain() -> Tensor:
        return torch.cat([untouched(**given), untouched(**null)])

    with prompt_cache(model):
        difference = (model(**doubled) - plain()).abs().max().item()
        twice, kept = alternate([plain, lambda: model(**doubled)], platform)
    return {
        **asdict(case),
        "dtype": str(dtype).removeprefix("torch."),
        "counted_tokens": counted_tokens,
        "two_forwards_seconds": twice,
        "kept_text_seconds": kept,
        "speedup": twice / kept,
        "largest_difference": difference,
    }


def kernel_choices(platform: Platform) -> list[dict[str, Any]]:
    """What `choose_kernel` answers on this device, by precision and number of keys."""
    return [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "keys": keys,
            "kernel": _name(choose_kernel(platform.name, dtype, keys, head_dim=72)),
        }
        for dtype in (torch.bfloat16, torch.float32)
        for keys in (16, 256, 1024, 4096)
    ]


def _name(kernel: Callable[..., Any]) -> str:
    return getattr(kernel, "__name__", type(kernel).__name__)
