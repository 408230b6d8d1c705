"""NVIDIA devices (and AMD ones through ROCm, which answers to the same names)."""

import functools
import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity

from opensora.log import logger
from opensora.platforms.base import Feature, Platform, torch_profile
from opensora.registry import PLATFORMS

_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the latter: its name before torch 2.9
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
        if torch.version.hip is None and not any(name in os.environ for name in _ALLOCATOR_SETTINGS):
            # clips of several sizes split the memory into pieces; read when the first tensor is made
            name = _ALLOCATOR_SETTINGS[0] if torch.__version__ >= "2.9" else _ALLOCATOR_SETTINGS[1]
            os.environ[name] = "expandable_segments:True"
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

    def set_numerics(self, tf32: bool = False, deterministic: bool = False) -> None:
        super().set_numerics(tf32, deterministic)
        # together: left alone, torch rounds the factors of convolutions and not those of products
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = False  # it would choose by time, which differs between runs
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Callable[..., Tensor] | None:
        """flash-attn (Dao 2023, arXiv:2307.08691) where it is installed; it takes no masks and half precision only."""
        fits = not masked and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256
        if not fits or not works("flash_attn"):
            return None
        deterministic = torch.are_deterministic_algorithms_enabled()
        return functools.partial(flash_attention, deterministic=True) if deterministic else flash_attention

    def layer_norm(self) -> Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None:
        return apex_layer_norm if works("apex.normalization.fused_layer_norm") and works(COMPILED_NORM) else None

    def rms_norm(self) -> Callable[[Tensor, Tensor, float], Tensor] | None:
        return fused_rms_norm if hasattr(torch.ops.aten, "_fused_rms_norm") else None  # from torch 2.9 on

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


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, deterministic: bool = False) -> Tensor:
    """flash-attn's layout is [B, N, h, d]; it scales by d^-0.5 by itself. deterministic: of the backward."""
    from flash_attn import flash_attn_func

    if mask is not None:
        raise ValueError("flash-attn: a mask was given; it has none, use torch's attention")
    options = {"deterministic": True} if deterministic else {}  # versions before 2.4.1 have no such argument
    return flash_attn_func(*(part.transpose(1, 2) for part in (q, k, v)), **options).transpose(1, 2)


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """torch's kernel, which computes in float32. It wants x and weight of one type, and autocast would widen both."""
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def apex_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """apex's fused kernel, which wants either both of weight and bias or none."""
    from apex.normalization.fused_layer_norm import fused_layer_norm, fused_layer_norm_affine

    if weight is None or bias is None:
        return fused_layer_norm(x, (x.shape[-1],), eps)
    return fused_layer_norm_affine(x, weight, bias, (x.shape[-1],), eps)
