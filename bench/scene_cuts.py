"""Cuts of a whole film by several detectors: their number, recall, precision and time, and pictures of disagreements.

Run: python -m bench.scene_cuts film.mp4 --true cuts.txt
     python -m bench.scene_cuts film.mp4 --detectors content adaptive --pictures disagreements.png
     python -m bench.scene_cuts film.mp4 --time 3      takes turns with PySceneDetect's command on the same file

Without a list of true cuts the detectors are compared with each other: a cut that only some of them have is drawn with
two frames on each side, for people to judge.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from opensora.datasets.decode import read_frames
from tools.scene_cut.accuracy import cut_accuracy, read_cuts
from tools.scene_cut.detect import detect

_SIDE = 2  # frames before and after a cut in the pictures
_PICTURE_WIDTH = 240  # pixels


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film")
    parser.add_argument("--detectors", nargs="+", default=["content", "adaptive"])
    parser.add_argument("--weights", help="of TransNetV2")
    parser.add_argument(
        "--true", metavar="FILE", help="true cuts: a .txt with one frame a line, or a table with start_frame"
    )
    parser.add_argument("--tolerance", type=int, default=1, help="frames (default: %(default)s)")
    parser.add_argument("--pictures", metavar="PNG", help="draw the cuts that not all detectors have")
    parser.add_argument(
        "--time", type=int, metavar="N", help="N runs of the two commands in turn, instead of detectors"
    )
    arguments = parser.parse_args(argv)
    if arguments.time:
        for name, runs in command_seconds(arguments.film, arguments.time).items():
            wall, cpu = (min(each) for each in zip(*runs))
            print(f"{name}: {wall:.2f} s, {cpu:.2f} s of CPU, at best of {len(runs)} runs")
        return 0
    cuts = {}
    for name in arguments.detectors:
        began = time.perf_counter()
        rows = [
            row
            for row in detect({"path": arguments.film}, detector=name, weights=arguments.weights)
            if isinstance(row, dict)
        ]
        cuts[name] = [row["start_frame"] for row in rows[1:]]
        print(f"{name}: {len(cuts[name])} cuts in {rows[-1]['end_frame']} frames, {time.perf_counter() - began:.1f} s")
    if arguments.true:
        true = read_cuts(arguments.true)
        for name, each in cuts.items():
            result = cut_accuracy(each, true, arguments.tolerance)
            print(f"{name}: recall {result.recall:.4f}, precision {result.precision:.4f} of {len(true)} true cuts")
            print(f"  missed: {result.missed}\n  no cuts: {result.extra}")
    rest = disagreements(cuts, arguments.tolerance)
    for frame, names in rest.items():
        print(f"frame {frame}: {', '.join(names)} only")
    if arguments.pictures and rest:
        draw(arguments.film, rest, arguments.pictures)
    return 0


def disagreements(cuts: dict[str, list[int]], tolerance: int = 1) -> dict[int, list[str]]:
    """Cut -> the detectors that have it, of the cuts that not all of them have."""
    result: dict[int, list[str]] = {}
    for name, each in cuts.items():
        for cut in each:
            near = next((other for other in result if abs(other - cut) <= tolerance), cut)
            result.setdefault(near, []).append(name)
    return {cut: names for cut, names in sorted(result.items()) if len(names) < len(cuts)}


def draw(film: str, cuts: dict[int, list[str]], path: str) -> None:
    """A row of frames for each cut, which lies in the middle."""
    from PIL import Image, ImageDraw

    rows = []
    for cut, names in cuts.items():
        frames = read_frames(film, range(max(0, cut - _SIDE), cut + _SIDE))
        height = round(frames.shape[1] * _PICTURE_WIDTH / frames.shape[2])
        row = Image.new("RGB", (_PICTURE_WIDTH * len(frames), height))
        for number, frame in enumerate(frames):
            row.paste(Image.fromarray(frame).resize((_PICTURE_WIDTH, height)), (number * _PICTURE_WIDTH, 0))
        ImageDraw.Draw(row).text((4, 4), f"{cut}: {', '.join(names)}", fill=(255, 255, 0))
        rows.append(row)
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, sum(each.height for each in rows[:number])))
    sheet.save(path)


def command_seconds(film: str, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of CPU of whole commands on a film, start of Python included; they take turns."""
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "scenedetect detect-content": [
                "-m",
                "scenedetect",
                "-q",
                "-i",
                film,
                "-o",
                folder,
                "detect-content",
                "list-scenes",
            ],
            "tools.scene_cut.detect": ["-m", "tools.scene_cut.detect", film, str(Path(folder) / "scenes.csv")],
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, words in commands.items():
                began, before = time.perf_counter(), _cpu_of_children()
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                seconds[name].append((time.perf_counter() - began, _cpu_of_children() - before))
    return seconds


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
