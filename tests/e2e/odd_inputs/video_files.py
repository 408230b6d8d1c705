"""Video files that are whole but unusual."""

import functools
from pathlib import Path

import numpy as np

from opensora.datasets.decode import Video, probe, read_frames
from tests.e2e.odd_inputs.case import OddInput, Workbench
from tests.support.media_files import (
    add_cover,
    corner_names,
    corners,
    frame_number,
    set_display_matrix,
    write_turned,
    write_video,
)
from tools.datasets.probe import probe as probe_tool
from tools.runner import main
from tools.scene_cut.detect import detect


def frame_numbers(path: str) -> list[int]:
    """Numbers of all frames."""
    with Video(path) as video:
        return [frame_number(frame) for frame in video.frames(range(video.info.num_frames))]


def late_start(bench: Workbench) -> list[int]:
    """Numbers of all frames of a film whose first frame is shown after four units."""
    return frame_numbers(write_video(bench.folder / "late.mp4", 8, times=range(4, 12)))


def mirrored(bench: Workbench, matrix: tuple[int, ...]) -> str:
    """Colors of the quarters of a film with this display matrix."""
    path = write_video(bench.folder / "a.mp4", [corners()] * 2)
    set_display_matrix(path, matrix)
    return corner_names(read_frames(path, [0])[0])


def cover(bench: Workbench) -> list[str]:
    """The lines of tools.datasets.probe about two films with a cover picture in front and behind."""
    for name, first in (("a.mp4", True), ("b.mp4", False)):
        add_cover(write_video(bench.folder / name, 20), first=first)
    table = bench.folder / "videos.csv"
    main(probe_tool, [str(bench.folder), str(table)])
    return [",".join(line.split("/")[-1].split(",")[:5]) for line in table.read_text().splitlines()[1:]]


def fragments(bench: Workbench) -> list[int]:
    """Frames by kind of fragments."""
    kinds = ("frag_keyframe", "frag_keyframe+empty_moov", "cmaf", "hybrid_fragmented")
    return [
        probe(write_video(bench.folder / f"{number}.mp4", 20, options={"movflags": kind})).num_frames
        for number, kind in enumerate(kinds)
    ]


def turned(bench: Workbench) -> list[str]:
    """Training, cut detection and a manifest on a film that turns, next to a good one."""
    write_turned(bench.folder / "turn.ts", [(48, 64), (64, 48)])
    write_video(bench.folder / "good.mp4", 40, size=(48, 64))
    data = bench.folder / "turn.csv"
    data.write_text("path,text\nturn.ts,one\ngood.mp4,two\n")
    says = "turn.ts: the picture changes from 64x48 to 48x64 pixels at 0.80 s"
    scenes = bench.tool(
        functools.partial(main, detect),
        bench.folder / "turn.ts",
        bench.folder / "good.mp4",
        bench.folder / "scenes.csv",
    )
    return [bench.train(data, num_frames=29).has(f"turn.csv:2: {bench.folder}/{says}"), scenes.has(says)]


def disc(bench: Workbench) -> bool:
    """True if a disc is round as read; each stored pixel is shown two wide."""
    y, x = np.mgrid[:96, :64]
    picture = np.zeros((96, 64, 3), np.uint8)
    picture[((x - 32) * 2) ** 2 + (y - 48) ** 2 < 40**2] = 255
    frame = read_frames(write_video(bench.folder / "wide.mp4", [picture] * 2, pixel_ratio=2), [0])[0]
    rows, columns = np.where(frame[..., 0] > 128)
    return abs(int(np.ptp(rows)) - int(np.ptp(columns))) <= 2


def b_frames(bench: Workbench) -> list[int]:
    """Numbers of all frames of an AVI of H.264 with B-frames."""
    options = {"x264-params": "bframes=2:b-adapt=0:keyint=12:scenecut=0"}
    return frame_numbers(write_video(bench.folder / "b.avi", 30, gop=12, codec_options=options))


def foreign_title(bench: Workbench) -> int:
    """Frames of a film whose title is not UTF-8."""
    path = Path(write_video(bench.folder / "a.avi", 3, codec="mpeg4"))
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"caf\xe9", 1))
    return probe(str(path)).num_frames


MIRRORS = {
    "left to right": ((-1, 0, 0, 1, 64, 0), "grwb"),
    "top to bottom": ((1, 0, 0, -1, 0, 48), "bwrg"),
    "transposed": ((0, 1, 1, 0, 0, 0), "rbgw"),
    "on the other diagonal": ((0, -1, -1, 0, 48, 64), "wgbr"),
}

CASES = [
    OddInput("mp4 that starts late: its frames", list(range(8)), late_start),
    *(
        OddInput(f"mp4 mirrored {name}: colors of the quarters", shown, functools.partial(mirrored, matrix=matrix))
        for name, (matrix, shown) in MIRRORS.items()
    ),
    OddInput("mp4 with a cover picture: the film", ["a.mp4,20,8.0,32,64", "b.mp4,20,8.0,32,64"], cover),
    OddInput("fragmented mp4: frames", [20] * 4, fragments),
    OddInput("ts whose picture turns: named, and the run goes on", ["exit 0", "exit 0"], turned),
    OddInput("mp4 with pixels twice as wide as high: a disc is round", True, disc),
    OddInput("avi of H.264 with B-frames: its frames", list(range(30)), b_frames),
    OddInput("avi with a title in Latin-1: frames", 3, foreign_title),
]
