"""Text, watermarks, black bars and borders in clips.

Run: python -m tools.score.text_area clips.csv scored.csv --workers 8
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import Frames
from opensora.errors import BadClip, ConfigError
from tools.clip_frames import sample_frames
from tools.runner import Row, run
from tools.score.bars import find_bars, gray_frame
from tools.score.watermark import Box, covered, marks

PACKAGES = ("rapidocr", "onnxruntime", "cv2")
# Windows, plates and faces look like text to the detector, but text is longer than high.
_OBLONG = 1.5  # of a box's longer side by its shorter one, at least
_UPRIGHT_SCORE = 0.8  # of a column of letters, at least
_LARGEST = 0.5  # share of the frame: where sky or fog fills a picture, the detector may take all of it for one word
_NARROWEST, _LONGEST_ASPECT = 32, 16  # of frames for the detector: pixels, and the longer side by the shorter one
_WIDEST = 1920  # pixels of the frames that are measured; wider ones are shrunk, for all are in memory
_LONGEST = 640  # pixels of the longer side in which marks are looked for
_OVERLAP = 0.5  # of two boxes' common area by their whole area: they are at one place


class TextArea:
    """Each row with ocr, text_area, watermark, letterbox and border; all but the first are shares of the frame, 0 to 1.

    ocr is the number of text boxes in the sampled frame that has most, text_area the mean share of the frame under text.
    watermark is the share under text or a logo that stays at one place while the picture moves, letterbox that under black
    bars, border that under other even bars at two opposite sides.

    frames: number of frames, spread over the clip, in which text is looked for; marks are in twice that many
    side: pixels of the shorter side to which frames are resized before text is looked for; smaller is faster
    score: least score of a text box, 0 to 1
    threads: of the detector in each worker
    """

    def __init__(self, *, frames: int = 6, side: int = 480, score: float = 0.7, threads: int = 1) -> None:
        if not 1 <= frames <= 256 or not 32 <= side <= 2000 or not 0 < score < 1 or threads < 1:
            raise ConfigError(
                f"text_area: --frames {frames} --side {side} --score {score} --threads {threads}; allowed: 1 to 256 frames, 32 "
                "to 2000 pixels, a score between 0 and 1, at least 1 thread; correct them"
            )
        self._detect = TextDetector(side, score, threads)
        self._frames = frames

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        results: list[Row | BadClip] = []
        for row in rows:
            try:
                frames = list(sample_frames(row, 2 * self._frames, _WIDEST))  # watermarks need more, and cost less
            except BadClip as error:
                results.append(error)
            else:
                results.append({**row, **measure(frames, [self._detect(frame) for frame in frames[::2]])})
        return results


class TextDetector:
    """The detector of rapidocr, whose model is in the package."""

    def __init__(self, side: int, score: float, threads: int) -> None:
        from rapidocr import RapidOCR

        self._side = side
        self._engine = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.use_rec": False,
                "Global.log_level": "critical",
                "Det.limit_side_len": side,
                "Det.limit_type": "min",
                "Det.box_thresh": score,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, frame: Frames) -> NDArray[np.float32]:
        """Corners [boxes, 4, 2] (column, row) in pixels of the text in a frame [H, W, 3]."""
        import cv2

        scale = self._side / min(frame.shape[:2])
        if scale < 1:  # the detector enlarges small frames, and leaves large ones
            size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        height, width = frame.shape[:2]
        least = max(_NARROWEST, max(height, width) // _LONGEST_ASPECT)
        if min(height, width) < least:  # the detector fails at narrower ones
            frame = np.pad(frame, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)), mode="edge")
        output: Any = self._engine(np.ascontiguousarray(frame[..., ::-1]))
        if output.boxes is None:
            return np.zeros((0, 4, 2), np.float32)
        boxes, scores = np.asarray(output.boxes, np.float32), np.asarray(output.scores)
        return boxes[_is_text(boxes, scores, frame.shape[0] * frame.shape[1])] / min(scale, 1)


def _is_text(boxes: NDArray[np.float32], scores: NDArray[np.float32], pixels: int) -> NDArray[np.bool_]:
    """False for boxes [boxes, 4, 2] that text does not fill. pixels: of the frame."""
    width, height = np.ptp(boxes[..., 0], axis=1), np.ptp(boxes[..., 1], axis=1)
    lines = width >= _OBLONG * height
    columns = (height >= _OBLONG * width) & (scores >= _UPRIGHT_SCORE)
    is_text: NDArray[np.bool_] = (lines | columns) & (width * height <= _LARGEST * pixels)
    return is_text


def measure(frames: Sequence[Frames], texts: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """The scores of frames [H, W, 3] of one size. texts: corners of the boxes in some of them."""
    height, width = frames[0].shape[:2]
    gray = np.stack([gray_frame(frame) for frame in frames])
    bars = find_bars(gray)
    steady = steady_boxes([[_bounds(each) for each in boxes] for boxes in texts])
    return {
        "ocr": max(len(boxes) for boxes in texts),
        "text_area": round(float(np.mean([_polygons_share(boxes, height, width) for boxes in texts])), 4),
        "watermark": round(_watermark(gray, bars.depths, steady), 4),
        "letterbox": round(bars.only(black=True).share(height, width), 4),
        "border": round(bars.only(black=False).share(height, width), 4),
    }


def steady_boxes(texts: Sequence[Sequence[Box]]) -> list[Box]:
    """The boxes of the first frame that have a counterpart at their place in every other frame."""
    first, *others = texts
    return [box for box in first if all(any(_overlap(box, each) >= _OVERLAP for each in boxes) for boxes in others)]


def _watermark(gray: NDArray[np.uint8], depths: tuple[int, int, int, int], texts: Sequence[Box]) -> float:
    """Share of the frame under marks within the bars."""
    import cv2

    height, width = gray.shape[1:]
    top, bottom, left, right = (depth + 2 if depth else 0 for depth in depths)
    picture = gray[:, top : height - bottom, left : width - right]
    scale = min(1.0, _LONGEST / max(height, width))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[:0:-1]]
        picture = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in picture])
    inside = [tuple(round((edge - offset) * scale) for edge, offset in zip(box, (left, top) * 2)) for box in texts]
    boxes = marks(picture, inside)
    return covered(boxes, *picture.shape[1:]) * scale**-2 * picture[0].size / (height * width)


def _bounds(corners: NDArray[np.float32]) -> Box:
    left, top = np.floor(corners.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(corners.max(axis=0)).astype(int).tolist()
    return left, top, right, bottom


def _overlap(one: Box, other: Box) -> float:
    sides = [min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1)]
    common = max(0, sides[0]) * max(0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / max(1, sum(areas) - common)


def _polygons_share(boxes: NDArray[np.float32], height: int, width: int) -> float:
    import cv2

    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillPoly(mask, [np.rint(box).astype(np.int32)], 1)
    return float(mask.mean())


if __name__ == "__main__":
    run(TextArea, batch_size=4, packages=PACKAGES)
