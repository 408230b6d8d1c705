"""NVIDIA devices (and AMD ones through ROCm, which answers to the same names)."""

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from opensora.log import logger
from opensora.platforms.base import Feature, Platform, torch_profile
from opensora.registry import PLATFORMS

COMPILED_NORM = "fused_layer_norm_cuda"  # apex installed without its options lacks it, and fails at the first call


@PLATFORMS.register_module(name="cuda")
class CudaPlatform(Platform):
    name = "cuda"
    backend = "cpu:gloo,cuda:nccl"
    priority = 1
    features = (
        Feature("flash-attn (CUDA, optional)", ("flash_attn",), "pip install flash-attn --no-build-isolation"),
        Feature(
            "apex' fused layer norm (CUDA, optional)",
            ("apex", COMPILED_NORM),
            "pip install --no-build-isolation --config-settings=--build-option=--cpp_ext "
            "--config-settings=--build-option=--cuda_ext git+https://github.com/NVIDIA/apex",
        ),
    )

    @classmethod
    def is_available(cls) -> bool:
        return torch.cuda.is_available()

    def device(self, local_rank: int = 0) -> torch.device:
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def device_count(self) -> int:
        return torch.cuda.device_count()

    def device_name(self) -> str:
        return torch.cuda.get_device_name()

    def memory_bytes(self) -> int:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()

    def multiplies_bf16(self) -> bool:
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Callable[..., Tensor] | None:
        """flash-attn (Dao 2023, arXiv:2307.08691) where it is installed; it takes no masks and half precision only."""
        fits = not masked and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256
        return flash_attention if fits and works("flash_attn") else None

    def layer_norm(self) -> Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None:
        return apex_layer_norm if works("apex.normalization.fused_layer_norm") and works(COMPILED_NORM) else None

    def profile(self, folder: Path, name: str) -> AbstractContextManager[Any]:
        return torch_profile([ProfilerActivity.CPU, ProfilerActivity.CUDA], folder, name)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release_memory(self) -> None:
        torch.cuda.empty_cache()


@functools.cache
def works(module: str) -> bool:
    """True if a module of an optional package imports. One that was built for another torch is left out with one warning."""
    if find_spec(module.partition(".")[0]) is None:
        return False
    try:
        importlib.import_module(module)
    except Exception as error:  # it may fail in any way
        logger().warning("%s is installed but cannot be imported (%s): torch's own is used", module, error)
        return False
    return True


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """flash-attn's layout is [B, N, h, d]; it scales by d^-0.5 by itself."""
    from flash_attn import flash_attn_func

    if mask is not None:
        raise ValueError("flash-attn: a mask was given; it has none, use torch's attention")
    return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def apex_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """apex's fused kernel, which wants either both of weight and bias or none."""
    from apex.normalization.fused_layer_norm import fused_layer_norm, fused_layer_norm_affine

    if weight is None or bias is None:
        return fused_layer_norm(x, (x.shape[-1],), eps)
    return fused_layer_norm_affine(x, weight, bias, (x.shape[-1],), eps)
