"""Tiny videos, pictures and broken files, made on the fly.

Every frame carries its own number, so that a test can identify a frame: `frame_picture` writes it in
dark and bright blocks, `frame_number` reads it back after lossy coding and resizing.
"""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
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
    codec_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    pixel_ratio: Fraction | int = 1,
) -> str:
    """A video with a key frame every `gop` frames; `times` (in frames) makes the rate vary. Returns the path.

    options: of the container. pixel_ratio: width of a pixel by its height. A picture [H, W, 4] has transparency.
    """
    import av

    pictures = [frame_picture(i, *size, tint) for i in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_ratio)
        for number, picture in enumerate(pictures):
            layout = "rgb24" if picture.shape[2] == 3 else "rgba"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def corners(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """[H, W, 3]: quarters of red and green above blue and white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = (255, 0, 0), (0, 255, 0)
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = (0, 0, 255), (255, 255, 255)
    return picture


def corner_names(picture: NDArray[np.uint8]) -> str:
    """First letters of the colors in the quarters of [H, W, 3]: top left, top right, bottom left, bottom right."""
    height, width = picture.shape[:2]
    spots = [picture[y, x].astype(int) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    colors = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255), "k": (0, 0, 0)}
    return "".join(min(colors, key=lambda name: abs(spot - np.array(colors[name])).sum()) for spot in spots)


def set_display_matrix(path: str, matrix: Sequence[float]) -> None:
    """Write a, b, c, d and the offsets x, y into the track header of an mp4: how players turn and mirror it."""
    a, b, c, d, x, y = (round(value * 65536) for value in matrix)
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
    Path(path).write_bytes(data)


def add_cover(path: str, *, first: bool) -> None:
    """Put a cover picture of 96x96 pixels into an mp4, in front of the film's stream or behind it."""
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (96, 96), (250, 10, 200)).save(picture, "JPEG")
    cover = _box(b"ilst", _box(b"covr", _box(b"data", struct.pack(">II", 13, 0) + picture.getvalue())))
    tags = _box(b"udta", _box(b"meta", bytes(4) + _box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9)) + cover))
    data = Path(path).read_bytes()
    at = data.index(b"moov") - 4  # behind the frames, so that no offset changes
    body = data[at + 8 :]
    header = struct.unpack(">I", body[:4])[0] if first else len(body)
    Path(path).write_bytes(data[:at] + _box(b"moov", body[:header] + tags + body[header:]))


def _box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def write_turned(path: str | Path, sizes: Sequence[tuple[int, int]], codec: str = "libx264", frames: int = 20) -> str:
    """A video of `frames` pictures of `corners` in each of `sizes`, one after the other in one stream."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1"})
        for part, (height, width) in enumerate(sizes):
            encoder = av.CodecContext.create(codec, "w")
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)  # type: ignore[assignment]
            for target in (stream, encoder) if part == 0 else (encoder,):
                target.height, target.width, target.pix_fmt = height, width, "yuv420p"  # type: ignore[attr-defined]
            packets = []
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(corners(height, width), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = part * frames + number, Fraction(1, 25)
                packets += encoder.encode(frame)  # type: ignore[attr-defined]
            for packet in packets + encoder.encode(None):  # type: ignore[attr-defined]
                packet.stream = stream
                container.mux(packet)
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


def write_sound(path: str | Path) -> str:
    """A video of 12 frames with a sound track of silence."""
    import av

    with av.open(str(path), "w") as container:
        film, sound = container.add_stream("libx264", rate=8), container.add_stream("aac", rate=16000)
        film.height, film.width, film.pix_fmt = 32, 64, "yuv420p"
        for number in range(12):
            container.mux(film.encode(av.VideoFrame.from_ndarray(frame_picture(number), format="rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2000), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 16000, 2000 * number
            container.mux(sound.encode(silence))
        for stream in (film, sound):
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
