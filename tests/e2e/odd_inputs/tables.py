"""Manifests, prompt tables and caption tables."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow
import pyarrow.parquet

from opensora.datasets.manifest import read_manifest
from opensora.datasets.table import read_table, write_table
from opensora.errors import ConfigError
from opensora.sampling.requests import read_prompts
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tools.datasets.caption_table import caption, check_captions
from tools.runner import main
from tools.scene_cut.cut import cut

OPEN_QUOTE = ["c0.mp4,clip 0", 'c1.mp4,"a 5 inch screen', "c2.mp4,clip 2", "c3.mp4,clip 3"]


def manifest_of(bench: Workbench, lines: list[str], encoding: str = "utf-8") -> list[str]:
    """Captions of the rows that are kept, then reason and line of the others."""
    path = bench.folder / "clips.csv"
    path.write_bytes("\n".join(["path,text", *lines, ""]).encode(encoding))
    manifest = read_manifest(str(path))
    return [row.text for row in manifest.rows] + [
        f"{row.reason} {row.message.split(':')[1]}" for row in manifest.dropped
    ]


def prompts_of(bench: Workbench) -> str:
    """The error's file, line and reason."""
    path = bench.folder / "prompts.csv"
    path.write_text("path,text\n" + "\n".join(OPEN_QUOTE) + "\n")
    try:
        return str([prompt.text for prompt in read_prompts(path)])
    except ConfigError as error:
        return str(error).split("/")[-1].split(";")[0]


def nan_in_parquet(bench: Workbench) -> list[str]:
    texts = pyarrow.array([float("nan"), None, float("nan")], pyarrow.float64())
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", "b", "c"], "text": texts}), bench.folder / "t.parquet")
    return [row.reason for row in read_manifest(str(bench.folder / "t.parquet")).dropped]


def films_of_one_name(bench: Workbench, captions: str) -> list[str]:
    """The exit code, and the captions of the clips of two films."""
    (bench.folder / "captions.csv").write_text("video,shot,text\n" + captions)
    films = [f"/films/{day}/clip.mp4" for day in ("monday", "tuesday")]
    rows = [{"path": f"/{n}.mp4", "video": "clip.mp4", "source_path": film, "shot": 0} for n, film in enumerate(films)]
    clips, output = bench.folder / "clips.csv", bench.folder / "train.csv"
    write_table(str(clips), rows)
    arguments = [str(clips), str(output), "--captions", str(bench.folder / "captions.csv")]
    outcome = bench.tool(lambda argv: main(caption, argv, check=check_captions), *arguments)
    texts = [row["text"] for row in read_table(str(output)).rows] if output.exists() else []
    return [f"exit {outcome.code}", *texts]


def recordings_of_one_size_and_beginning(bench: Workbench) -> int:
    """Clips that are made of two films without compression that are black at first."""
    clips = set()
    for name, level in (("monday.avi", 60), ("tuesday.avi", 180)):
        film = bench.folder / name
        write_raw(film, [0] * 20 + [level] * 5)
        row = {"path": str(film), "start_frame": 0, "end_frame": 25}
        [clip] = cut(row, folder=str(bench.folder / "clips"))
        assert isinstance(clip, dict)
        clips.add(Path(clip["path"]).read_bytes())
    return len(clips)


def write_raw(path: Path, levels: list[int]) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


KEPT = ["clip 0", "clip 2", "clip 3"]
CASES = [
    OddInput(
        "CSV: a quote is never closed", [*KEPT, "quote not closed 3"], lambda bench: manifest_of(bench, OPEN_QUOTE)
    ),
    OddInput(
        "CSV: a quote is closed by that of a later row",
        [*KEPT, "good, and quoted", "quote not closed 3"],
        lambda bench: manifest_of(bench, [*OPEN_QUOTE, 'c4.mp4,"good, and quoted"']),
    ),
    OddInput(
        "prompt table: a quote is never closed", "prompts.csv, line 3: a quote opens and is not closed", prompts_of
    ),
    OddInput(
        "CSV: words for no value",
        ["clip", *(f"empty caption {line}" for line in range(2, 7))],
        lambda bench: manifest_of(
            bench, [f"{n},{w}" for n, w in enumerate(["nan", "NaN", "None", "null", "", "clip"])]
        ),
    ),
    OddInput("Parquet: float NaN as captions", ["empty caption"] * 3, nan_in_parquet),
    OddInput("CSV in UTF-16", ["x"], lambda bench: manifest_of(bench, ["a.mp4,x"], "utf-16")),
    OddInput(
        "films of one name: captions by folder",
        ["exit 0", "lighter", "darker"],
        lambda bench: films_of_one_name(bench, "monday/clip.mp4,0,lighter\ntuesday/clip.mp4,0,darker\n"),
    ),
    OddInput(
        "films of one name: one line for both",
        ["exit 2"],
        lambda bench: films_of_one_name(bench, "clip.mp4,0,lighter\n"),
    ),
    OddInput("films of one size and beginning: clips", 2, recordings_of_one_size_and_beginning),
]
