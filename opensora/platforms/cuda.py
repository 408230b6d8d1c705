"""NVIDIA devices (and AMD ones through ROCm, which answers to the same names)."""

import torch

from opensora.platforms.base import Platform
from opensora.registry import PLATFORMS


@PLATFORMS.register_module(name="cuda")
class CudaPlatform(Platform):
    name = "cuda"
    backend = "cpu:gloo,cuda:nccl"
    priority = 1

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

    def synchronize(self) -> None:
        torch.cuda.synchronize()
