"""`opensora bench engine`: the cost of training on this machine under each plugin, on one rank and on two.

Every case is a separate run, started as users start theirs; its ranks execute `engine_rank.py`.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.subprocesses import heading, machine, run_module
from opensora.datasets.moving_shapes import TEMPLATES, MovingShapes, combinations
from opensora.platforms import Platform
from opensora.rng import Draw
from opensora.sampling.video_writer import write_video


@dataclass(frozen=True)
class Case:
    plugin: str
    ranks: int
    sp_size: int = 1

    def describe(self) -> str:
        return self.plugin + (f" (sp_size={self.sp_size})" if self.sp_size > 1 else "")


CASES = (
    *(Case(plugin, ranks) for plugin in ("ddp", "zero1", "zero2") for ranks in (1, 2)),
    Case("zero2-seq", 1),
    Case("zero2-seq", 2, sp_size=2),
)
LEVELS = ["ResnetBlock3D", "ResnetBlock3D"]
TINY_VAE = {
    "type": "CausalVAEModel",
    "hidden_size": 8,
    "hidden_size_mult": [1, 2],
    "num_res_blocks": 1,
    "norm_groups": 4,
    "encoder_resnet_blocks": LEVELS,
    "decoder_resnet_blocks": LEVELS,
    "encoder_spatial_downsample": ["Downsample", ""],
    "encoder_temporal_downsample": ["TimeDownsampleRes2x", ""],
    "decoder_spatial_upsample": ["", "SpatialUpsample2x"],
    "decoder_temporal_upsample": ["", "TimeUpsampleRes2x"],
}
MICRO_BATCHES = 2  # of one clip: on two ranks each computes one, or half of both under sequence parallelism


def run_config(case: Case, folder: Path, quick: bool) -> dict[str, Any]:
    """A training run of class-conditional Latte in float32, whose autoencoder and text cost next to nothing."""
    width, depth, pixels, frames = (64, 2, 16, 5) if quick else (512, 4, 48, 17)
    return {
        "vae": TINY_VAE,
        "text_encoder": {"type": "classes", "names": captions()},
        "model": {"type": "Latte", "hidden_size": width, "depth": depth, "num_heads": 8, "patch_size": [1, 2, 2]},
        "scheduler": {"type": "iddpm"},
        "dataset": {"type": "MovingShapes", "clips": 64, "num_frames": frames, "image_size": [pixels, pixels]},
        "plugin": case.plugin,
        "sp_size": case.sp_size,
        "dtype": "fp32",
        "batch_size": 1,
        "micro_batches": MICRO_BATCHES,
        "steps": 3 if quick else 6,
        "save_every": 0,
        "log_every": 1,
        "run_dir": str(folder / "run"),
    }


def captions() -> list[str]:
    """Every caption of MovingShapes."""
    return [shape.caption(template) for shape in combinations("train") for template in TEMPLATES]


def footage(folder: Path, files: int, frames: int, size: tuple[int, int]) -> Path:
    """Write synthetic videos of `frames` frames and size (height, width), and a manifest with their captions."""
    shapes = MovingShapes(files, frames, size)
    lines = ["path,text"]
    for row in range(files):
        clip = shapes.clip(row, Draw(0, 0, row))
        write_video(clip.video_CTHW, folder / f"{row}.mp4", fps=24.0)
        lines.append(f"{folder / f'{row}.mp4'},{clip.caption}")
    manifest = folder / "footage.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def run_ranks(config: dict[str, Any], folder: Path, ranks: int, task: str) -> dict[str, Any]:
    """Run `task` of engine_rank.py on `ranks` ranks; returns the main rank's result."""
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return run_module("bench.engine_rank", task, str(file), ranks=ranks)


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure everything with equal global batches and one thread per rank."""
    steps = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            result = run_ranks(run_config(case, Path(name), quick), Path(name), case.ranks, "steps")
        steps.append({"plugin": case.describe(), "ranks": case.ranks, **result})
    with tempfile.TemporaryDirectory() as name:
        loop = run_ranks(run_config(Case("ddp", 1), Path(name), quick), Path(name), 1, "overhead")
    with tempfile.TemporaryDirectory() as name:
        data = _data(Path(name), quick)
    return {"machine": machine(platform), "steps": with_efficiency(steps), "loop": loop, "data": data}


def with_efficiency(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the parallel efficiency to each row: seconds on one rank / (ranks * seconds)."""
    baseline = {row["plugin"].split(" ")[0]: row["seconds"] for row in rows if row["ranks"] == 1}
    return [
        {**row, "efficiency": baseline[row["plugin"].split(" ")[0]] / (row["ranks"] * row["seconds"])} for row in rows
    ]


def _data(folder: Path, quick: bool) -> dict[str, Any]:
    """Measure decoding alone, and a run that reads its clips from files while it computes and saves."""
    files, size = (2, (48, 64)) if quick else (8, (360, 640))
    manifest = footage(folder, files, frames=48, size=size)
    config = run_config(Case("zero2", 1), folder, quick)
    config["dataset"] = {
        "type": "VideoTextDataset",
        "data_path": str(manifest),
        "num_frames": config["dataset"]["num_frames"],
        "image_size": config["dataset"]["image_size"],
    }
    config |= {"num_workers": 1, "steps": 4 if quick else 12, "save_every": 2 if quick else 4}
    return {"files": f"{size[1]}x{size[0]} H.264", **run_ranks(config, folder, 1, "data")}


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    steps = Table(
        "plugin", "ranks", "parameters, M", "s/step", "efficiency", "peak, MiB per rank", title="Training step"
    )
    for row in results["steps"]:
        steps.add_row(
            row["plugin"],
            str(row["ranks"]),
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['efficiency']:.2f}" if row["ranks"] > 1 else "",
            f"{row['peak_bytes'] / 2**20:,.0f}",
        )
    loop, data = results["loop"], results["data"]
    return [
        heading(results),
        steps,
        f"loop: {loop['loop_seconds']:.3f} s/step, forward + backward + step alone {loop['bare_seconds']:.3f} s: "
        f"{loop['overhead']:+.1%}",
        f"loader: {data['clips_per_second']:.1f} clips/s in one process, clips of {data['clip']} out of {data['files']}",
        f"run with one loader process: {data['waited']} of {data['steps']} steps waited for data (longer than 1% of a "
        f"step of {data['step_seconds']:.2f} s)",
        f"save: training paused {data['save_pause_seconds']:.2f} s at most for {data['checkpoint_bytes'] / 2**20:,.0f} MiB",
    ]
