"""Record the counts of a step on a fake CUDA device again: what changed shows in the diff of the file.

    python -m tests.golden.device_counts

Blocks: kernels of the forward and the backward (operations that launch; views are none), and bytes kept for the backward
without weights. Token size: as large as the output of the block. Steps: the whole `train_step`; copies wait for the device
where they do not say otherwise. `tests/support/fake_device.py` says what a fake device cannot show.
"""

import sys
from pathlib import Path

from tests.golden.records import GOLDEN
from tests.support.fake_device_counts import Counts, block_counts, step_counts, world_size_counts

PATH = GOLDEN / "device_counts.txt"
COMMAND = "python -m tests.golden.device_counts"


def measure() -> Counts:
    """All counts, by name."""
    return {**block_counts(), **step_counts(), **world_size_counts()}


def read(path: Path = PATH) -> dict[str, str]:
    """The recorded counts."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return dict(_parts(line) for line in lines)


def _parts(line: str) -> tuple[str, str]:
    name, _, value = line.rpartition(": ")
    return name, value


def main() -> int:
    from importlib.metadata import version

    head = [
        "# Counts of blocks, optimizer steps and exchanges on a fake CUDA device.",
        f"# Written by `{COMMAND}` with torch {version('torch')} and colossalai {version('colossalai')}.",
    ]
    lines = [f"{name}: {value}" for name, value in measure().items()]
    PATH.write_text("\n".join(head + lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
