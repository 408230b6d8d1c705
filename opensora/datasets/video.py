"""VideoTextDataset: the clips and captions that a manifest lists.

Layout: T frames, C colors, H W rows and columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opensora.datasets import transforms
from opensora.datasets.base import ClipSize, Dataset
from opensora.datasets.clip_sizes import ROUNDING, ClipSizes, frames_at_rate, frames_between, usable_frames
from opensora.datasets.decode import IMAGE_SUFFIXES, FileFacts, Video, VideoInfo, probe
from opensora.datasets.manifest import MAX_INT32, ManifestRow, read_manifest
from opensora.datasets.manifest_mismatch import mismatch
from opensora.datasets.row_report import Dropped, DroppedRows, Report, count_rows
from opensora.errors import BadClip, ConfigError
from opensora.log import logger
from opensora.registry import DATASETS
from opensora.rng import Draw
from opensora.types import Clip

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Dataset", "VideoTextDataset"]

_MOST_WARNINGS = 5  # rows that contradict their file; a process logs no more of them
_DEFAULT_FPS = 24.0  # used when no file can be opened

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class _Span:
    """Frames of a file that a row may use: indices first, ..., stop - 1."""

    first: int
    stop: int
    fps: float  # of the file


@dataclass(frozen=True)
class _Decoded:
    """A whole span in memory."""

    video_TCHW: Tensor  # as `_resized` gives it
    span: _Span


@DATASETS.register_module()
class VideoTextDataset:
    """Clips of `num_frames` frames of `image_size` pixels, cut out of the videos of a manifest.

    data_path: the manifest, a table or a folder of shards; see `datasets/manifest.py` for its columns.
    image_size: (height, width) in pixels; frames are resized until they cover it, then cropped. A run with `bucket_config`
    leaves both out: then every clip is requested at the size of its bucket.
    frame_interval: take every n-th frame. fps: first bring each video to this rate by dropping or repeating frames;
    None keeps the rate of the file.
    start: where in the video a clip begins. crop: where in the frame. flip: mirror every second clip left to right.
    time_range: the part of each video to use, as fractions of its length; (0, 0.8) for training leaves (0.8, 1) for
    a held-back measurement.
    multi_scale: keep the aspect ratio of each clip, as Open-Sora-Plan does by that name: where its longer side exceeds that of
    image_size, a square, it is resized to it, and then cut at the bottom and the right to multiples of 16 pixels. Such clips
    differ in size: JointDataset pads them.
    captions: False for training without text, as an autoencoder does; the text column may then be missing.
    cache_megabytes: keep whole decoded videos, resized, in memory up to this limit per process; for sets so small that
    every video comes back soon. The clips are the same with any limit.
    """

    def __init__(
        self,
        data_path: str,
        num_frames: int | None = None,
        image_size: Sequence[int] | None = None,
        frame_interval: int = 1,
        fps: float | None = None,
        start: Literal["random", "center", "first"] = "random",
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        time_range: Sequence[float] = (0.0, 1.0),
        captions: bool = True,
        cache_megabytes: int = 0,
        multi_scale: bool = False,
    ) -> None:
        self.where = data_path
        if (num_frames is not None and num_frames < 1) or frame_interval < 1 or (fps is not None and fps <= 0):
            raise ConfigError(
                f"dataset: num_frames={num_frames}, frame_interval={frame_interval}, fps={fps}; all must be above 0"
            )
        if (num_frames is None) != (image_size is None):
            raise ConfigError(
                f"dataset: num_frames={num_frames}, image_size={image_size}; allowed: both, or with bucket_config neither; "
                "set or remove the other one"
            )
        if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
            raise ConfigError(f"dataset: image_size={image_size}; allowed: (height, width) in pixels, both above 0")
        if len(time_range) != 2 or not 0 <= time_range[0] < time_range[1] <= 1:
            raise ConfigError(f"dataset: time_range={time_range}; allowed: (from, to) with 0 <= from < to <= 1")
        if multi_scale and (image_size is None or image_size[0] != image_size[1] or crop != "center"):
            raise ConfigError(
                f"dataset: multi_scale=True with image_size={image_size}, crop={crop!r}; allowed: a square, and no crop, for "
                "clips keep their aspect ratio; correct image_size, remove crop, or remove multi_scale"
            )
        self.num_frames = num_frames or 0
        self.image_size = (0, 0) if image_size is None else (image_size[0], image_size[1])
        self.frame_interval = frame_interval
        self.target_fps = None if fps is None else float(fps)
        self.start = start
        self.crop = crop
        self.flip = flip
        self.time_range = (float(time_range[0]), float(time_range[1]))
        self.multi_scale = multi_scale
        self._cache: dict[tuple[int, Size], _Decoded] = {}
        self._cache_left = cache_megabytes * 2**20  # bytes
        self.caption_fault: Callable[[str], str | None] | None = None  # why a caption that is read cannot be used
        self._facts: dict[int, FileFacts] = {}  # row -> of its file, where that took reading the file to know
        self._mismatched: set[int] = set()  # rows of the manifest that contradict their file
        manifest = read_manifest(data_path, captions)
        self._dropped, self._notes = manifest.dropped, manifest.notes
        self._rows = manifest.rows
        if num_frames is not None:
            self._drop_short(num_frames)

    def _drop_short(self, num_frames: int) -> None:
        """Leave out the rows that are too short by the manifest itself."""
        columns, rows = self._rows.columns, self._rows
        have = frames_at_rate(usable_frames(columns, self.time_range), columns.fps, None)
        step = self.frame_interval * (columns.fps / self.target_fps if self.target_fps is not None else 1.0)
        short = have < np.floor((num_frames - 1) * step + 0.5) + 1
        short &= (columns.num_frames > 0) & ~np.isnan(columns.fps)
        if not short.any():
            return

        def message(position: int) -> str:
            row = rows[position]
            span = self._span(row, row.num_frames or 0, row.fps or 0.0)
            return f"{row.location}: {row.path}: {self._too_short(span, num_frames)}"

        dropped = DroppedRows()
        dropped.add("too short", np.flatnonzero(short), message)
        self._dropped += dropped.rows
        self._rows = rows.take(np.flatnonzero(~short))

    def texts(self) -> "pyarrow.LargeStringArray":
        """The captions of the rows."""
        return self._rows.texts()

    def drop(self, reason: str, positions: NDArray[np.integer], message: Callable[[int], str]) -> None:
        """Leave out the rows at these positions."""
        if len(positions):
            dropped = DroppedRows()
            dropped.add(reason, positions, message)
            self._dropped += dropped.rows
            self._rows = self._rows.take(np.setdiff1d(np.arange(len(self._rows)), positions))

    @property
    def has_size(self) -> bool:
        """True when `num_frames` and `image_size` were set; otherwise every clip is requested at a size."""
        return self.num_frames > 0 and min(self.image_size) > 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fps(self) -> float:
        """Frames per second of the clips; where files keep their own rate, of the first video that has one."""
        if self.target_fps is not None:
            return self.target_fps / self.frame_interval
        is_image = (self._rows.columns.num_frames == 1) | self._rows.ending_with(IMAGE_SUFFIXES)
        for position in np.argsort(is_image, kind="stable"):  # images come last, for they have no rate of their own
            row = self._rows[int(position)]
            try:
                return (row.fps or probe(row.path).fps) / self.frame_interval
            except BadClip:
                continue  # the loader reports it when it comes to it
        return _DEFAULT_FPS / self.frame_interval

    def report(self) -> Report:
        """Counts from the manifest alone; `inspect` opens every video as well."""
        return self._report(self._dropped)

    def inspect(self) -> Report:
        """Open every video and read the frames of one clip: counts what training would drop, by reason."""
        num_frames, *image_size = self._own_size()
        dropped = list(self._dropped)
        for index, row in enumerate(self._rows):
            try:
                self._read(index, Draw(seed=0, step=0, sample_id=0), num_frames, (image_size[0], image_size[1]))
            except BadClip as error:
                dropped.append(Dropped("cannot be used", f"{row.location}: {error}"))
        return self._report(dropped)

    def _report(self, dropped: list[Dropped]) -> Report:
        kept = len(self._rows) + count_rows(self._dropped) - count_rows(dropped)
        if not self.has_size:
            return Report.of(self.where, kept, dropped, notes=self._notes)
        size = "x".join(map(str, (self.num_frames, *self.image_size)))
        return Report.of(self.where, kept, dropped, {size: kept}, self._notes)

    def sizes(self) -> ClipSizes:
        """Sizes from the manifest; the name of a file marks an image where the manifest has no num_frames."""
        columns = self._rows.columns
        frames = usable_frames(columns, self.time_range)
        missing = columns.num_frames == 0
        if missing.any():
            frames[missing & self._rows.ending_with(IMAGE_SUFFIXES)] = 1
        frames = np.minimum(frames_at_rate(frames, columns.fps, self.target_fps), MAX_INT32)
        return ClipSizes(columns.index, frames.astype(np.int32), columns.height, columns.width)

    def clip(self, row: int, draw: Draw, size: ClipSize | None = None) -> Clip:
        """The clip of one row; start frame, crop and mirroring come from `draw`. BadClip names the manifest line.

        size: frames, height and width in pixels; None = the data set's own.
        """
        entry = self._rows[row]
        if self.caption_fault is not None and (fault := self.caption_fault(entry.text)):
            raise BadClip(f"{entry.location}: caption {entry.text[:60]!r}: {fault}")
        num_frames, *image_size = size or self._own_size()
        try:
            video_TCHW, fps = self._read(row, draw, num_frames, (image_size[0], image_size[1]))
        except BadClip as error:
            raise BadClip(f"{entry.location}: {error}") from error
        if not self.multi_scale:
            video_TCHW = transforms.crop(video_TCHW, image_size, self.crop, draw.rng("crop"))
        if self.flip and float(torch.rand((), generator=draw.rng("flip"))) < 0.5:
            video_TCHW = video_TCHW.flip(-1)
        video_CTHW = video_TCHW.transpose(0, 1).contiguous()
        if not self.multi_scale:
            video_CTHW = transforms.to_range(video_CTHW)
        return Clip(video_CTHW, entry.text, fps, entry.index)

    def _own_size(self) -> ClipSize:
        if not self.has_size:
            raise ValueError(f"{self.where}: made without num_frames and image_size; ask for clips of a size")
        return self.num_frames, *self.image_size

    def settings(self) -> dict[str, Any]:
        """Settings that make a clip of any size from any row; see datasets/feature_store.py."""
        names = ("frame_interval", "target_fps", "start", "crop", "flip", "time_range")
        return {"type": "VideoTextDataset", **{name: getattr(self, name) for name in names}}

    def random_settings(self) -> list[str]:
        """The settings by which a clip differs from draw to draw."""
        names = [f"{name}='random'" for name in ("start", "crop") if getattr(self, name) == "random"]
        return names + ["flip=True"] * self.flip

    def row_fingerprint(self, row: int, file_hash: Callable[[str], str]) -> dict[str, Any]:
        """The content of the row, wherever its file lies; BadClip when the file is missing."""
        entry = self._rows[row]
        return {"contents": file_hash(entry.path), "start": entry.start, "end": entry.end}

    def row_label(self, row: int) -> str:
        return self._rows[row].location

    def manifest_index(self, row: int) -> int:
        return self._rows[row].index

    def caption(self, row: int, draw: Draw) -> str:
        return self._rows[row].text

    def captions(self, row: int) -> list[str]:
        return [self._rows[row].text]

    def _read(self, row: int, draw: Draw, num_frames: int, image_size: Size) -> tuple[Tensor, float]:
        """One clip's frames as `_resized` gives them, [T, C, H, W], not cropped, and its frames per second."""
        decoded = self._cache.get((row, image_size))
        if decoded is None:
            entry = self._rows[row]
            with Video(entry.path, self._facts.get(row)) as video:
                if video.facts is not None:
                    self._facts[row] = video.facts
                self._warn_of_mismatch(entry, video.info)
                span = self._span(entry, video.info.num_frames, video.info.fps)
                try:
                    sources = self._sources(span, draw, num_frames)
                except BadClip as error:
                    raise BadClip(f"{entry.path}: {error}") from error
                whole_TCHW = self._whole(video, span, image_size)
                if whole_TCHW is None:
                    return self._resized(video, sources, image_size), self._clip_fps(span)
            decoded = self._cache[row, image_size] = _Decoded(whole_TCHW, span)
        sources = self._sources(decoded.span, draw, num_frames)
        first = decoded.span.first
        return decoded.video_TCHW[[source - first for source in sources]], self._clip_fps(decoded.span)

    def _warn_of_mismatch(self, row: ManifestRow, info: VideoInfo) -> None:
        """Log where the manifest contradicts the file; clips and their buckets were chosen by the manifest."""
        if len(self._mismatched) < _MOST_WARNINGS and row.index not in self._mismatched:
            words = mismatch(row, info)
            if words:
                self._mismatched.add(row.index)
                logger().warning(
                    "%s: %s: the manifest says %s; make the manifest again with tools.datasets.probe",
                    row.location,
                    row.path,
                    words,
                )

    def _whole(self, video: Video, span: _Span, image_size: Size) -> Tensor | None:
        """All frames of the span, to be kept; None when they exceed the limit or some of them are damaged."""
        height, width = transforms.cover_size(video.info.height, video.info.width, image_size)
        needed = (span.stop - span.first) * height * width * 3 * (4 if self.multi_scale else 1)  # bytes of a float
        if needed > self._cache_left:
            return None
        try:
            video_TCHW = self._resized(video, list(range(span.first, span.stop)), image_size)
        except BadClip:  # the requested clip may lie in the sound part: reading it alone decides
            return None
        self._cache_left -= needed
        return video_TCHW

    def _resized(self, video: Video, sources: list[int], image_size: Size) -> Tensor:
        """The frames at these indices, uint8; with multi_scale float32 in [-1, 1]."""
        if self.multi_scale:
            shorter, longer = sorted((video.info.height, video.info.width))
            if (shorter if longer <= image_size[0] else shorter * image_size[0] // longer) < 16:
                raise BadClip(
                    f"{video.path}: is {longer} by {shorter} pixels, of which fewer than 16 rows or columns are left where the "
                    f"longer side is at most {image_size[0]}; remove the row"
                )
            return torch.stack([transforms.resize_inside(frame, image_size[0]) for frame in video.frames(sources)])
        return torch.stack([transforms.resize_to_cover(frame, image_size) for frame in video.frames(sources)])

    def _span(self, row: ManifestRow, num_frames: int, fps: float) -> _Span:
        """The frames that the row's start and end and `time_range` leave."""
        first, stop = frames_between(row.start, row.end, fps, num_frames)
        length = max(0, stop - first)
        if num_frames == length == 1:  # an image cannot be divided
            return _Span(first, stop, fps)
        low, high = (int(length * part + ROUNDING) for part in self.time_range)
        return _Span(first + low, first + high, fps)

    def _step(self, span: _Span) -> float:
        """Frames of the file from one frame of the clip to the next."""
        return self.frame_interval * (span.fps / self.target_fps if self.target_fps is not None else 1.0)

    def _clip_fps(self, span: _Span) -> float:
        return span.fps / self._step(span)

    def _frames_needed(self, span: _Span, num_frames: int) -> int:
        return _nearest((num_frames - 1) * self._step(span)) + 1

    def _too_short(self, span: _Span, num_frames: int) -> str:
        have, need = span.stop - span.first, self._frames_needed(span, num_frames)
        part = "" if self.time_range == (0.0, 1.0) else f" in time_range {self.time_range}"
        return (
            f"has {have} frame{'' if have == 1 else 's'}{part}, {need} are needed for {num_frames} frames at "
            f"frame_interval {self.frame_interval}; use a longer clip, a smaller num_frames, or remove the row"
        )

    def _last_start(self, span: _Span, num_frames: int) -> int:
        """The last frame of the span at which a whole clip can begin; BadClip when there is none."""
        last = span.stop - self._frames_needed(span, num_frames)
        if last < span.first:
            raise BadClip(self._too_short(span, num_frames))
        return last

    def _sources(self, span: _Span, draw: Draw, num_frames: int) -> list[int]:
        """Indices of the clip's frames in the file."""
        last = self._last_start(span, num_frames)
        if self.start == "random":
            begin = int(torch.randint(span.first, last + 1, (), generator=draw.rng("start")))
        else:
            begin = span.first if self.start == "first" else (span.first + last) // 2
        return [begin + _nearest(k * self._step(span)) for k in range(num_frames)]


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
