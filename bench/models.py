"""`opensora bench models`: the cost of models on this machine, as tables and as JSON."""

from typing import Any

import torch
from rich.table import Table

from bench.memory import decoding_rows, training_rows
from bench.subprocesses import heading, machine
from bench.train_step import Case, kernel_choices, sampling_step, training_step
from opensora.platforms import Platform

TRAINING = (
    Case(width=1152, heads=16),
    Case(width=768, heads=12),
    Case(width=384, heads=6),
    Case(width=384, heads=6, frames=64),
)
SAMPLING = (
    (Case(width=1152, heads=16), 20),  # counted text tokens of a short prompt
    (Case(width=1152, heads=16, frames=1), 20),
    (Case(width=1152, heads=16, frames=1, text_tokens=300), 20),
)
# For a look: the same kinds of numbers in seconds.
QUICK_TRAINING = (Case(width=96, heads=4, frames=4, rows=8, columns=8),)
QUICK_SAMPLING = ((Case(width=96, heads=4, frames=2, rows=8, columns=8), 20),)


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure everything; bf16 only where the device has units for it, because elsewhere a step takes half an hour."""
    dtypes = [torch.bfloat16, torch.float32] if platform.multiplies_bf16() else [torch.float32]
    return {
        "machine": machine(platform),
        "bf16": platform.multiplies_bf16(),
        "training": [
            training_step(case, platform, dtype) for dtype in dtypes for case in (QUICK_TRAINING if quick else TRAINING)
        ],
        "sampling": [
            sampling_step(case, platform, dtypes[0], tokens) for case, tokens in (QUICK_SAMPLING if quick else SAMPLING)
        ],
        "kernels": kernel_choices(platform),
        "memory": [] if quick else training_rows() + decoding_rows(),
    }


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    training = Table(
        "dtype", "model", "GFLOP", "seconds", "GFLOP/s", "matmul GFLOP/s", "share", "least to most",
        title="Training step",
    )  # fmt: skip
    for row in results["training"]:
        numbers = (
            f"{row[key]:,.3g}" if row[key] < 100 else f"{row[key]:,.0f}"
            for key in ("gflop", "gflop_per_second", "matmul_gflop_per_second")
        )
        gflop, rate, matmul_rate = numbers
        training.add_row(
            row["dtype"], _model(row), gflop, f"{row['seconds']:.2f}", rate, matmul_rate, f"{row['share']:.2f}",
            f"{row['least_share']:.2f} to {row['most_share']:.2f}",
        )  # fmt: skip
    sampling = Table(
        "dtype", "model", "text tokens", "two forwards, s", "text kept, s", "speed-up", "difference",
        title="Guided sampling step",
    )  # fmt: skip
    for row in results["sampling"]:
        sampling.add_row(
            row["dtype"],
            _model(row),
            f"{row['counted_tokens']} of {row['text_tokens']}",
            f"{row['two_forwards_seconds']:.3f}",
            f"{row['kept_text_seconds']:.3f}",
            f"{row['speedup']:.2f}",
            f"{row['largest_difference']:.1e}",
        )
    kernels = Table("dtype", "keys", "attention kernel", title="Kernels")
    for row in results["kernels"]:
        kernels.add_row(row["dtype"], str(row["keys"]), row["kernel"])
    memory = Table("work", "peak, MiB", "ratio", "expected", title="Memory that the work adds")
    for row in results["memory"]:
        memory.add_row(row["work"], f"{row['bytes'] / 2**20:,.0f}", f"{row['ratio']:.2f}", f"{row['expected']:.2f}")
    shown: list[Table | str] = [heading(results), training, sampling, kernels]
    if not results["bf16"]:
        shown.insert(1, "bf16 was not timed: this device has no units for it")
    return shown + ([memory] if results["memory"] else [])


def _model(row: dict[str, Any]) -> str:
    return Case(**{key: row[key] for key in Case.__dataclass_fields__}).describe()
