"""`opensora bench encoder`: memory and speed of the causal autoencoder's encoder in the layouts of 1.0 and 1.1.

1.0 has 3-D convolutions everywhere and pools frames; 1.1 has 2-D convolutions in the two finest levels and mixes pooling with a
convolution. Memory is measured in a new process for each case, time in this one, where both layouts take turns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from bench.memory import measured
from bench.subprocesses import heading, machine
from bench.timing import alternate
from opensora.errors import OpenSoraError
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.platforms import Platform, select

LEVELS = 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "1.0": {
        "encoder_conv_in": "CausalConv3d",
        "encoder_attention": "AttnBlock3D",
        "encoder_resnet_blocks": ["ResnetBlock3D"] * LEVELS,
        "encoder_spatial_downsample": ["SpatialDownsample2x"] * (LEVELS - 1) + [""],
        "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""],
    },
    "1.1": {},  # the defaults of CausalVAEModel
}
NAMES = list(LAYOUTS)
# In messages: torch's on devices, torch's on the CPU, and that of bench.subprocesses for a process the system ended.
NO_MEMORY = ("out of memory", "can't allocate memory", "memory runs out")


@dataclass(frozen=True)
class Sizes:
    """The cases of a table."""

    frames: tuple[int, ...]
    pixels: int  # rows and columns
    width: int  # channels of the finest level; 128 as released
    groups: int = 32  # of the norms


ON_DEVICES = Sizes((33, 65, 129, 257), pixels=256, width=128)
ON_CPUS = Sizes((33, 65, 129, 257), pixels=64, width=64)  # 257 frames: 1.7 TFLOP, about 64 times less
QUICK = Sizes((5, 9), pixels=32, width=16, groups=8)


def build(layout: str, width: int, groups: int) -> CausalVAEModel:
    """The autoencoder with initial weights; its decoder is that of 1.1 and takes no part."""
    torch.manual_seed(0)
    return CausalVAEModel(hidden_size=width, norm_groups=groups, **LAYOUTS[layout]).eval()


def encoding(layout: int, frames: int, pixels: int, width: int, groups: int) -> Callable[[], object]:
    """A task that encodes one clip whole; weights and clip exist before it starts. layout: a place in NAMES."""
    platform = select()
    dtype = dtype_on(platform)
    model = build(NAMES[layout], width, groups).to(platform.device(), dtype)
    clip = torch.randn(1, 3, frames, pixels, pixels).to(platform.device(), dtype)

    @torch.no_grad()
    def encode() -> None:
        expected = (2 * model.latent_channels, *model.latent_size((frames, pixels, pixels)))
        moments = model.encode_tile(clip)
        if moments.shape[1:] != expected:
            raise OpenSoraError(
                f"bench: moments of {tuple(moments.shape[1:])} instead of {expected}; report this as a bug"
            )

    return encode


def dtype_on(platform: Platform) -> torch.dtype:
    """bf16 on devices that multiply it, as in training; elsewhere float32."""
    return torch.bfloat16 if platform.name != "cpu" and platform.multiplies_bf16() else torch.float32


def flops(layout: str, frames: int, sizes: Sizes) -> int:
    """FLOP of encoding one clip, as torch counts them; nothing is computed."""
    with torch.device("meta"):
        model, clip = build(layout, sizes.width, sizes.groups), torch.empty(1, 3, frames, sizes.pixels, sizes.pixels)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode_tile(clip)
    return counter.get_total_flops()


def peak_bytes(layout: str, frames: int, sizes: Sizes) -> int | None:
    """Memory that encoding adds to a new process, at its peak; None where it does not fit."""
    case = {"frames": frames, "pixels": sizes.pixels, "width": sizes.width, "groups": sizes.groups}
    try:
        return measured("encoding", layout=NAMES.index(layout), **case)
    except OpenSoraError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        return None


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure both layouts at each number of frames; what does not fit into memory is not timed."""
    sizes = QUICK if quick else ON_CPUS if platform.name == "cpu" else ON_DEVICES
    rows = []
    for frames in sizes.frames:
        peaks = {layout: peak_bytes(layout, frames, sizes) for layout in LAYOUTS}
        fitting = [layout for layout, peak in peaks.items() if peak is not None]
        actions = [encoding(NAMES.index(each), frames, sizes.pixels, sizes.width, sizes.groups) for each in fitting]
        seconds = dict(zip(fitting, alternate(actions, platform, repeats=1), strict=True))
        rows += [
            {
                "layout": layout,
                "frames": frames,
                "gflop": flops(layout, frames, sizes) / 1e9,
                "bytes": peaks[layout],
                "seconds": seconds.get(layout),
            }
            for layout in LAYOUTS
        ]
    size = {"pixels": sizes.pixels, "width": sizes.width, "dtype": str(dtype_on(platform)).removeprefix("torch.")}
    return {"machine": machine(platform), **size, "rows": with_ratios(rows)}


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each number's ratio to that of 1.0 at the same number of frames; None where one of the two is missing."""
    first = {row["frames"]: row for row in rows if row["layout"] == NAMES[0]}
    keys = ("gflop", "bytes", "seconds")
    return [{**row, **{f"{key}_ratio": _ratio(row[key], first[row["frames"]][key]) for key in keys}} for row in rows]


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base is not None else None


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people; the ratios to 1.0 stand behind the numbers, "too much" for what does not fit into memory."""
    pixels = results["pixels"]
    table = Table(
        "layout", "frames", "GFLOP", "peak, MiB", "of 1.0", "seconds", "of 1.0", "frames/s",
        title=f"Causal encoder of width {results['width']}, one clip of {pixels}x{pixels} pixels at once, {results['dtype']}",
    )  # fmt: skip
    for row in results["rows"]:
        memory = "too much" if row["bytes"] is None else f"{row['bytes'] / 2**20:,.0f}"
        timed = (
            ("", "") if row["seconds"] is None else (f"{row['seconds']:.2f}", f"{row['frames'] / row['seconds']:.1f}")
        )
        ratios = ["" if row[f"{key}_ratio"] is None else f"{row[f'{key}_ratio']:.2f}" for key in ("bytes", "seconds")]
        table.add_row(
            row["layout"], str(row["frames"]), f"{row['gflop']:,.3g}" if row["gflop"] < 100 else f"{row['gflop']:,.0f}",
            memory, ratios[0], timed[0], ratios[1], timed[1],
        )  # fmt: skip
    return [heading(results), table]
