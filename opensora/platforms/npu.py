"""Ascend devices through torch-npu, which adds `torch.npu`."""

import importlib.util
from functools import cached_property
from types import ModuleType

import torch

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

    def synchronize(self) -> None:
        self._npu.synchronize()
