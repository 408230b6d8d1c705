"""Write a video as H.264 in mp4, or one frame as png, with its metadata as json next to it.

Both are written atomically, the json last: if the json exists, the video it describes is complete.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from opensora import files
from opensora.datasets.transforms import to_uint8
from opensora.errors import OpenSoraError
from opensora.sampling.metadata import GenerationSettings, output_path, record
from opensora.types import SampleRequest

CRF = 18  # x264's constant quality, 0 (lossless) to 51; 18 is commonly taken as visually lossless


class WriteError(OpenSoraError):
    """The folder cannot be written to or the disk is full; every later video would fail as well."""


def write_sample(
    video_CTHW: Tensor, request: SampleRequest, settings: GenerationSettings, save_dir: str | Path
) -> Path:
    """Write one finished video and its record; returns the video's path. WriteError when the disk refuses."""
    path = output_path(save_dir, request)
    note = path.with_suffix(".json")
    with _write_errors(path):
        note.unlink(missing_ok=True)  # the old record must not outlive the video it describes
    written = write_video(video_CTHW, path, request.save_fps or request.fps)
    text = json.dumps(record(request, settings, **written), indent=2, ensure_ascii=False) + "\n"
    # Paths of references may hold bytes that are not UTF-8. Python carries them as lone surrogates; as an escape of JSON
    # a reader gets the same text back.
    text = text.encode(errors="backslashreplace").decode()
    with _write_errors(note):
        files.atomic_write(note, lambda part: files.write_text(part, text))
    return path


def write_video(video_CTHW: Tensor, path: str | Path, fps: float) -> dict[str, Any]:
    """Write [-1, 1] RGB frames to `path`, H.264 mp4 or, when its ending says so, the first frame as png.

    H.264 with halved color planes needs even sides: an odd one gets its last row or column twice.
    Returns {"file", "bytes", "stored_height", "stored_width"}. Raises WriteError; then no part of a file is left.
    """
    path = Path(path)
    frames_THWC = rgb_frames(video_CTHW)
    as_png = path.suffix == ".png"
    if not as_png:
        _, height, width, _ = frames_THWC.shape
        frames_THWC = np.pad(frames_THWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with _write_errors(path):
        files.atomic_write(
            path, lambda part: _save_png(frames_THWC[0], part) if as_png else _encode(frames_THWC, part, fps)
        )
    stored = dict(stored_height=frames_THWC.shape[1], stored_width=frames_THWC.shape[2])
    return {"file": path.name, "bytes": path.stat().st_size, **stored}


def rgb_frames(video_CTHW: Tensor) -> np.ndarray:
    """[-1, 1] to RGB bytes [T, H, W, 3]; values outside are clipped."""
    return to_uint8(video_CTHW.detach().cpu()).permute(1, 2, 3, 0).contiguous().numpy()


def prepare_folder(save_dir: str | Path) -> Path:
    """Make the folder and try it, before hours of work go into what cannot be saved; WriteError when it refuses."""
    folder = Path(save_dir)
    probe = folder / f".writable-{os.getpid()}.part"
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
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


def _save_png(frame_HWC: np.ndarray, part: Path) -> None:
    from PIL import Image

    Image.fromarray(frame_HWC).save(part, format="PNG")


def _encode(frames_THWC: np.ndarray, part: Path, fps: float) -> None:
    import av
    from av.video.reformatter import Colorspace

    _, height, width, _ = frames_THWC.shape
    # One thread, for x264's decisions depend on how many there are; no macroblock tree, which with B frames gives
    # other bytes now and then for the same frames. So the same video is the same file, on every rank.
    options = {"crf": str(CRF), "threads": "1", "x264-params": "mbtree=0"}
    with av.open(files.ffmpeg_path(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # BT.601 and said so: players read the tag, and readers that ignore it (OpenCV) assume just that.
        context = stream.codec_context
        context.color_range, context.colorspace = 1, 6
        for frame_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)))
        container.mux(stream.encode())
