"""Tiny videos, pictures and broken files, made on the fly.

Every frame carries its own number, so that a test can identify a frame: `frame_picture` writes it in
dark and bright blocks, `frame_number` reads it back after lossy coding and resizing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.table import write_table

_BITS = 8


def frame_picture(number: int, height: int = 32, width: int = 64, tint: Sequence[int] = (0, 0, 0)) -> NDArray[np.uint8]:
    """[H, W, 3]: the bits of `number`, lowest first, as columns of dark or bright gray, plus a tint."""
    bits = np.array([number >> bit & 1 for bit in range(_BITS)])
    row = np.repeat(40 + 150 * bits, width // _BITS)
    picture = np.broadcast_to(row[None, :, None], (height, len(row), 3)) + np.asarray(tint)
    return np.pad(picture, ((0, 0), (0, width - len(row)), (0, 0)), mode="edge").astype(np.uint8)


def frame_number(picture: NDArray[np.uint8]) -> int:
    """The number that `frame_picture` wrote into [H, W, 3]."""
    columns = picture.astype(float).mean(axis=(0, 2))
    blocks = [block.mean() for block in np.array_split(columns, _BITS)]
    return sum(1 << bit for bit, value in enumerate(blocks) if value > 115)


def write_video(
    path: str | Path,
    frames: int | Sequence[NDArray[np.uint8]] = 12,
    *,
    fps: int = 8,
    size: tuple[int, int] = (32, 64),
    codec: str = "libx264",
    gop: int = 6,
    tint: Sequence[int] = (0, 0, 0),
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> str:
    """A video with a key frame every `gop` frames; `times` (in frames) makes the rate vary. Returns the path."""
    import av

    pictures = [frame_picture(i, *size, tint) for i in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_audio(path: str | Path) -> str:
    """An mp4 that holds a tone and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_picture(path: str | Path, number: int = 5, size: tuple[int, int] = (32, 64)) -> str:
    """One frame as png or jpg."""
    from PIL import Image

    Image.fromarray(frame_picture(number, *size)).save(path)
    return str(path)


def write_manifest(folder: Path, clips: int = 4, frames: int = 12, **video: int) -> str:
    """`clips` videos of different tints and lengths, and the manifest that lists them. Returns the manifest's path."""
    rows = []
    for index in range(clips):
        tint = (10 * index, 0, 5 * index)
        path = write_video(folder / f"clip{index}.mp4", frames + index, tint=tint, **video)
        rows.append({"path": path, "text": f"clip number {index}"})
    write_table(str(folder / "train.csv"), rows)
    return str(folder / "train.csv")
