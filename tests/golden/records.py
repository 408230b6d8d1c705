"""The golden runs and their records: losses and gradient norms, step by step."""

import json
from pathlib import Path
from typing import NamedTuple

GOLDEN = Path(__file__).resolve().parent
STEPS = 10  # of the debug configs
SAVED = 4  # steps that the run folders under runs/ hold; their runs have 8
# name -> (config below the repository, overrides)
DEBUG = {
    "stdit": ("configs/stdit/train/debug.py", []),
    "vae": ("configs/vae/train/debug.py", []),
    "latte_t2v": ("configs/latte_t2v/train/debug.py", []),
    "adversarial": ("configs/vae/train/debug_adversarial.py", ["disc_start=0"]),
}
RUNS = ("stdit_bf16", "vae_discriminator")


class Record(NamedTuple):
    step: int
    loss: float
    grad_norm: float


def read_steps(run_dir: Path) -> list[Record]:
    """The steps that a run has logged."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Record(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def read_records(path: Path) -> list[Record]:
    """A golden file."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Record(int(step), float(loss), float(norm)) for step, loss, norm in lines]


def processor() -> str:
    """The units that choose kernels."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    names = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return ", ".join(names) or "none of AVX2, AVX-512"
