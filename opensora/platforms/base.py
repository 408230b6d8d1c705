"""The interface of a device; cpu, cuda and npu differ here and nowhere else."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.schema import Precision


@dataclass(frozen=True)
class Feature:
    """Something that works when its modules import; `opensora doctor` lists it."""

    name: str
    modules: tuple[str, ...]
    install_command: str
    imported: bool = True  # False: only its files are used


class Platform(ABC):
    name: str  # registry name, and torch's device type
    backend: str  # for torch.distributed; the CPU part carries objects and checkpoint plans
    priority: int  # the highest usable one is chosen when the user names none
    launches_kernels: bool = True  # each operation is a launch: few large ones are faster than many small ones
    features: tuple[Feature, ...] = ()  # packages that only this device uses

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """True if the driver and at least one device are present."""

    @abstractmethod
    def device(self, local_rank: int = 0) -> torch.device:
        """The device of this process among those of its machine; it becomes the current one."""

    @abstractmethod
    def device_count(self) -> int:
        """Devices of this machine: the ranks it can hold with one each."""

    @abstractmethod
    def device_name(self) -> str:
        """The device's own name for itself."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory of one device."""

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """The most this process has held so far."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work handed to the device is done."""

    @abstractmethod
    def profile(self, folder: Path, name: str) -> AbstractContextManager[Any]:
        """Record what host and device do inside; at its end a trace of that `name` lies in `folder`."""

    def multiplies_bf16(self) -> bool:
        """True if the device has units for bfloat16; without them it is many times slower than float32."""
        return True

    def choose_dtype(self, wanted: Precision) -> Precision:
        """The config's "auto" as "bf16" or "fp32"; any other word as it is."""
        if wanted != "auto":
            return wanted
        return "bf16" if self.multiplies_bf16() else "fp32"

    def set_numerics(self, tf32: bool = False, deterministic: bool = False) -> None:
        """Choose the kernels of this process; call it before the first one runs.

        tf32: float32 products and convolutions may round their factors to 10 bits where the device has units for that.
        deterministic: the same numbers bit for bit each time; an operation that cannot raises RuntimeError.
        """
        torch.use_deterministic_algorithms(deterministic)

    def release_memory(self) -> None:
        """Free the cached device memory that nothing uses."""
        return None

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Callable[..., Tensor] | None:
        """The device's own attention for q [B, h, N, d], k and v [B, h, M, d] and a mask that is bool [B, 1, 1 or N, M]
        (True = may be seen) or None; None when torch's is the best there is."""
        return None

    def layer_norm(self) -> Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None:
        """The device's own layer norm along the last axis (x, weight, bias, eps); None = torch's."""
        return None

    def rms_norm(self) -> Callable[[Tensor, Tensor, float], Tensor] | None:
        """The device's own root mean square norm along the last axis (x, weight, eps); None = ours."""
        return None

    def pads_wrongly(self, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> bool:
        """True if the device's convolution over `x` [B, C, ...] is wrong when it pads the input itself."""
        return False

    def misjudges_weights(self, x: Tensor) -> bool:
        """True if the device's gradient of the weights of a convolution over `x` [B, C, ...] is wrong."""
        return False

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Matrix products in `dtype`; float32 leaves everything as it is."""
        return torch.autocast(self.name, dtype=dtype, enabled=dtype is not torch.float32)


def torch_profile(activities: Iterable[Any], folder: Path, name: str) -> AbstractContextManager[Any]:
    """torch's profiler; the trace opens in Perfetto, Chrome's tracing page and TensorBoard."""
    from torch.profiler import profile, tensorboard_trace_handler

    write = tensorboard_trace_handler(str(folder), worker_name=name, use_gzip=True)
    return profile(activities=activities, on_trace_ready=write, record_shapes=True, profile_memory=True)
