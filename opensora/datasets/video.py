"""VideoTextDataset: the clips and captions that a manifest lists.

Layout: T frames, C colours, H W rows and columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from opensora.datasets import transforms
from opensora.datasets.decode import Video, probe
from opensora.datasets.manifest import ManifestRow, read_manifest
from opensora.datasets.protocol import Dataset
from opensora.datasets.report import Dropped, Report
from opensora.errors import BadClip, ConfigError
from opensora.random import Draw
from opensora.registry import DATASETS
from opensora.types import Clip

__all__ = ["Dataset", "VideoTextDataset"]

_DEFAULT_FPS = 24.0  # told when not a single file can be opened
_ROUNDING = 1e-3  # frames: times are written with few digits, and must not move a boundary by one


@dataclass(frozen=True)
class _Span:
    """Frames of a file that a row may use: indices first, ..., stop - 1."""

    first: int
    stop: int
    fps: float  # of the file


@dataclass(frozen=True)
class _Decoded:
    """A whole span in memory."""

    video_TCHW: Tensor  # uint8
    span: _Span


@DATASETS.register_module()
class VideoTextDataset:
    """Clips of `num_frames` frames of `image_size` pixels, cut out of the videos of a manifest.

    data_path: the manifest, CSV or Parquet; see `datasets/manifest.py` for its columns.
    image_size: (height, width) in pixels; frames are resized until they cover it, then cropped.
    frame_interval: take every n-th frame. fps: first bring each video to this rate by dropping or repeating frames;
    None keeps the rate of the file.
    start: where in the video a clip begins. crop: where in the picture. flip: mirror every second clip left to right.
    time_range: the part of each video to use, as fractions of its length; (0, 0.8) for training leaves (0.8, 1) for
    a held-back measurement.
    captions: False for training without text, as an autoencoder does; the text column may then be missing.
    cache_megabytes: keep whole decoded videos, resized, in memory up to this limit per process; for sets so small that
    every video comes back soon. The clips are the same with any limit.
    """

    def __init__(
        self,
        data_path: str,
        num_frames: int,
        image_size: Sequence[int],
        frame_interval: int = 1,
        fps: float | None = None,
        start: Literal["random", "center", "first"] = "random",
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        time_range: Sequence[float] = (0.0, 1.0),
        captions: bool = True,
        cache_megabytes: int = 0,
    ) -> None:
        self.where = data_path
        if num_frames < 1 or frame_interval < 1 or (fps is not None and fps <= 0):
            raise ConfigError(
                f"dataset: num_frames={num_frames}, frame_interval={frame_interval}, fps={fps}; all must be above 0"
            )
        if len(image_size) != 2 or min(image_size) < 1:
            raise ConfigError(f"dataset: image_size={image_size}; allowed: (height, width) in pixels, both above 0")
        if len(time_range) != 2 or not 0 <= time_range[0] < time_range[1] <= 1:
            raise ConfigError(f"dataset: time_range={time_range}; allowed: (from, to) with 0 <= from < to <= 1")
        self.num_frames = num_frames
        self.image_size = (image_size[0], image_size[1])
        self.frame_interval = frame_interval
        self.target_fps = fps
        self.start = start
        self.crop = crop
        self.flip = flip
        self.time_range = (time_range[0], time_range[1])
        self._cache: dict[int, _Decoded] = {}
        self._cache_left = cache_megabytes * 2**20  # bytes
        self._counts: dict[int, int] = {}  # row -> frames of its file, where that took reading the file to know
        manifest = read_manifest(data_path, captions)
        self._dropped = manifest.dropped
        self._rows: list[ManifestRow] = []
        for row in manifest.rows:
            try:
                if row.num_frames is not None and row.fps is not None:
                    self._last_start(self._span(row, row.num_frames, row.fps))
            except BadClip as error:
                self._dropped.append(Dropped("too short", f"{row.place}: {row.path}: {error}"))
            else:
                self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fps(self) -> float:
        """Frames per second of the clips; where files keep their own rate, of the first one that opens."""
        if self.target_fps is not None:
            return self.target_fps / self.frame_interval
        for row in self._rows:
            try:
                return (row.fps or probe(row.path).fps) / self.frame_interval
            except BadClip:
                continue  # the loader reports it when it comes to it
        return _DEFAULT_FPS / self.frame_interval

    def report(self) -> Report:
        """What the manifest alone tells; `inspect` opens every video as well."""
        return self._report(self._dropped)

    def inspect(self) -> Report:
        """Open every video and read the frames of one clip: what would training drop, and why."""
        dropped = list(self._dropped)
        for index, row in enumerate(self._rows):
            try:
                self._read(index, Draw(seed=0, step=0, place=0))
            except BadClip as error:
                dropped.append(Dropped("cannot be used", f"{row.place}: {error}"))
        return self._report(dropped)

    def _report(self, dropped: list[Dropped]) -> Report:
        kept = len(self._rows) + len(self._dropped) - len(dropped)
        size = "x".join(map(str, (self.num_frames, *self.image_size)))
        return Report.of(self.where, kept, dropped, {size: kept})

    def clip(self, row: int, draw: Draw) -> Clip:
        """The clip of one row; start frame, crop and mirroring come from `draw`. BadClip names the manifest line."""
        entry = self._rows[row]
        try:
            video_TCHW, fps = self._read(row, draw)
        except BadClip as error:
            raise BadClip(f"{entry.place}: {error}") from error
        video_TCHW = transforms.crop(video_TCHW, self.image_size, self.crop, draw.rng("crop"))
        if self.flip and float(torch.rand((), generator=draw.rng("flip"))) < 0.5:
            video_TCHW = video_TCHW.flip(-1)
        video_CTHW = transforms.to_range(video_TCHW.transpose(0, 1).contiguous())
        return Clip(video_CTHW, entry.text, fps, entry.index)

    def settings(self) -> dict[str, Any]:
        """How a clip is made of any row; see datasets/features.py."""
        names = ("num_frames", "image_size", "frame_interval", "target_fps", "start", "crop", "flip", "time_range")
        return {"type": "VideoTextDataset", **{name: getattr(self, name) for name in names}}

    def drawn(self) -> list[str]:
        """The settings by which a clip is another one every time."""
        found = [f"{name}='random'" for name in ("start", "crop") if getattr(self, name) == "random"]
        return found + ["flip=True"] * self.flip

    def identity(self, row: int, contents: Callable[[str], str]) -> dict[str, Any]:
        """What the row is, wherever its file lies; BadClip when the file is not there."""
        entry = self._rows[row]
        return {"contents": contents(entry.path), "start": entry.start, "end": entry.end}

    def place(self, row: int) -> str:
        return self._rows[row].place

    def number(self, row: int) -> int:
        return self._rows[row].index

    def caption(self, row: int, draw: Draw) -> str:
        return self._rows[row].text

    def captions(self, row: int) -> list[str]:
        return [self._rows[row].text]

    def _read(self, row: int, draw: Draw) -> tuple[Tensor, float]:
        """One clip's frames, resized but not cropped, uint8 [T, C, H, W], and its frames per second."""
        decoded = self._cache.get(row)
        if decoded is None:
            entry = self._rows[row]
            with Video(entry.path, num_frames=self._counts.get(row)) as video:
                if not video.counted_by_header:
                    self._counts[row] = video.info.num_frames
                span = self._span(entry, video.info.num_frames, video.info.fps)
                try:
                    sources = self._sources(span, draw)
                except BadClip as error:
                    raise BadClip(f"{entry.path}: {error}") from error
                whole_TCHW = self._whole(video, span)
                if whole_TCHW is None:
                    return self._resized(video, sources), self._clip_fps(span)
            decoded = self._cache[row] = _Decoded(whole_TCHW, span)
        sources = self._sources(decoded.span, draw)
        first = decoded.span.first
        return decoded.video_TCHW[[source - first for source in sources]], self._clip_fps(decoded.span)

    def _resized(self, video: Video, sources: list[int]) -> Tensor:
        return torch.stack([transforms.resize_to_cover(frame, self.image_size) for frame in video.frames(sources)])

    def _whole(self, video: Video, span: _Span) -> Tensor | None:
        """All frames of the span, to be kept; None when they exceed the limit or some of them are damaged."""
        height, width = transforms.cover_size(video.info.height, video.info.width, self.image_size)
        needed = (span.stop - span.first) * height * width * 3
        if needed > self._cache_left:
            return None
        try:
            video_TCHW = self._resized(video, list(range(span.first, span.stop)))
        except BadClip:  # the clip asked for may lie in the sound part: reading it alone decides
            return None
        self._cache_left -= needed
        return video_TCHW

    def _span(self, row: ManifestRow, num_frames: int, fps: float) -> _Span:
        """The frames that the row's start and end and `time_range` leave."""
        first = 0 if row.start is None else math.ceil(row.start * fps - _ROUNDING)
        stop = num_frames if row.end is None else min(num_frames, math.ceil(row.end * fps - _ROUNDING))
        length = max(0, stop - first)
        low, high = (int(length * part + _ROUNDING) for part in self.time_range)
        return _Span(first + low, first + high, fps)

    def _step(self, span: _Span) -> float:
        """Frames of the file from one frame of the clip to the next."""
        return self.frame_interval * (span.fps / self.target_fps if self.target_fps is not None else 1.0)

    def _clip_fps(self, span: _Span) -> float:
        return span.fps / self._step(span)

    def _last_start(self, span: _Span) -> int:
        """The last frame of the span at which a whole clip can begin; BadClip when there is none."""
        have, need = span.stop - span.first, _nearest((self.num_frames - 1) * self._step(span)) + 1
        if have < need:
            part = "" if self.time_range == (0.0, 1.0) else f" in time_range {self.time_range}"
            raise BadClip(
                f"has {have} frame{'' if have == 1 else 's'}{part}, {need} are needed for {self.num_frames} frames at "
                f"frame_interval {self.frame_interval}; use a longer clip, a smaller num_frames, or remove the row"
            )
        return span.stop - need

    def _sources(self, span: _Span, draw: Draw) -> list[int]:
        """Indices of the clip's frames in the file."""
        last = self._last_start(span)
        if self.start == "random":
            begin = int(torch.randint(span.first, last + 1, (), generator=draw.rng("start")))
        else:
            begin = span.first if self.start == "first" else (span.first + last) // 2
        return [begin + _nearest(k * self._step(span)) for k in range(self.num_frames)]


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)
