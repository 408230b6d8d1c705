"""`opensora bench buckets`: how long a manifest of ten million rows takes to become a plan of optimizer steps.

The manifest is made up, in a temporary folder; a process of its own reads and plans it, as each rank of a run does.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from opensora.bench.launch import answer_of, heading, machine, tell
from opensora.datasets.buckets import BucketConfig
from opensora.platforms import Platform

ROWS, QUICK_ROWS = 10_000_000, 100_000
MICRO_BATCHES = 8
_BLOCK = 1 << 18

# Open-Sora 1.2, stage 1.
CONFIG: BucketConfig = {
    "144p": {1: (1.0, 475), 51: (1.0, 51), 102: ((1.0, 0.33), 27), 204: ((1.0, 0.1), 13), 408: ((1.0, 0.1), 6)},
    "256": {1: (0.4, 297), 51: (0.5, 20), 102: ((0.5, 0.33), 10), 204: ((0.5, 0.1), 5), 408: ((0.5, 0.1), 2)},
    "240p": {1: (0.3, 297), 51: (0.4, 20), 102: ((0.4, 0.33), 10), 204: ((0.4, 0.1), 5), 408: ((0.4, 0.1), 2)},
    "360p": {1: (0.2, 141), 51: (0.15, 8), 102: ((0.15, 0.33), 4), 204: ((0.15, 0.1), 2), 408: ((0.15, 0.1), 1)},
    "512": {1: (0.1, 141)},
    "480p": {1: (0.1, 89)},
    "720p": {1: (0.05, 36)},
    "1024": {1: (0.05, 36)},
    "1080p": {1: (0.1, 5)},
    "2048": {1: (0.1, 5)},
}
# height, width in pixels of cameras, phones and pictures
_SIZES = np.array(
    [(1080, 1920), (720, 1280), (2160, 3840), (1920, 1080), (480, 854), (240, 426), (1024, 1024), (600, 800)]
)


def write_manifest(path: str, rows: int) -> None:
    """Parquet of pictures (three in ten) and videos of 10 to 500 frames; a few rows without caption, size or sense."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    kinds = {"path": pyarrow.string(), "text": pyarrow.string(), "fps": pyarrow.float64()}
    kinds |= dict.fromkeys(("num_frames", "height", "width"), pyarrow.int64())
    schema, rng = pyarrow.schema(kinds.items()), np.random.default_rng(0)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, _BLOCK):
            n = min(_BLOCK, rows - begin)
            number = pyarrow.array(begin + np.arange(n)).cast(pyarrow.string())
            text = pyarrow.compute.binary_join_element_wise(
                "a clip of something that moves, the one of number", number, " "
            )
            height, width = (_SIZES[rng.integers(len(_SIZES), size=n)] + rng.integers(-8, 9, (n, 2))).T
            columns = {
                "path": pyarrow.compute.binary_join_element_wise("videos/part-0/clip", number, "-"),
                "text": pyarrow.compute.if_else(pyarrow.array(rng.random(n) < 1e-4), "", text),
                "fps": rng.choice([23.976, 24.0, 25.0, 29.97, 30.0, 60.0], n),
                "num_frames": np.where(rng.random(n) < 0.3, 1, rng.integers(10, 500, n)),
                "height": pyarrow.array(height, mask=rng.random(n) < 1e-4),
                "width": np.where(rng.random(n) < 1e-4, -1, width),
            }
            writer.write_table(pyarrow.table(columns, schema=schema))


def plan(path: str) -> dict[str, Any]:
    """Read and plan in this process, as `opensora train` does; seconds, the process's peak memory, counts."""
    from opensora.datasets.bucket_plan import BucketOrder
    from opensora.datasets.buckets import Buckets
    from opensora.datasets.video import VideoTextDataset

    begin = time.perf_counter()
    dataset = VideoTextDataset(path)
    read = time.perf_counter()
    order = BucketOrder(dataset, Buckets(CONFIG), seed=42, micro_batches=MICRO_BATCHES)
    report = order.report()
    done, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": report.rows,
        "steps": report.steps,
        "kept": report.kept,
        "dropped": report.dropped,
        "read_seconds": read - begin,
        "plan_seconds": done - read,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "buckets": [
            {"bucket": line.name(), "batch": line.batch_size, "rows": line.rows, "steps": line.steps}
            for line in report.lines_by_bucket
        ],
    }


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Every number. Planning needs no device."""
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory(prefix="buckets-") as folder:
        path = str(Path(folder, "manifest.parquet"))
        begin = time.perf_counter()
        write_manifest(path, rows)
        made = time.perf_counter()
        found = answer_of("opensora.bench.buckets", path)
        whole = time.perf_counter() - made
        size = Path(path).stat().st_size
    return {
        **found,
        "making_seconds": made - begin,
        "process_seconds": whole,
        "file_bytes": size,
        "machine": machine(platform),
    }


def tables(found: dict[str, Any]) -> list[Table | str]:
    """The same for people."""
    whole = Table("what", "number", title="A manifest to optimizer steps")
    for name, value in {
        "rows of the manifest": f"{found['rows']:,}",
        "its size, MiB": f"{found['file_bytes'] / 2**20:,.0f}",
        "making it up, s": f"{found['making_seconds']:.1f}",
        "starting, reading and planning, s": f"{found['process_seconds']:.1f}",
        "of that reading and judging rows, s": f"{found['read_seconds']:.1f}",
        "of that planning an epoch, s": f"{found['plan_seconds']:.1f}",
        "processor time of all that, s": f"{found['processor_seconds']:.1f}",
        "peak memory of the process, MiB": f"{found['peak_bytes'] / 2**20:,.0f}",
        "optimizer steps of an epoch": f"{found['steps']:,}",
        "rows trained on": f"{found['kept']:,}",
        **{f"rows dropped: {reason}": f"{rows:,}" for reason, rows in found["dropped"].items()},
    }.items():
        whole.add_row(name, value)
    buckets = Table("bucket", "batch", "rows", "steps", title="Buckets")
    for row in found["buckets"]:
        buckets.add_row(row["bucket"], str(row["batch"]), f"{row['rows']:,}", f"{row['steps']:,}")
    return [heading(found), whole, buckets]


if __name__ == "__main__":
    tell(plan(sys.argv[1]))
