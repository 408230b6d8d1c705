"""Read the text on the frames of clips: one manifest row per clip in, the row with column ocr_text out.

Run: python -m tools.caption.read_text clips.csv texts.csv

Captioners that see frames quote this text to their model. tools.score.text_area measures how much of the frame is text.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from opensora.datasets.decode import Frames
from opensora.errors import BadClip, ConfigError
from tools.caption.clip_windows import clip_windows
from tools.runner import Row, run

PACKAGES = ("rapidocr", "onnxruntime")
SEPARATOR = " / "  # between lines of text
_ALIKE = 0.8  # similarity, 0 to 1, of two readings of one line
Line = tuple[str, float]  # text, and how sure the model is, 0 to 1


class ReadText:
    """The rows with ocr_text: the lines that were read, from the top left, each once; empty where there are none.

    frames: of each clip that are read
    sure: 0 to 1; lines of which the model is less sure are left out
    max_side: longer side of the frames in pixels; 0 leaves them as they are
    threads: of each worker
    """

    def __init__(self, *, frames: int = 3, sure: float = 0.7, max_side: int = 960, threads: int = 1) -> None:
        if frames < 1 or not 0 <= sure <= 1 or max_side < 0 or threads < 1:
            raise ConfigError(
                f"read_text: --frames {frames} --sure {sure} --max-side {max_side} --threads {threads}; frames and threads "
                "are at least 1, sure is 0 to 1, max-side is not negative"
            )
        self._frames, self._sure, self._max_side = frames, sure, max_side
        self._reader = _load(threads, max_side)

    def __call__(self, rows: list[Row]) -> list[Row | BadClip]:
        results: list[Row | BadClip] = []
        for row in rows:
            try:
                (clip,) = clip_windows(row, self._frames, max_side=self._max_side)
            except BadClip as error:
                results.append(error)
                continue
            lines = merge_lines(self._lines(frame) for frame in clip.frames)
            results.append({**row, "ocr_text": SEPARATOR.join(lines)})
        return results

    def _lines(self, frame: Frames) -> list[Line]:
        """The lines of text on [H, W, 3]."""
        output = self._reader(frame[:, :, ::-1])  # blue first
        if output.txts is None:
            return []
        return [
            (" ".join(text.split()), score) for text, score in zip(output.txts, output.scores) if score >= self._sure
        ]


def merge_lines(frames: Iterable[Sequence[Line]]) -> list[str]:
    """Each line once, in order of appearance; of readings that are alike the one of which the model was most sure."""
    merged: list[Line] = []
    for lines in frames:
        for text, score in lines:
            same = next((n for n, (other, _) in enumerate(merged) if _alike(text, other)), None)
            if same is None:
                merged.append((text, score))
            elif score > merged[same][1]:
                merged[same] = (text, score)
    return [text for text, _ in merged if text]


def _alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio() >= _ALIKE


def _load(threads: int, max_side: int) -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,  # lines upside down are rare in videos
            # The default enlarges small frames to 736 pixels, which takes 20 times as long.
            "Det.limit_type": "max",
            "Det.limit_side_len": max(960, max_side),
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }
    )


if __name__ == "__main__":
    run(ReadText, packages=PACKAGES, batch_size=8)
