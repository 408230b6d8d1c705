"""Ascend devices through torch-npu, which adds `torch.npu`. Written against torch-npu 2.14.0; see docs/ascend.md."""

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.errors import ConfigError
from opensora.platforms.base import Feature, Platform
from opensora.registry import PLATFORMS
from opensora.schema import Precision


@PLATFORMS.register_module(name="npu")
class NpuPlatform(Platform):
    name = "npu"
    backend = "cpu:gloo,npu:hccl"
    priority = 2
    features = (Feature("Ascend devices", ("torch_npu",), "pip install -r requirements/npu.txt"),)

    @classmethod
    def is_available(cls) -> bool:
        if importlib.util.find_spec("torch_npu") is None:
            return False
        try:
            import torch_npu

            return torch_npu.npu.is_available()
        except Exception:  # the wheel is there, but not CANN's libraries or the driver, or it is one for another torch
            return False

    @cached_property
    def _npu(self) -> ModuleType:
        import torch_npu

        return torch_npu.npu

    def device(self, local_rank: int = 0) -> torch.device:
        self._npu.set_device(local_rank)
        return torch.device("npu", local_rank)

    def device_count(self) -> int:
        return self._npu.device_count()

    def device_name(self) -> str:
        return self._npu.get_device_name()

    def memory_bytes(self) -> int:
        return self._npu.get_device_properties(self._npu.current_device()).total_memory

    def peak_memory_bytes(self) -> int:
        return self._npu.max_memory_allocated()

    def multiplies_bf16(self) -> bool:
        """From Ascend 910B (Atlas A2) on."""
        return self._npu.is_bf16_supported()

    def choose_dtype(self, wanted: Precision) -> Precision:
        """ConfigError for "bf16" where there are no units: unlike others, these devices do not emulate it."""
        if wanted == "bf16" and not self.multiplies_bf16():
            raise ConfigError(
                f"dtype: 'bf16' on {self.device_name()}, which has none; allowed there: 'fp32'; set dtype='auto'"
            )
        return super().choose_dtype(wanted)

    def set_numerics(self, tf32: bool = False, deterministic: bool = False) -> None:
        """tf32 stands for HF32, whose factors have 11 bits."""
        super().set_numerics(tf32, deterministic)
        self._npu.matmul.allow_hf32 = tf32
        self._npu.conv.allow_hf32 = tf32
        if deterministic:
            os.environ.setdefault("HCCL_DETERMINISTIC", "true")

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Callable[..., Tensor] | None:
        """The fused kernel, for half precision; float32 keeps torch's exact products."""
        fits = dtype in (torch.bfloat16, torch.float16) and head_dim <= WIDEST_HEAD
        return fused_attention if fits else None

    def rms_norm(self) -> Callable[[Tensor, Tensor, float], Tensor] | None:
        return fused_rms_norm

    def profile(self, folder: Path, name: str) -> AbstractContextManager[Any]:
        """torch-npu's own profiler, for torch's does not see the device. Its trace is a folder, for MindStudio Insight;
        its trace_view.json opens in Perfetto."""
        from torch_npu import profiler

        return profiler.profile(
            activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
            on_trace_ready=profiler.tensorboard_trace_handler(str(folder), worker_name=name),
            record_shapes=True,
            profile_memory=True,
        )

    def synchronize(self) -> None:
        self._npu.synchronize()

    def release_memory(self) -> None:
        self._npu.empty_cache()


HEAD_STEP = 16  # older versions of CANN take head widths in multiples of this only
WIDEST_HEAD = 768


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Its mask is True where a key is hidden and has a row for every query.

    Zeros are appended to heads of an odd width: they change no product, and the scale is that of the true width.
    """
    import torch_npu

    width = q.shape[-1]
    q, k, v = (F.pad(part, (0, -width % HEAD_STEP)) for part in (q, k, v))
    hidden = None if mask is None else ~mask.expand(-1, -1, q.shape[2], -1)
    out = torch_npu.npu_fusion_attention(
        q, k, v, q.shape[1], "BNSD", atten_mask=hidden, scale=width**-0.5, keep_prob=1.0
    )
    return out[0][..., :width]


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The kernel wants x and weight of one type; under autocast x is the narrower, and ours widens it, too."""
    import torch_npu

    wide = torch.promote_types(x.dtype, weight.dtype)
    return torch_npu.npu_rms_norm(x.to(wide), weight.to(wide), epsilon=eps)[0]
