"""Write each scene as a video of its own: one row per scene in, one row per clip out.

Run: python -m tools.scene_cut.cut scenes.csv clips/clips.csv --folder clips
     python -m tools.scene_cut.cut scenes.csv clips/clips.csv --folder clips --min-seconds 2 --max-seconds 16 --height 480
"""

import functools
import hashlib
import math
import os
import sys
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

from opensora import files
from opensora.datasets.decode import FileFacts, Frames, Video
from opensora.errors import BadClip, ConfigError, DataError
from tools.datasets.probe import probe
from tools.runner import LeftOut, Row, Rows, run
from tools.scene_cut.stream_copy import copy_scene

_REPLACED = ("path", "source_path", "start", "end", "start_frame", "end_frame")
_MOST_THREADS = 4
_SAME_RATE = 1e-3  # relative: rates closer than this are one
_STEM_BYTES = 200  # of the film's name in the names of clips


def cut(
    row: Row,
    *,
    folder: str,
    crf: int = 18,
    height: int | None = None,
    fps: float | None = None,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    split: Literal["even", "max"] = "even",
    copy: Literal["auto", "never"] = "auto",
) -> Rows:
    """Write frames `start_frame` to `end_frame` of `row["path"]` as clips without sound; one made before is kept.

    folder: where the clips go
    crf: quality of x264, 0 (lossless) to 51 (worst)
    height: shrink the clips to this many pixels on the shorter side
    fps: frames per second of the clips; a film with fewer keeps its own
    min_seconds: leave out shorter scenes, and shorter rests of split ones
    max_seconds: split longer scenes
    split: even: into parts of equal length; max: into parts of max_seconds and a rest
    copy: auto: where a scene begins and ends at key frames its data is copied without loss; never: encode every scene
    """
    _check(crf, height, fps, min_seconds, max_seconds)
    start, end = (_frame(row, name) for name in ("start_frame", "end_frame"))
    if not 0 <= start < end:
        raise BadClip(
            f"{row['path']}: start_frame is {start}, end_frame {end}; frames count from 0, and the end must be later"
        )
    with Video(row["path"], _facts(*_version(row["path"])), threads=min(_MOST_THREADS, os.cpu_count() or 1)) as video:
        info = video.info
        shortest, longest = _in_frames(min_seconds, info.rate, up=True), _in_frames(max_seconds, info.rate, up=False)
        wanted = parts(start, end, longest, shortest, even=split == "even")
        if not wanted:
            raise LeftOut(f"{row['path']}: frames {start} to {end} last less than {min_seconds} seconds")
        rows, columns = _even_size(info.height, info.width, height)
        rate = _lower(info.rate, fps)
        same = rate == info.rate and (height is None or min(info.height, info.width) <= height)
        # Content, bounds and settings name the clip: videos of one name do not clash, and a rerun finds what is done.
        settings: list[int | str] = [crf, rows, *([str(rate)] if fps else []), *(["copy"] if copy == "auto" else [])]
        name = f"{_stem(row['path'])}-{_fingerprint(row['path'], *settings)}"
        for part, (first, last) in enumerate(wanted):
            target = os.path.join(os.path.abspath(folder), f"{name}-{first:06d}-{last:06d}.mp4")
            if not os.path.exists(target) and not (same and copy == "auto" and copy_scene(video, first, last, target)):
                write_clip(target, video.frames(sampled(first, last, info.rate, rate)), rate, rows, columns, crf)
            yield _describe(row, target, part, (first, last) if wanted != [(start, end)] else None, info.fps)


def _check(crf: int, height: int | None, fps: float | None, min_seconds: float, max_seconds: float | None) -> None:
    if not 0 <= crf <= 51 or (height is not None and height < 2):
        raise ConfigError(f"cut: --crf {crf} --height {height}; crf is 0 to 51, height at least 2 pixels")
    if fps is not None and not 0 < fps <= 1000:
        raise ConfigError(f"cut: --fps {fps}; above 0 and at most 1000 are possible")
    if not min_seconds >= 0 or not (max_seconds is None or max_seconds >= max(min_seconds, 1e-3)):
        raise ConfigError(
            f"cut: --min-seconds {min_seconds} --max-seconds {max_seconds}; min-seconds is not negative, max-seconds above 0 "
            "and not less than min-seconds"
        )


