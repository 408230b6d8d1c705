"""The ways to find cuts: each gives frames a score, and says which scores are cuts.

content: as PySceneDetect's ContentDetector, the mean difference of hue, saturation and value from the frame before.
adaptive: as its AdaptiveDetector, the same scores, compared with those of the frames around.
threshold: PySceneDetect's ThresholdDetector, fades to black.
transnetv2: a network, Soucek & Lokoc 2020, arXiv:2008.04838; see transnetv2.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from opensora.datasets.decode import Frames

Scores = dict[int, float]  # frame number -> score

AROUND = 2  # frames on each side with which a cut is compared, as in PySceneDetect's AdaptiveDetector
_LEAST_CONTENT = 15.0  # score that an adaptive cut has at least, as in PySceneDetect


@dataclass(frozen=True)
class Detector:
    """Frames to scores to cuts. Scores that no cut depends on are dropped, so that a long film takes little memory."""

    threshold: float  # default
    widest: int  # pixels; wider frames are shrunk
    score: Callable[[Iterable[Frames]], Iterator[float]]  # of each [H, W, 3], in order
    context: int  # frames that are scored again when a film goes on, for the sake of the next score
    matters: Callable[[float, float, float], bool]  # (score, the one before, threshold): keep it and those around
    cuts: Callable[[Scores, float, int], Scores]  # (scores, threshold, frames of the film) -> cut: how clear it is


class KeptScores(Scores):
    """Scores by frame: of those that matter and the frames around them, and of the last ones.

    scores: those of an earlier run, when it stopped.
    """

    def __init__(self, detector: Detector, threshold: float, scores: Iterable[tuple[int, float]] = ()) -> None:
        super().__init__(scores)
        self._detector, self._threshold = detector, threshold
        self._matter = {number for number in self if self._matters(number)}

    def add(self, number: int, score: float) -> None:
        """Take the next frame's score, and drop an old one that turns out not to be needed."""
        self[number] = score
        if self._matters(number):
            self._matter.add(number)
        old = number - AROUND - 1
        if self._matter.isdisjoint(range(old - AROUND, number)):
            self.pop(old, None)

    def _matters(self, number: int) -> bool:
        before = self.get(number - 1, self._threshold if number == 0 else self[number])
        return self._detector.matters(self[number], before, self._threshold)


def frame_differences(frames: Iterable[Frames]) -> Iterator[float]:
    """The mean difference of hue, saturation and value from the frame before, 0 for the first.

    It is the score of PySceneDetect's ContentDetector, to rounding, in a twentieth of the time.
    """
    import cv2

    before = None
    for frame in frames:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        yield 0.0 if before is None else cv2.norm(hsv, before, cv2.NORM_L1) / hsv.size
        before = hsv


def brightness(frames: Iterable[Frames]) -> Iterator[float]:
    """The mean of all pixels and colors, 0 to 255."""
    import cv2

    for frame in frames:
        yield sum(cv2.mean(frame)[:3]) / 3


def content_cuts(differences: Scores, threshold: float, num_frames: int) -> Scores:
    """Frames that differ by at least `threshold` from the one before."""
    return clearness((number for number, each in differences.items() if each >= threshold), differences)


def adaptive_cuts(differences: Scores, threshold: float, num_frames: int, least: float = _LEAST_CONTENT) -> Scores:
    """Frames that differ `threshold` times as much as the two before and the two after, and at least by `least`."""
    cuts = []
    for number, each in differences.items():
        if each < least or not AROUND <= number < num_frames - AROUND:
            continue
        mean = _mean_around(number, differences)
        if mean < 1e-5 or each / mean >= threshold:
            cuts.append(number)
    return clearness(cuts, differences)


def fade_cuts(means: Scores, threshold: float, num_frames: int) -> Scores:
    """The middles of the dark parts that begin and end inside the film. means: at least where they cross the threshold."""
    import numpy as np
    from scenedetect import FrameTimecode, ThresholdDetector

    detector = ThresholdDetector(threshold=threshold, min_scene_len=0)
    numbered = [(FrameTimecode(number, fps=25.0), np.array(mean)) for number, mean in means.items()]
    return {cut.frame_num: 1.0 for time, mean in numbered for cut in detector.process_frame(time, mean)}


def clearness(cuts: Iterable[int], differences: Mapping[int, float]) -> Scores:
    """Cut -> its difference over the mean of the two before and the two after it: how far it stands out of the motion.

    The difference alone would prefer the end of a fast pan to the cut before it.
    """
    return {cut: differences[cut] / (1 + _mean_around(cut, differences)) for cut in cuts}


def _mean_around(cut: int, differences: Mapping[int, float]) -> float:
    sides = [offset for offset in range(-AROUND, AROUND + 1) if offset]
    return sum(differences.get(cut + offset, 0.0) for offset in sides) / len(sides)


def at_least(score: float, before: float, threshold: float) -> bool:
    return score >= threshold


def _may_be_adaptive(score: float, before: float, threshold: float) -> bool:
    return score >= _LEAST_CONTENT


def _crosses(score: float, before: float, threshold: float) -> bool:
    return (score < int(threshold)) != (before < int(threshold))  # PySceneDetect takes whole numbers


_CONTENT_WIDTH = 256  # the detectors compare mean colors, which small images keep
DETECTORS = {
    "content": Detector(27.0, _CONTENT_WIDTH, frame_differences, 1, at_least, content_cuts),
    "adaptive": Detector(3.0, _CONTENT_WIDTH, frame_differences, 1, _may_be_adaptive, adaptive_cuts),
    "threshold": Detector(12.0, _CONTENT_WIDTH, brightness, 0, _crosses, fade_cuts),
}
