"""Rows per second and peak memory of the tools on whole tables, on a synthetic Parquet file.

Run: python -m bench.tables                        10 million rows, minutes
     python -m bench.tables --rows 100000 --folder /scratch

Every tool runs as a command of its own, so that its memory is that of the whole process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opensora.errors import OpenSoraError

ROWS = 10_000_000
_BLOCK = 1 << 18
_MOTIONS = np.array(["static", "pan_left", "pan_right", "zoom_in", "shake"])


def write_clips(path: str, rows: int) -> None:
    """Write a manifest of clips with captions and scores, 40 clips of each film; row n is clip n."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet

    rng, writer = np.random.default_rng(0), None
    for begin in range(0, rows, _BLOCK):
        numbers = begin + np.arange(min(_BLOCK, rows - begin))
        n, number = len(numbers), pyarrow.array(numbers).cast(pyarrow.string())
        film = pyarrow.array(numbers // 40).cast(pyarrow.string())
        table = pyarrow.table(
            {
                "path": compute.binary_join_element_wise("clips/clip-", number, ".mp4", ""),
                "source_path": compute.binary_join_element_wise("films/film-", film, ".mp4", ""),
                "text": compute.binary_join_element_wise("a dog runs along a beach at sunset, clip", number, " "),
                "num_frames": rng.integers(16, 500, n),
                "height": rng.integers(240, 1081, n),
                "width": rng.integers(320, 1921, n),
                "fps": rng.choice([24.0, 25.0, 30.0], n),
                "aes": rng.normal(5, 1, n),
                "flow": rng.gamma(2, 10, n),
                "cmotion": _MOTIONS[rng.integers(len(_MOTIONS), size=n)],
            }
        )
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def write_scores(path: str, rows: int) -> None:
    """Write a score for 19 of 20 clips, the last clips first."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet

    rng, writer = np.random.default_rng(1), None
    for begin in range(0, rows * 19 // 20, _BLOCK):
        numbers = rows - 1 - begin - np.arange(min(_BLOCK, rows * 19 // 20 - begin))
        number = pyarrow.array(numbers).cast(pyarrow.string())
        paths = compute.binary_join_element_wise("clips/clip-", number, ".mp4", "")
        table = pyarrow.table({"path": paths, "match": rng.normal(0.25, 0.05, len(numbers))})
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


# A process begins with the peak of the one that started it. This one is small, where a bench has torch in memory.
_SMALL_PARENT = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def run_tool(module: str, *arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of `python -m module arguments`. Raises OpenSoraError when it fails."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run([sys.executable, "-S", "-c", _SMALL_PARENT, *command], capture_output=True, text=True)
    if done.returncode:
        raise OpenSoraError(f"bench: {' '.join(command[1:])}: {done.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - begin, int(done.stdout) * 1024


def measure(rows: int, folder: str) -> list[dict[str, Any]]:
    """One entry per tool: name, rows, seconds, rows per second, peak memory in bytes."""
    clips, scores, out = (os.path.join(folder, name) for name in ("clips.parquet", "scores.parquet", "out.parquet"))
    write_clips(clips, rows)
    write_scores(scores, rows)
    three = ["--keep", "aes >= 4.5", "--keep", "flow > 2", "--keep", "text LIKE '%dog%'"]
    commands: list[tuple[str, list[str]]] = [
        ("filter, 3 conditions", ["filter", clips, out, *three]),
        ("filter, balanced", ["filter", clips, out, "--balance", "cmotion", "--per-value", str(max(1, rows // 20))]),
        ("join, left", ["join", clips, scores, out]),
        ("split", ["split", clips, out, "--validation", os.path.join(folder, "validation.parquet")]),
        ("sample", ["sample", clips, out, "--share", "0.1"]),
        ("merge", ["merge", clips, scores, out]),
        ("info", ["info", clips]),
    ]
    results = []
    for name, (tool, *arguments) in commands:
        seconds, peak = run_tool(f"tools.datasets.{tool}", *arguments)
        results.append(
            {"name": name, "rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "peak_bytes": peak}
        )
        print(f"{name:22} {seconds:7.1f} s {rows / seconds:12,.0f} rows/s {peak / 1e9:6.2f} GB", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="(default: %(default)s)")
    parser.add_argument(
        "--folder", help="for the tables, on a disk with a GB per million rows (default: a temporary one)"
    )
    options = parser.parse_args(argv)
    if options.folder is not None:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(options.rows, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
