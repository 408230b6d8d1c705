"""Write a video in its format, or one frame as png, with its metadata inside and as json next to it.

Both are written atomically, the json last: if the json exists, the video it describes is complete.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from opensora import files
from opensora.datasets.transforms import to_uint8
from opensora.errors import ConfigError, OpenSoraError
from opensora.sampling.metadata import GenerationSettings, output_path, record
from opensora.sampling.remake import command_of
from opensora.sampling.video_formats import FORMATS, write_frames, write_png
from opensora.sampling.watermark import add_watermark
from opensora.types import SampleRequest


class WriteError(OpenSoraError):
    """The folder cannot be written to or the disk is full; every later video would fail as well."""


class UnusableFolder(WriteError, ConfigError):
    """The folder refuses before any work: the user's mistake."""

    exit_code = ConfigError.exit_code


def write_sample(
    video_CTHW: Tensor,
    request: SampleRequest,
    settings: GenerationSettings,
    save_dir: str | Path,
    run_command: Sequence[str] = (),
) -> Path:
    """Write one finished video and its record; returns the video's path. WriteError when the disk refuses.

    run_command: the command of the run without what a request holds; with it, the record has the command of this video.
    """
    path = output_path(save_dir, request)
    note = path.with_suffix(".json")
    with _write_errors(path):
        note.unlink(missing_ok=True)  # the old record must not outlive the video it describes
    command = {"command": command_of(run_command, request, settings)} if run_command else {}
    inside = record(request, settings, **command)
    written = write_video(
        video_CTHW, path, request.save_fps or request.fps, request.save_format, inside, request.watermark
    )
    text = json.dumps(record(request, settings, **written, **command), indent=2, ensure_ascii=False) + "\n"
    # Paths of references may hold bytes that are not UTF-8. Python carries them as lone surrogates; as an escape of JSON
    # a reader gets the same text back.
    text = text.encode(errors="backslashreplace").decode()
    with _write_errors(note):
        files.atomic_write(note, lambda part: files.write_text(part, text))
    return path


def write_video(
    video_CTHW: Tensor,
    path: str | Path,
    fps: float,
    save_format: str = "mp4",
    settings: Mapping[str, Any] | None = None,
    watermark: str = "",
) -> dict[str, Any]:
    """Write [-1, 1] RGB frames to `path` in one of FORMATS or, when its ending says so, the first frame as png.

    settings: kept inside the file. watermark: a text over the frames.
    Returns {"file", "bytes", "stored_height", "stored_width"}. Raises WriteError; then no part of a file is left.
    """
    frames_THWC = rgb_frames(video_CTHW)
    return write_rgb(frames_THWC, path, fps, save_format, settings, watermark)


def write_rgb(
    frames_THWC: np.ndarray,
    path: str | Path,
    fps: float,
    save_format: str = "mp4",
    settings: Mapping[str, Any] | None = None,
    watermark: str = "",
) -> dict[str, Any]:
    """`write_video` for frames of RGB bytes.

    Codecs with halved color planes need even sides: an odd one gets its last row or column twice.
    """
    path = Path(path)
    if watermark:
        frames_THWC = add_watermark(frames_THWC, watermark)
    as_picture = path.suffix == ".png"
    if not as_picture and FORMATS[save_format].codec:
        _, height, width, _ = frames_THWC.shape
        frames_THWC = np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    write = files.atomic_folder if save_format == "png" and not as_picture else files.atomic_write
    with _write_errors(path):
        write(
            path,
            lambda part: (
                write_png(frames_THWC[0], part, settings)
                if as_picture
                else write_frames(frames_THWC, part, save_format, fps, settings)
            ),
        )
    stored = dict(stored_height=frames_THWC.shape[1], stored_width=frames_THWC.shape[2])
    return {"file": path.name, "bytes": files.size_of(path), **stored}


def rgb_frames(video_CTHW: Tensor) -> np.ndarray:
    """[-1, 1] to RGB bytes [T, H, W, 3]; values outside are clipped."""
    return to_uint8(video_CTHW.detach().cpu()).permute(1, 2, 3, 0).contiguous().numpy()


def prepare_folder(save_dir: str | Path) -> Path:
    """Make the folder and try it, before hours of work go into what cannot be saved; UnusableFolder when it refuses."""
    folder = Path(save_dir)
    probe = folder / f".writable-{os.getpid()}.part"
    try:
        with _write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
    except WriteError as error:
        raise UnusableFolder(str(error)) from error
    return folder


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """WriteError for an error of the disk, and for one of the encoder, which every later video would meet as well."""
    advice = (
        "it needs a folder you may write to and free disk space; "
        "free some or set another save_dir, then run again: finished videos are kept and skipped"
    )
    with files.write_errors_as(WriteError, path, advice):
        try:
            yield
        except Exception as error:
            from av import FFmpegError

            if isinstance(error, OSError) or not isinstance(error, FFmpegError):
                raise
            raise WriteError(
                f"{path}: cannot be encoded ({error}); give another size, frame rate or save_dir"
            ) from error
