"""Find scene boundaries: one video in, one row per scene out.

Run: python -m tools.scene_cut.detect videos.csv scenes.csv --threshold 27
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from opensora.datasets.decode import Frames, Video
from opensora.errors import ConfigError
from tools.runner import Progress, Row, Rows, run

PACKAGES = ("scenedetect", "cv2")
_WIDTH = 256  # pixels; the detector compares mean colors, which small images keep
_FRAMES_PER_STATE = 500  # frames between two states of a long film: seconds of work
_AROUND = 2  # frames on each side with which a cut is compared, as in PySceneDetect's AdaptiveDetector


def detect(row: Row, state: dict[str, Any] | None = None, *, threshold: float = 27.0, min_seconds: float = 0.3) -> Rows:
    """Yield the scenes of `row["path"]`: times in seconds from the first frame, and frame numbers, end exclusive.

    threshold: mean HSV difference (0-255) between neighboring frames that counts as a cut
    min_seconds: of cuts that follow each other faster, the clearest counts; scenes are at least this long
    """
    if threshold <= 0 or min_seconds < 0:
        raise ConfigError(f"detect: --threshold {threshold} --min-seconds {min_seconds}; both must be positive")
    state = state or {"frames": 0, "differences": []}
    differences: dict[int, float] = dict(
        state["differences"]
    )  # of the cuts, the frames next to them, and the last ones
    with Video(row["path"]) as video:
        info = video.info
        first = max(0, state["frames"] - 1)  # the first frame to come is compared with the last of before
        frames = video.frames(range(first, info.num_frames))
        for number, difference in enumerate(frame_differences(frames), start=first):
            if number < state["frames"]:
                continue
            differences[number] = difference
            old = number - _AROUND - 1
            if not any(differences.get(near, 0.0) >= threshold for near in range(old - _AROUND, number)):
                differences.pop(old, None)
            done = number + 1
            if done % _FRAMES_PER_STATE == 0 and done < info.num_frames:
                yield Progress(done, info.num_frames, {"frames": done, "differences": list(differences.items())})
    cuts = [number for number, difference in differences.items() if difference >= threshold]
    bounds = scenes(cuts, info.num_frames, round(min_seconds * info.fps), clearness(cuts, differences))
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


def frame_differences(frames: Iterable[Frames]) -> Iterator[float]:
    """The difference of each frame from the one before, 0 for the first, by PySceneDetect's content detector."""
    import cv2
    from scenedetect import ContentDetector, FrameTimecode

    detector = ContentDetector(min_scene_len=0)
    for number, frame in enumerate(frames):
        if frame.shape[1] > _WIDTH:
            height = max(1, round(frame.shape[0] * _WIDTH / frame.shape[1]))
            frame = cv2.resize(frame, (_WIDTH, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        image = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        detector.process_frame(FrameTimecode(number, fps=25.0), image)  # only the number is used
        yield float(detector._frame_score or 0)  # its public metrics cost an edge detection for each frame


def clearness(cuts: Iterable[int], differences: Mapping[int, float]) -> dict[int, float]:
    """Cut -> its difference over the mean of the two before and the two after it: how far it stands out of the motion.

    The difference alone would prefer the end of a fast pan to the cut before it.
    """
    sides = [offset for offset in range(-_AROUND, _AROUND + 1) if offset]
    means = {cut: sum(differences.get(cut + offset, 0.0) for offset in sides) / len(sides) for cut in cuts}
    return {cut: differences[cut] / (1 + mean) for cut, mean in means.items()}


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
