"""The host's processors, with gloo between ranks."""

import os
import platform
import resource
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from opensora.platforms.base import Platform, torch_profile
from opensora.registry import PLATFORMS

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@PLATFORMS.register_module(name="cpu")
class CpuPlatform(Platform):
    name = "cpu"
    backend = "gloo"
    priority = 0
    launches_kernels = False

    @classmethod
    def is_available(cls) -> bool:
        return True

    def device(self, local_rank: int = 0) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return cores()

    def device_name(self) -> str:
        name = _capabilities().get("cpu_name") or platform.machine()
        return f"{name} ({cores()} cores)"

    def memory_bytes(self) -> int:
        """Physical memory, or the container's limit when that is lower."""
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limits = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
        return min([physical, *(int(limit) for limit in limits if limit.isdigit())])

    def peak_memory_bytes(self) -> int:
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def multiplies_bf16(self) -> bool:
        """x86 with AVX-512 BF16 or AMX, Arm with its bf16 extension; elsewhere fp32 is up to 100 times faster."""
        return any(_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))

    def pads_wrongly(self, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> bool:
        """True for bfloat16 convolutions that pad an axis which is shorter than their filter.

        oneDNN 3.12 (torch 2.14.1) then returns outputs and gradients from uninitialised memory on processors with
        AVX-512: AMX kernels with one frame and an odd number of channels (outputs, too), AVX-512 kernels with two frames
        under a filter of three (gradients of the weights). Longer inputs, inputs that hold their zeros, float32 and AVX2
        are right. The processor is not part of the condition, so every processor computes one and the same thing.
        """
        if not any(pad > 0 and size < kernel for size, kernel, pad in zip(x.shape[2:], kernel_size, padding)):
            return False
        return _computes_in_bf16(x)

    def misjudges_weights(self, x: Tensor) -> bool:
        """True for bfloat16 clips [B, C, T, H, W].

        oneDNN 3.12 (torch 2.14.1) with AMX: the gradient of the weights is NaN, off by 5 to 50 %, or written past its
        memory, which ends the process, where few frames are large: up to 9 of 128x64 with 16 channels, up to 5 of 48x48
        with 64, one with 3 channels. Outputs, gradients of inputs, convolutions over pictures, float32 and AVX-512
        without AMX are right. Every processor computes the same, as with `pads_wrongly`.
        """
        return x.dim() == 5 and _computes_in_bf16(x)

    def profile(self, folder: Path, name: str) -> AbstractContextManager[Any]:
        return torch_profile([ProfilerActivity.CPU], folder, name)

    def synchronize(self) -> None:
        """Nothing to wait for: CPU operations return when they are done."""


def _computes_in_bf16(x: Tensor) -> bool:
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return autocast or x.dtype is torch.bfloat16


def _capabilities() -> dict[str, Any]:
    """Torch's record of the processor's features; {} in versions of torch without one."""
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
