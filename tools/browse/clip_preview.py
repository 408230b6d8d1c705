"""ClipPreview: pictures and videos of a row that a browser can show."""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from opensora.datasets.decode import Frames, Video
from opensora.datasets.missing_values import is_missing
from tools.clip_frames import clip_part
from tools.scene_cut.cut import write_clip

_PLAYED = {  # endings of files -> codecs that browsers play in them
    (".mp4", ".m4v", ".mov"): ("h264", "av1", "vp9"),
    (".webm",): ("vp8", "vp9", "av1"),
}
_WIDEST = 640  # pixels of an encoded preview
_LONGEST = 20  # seconds of it
_MOST_PREVIEWS, _MOST_FRAMES = 32, 512  # that are kept
_CRF = 26


class ClipPreview:
    """Files are made in `folder` when they are wanted, and the oldest are removed. Several threads may call it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._made = 0
        self._copies: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._frames: OrderedDict[tuple[Any, ...], Frames] = OrderedDict()

    def frame(self, row: Mapping[str, Any], widest: int) -> Frames:
        """The middle frame [H, W, 3] of the clip. widest: wider ones are shrunk to this many pixels. Raises BadClip."""
        key = (widest, *_key(row))
        with self._lock:
            if key in self._frames:
                self._frames.move_to_end(key)
                return self._frames[key]
        with Video(str(row["path"])) as video:
            part = clip_part(row, video.info.num_frames)
            frame = next(video.frames([part[len(part) // 2]], widest))
        with self._lock:
            _keep(self._frames, key, frame, _MOST_FRAMES)
        return frame

    def playable(self, row: Mapping[str, Any]) -> str:
        """Path of a file that browsers play: the clip itself, or an H.264 copy of its first seconds. Raises BadClip."""
        key, path = _key(row), str(row["path"])
        with Video(path) as video:
            info, part = video.info, clip_part(row, video.info.num_frames)
            if _is_played(row, video):
                return path
            with self._lock:  # one encoding at a time; a second request for the clip finds it done
                if key not in self._copies:
                    self._made += 1
                    target = os.path.join(self._folder, f"{self._made}.mp4")
                    wide = max(2, min(_WIDEST, info.width) // 2 * 2)
                    high = max(2, round(info.height * wide / info.width / 2) * 2)
                    wanted = part[: max(1, round(_LONGEST * info.fps))]
                    rate = Fraction(info.rate).limit_denominator(1001)
                    write_clip(target, video.frames(wanted, _WIDEST), rate, high, wide, _CRF)
                    for old in _keep(self._copies, key, target, _MOST_PREVIEWS):
                        Path(old).unlink(missing_ok=True)
                self._copies.move_to_end(key)
                return self._copies[key]

    def note(self, row: Mapping[str, Any]) -> str:
        """A sentence about what `playable` will give, empty for the clip itself. Raises BadClip."""
        with Video(str(row["path"])) as video:
            clip_part(row, video.info.num_frames)
            if _is_played(row, video):
                return ""
        return f"Shown: a copy for the browser, at most {_LONGEST} seconds and {_WIDEST} pixels wide."


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    path = str(row["path"])
    changed = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    return (path, changed, *(row.get(name) for name in ("start_frame", "end_frame")))


def _keep(store: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> list[Any]:
    """Store a value; returns the values that had to leave."""
    store[key] = value
    return [store.popitem(last=False)[1] for _ in range(len(store) - most)]


def _is_played(row: Mapping[str, Any], video: Video) -> bool:
    """True if browsers play the file of the row, and the clip is all of it."""
    ending, details = os.path.splitext(str(row["path"]))[1].lower(), video.details()
    codecs = next((codecs for endings, codecs in _PLAYED.items() if ending in endings), ())
    is_whole = any(is_missing(row.get(name)) for name in ("start_frame", "end_frame"))
    return is_whole and details.codec in codecs and details.pix_fmt in ("yuv420p", "yuvj420p")
