"""Peak memory of one task: what counts, and the ratios of the table."""

import subprocess
import sys

import pytest
import torch

from bench import memory
from opensora.errors import OpenSoraError


def test_ratios_refer_to_the_first_row_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {(65, 1): 100, (129, 1): 104, (257, 1): 98, (65, 0): 200, (129, 0): 400, (257, 0): 800}
    monkeypatch.setattr(memory, "measured", lambda name, frames, tiled: sizes[frames, tiled])
    rows = memory.decoding_rows()
    assert [row["ratio"] for row in rows] == [1.0, 1.04, 0.98, 1.0, 2.0, 4.0]
    assert [row["expected"] for row in rows] == [1.0, 1.0, 1.0, 1.0, 129 / 65, 257 / 65]


def test_memory_before_the_work_is_not_counted() -> None:
    size = 64 * 2**20
    before = torch.ones(size, dtype=torch.uint8)
    added = memory.added_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    assert before.numel() == size
    assert added == pytest.approx(size, rel=0.25)


def test_measured_process_returns_freed_memory() -> None:
    """A block costs its size, whatever was freed before; glibc by default keeps freed blocks, which then count as held."""
    script = (
        "import torch; from bench.peak_memory import PeakMemory, return_freed_memory; print(return_freed_memory())\n"
        "for size in (30, 20, 25): torch.ones(size, 2**20, dtype=torch.uint8)\n"
        "peak = PeakMemory()\n"
        "for size in (20, 24, 16): torch.ones(size, 2**20, dtype=torch.uint8)\n"
        "print(peak.added_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    switched, added = done.stdout.split()
    if switched == "False":
        pytest.skip("this C library has no mallopt")
    assert int(added) == pytest.approx(24 * 2**20, rel=0.1)


@pytest.mark.usefixtures("warm_children")
def test_failing_case_is_one_sentence() -> None:
    with pytest.raises(OpenSoraError, match=r"bench: .*nonsense.*bench.memory training nonsense=1`"):
        memory.measured("training", nonsense=1)
