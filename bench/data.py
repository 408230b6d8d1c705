"""`opensora bench data`: the data tools, from frames to ten million rows.

Footage is that of the demo and a film that is made for it; tables are synthetic. Every tool runs as a command, so that its
seconds hold the start of Python and its memory is that of the whole process.
"""

import importlib.util
import shutil
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench import dedupe, scene_cuts
from bench import tables as whole_tables
from bench.subprocesses import heading, machine
from opensora.datasets.decode import Video, read_frames
from opensora.platforms import Platform
from tools.datasets.probe import demo_videos

_RATE = 24
_FRAMES = 16  # that are read from the middle of the film
_SIZES: dict[bool, dict[str, int]] = {  # quick or not
    False: {"minutes": 10, "rows": 1_000_000, "table_rows": 10_000_000, "copies": 192, "repeats": 5},
    True: {"minutes": 1, "rows": 20_000, "table_rows": 100_000, "copies": 4, "repeats": 1},
}


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Measure; none of it needs a device."""
    size = _SIZES[quick]
    with tempfile.TemporaryDirectory(prefix="data-") as folder:
        return {
            "cuts": {Path(film).name: scene_cuts.command_seconds(film, size["repeats"]) for film in demo_videos()[:2]},
            "seek": seek_seconds(folder, size["minutes"]),
            "workers": worker_seconds(folder, size["copies"]),
            "rows": [row_seconds(folder, rows) for rows in (size["rows"] // 10, size["rows"])],
            "tables": whole_tables.measure(size["table_rows"], folder),
            "dedupe": dedupe.measure(size["table_rows"]),
            "machine": machine(platform),
        }


def seek_seconds(folder: str, minutes: int) -> dict[str, float]:
    """Seconds to read frames from the middle of a film by seeking, and by decoding up to there."""
    path, count = str(Path(folder, "film.mp4")), minutes * 60 * _RATE
    _write_film(path, count)
    middle = range(count // 2, count // 2 + _FRAMES)
    began = time.perf_counter()
    by_seek = read_frames(path, middle)
    sought = time.perf_counter()
    with Video(path) as video:
        frames = [frame for number, frame in enumerate(video.frames(range(middle.stop))) if number >= middle.start]
    decoded = time.perf_counter()
    if not np.array_equal(by_seek, np.stack(frames)):
        raise AssertionError("seeking and decoding gave different frames")
    return {"minutes": minutes, "seek_seconds": sought - began, "decode_seconds": decoded - sought}


def _write_film(path: str, frames: int) -> None:
    """A photo that moves, 320x180, with a key frame every 10 seconds as x264 sets them at that rate."""
    import av
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        picture = np.asarray(photo.convert("RGB").resize((400, 260)))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(_RATE), options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for number in range(frames):
            left, top = (abs(number % (2 * reach) - reach) for reach in (80, 77))
            view = np.ascontiguousarray(picture[top : top + 180, left : left + 320])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def worker_seconds(folder: str, copies: int) -> dict[str, float]:
    """Seconds of scene detection over copies of a clip with one worker, with two, and with two on Ray."""
    clips = Path(folder, "clips")
    clips.mkdir()
    for number in range(copies):
        shutil.copy(demo_videos()[0], clips / f"{number}.mp4")
    ways = {"one worker": ["--workers", "1"], "two workers": ["--workers", "2"]}
    if importlib.util.find_spec("ray") is not None:
        ways["two workers on Ray"] = ["--workers", "2", "--engine", "ray", "--ray-address", "local"]
    return {
        name: whole_tables.run_tool("tools.scene_cut.detect", str(clips), str(Path(folder, "scenes.csv")), *words)[0]
        for name, words in ways.items()
    }


def row_seconds(folder: str, rows: int) -> dict[str, float]:
    """Seconds and peak memory of a tool that does nothing."""
    source, target = str(Path(folder, "rows.parquet")), str(Path(folder, "same.parquet"))
    whole_tables.write_clips(source, rows)
    seconds, peak = whole_tables.run_tool("bench.same_row", source, target)
    return {"rows": rows, "seconds": seconds, "peak_bytes": peak}


def tables(results: dict[str, Any]) -> list[Table | str]:
    """The results for people."""
    footage = Table("what", "seconds", "", title="Footage")
    for film, commands in results["cuts"].items():
        best = {name: min(seconds for seconds, _ in runs) for name, runs in commands.items()}
        for name, seconds in best.items():
            footage.add_row(f"{name}, {film}", f"{seconds:.2f}", f"best of {len(commands[name])}")
    seek = results["seek"]
    footage.add_row(
        f"{_FRAMES} frames from the middle of {seek['minutes']} minutes by seek", f"{seek['seek_seconds']:.3f}", ""
    )
    times = seek["decode_seconds"] / seek["seek_seconds"]
    footage.add_row("the same by decoding up to there", f"{seek['decode_seconds']:.3f}", f"{times:.0f} times as long")
    one = results["workers"]["one worker"]
    for name, seconds in results["workers"].items():
        footage.add_row(f"scene detection, {name}", f"{seconds:.2f}", f"{one / seconds:.2f} times as fast as one")
    rows = Table("tool", "rows", "seconds", "rows/s", "peak MiB", title="Rows")
    every = [{"name": "a tool on rows that does nothing", **each} for each in results["rows"]]
    every += [*results["tables"], {"name": "dedupe.find, exact and near", **results["dedupe"]}]
    for each in every:
        rate, peak = each["rows"] / each["seconds"], each["peak_bytes"] / 2**20
        rows.add_row(each["name"], f"{each['rows']:,}", f"{each['seconds']:.1f}", f"{rate:,.0f}", f"{peak:,.0f}")
    return [heading(results), footage, rows]
