"""The host's processors, with gloo between ranks."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch

from opensora.platforms.base import Platform
from opensora.registry import PLATFORMS

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@PLATFORMS.register_module(name="cpu")
class CpuPlatform(Platform):
    name = "cpu"
    backend = "gloo"
    priority = 0

    @classmethod
    def is_available(cls) -> bool:
        return True

    def device(self, local_rank: int = 0) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return cores()

    def device_name(self) -> str:
        return f"{platform.machine()} ({cores()} cores)"

    def memory_bytes(self) -> int:
        """Physical memory, or the container's limit when that is lower."""
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limits = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
        return min([physical, *(int(limit) for limit in limits if limit.isdigit())])

    def peak_memory_bytes(self) -> int:
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def synchronize(self) -> None:
        """Nothing to wait for: CPU operations return when they are done."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
