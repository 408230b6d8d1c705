"""Timing of STDiT blocks: a training step against the rate of matrix products, and a guided sampling step with cached
text against one that computes the text again.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.timing import alternate, measure
from opensora.models.layers.attention import choose_kernel
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.stdit.stdit import STDiT
from opensora.platforms import Platform

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
    """A model whose zero-initialized layers are random, as after some training."""
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
    """One sample; `counted_tokens` of its text are not padding."""
    mask = (torch.arange(case.text_tokens) < (counted_tokens or case.text_tokens)).long()[None]
    tensors = {
        "x": torch.randn(1, 4, case.frames, case.rows, case.columns),
        "timestep": torch.tensor([500.0]),
        "y": torch.randn(1, 1, case.text_tokens, TEXT_CHANNELS),
        "mask": mask,
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def training_step(case: Case, platform: Platform, dtype: torch.dtype) -> dict[str, Any]:
    """Time forward and backward; returns seconds, FLOP counted by torch, and the rate as a share of matrix products'."""
    device = platform.device()
    model, kwargs = build(case, device, dtype).train(), inputs(case, device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**kwargs).square().mean().backward()

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
    """Time a guided denoising step: two plain forwards against one doubled batch with cached text."""
    device = platform.device()
    uncached, model = build(case, device, dtype).eval(), build(case, device, dtype).eval()
    kwargs = inputs(case, device, counted_tokens)
    doubled = {name: torch.cat([tensor, tensor]) for name, tensor in kwargs.items()}
    null = {**kwargs, "y": model.null_text(1).to(device)}
    doubled["y"] = torch.cat([kwargs["y"], null["y"]])

    def plain() -> Tensor:
        return torch.cat([uncached(**kwargs), uncached(**null)])

    cache = ClipCache()
    difference = (model(**doubled, clip_cache=cache) - plain()).abs().max().item()
    twice, cached = alternate([plain, lambda: model(**doubled, clip_cache=cache)], platform)
    return {
        **asdict(case),
        "dtype": str(dtype).removeprefix("torch."),
        "counted_tokens": counted_tokens,
        "two_forwards_seconds": twice,
        "kept_text_seconds": cached,
        "speedup": twice / cached,
        "largest_difference": difference,
    }


def kernel_choices(platform: Platform) -> list[dict[str, Any]]:
    """The attention kernel that `choose_kernel` picks on this device, by dtype and number of keys."""
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
