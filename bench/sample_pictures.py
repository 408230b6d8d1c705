"""The picture of docs/sampling.md: each way to sample as a command, its references, and frames of the video that it made.

Run: opensora bench sample          # trains the model that is sampled here, where it is not there yet
     python -m bench.sample_pictures docs/sampling.png
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bench.sample_models import FOLDER
from opensora.datasets.decode import probe, read_frames
from opensora.datasets.moving_shapes import HOLDOUT, Attributes, MovingShapes
from opensora.errors import OpenSoraError
from opensora.evaluation.contact_sheet import FAINT, GAP, INK, LINE, MARGIN, PAPER, sheet_font, strip
from opensora.rng import Draw
from opensora.sampling.video_writer import rgb_frames, write_rgb

SIDE, FRAMES, FPS = 32, 9, 8.0
HEIGHT = 48  # of a frame on the sheet, pixels
SHOWN = 9  # frames of each video at the most
SEED = 3


@dataclass(frozen=True)
class Mode:
    """The arguments of one command; those that name a file below are its references."""

    prompt: str
    flags: tuple[str, ...] = ()

    @property
    def references(self) -> list[str]:
        return [flag for flag in self.flags if flag in REFERENCES]

    def arguments(self) -> list[str]:
        return ["--prompt", self.prompt, *self.flags]


# file -> the combination it shows and its frames; no combination here appears in training
REFERENCES: dict[str, tuple[Attributes, slice]] = {
    "A.png": (Attributes("yellow", "square", "up"), slice(0, 1)),
    "B.png": (Attributes("yellow", "square", "up"), slice(FRAMES - 1, FRAMES)),
    "A.mp4": (Attributes("red", "circle", "left"), slice(0, FRAMES)),
}
# Drawn clips stay inside the picture, so what comes after one goes back.
MODES = (
    Mode("a yellow square moves up"),
    Mode("a yellow square moves up", ("--first-frame", "A.png")),
    Mode("a yellow square moves up", ("--last-frame", "B.png")),
    Mode("a yellow square moves up", ("--connect", "A.png", "B.png")),
    Mode("a red circle moves right", ("--extend", "A.mp4")),
    Mode("a red circle moves right", ("--extend", "A.mp4", "--backward")),
    Mode("a purple circle moves left", ("--edit", "A.mp4", "--strength", "0.9")),
    Mode("a red circle moves left", ("--edit", "A.mp4", "--strength", "0.9", "--keep", "0")),
    Mode("|0|a red circle moves left|1|a red circle moves right", ("--loop", "2")),
)


def draw_modes(path: Path, run: Path, modes: Sequence[Mode] = MODES) -> Path:
    """Run each command with the model of `run`, draw the sheet and write it to `path` as png."""
    with tempfile.TemporaryDirectory() as folder:
        write_references(Path(folder))
        rows = [(mode, _sample(mode, run.resolve(), Path(folder))) for mode in modes]
        clips = {name: _read(Path(folder) / name) for name in REFERENCES}
    sheet(rows, clips).save(path, format="PNG", optimize=True)
    return path


def write_references(folder: Path) -> None:
    """The files of REFERENCES, drawn."""
    for name, (shown, frames) in REFERENCES.items():
        shapes = MovingShapes(len(HOLDOUT), FRAMES, (SIDE, SIDE), "holdout", FPS)
        clip_CTHW = shapes.clip(HOLDOUT.index(shown), Draw(SEED, 0, 0)).video_CTHW
        frames_THWC = rgb_frames(clip_CTHW)[frames]
        if name.endswith(".png"):
            Image.fromarray(frames_THWC[0]).save(folder / name)
        else:
            write_rgb(frames_THWC, folder / name, FPS, "mp4")


def _sample(mode: Mode, run: Path, folder: Path) -> Tensor:
    """The video that the command makes, [3, T, H, W] in [-1, 1]."""
    config = folder / "sample.py"
    config.write_text(f"load = {str(run)!r}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "opensora.cli.main",
        "sample",
        config.name,
        *mode.arguments(),
        "--save-dir",
        "videos",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise OpenSoraError(f"{shlex.join(mode.arguments())}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return _read(folder / done.stdout.split()[-1])


def _read(path: Path) -> Tensor:
    frames_THWC = read_frames(str(path), range(probe(str(path)).num_frames))
    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(3, 0, 1, 2).float() / 127.5 - 1


def sheet(rows: Sequence[tuple[Mode, Tensor]], clips: dict[str, Tensor]) -> Image.Image:
    """One row per command: its words, its references left, its video right."""
    pairs = [
        ([strip(clips[name], 3, HEIGHT) for name in mode.references], strip(video, SHOWN, HEIGHT))
        for mode, video in rows
    ]
    left = max(sum(image.width + GAP for image in images) for images, _ in pairs) + MARGIN
    width = MARGIN + left + max(video.width for _, video in pairs) + MARGIN
    row_height = LINE + HEIGHT + MARGIN
    picture = Image.new("RGB", (width, MARGIN + LINE + len(rows) * row_height), PAPER)
    draw, plain, bold = ImageDraw.Draw(picture), sheet_font(12), sheet_font(12, bold=True)
    draw.text((MARGIN, MARGIN // 2), "references", INK, bold)
    draw.text((MARGIN + left, MARGIN // 2), "video", INK, bold)
    for number, ((mode, _), (images, video)) in enumerate(zip(rows, pairs, strict=True)):
        top, x = MARGIN + LINE + number * row_height, MARGIN
        draw.text((MARGIN, top), shlex.join(mode.arguments()).replace("'", '"'), FAINT, plain)
        for image in images:
            picture.paste(image, (x, top + LINE))
            x += image.width + GAP
        picture.paste(video, (MARGIN + left, top + LINE))
    return picture


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="png to write")
    parser.add_argument("--run", type=Path, default=FOLDER / "trained" / "masked", help="run of shapes_masked.py")
    arguments = parser.parse_args(argv)
    if not arguments.run.is_dir():
        print(f"error: {arguments.run}: no such run; `opensora bench sample` in this folder trains it", file=sys.stderr)
        return 2
    print(draw_modes(arguments.path, arguments.run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
