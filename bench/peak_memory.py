"""Peak memory of a process between two moments: the device's where there is one, otherwise the process's own."""

import ctypes
from pathlib import Path

from opensora.platforms import Platform, select


class PeakMemory:
    """Starts when it is made.

    On the CPU it resets the process's high-water mark, which stays what it is between two resets (proc(5)).
    """

    def __init__(self, platform: Platform | None = None):
        self._platform = platform or select()
        if self._platform.name == "cpu":
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")
        else:
            self._before = self._platform.peak_memory_bytes()

    def added_bytes(self) -> int:
        """The peak since the start less the memory at the start."""
        if self._platform.name == "cpu":
            return _status_bytes("VmHWM") - self._before
        self._platform.synchronize()
        return self._platform.peak_memory_bytes() - self._before


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_SMALL_BLOCK = 64 * 2**10


def return_freed_memory() -> bool:
    """Have this process return freed memory to the system from now on, so that its peak is that of its tensors.

    By default glibc raises the size from which a block is mapped alone, up to 32 MiB, each time it frees such a block.
    Later tensors then lie in the heap, and a varying number of holes between them stays with the process. This costs
    time: do not use it where time is measured. Returns False where the C library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(key, _SMALL_BLOCK) for key in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
