"""Seconds and memory of tools.dedupe.find for a table of ten million fingerprints: `python -m bench.dedupe [ROWS]`.

The table is synthetic and lies in a temporary folder. One row in ten is a copy of another: a third of them equal, the others
with 2 or 6 bits of 64 that differ. The command is a process of its own, so that its memory is that of the whole process.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.subprocesses import heading, machine
from bench.tables import run_tool
from opensora.platforms import Platform

ROWS, QUICK_ROWS = 10_000_000, 200_000
FRAMES = 8
COPIES = 10  # one row in ten is a copy
_BLOCK = 200_000
_FLIPPED = (0.0, 2 / 64, 6 / 64)  # share of the bits in which copies differ


def write_fingerprints(path: str, rows: int) -> int:
    """Write rows of path, frame_hash, perceptual_hash, height, width and bitrate; returns the number of copies."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    texts = dict.fromkeys(("path", "frame_hash", "perceptual_hash"), pyarrow.string())
    schema = pyarrow.schema({**texts, **dict.fromkeys(("height", "width", "bitrate"), pyarrow.int64())}.items())
    copies, rng = 0, np.random.default_rng(0)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - begin)
            codes = rng.integers(1, 1 << 64, (count, FRAMES), np.uint64)
            exact = rng.integers(1, 1 << 64, (count, 2), np.uint64)
            last = count // COPIES * COPIES
            for number, share in enumerate(_FLIPPED):  # copies stand far from their originals
                to = np.arange(number * COPIES, last, len(_FLIPPED) * COPIES)
                of = last - 1 - to
                codes[to] = codes[of] ^ _flips(rng, len(to), share)
                copies += len(to)
                if not share:
                    exact[to] = exact[of]
            columns = {
                "path": pyarrow.compute.binary_join_element_wise(
                    "clips/clip", pyarrow.array(begin + np.arange(count)).cast(pyarrow.string()), "-"
                ),
                "frame_hash": _hexadecimal(exact),
                "perceptual_hash": _hexadecimal(codes),
                "height": rng.choice([360, 720, 1080], count),
                "width": np.full(count, 1280),
                "bitrate": rng.integers(100_000, 5_000_000, count),
            }
            writer.write_table(pyarrow.table(columns, schema=schema))
    return copies


def _flips(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    bits = rng.random((count, FRAMES, 64), np.float32) < share
    return np.packbits(bits, axis=-1).view(np.uint64)[..., 0]


def _hexadecimal(codes: np.ndarray) -> Any:
    """A column of text with 16 digits for each number of [N, numbers]."""
    import pyarrow

    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    octets = np.ascontiguousarray(codes.astype(">u8")).view(np.uint8)
    text = np.stack([digits[octets >> 4], digits[octets & 15]], axis=-1).reshape(len(codes), -1)
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * text.shape[1]
    return pyarrow.StringArray.from_buffers(len(codes), pyarrow.py_buffer(offsets), pyarrow.py_buffer(text))


def measure(rows: int) -> dict[str, Any]:
    """Make a table, and search it by the command; returns seconds, peak memory and counts."""
    import pyarrow.compute
    import pyarrow.parquet

    with tempfile.TemporaryDirectory(prefix="dedupe-") as folder:
        path, output = (str(Path(folder, f"{name}.parquet")) for name in ("fingerprints", "marked"))
        copies = write_fingerprints(path, rows)
        seconds, peak = run_tool("tools.dedupe.find", path, output)
        kinds = pyarrow.parquet.read_table(output, columns=["duplicate_kind"]).column(0)
        counts = {each["values"]: each["counts"] for each in pyarrow.compute.value_counts(kinds).to_pylist()}
        file_bytes = Path(path).stat().st_size
    return {
        "rows": rows,
        "seconds": seconds,
        "peak_bytes": peak,
        "duplicates": {kind: counts.get(kind, 0) for kind in ("exact", "near")},
        "copies": copies,
        "file_bytes": file_bytes,
    }


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure; the search needs no device."""
    return {**measure(QUICK_ROWS if quick else ROWS), "machine": machine(platform)}


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    share = sum(results["duplicates"].values()) / results["copies"]
    table = Table("what", "number", title="Duplicates among fingerprints")
    for name, value in {
        "rows": f"{results['rows']:,}",
        "size of the table, MiB": f"{results['file_bytes'] / 2**20:,.0f}",
        "reading, searching and writing, s": f"{results['seconds']:.1f}",
        "rows per second": f"{results['rows'] / results['seconds']:,.0f}",
        "peak memory of the process, MiB": f"{results['peak_bytes'] / 2**20:,.0f}",
        "exact and near copies marked": ", ".join(f"{results['duplicates'][kind]:,}" for kind in ("exact", "near")),
        "share of all copies, %": f"{100 * share:.2f}",
    }.items():
        table.add_row(name, value)
    return [heading(results), table]


if __name__ == "__main__":
    from rich.console import Console

    from opensora.platforms import select

    numbers = {**measure(int(sys.argv[1]) if sys.argv[1:] else ROWS), "machine": machine(select())}
    for part in tables(numbers):
        Console(soft_wrap=True).print(part)
