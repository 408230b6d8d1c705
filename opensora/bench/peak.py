"""The most memory a process holds between two moments: the device's where there is one, otherwise the process's own."""

from pathlib import Path

from opensora.platforms import Platform, select


class Peak:
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
        """What was held at most since then, less what was held then."""
        if self._platform.name == "cpu":
            return _status_bytes("VmHWM") - self._before
        self._platform.synchronize()
        return self._platform.peak_memory_bytes() - self._before


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
