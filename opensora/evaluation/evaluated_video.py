"""EvaluatedVideo: a video or picture of a folder, with what is known of how it was made."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from opensora.datasets.clip_sizes import frames_between
from opensora.datasets.decode import Frames, Video, probe, read_frames
from opensora.datasets.media_kind import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.errors import BadClip, DataError

T = TypeVar("T")
SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)


@dataclass(frozen=True)
class EvaluatedVideo:
    """A file, or frames of one, with its size without the rows and columns that a codec needed.

    prompt: of the json next to it, or of the manifest; None where neither says. first_frame: where the clip begins in the
    file. settings: the rest of the json.
    """

    path: Path
    num_frames: int
    height: int
    width: int
    fps: float
    prompt: str | None = None
    first_frame: int = 0
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The file name, and the frames of a shot."""
        shot = f" [{self.first_frame}:{self.first_frame + self.num_frames}]" if self.first_frame else ""
        return f"{self.path.name}{shot}"

    def blocks(self, size: int) -> Iterator[Frames]:
        """All frames in order, at most `size` in memory at a time: RGB bytes [n, H, W, 3]. Raises BadClip."""
        wanted = range(self.first_frame, self.first_frame + self.num_frames)
        with Video(str(self.path)) as video:
            for frames in batched(video.frames(wanted), size):
                yield np.ascontiguousarray(np.stack(frames)[:, : self.height, : self.width])

    def read(self, frames: Sequence[int]) -> Frames:
        """The frames at these ascending numbers, [n, H, W, 3]. Raises BadClip."""
        shown = read_frames(str(self.path), [self.first_frame + frame for frame in frames])
        return np.ascontiguousarray(shown[:, : self.height, : self.width])

    def whole(self) -> Frames:
        """All frames at once, [T, H, W, 3]."""
        return next(self.blocks(self.num_frames))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in order, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_folder(folder: Path, limit: int | None = None) -> list[EvaluatedVideo]:
    """The videos and pictures of a folder in the order of their names, grids left out; the first `limit`.

    Files that `opensora sample` wrote are those that their jsons name; other files have no prompt.
    Raises DataError for a missing or an empty folder, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; allowed: a folder of videos or pictures; correct the path")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    folders = [path for path in folder.iterdir() if path.is_dir() and path.with_suffix(".json").is_file()]
    paths = sorted([path for path in paths if not path.name.startswith(("grid-", "."))] + folders)
    if not paths:
        raise DataError(f"{folder}: found no video or picture; allowed: files such as *.mp4; correct the path")
    return [_read(path) for path in paths[:limit]]


def _read(path: Path) -> EvaluatedVideo:
    record = _record(path)
    if path.is_dir():
        raise DataError(
            f"{path}: a folder of pictures; videos are measured as files; sample with --save-format mp4, or name the folder "
            "itself to measure its pictures"
        )
    try:
        info = probe(str(path))
    except BadClip as error:
        raise DataError(f"{error}; remove it, or make it again") from None
    height, width = record.get("height", info.height), record.get("width", info.width)
    prompt = record.get("prompt")
    return EvaluatedVideo(
        path, info.num_frames, min(height, info.height), min(width, info.width), info.fps, prompt, settings=record
    )


def _record(path: Path) -> dict[str, Any]:
    """The json next to a file; empty without one, or for one that is not of `opensora sample`."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        raise DataError(
            f"{path.with_suffix('.json')}: is not JSON; sample {path.name} again, or remove the file"
        ) from None
    return record if isinstance(record, dict) and record.get("file") == path.name else {}


def read_references(path: Path, limit: int | None = None) -> list[EvaluatedVideo]:
    """The clips of a manifest, or the videos of a folder; the first `limit`. Raises DataError, ManifestError."""
    if path.is_dir():
        return read_folder(path, limit)
    from opensora.datasets.manifest import read_manifest

    clips = []
    for row in read_manifest(str(path), captions=False).rows[:limit]:
        try:
            info = probe(row.path)
        except BadClip as error:
            raise DataError(f"{path}: {error}") from None
        first, end = frames_between(row.start, row.end, info.fps, info.num_frames)
        clips.append(
            EvaluatedVideo(Path(row.path), end - first, info.height, info.width, info.fps, row.text or None, first)
        )
    if not clips:
        raise DataError(
            f"{path}: found no usable row; allowed: a manifest of clips; `python -m tools.datasets.validate` says why"
        )
    return clips
