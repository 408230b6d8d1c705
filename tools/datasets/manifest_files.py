"""Problems of the files that a manifest lists: missing, outside its folder, not decodable, not as it says."""

import errno
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from opensora.datasets.decode import Video, VideoInfo
from opensora.datasets.manifest import ManifestRow, Rows
from opensora.datasets.manifest_mismatch import mismatch
from opensora.errors import BadClip

OUTSIDE, MISSING, DAMAGED, CONTRADICTS = (
    "path outside the root",
    "file cannot be opened",
    "file cannot be decoded",
    "manifest contradicts the file",
)
_QUEUED_PER_WORKER = 4


@dataclass(frozen=True)
class Problem:
    """One row that training could not use. message: a sentence that begins with the file and the line of the row."""

    reason: str
    message: str


class PathCheck:
    """A test that paths lead to files below a root, links followed.

    root: None allows every place.
    """

    def __init__(self, root: str | None) -> None:
        self.root = None if root is None else os.path.realpath(root)
        self._real_folder = lru_cache(maxsize=100_000)(
            os.path.realpath
        )  # the clips of a folder come one after the other

    def problem(self, row: ManifestRow) -> Problem | None:
        """Why the path of a row cannot be used."""
        try:
            is_link = os.path.islink(row.path)
            with open(row.path, "rb"):
                pass
        except OSError as error:
            reason = "its links lead in a circle" if error.errno == errno.ELOOP else error.strerror or str(error)
            return Problem(MISSING, f"{row.location}: {row.path}: {reason}; correct the path or remove the row")
        except ValueError as error:
            return Problem(MISSING, f"{row.location}: {row.path!r}: {error}; correct the path or remove the row")
        if self.root is None:
            return None
        folder, base = os.path.split(row.path)
        real = os.path.realpath(row.path) if is_link else os.path.join(self._real_folder(folder), base)
        if real.startswith(self.root.rstrip(os.sep) + os.sep):
            return None
        leads = row.path if real == row.path else f"{row.path}, which is {real}"
        return Problem(
            OUTSIDE,
            f"{row.location}: {leads}: not below {self.root}; allowed: files below the manifest's folder; move the file, name "
            "its folder with --root, or allow every place with --allow-outside",
        )


def file_problem(row: ManifestRow, decode: bool) -> Problem | None:
    """Why the file of a row cannot be used. decode: read every frame of the row, not the header alone."""
    try:
        with Video(row.path, strict=decode) as video:
            words = mismatch(row, video.info)
            if words:
                return Problem(
                    CONTRADICTS,
                    f"{row.location}: {row.path}: the manifest says {words}; make the manifest again with tools.datasets.probe",
                )
            if decode:
                for _ in video.frames(_frames_of(row, video.info)):
                    pass
    except BadClip as error:
        return Problem(DAMAGED, f"{row.location}: {error}")
    return None


def _frames_of(row: ManifestRow, info: VideoInfo) -> range:
    """The frames between start and end of a row."""
    first = 0 if row.start is None else math.ceil(row.start * info.fps - 1e-3)
    stop = info.num_frames if row.end is None else math.ceil(row.end * info.fps - 1e-3)
    return range(min(first, info.num_frames), min(stop, info.num_frames))


def file_problems(
    rows: Rows, paths: PathCheck, *, headers: bool, decode: bool, workers: int, done: Callable[[], object]
) -> Iterator[Problem]:
    """Problems of all rows, in their order. headers: open the files. done: called after each row."""

    def check(row: ManifestRow) -> Problem | None:
        return paths.problem(row) or (file_problem(row, decode) if headers or decode else None)

    every = (rows[position] for position in range(len(rows)))
    for problem in _in_order(check, every, workers):
        done()
        if problem is not None:
            yield problem


def _in_order(
    check: Callable[[ManifestRow], Problem | None], rows: Iterator[ManifestRow], workers: int
) -> Iterator[Problem | None]:
    """Results in order. Decoders release Python's lock, so that threads are enough; few rows are queued at a time."""
    if workers <= 1:
        yield from map(check, rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        queue = [pool.submit(check, row) for row in islice(rows, workers * _QUEUED_PER_WORKER)]
        while queue:
            yield queue.pop(0).result()
            queue += [pool.submit(check, row) for row in islice(rows, 1)]
