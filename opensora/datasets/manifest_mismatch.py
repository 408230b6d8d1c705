"""mismatch: where a row of a manifest contradicts its file."""

from opensora.datasets.manifest import ManifestRow
from opensora.datasets.video_info import VideoInfo

_SHARE = 0.02  # smaller differences come from rounding, and from programs that count or crop in another way
_PIXELS = 8  # decoders of blocks leave up to that many more


def mismatch(row: ManifestRow, info: VideoInfo) -> str:
    """The numbers of the row that are not those of the file, as words; empty where they agree.

    Sizes as stored, before turning and with pixels that are not square, count as right: other programs write those.
    """
    words = []
    if row.height and row.width and not _has_size(info, row.height, row.width):
        words.append(f"{row.width}x{row.height} pixels, the file has {info.width}x{info.height}")
    frames = row.num_frames
    if frames and not _alike(frames, info.num_frames, 1):
        words.append(f"{frames} frames, the file has {info.num_frames}")
    if row.fps and info.num_frames > 1 and not _alike(row.fps, info.fps, 0.0):
        words.append(f"{row.fps:g} frames per second, the file has {info.fps:g}")
    return "; ".join(words)


def _has_size(info: VideoInfo, height: int, width: int) -> bool:
    stored = info.stored_height, info.stored_width
    sizes = ((info.height, info.width), stored, stored[::-1])
    return any(_alike(height, have[0], _PIXELS) and _alike(width, have[1], _PIXELS) for have in sizes)


def _alike(listed: float, have: float, slack: float) -> bool:
    return abs(listed - have) <= max(slack, _SHARE * have)
