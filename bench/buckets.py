"""`opensora bench buckets`: how long a manifest of ten million rows takes to become a plan of optimizer steps.

The manifest is synthetic and lies in a temporary folder. A separate process reads and plans it, as each rank of a run does.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.subprocesses import heading, machine, run_module, send_result
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
# height, width in pixels of cameras, phones and images
_SIZES = np.array(
    [(1080, 1920), (720, 1280), (2160, 3840), (1920, 1080), (480, 854), (240, 426), (1024, 1024), (600, 800)]
)


def write_manifest(path: str, rows: int) -> None:
    """Write Parquet rows of images (30 %) and videos of 10 to 500 frames; a few lack a caption or a valid size."""
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
    """Read and plan in this process, as `opensora train` does; returns seconds, peak memory and counts."""
    from opensora.datasets.bucket_plan import BucketOrder
    from opensora.datasets.buckets import Buckets
    from opensora.datasets.video import VideoTextDataset

    start = time.perf_counter()
    dataset = VideoTextDataset(path)
    loaded = time.perf_counter()
    order = BucketOrder(dataset, Buckets(CONFIG), seed=42, micro_batches=MICRO_BATCHES)
    report = order.report()
    done, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": report.rows,
        "steps": report.steps,
        "kept": report.kept,
        "dropped": report.dropped,
        "read_seconds": loaded - start,
        "plan_seconds": done - loaded,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "buckets": [
            {"bucket": line.name(), "batch": line.batch_size, "rows": line.rows, "steps": line.steps}
            for line in report.lines_by_bucket
        ],
    }


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure; planning needs no device."""
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory(prefix="buckets-") as folder:
        path = str(Path(folder, "manifest.parquet"))
        start = time.perf_counter()
        write_manifest(path, rows)
        written = time.perf_counter()
        results = run_module("bench.buckets", path)
        process_seconds = time.perf_counter() - written
        size = Path(path).stat().st_size
    return {
        **results,
        "making_seconds": written - start,
        "process_seconds": process_seconds,
        "file_bytes": size,
        "machine": machine(platform),
    }


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    summary = Table("what", "number", title="A manifest to optimizer steps")
    for name, value in {
        "rows of the manifest": f"{results['rows']:,}",
        "its size, MiB": f"{results['file_bytes'] / 2**20:,.0f}",
        "making it up, s": f"{results['making_seconds']:.1f}",
        "starting, reading and planning, s": f"{results['process_seconds']:.1f}",
        "of that reading and judging rows, s": f"{results['read_seconds']:.1f}",
        "of that planning an epoch, s": f"{results['plan_seconds']:.1f}",
        "processor time of all that, s": f"{results['processor_seconds']:.1f}",
        "peak memory of the process, MiB": f"{results['peak_bytes'] / 2**20:,.0f}",
        "optimizer steps of an epoch": f"{results['steps']:,}",
        "rows trained on": f"{results['kept']:,}",
        **{f"rows dropped: {reason}": f"{rows:,}" for reason, rows in results["dropped"].items()},
    }.items():
        summary.add_row(name, value)
    buckets = Table("bucket", "batch", "rows", "steps", title="Buckets")
    for row in results["buckets"]:
        buckets.add_row(row["bucket"], str(row["batch"]), f"{row['rows']:,}", f"{row['steps']:,}")
    return [heading(results), summary, buckets]


if __name__ == "__main__":
    send_result(plan(sys.argv[1]))
