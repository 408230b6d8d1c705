"""Frames of a row's clip: of the whole file, or of the part from start_frame to end_frame where the row has both."""

from collections.abc import Iterator, Mapping
from typing import Any

from opensora.datasets.decode import Frames, Video
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip


def clip_part(row: Mapping[str, Any], num_frames: int) -> range:
    """Indices of the clip's frames in its file of `num_frames`. Raises BadClip for bounds outside the file."""
    cells = [row.get(name) for name in ("start_frame", "end_frame")]
    if any(is_missing(cell) for cell in cells):
        return range(num_frames)
    try:
        start, end = (int(float(cell)) for cell in cells)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadClip(
            f"{row['path']}: start_frame and end_frame are {cells[0]!r} and {cells[1]!r}; whole numbers are needed"
        ) from None
    if not 0 <= start < end <= num_frames:
        raise BadClip(
            f"{row['path']}: start_frame is {start} and end_frame {end}; the file has {num_frames} frames, and the end "
            "must be later than the start; run tools.scene_cut.detect again"
        )
    return range(start, end)


def spread(part: range, count: int) -> list[int]:
    """The middles of `count` equal pieces of the part; an index occurs several times where there are fewer frames."""
    return [part[(2 * piece + 1) * len(part) // (2 * count)] for piece in range(count)]


def sample_frames(row: Mapping[str, Any], count: int, widest: int | None = None) -> Iterator[Frames]:
    """At most `count` different frames [H, W, 3] of the clip, spread evenly. Raises BadClip.

    widest: wider frames are shrunk to this many pixels.
    """
    with Video(str(row["path"])) as video:
        indices = spread(clip_part(row, video.info.num_frames), count)
        yield from video.frames(list(dict.fromkeys(indices)), widest)