def _frame(row: Row, name: str) -> int:
    """A frame number; tables that passed through other programs have 30.0 for 30."""
    try:
        number = float(row[name])
        if not number.is_integer():
            raise ValueError
        return int(number)
    except (KeyError, TypeError, ValueError, OverflowError):
        cell = row.get(name)
        raise BadClip(
            f"{row['path']}: {name} is {cell!r}; a frame number is needed; run tools.scene_cut.detect"
        ) from None


def _in_frames(seconds: float | None, rate: Fraction, up: bool) -> int:
    """Whole frames of this length: the least that last so long, or the most that last no longer; None: no limit."""
    if seconds is None:
        return sys.maxsize
    frames = seconds * float(rate)
    return math.ceil(frames - 1e-6) if up else max(1, math.floor(frames + 1e-6))


def parts(start: int, end: int, longest: int, shortest: int, even: bool) -> list[tuple[int, int]]:
    """(start, end) frames of the parts of a scene, none above `longest` frames; those below `shortest` are left out.

    even: of equal length, to a frame, unless that makes all of them too short.
    """
    total = end - start
    count = -(-total // longest)
    if even and total // count >= shortest:
        bounds = [start + total * number // count for number in range(count)]
    else:
        bounds = list(range(start, end, min(longest, total)))
    return [(first, last) for first, last in pairwise([*bounds, end]) if last - first >= shortest]


def sampled(start: int, end: int, rate: Fraction, wanted: Fraction) -> list[int]:
    """Frames on screen at the moments of a lower rate, the first included, in a film of `rate` frames per second."""
    count = max(1, int((end - start) * wanted / rate))
    return [start + int(number * rate / wanted) for number in range(count)]


def _lower(rate: Fraction, wanted: float | None) -> Fraction:
    """The wanted rate where it is lower; 23.976 is 24000/1001."""
    if wanted is None or wanted > float(rate) * (1 - _SAME_RATE):
        return rate
    return Fraction(wanted).limit_denominator(1001)


def _stem(path: str) -> str:
    """The film's name without its ending, short enough to be the beginning of a name."""
    return os.fsencode(Path(path).stem)[:_STEM_BYTES].decode(errors="ignore")


def _even_size(height: int, width: int, shorter: int | None) -> tuple[int, int]:
    """H.264 in yuv420p needs even sides. shorter: pixels of the shorter side, where it is longer."""
    smallest = min(height, width)
    wanted = smallest if shorter is None else min(shorter, smallest)
    rows, columns = (max(2, round(Fraction(side * wanted, smallest)) // 2 * 2) for side in (height, width))
    return rows, columns


def _describe(row: Row, target: str, part: int, frames: tuple[int, int] | None, fps: float) -> Row:
    """The row of a clip: facts about its scene, and what is in the file.

    part: its number in the scene. frames: its bounds in the film of `fps`, where it is not the whole scene.
    """
    start, end = (round(frame / fps, 4) for frame in frames) if frames else (row.get("start"), row.get("end"))
    return {
        "path": target,
        "video": os.path.basename(row["path"]),
        "source_path": row["path"],
        **{name: cell for name, cell in row.items() if name not in _REPLACED},
        **({"part": part} if frames else {}),
        "source_start": start,
        "source_end": end,
        **probe({"path": target}),
    }


def _fingerprint(path: str, *settings: int | str) -> str:
    return hashlib.blake2b(_hash_contents(*_version(path)) + repr(settings).encode(), digest_size=4).hexdigest()


def _version(path: str) -> tuple[str, int, int]:
    """A file with its size and the time of its last change; zeros for one that is not there."""
    try:
        file = os.stat(path)
        return path, file.st_size, file.st_mtime_ns
    except OSError:
        return path, 0, 0


@functools.lru_cache(maxsize=4)
def _facts(path: str, size: int, changed_ns: int) -> FileFacts | None:
    """Facts that take a pass over the whole film; made once for all its scenes."""
    with Video(path) as video:
        return video.facts


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
