"""Ascend devices through torch-npu, which adds `torch.npu`."""

import importlib.util
from collections.abc import Callable
from functools import cached_property
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.platforms.base import Platform
from opensora.registry import PLATFORMS


@PLATFORMS.register_module(name="npu")
class NpuPlatform(Platform):
    name = "npu"
    backend = "cpu:gloo,npu:hccl"
    priority = 2

    @classmethod
    def is_available(cls) -> bool:
        if importlib.util.find_spec("torch_npu") is None:
            return False
        try:
            import torch_npu
        except (ImportError, OSError):  # the wheel is there but CANN's shared libraries are not
            return False
        return torch_npu.npu.is_available()

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

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Callable[..., Tensor] | None:
        """The fused kernel, for half precision."""
        return fused_attention if dtype in (torch.bfloat16, torch.float16) else None

    def rms_norm(self) -> Callable[[Tensor, Tensor, float], Tensor] | None:
        return fused_rms_norm

    def synchronize(self) -> None:
        self._npu.synchronize()

    def release_memory(self) -> None:
        self._npu.empty_cache()


HEAD_STEP = 16  # the kernel wants head widths in multiples of this


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
    import torch_npu

    return torch_npu.npu_rms_norm(x, weight, epsilon=eps)[0]
