"""Write each scene as a video of its own: one row per scene in, one row per clip out.

Run: python -m tools.scene_cut.cut scenes.csv clips/clips.csv --folder clips
"""

import functools
import hashlib
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from opensora import files
from opensora.datasets.decode import Frames, Video
from opensora.errors import BadClip, ConfigError, DataError
from tools.runner import Row, run

_REPLACED = ("path", "source_path", "start", "end", "start_frame", "end_frame", "num_frames", "fps", "height", "width")


def cut(row: Row, *, folder: str, crf: int = 18, height: int | None = None) -> Row:
    """Encode frames `start_frame` to `end_frame` of `row["path"]` as H.264 without sound; a clip made before is kept.

    folder: where the clips go
    crf: quality of x264, 0 (lossless) to 51 (worst)
    height: shrink the clips to this many pixels
    """
    if not 0 <= crf <= 51 or (height is not None and height < 2):
        raise ConfigError(f"cut: --crf {crf} --height {height}; crf is 0 to 51, height at least 2 pixels")
    start, end = (_frame(row, name) for name in ("start_frame", "end_frame"))
    if start >= end:
        raise BadClip(f"{row['path']}: start_frame is {start}, end_frame {end}; the end must be later")
    with Video(row["path"]) as video:
        info = video.info
        rows, columns = _even_size(info.height, info.width, height)
        # Content, bounds and settings name the clip: videos of one name do not clash, and a rerun finds what is done.
        name = f"{Path(row['path']).stem}-{_fingerprint(row['path'], crf, rows)}-{start:06d}-{end:06d}.mp4"
        target = os.path.join(os.path.abspath(folder), name)
        if not os.path.exists(target):
            write_clip(target, video.frames(range(start, end)), info.rate, rows, columns, crf)
    kept = {name: cell for name, cell in row.items() if name not in _REPLACED}
    return {
        "path": target,
        "video": os.path.basename(row["path"]),
        "source_path": row["path"],
        **kept,
        "source_start": row.get("start"),
        "source_end": row.get("end"),
        "num_frames": end - start,
        "fps": round(info.fps, 4),
        "height": rows,
        "width": columns,
    }


def _frame(row: Row, name: str) -> int:
    try:
        return int(row[name])
    except (KeyError, TypeError, ValueError):
        cell = row.get(name)
        raise BadClip(
            f"{row['path']}: {name} is {cell!r}; a frame number is needed; run tools.scene_cut.detect"
        ) from None


def _even_size(height: int, width: int, wanted: int | None) -> tuple[int, int]:
    """H.264 in yuv420p needs even sides."""
    scale = 1.0 if wanted is None else min(1.0, wanted / height)
    return max(2, int(height * scale) // 2 * 2), max(2, round(width * scale) // 2 * 2)


def _fingerprint(path: str, *settings: int) -> str:
    file = os.stat(path)
    contents = _hash_contents(path, file.st_size, file.st_mtime_ns)
    return hashlib.blake2b(contents + repr(settings).encode(), digest_size=4).hexdigest()


@functools.lru_cache(maxsize=4)
def _hash_contents(path: str, size: int, changed_ns: int) -> bytes:
    """A hash of the whole file, for recordings may have one size and one beginning; made once for all its scenes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()


def write_clip(path: str, frames: Iterable[Frames], rate: Fraction, height: int, width: int, crf: int) -> None:
    """Encode [H, W, 3] frames to an mp4, atomically: a kill leaves no half clip under the name."""
    with files.write_errors_as(DataError, path, "choose a writable folder with free space"):
        files.atomic_write(path, lambda part: _encode(part, frames, rate, height, width, crf))


def _encode(path: Path, frames: Iterable[Frames], rate: Fraction, height: int, width: int, crf: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            scaled = frame.reformat(width=width, height=height, format="yuv420p", interpolation="AREA")
            scaled.pts, scaled.time_base = number, 1 / rate
            container.mux(stream.encode(scaled))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    run(cut)
