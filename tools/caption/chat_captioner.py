"""ChatCaptioner: captions by a model that answers prompts with pictures, over a whole clip or window by window."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensora.chat_client import Answer
from opensora.datasets.decode import Frames
from opensora.errors import BadClip
from tools.caption.captioner import Captioner, Row
from tools.caption.clean_caption import sentences
from tools.caption.clip_windows import Window, clip_windows, grid
from tools.caption.prompting import Prompting, fill, quotable

_LONGEST_QUOTE = 2000  # characters of an earlier answer inside a prompt


@dataclass(frozen=True)
class Request:
    """A prompt for the model. pictures [T, H, W, 3], none for a prompt of words alone; as_video: they are one video."""

    prompt: str
    pictures: Frames | None = None
    as_video: bool = False
    fps: float = 1.0  # of the pictures, where they are a video
    system: str = ""


Result = Answer | BadClip


class ChatCaptioner(Captioner):
    """Chooses frames, writes the prompts, and merges what the model says about the windows.

    prompting: see tools.caption.prompting.Prompting.
    """

    def __init__(self, prompting: Mapping[str, Any] | None = None) -> None:
        self.prompting = Prompting.of(prompting or {})

    @abc.abstractmethod
    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """The model's answers, in order. Raises ConfigError for what is wrong with every request."""

    def caption(self, rows: Sequence[Row]) -> list[Result]:
        clips = [self._windows(row) for row in rows]
        ocr = [self.prompting.ocr_sentence(row) for row in rows]
        answers: list[list[Answer]] = [[] for _ in rows]
        bad: dict[int, BadClip] = {number: clip for number, clip in enumerate(clips) if isinstance(clip, BadClip)}
        for depth in range(max((len(clip) for clip in clips if not isinstance(clip, BadClip)), default=0)):
            waiting = [
                (number, clip[depth])
                for number, clip in enumerate(clips)
                if not isinstance(clip, BadClip) and number not in bad and depth < len(clip)
            ]
            results = self.answer([self._request(window, answers[number], ocr[number]) for number, window in waiting])
            for (number, _), result in zip(waiting, results, strict=True):
                if isinstance(result, BadClip):
                    bad[number] = result
                else:
                    answers[number].append(result)
        whole = self._merge(
            {
                number: (clip, answers[number])
                for number, clip in enumerate(clips)
                if not isinstance(clip, BadClip) and number not in bad
            }
        )
        return [bad[number] if number in bad else whole[number] for number in range(len(rows))]

    def _windows(self, row: Row) -> list[Window] | BadClip:
        settings = self.prompting
        try:
            return clip_windows(
                row,
                settings.frames,
                max_side=settings.max_side,
                window_seconds=settings.window_seconds,
                most_windows=settings.most_windows,
                overlap=settings.overlap,
            )
        except BadClip as error:
            return error

    def _request(self, window: Window, before: Sequence[Answer], ocr: str) -> Request:
        settings = self.prompting
        prompt = settings.prompt
        if before:
            prompt = fill(settings.difference_prompt, previous=quotable(before[-1].text, _LONGEST_QUOTE))
        pictures = grid(window.frames)[None] if settings.layout == "grid" else window.frames
        as_video = settings.layout == "video"
        if as_video and len(pictures) == 1:  # video encoders take frames in pairs
            pictures = np.repeat(pictures, 2, axis=0)
        return Request(prompt + ocr, pictures, as_video, window.fps, settings.system)

    def _merge(self, clips: Mapping[int, tuple[list[Window], list[Answer]]]) -> dict[int, Result]:
        """One answer per clip from those of its windows."""
        several = [number for number, (windows, _) in clips.items() if len(windows) > 1]
        merged: dict[int, Result] = {number: answers[0] for number, (windows, answers) in clips.items() if windows}
        if self.prompting.merge == "join":
            return merged | {number: join(clips[number][1]) for number in several}
        requests = []
        for number in several:
            lines = [
                f"{window.start:.1f} s to {window.end:.1f} s: {quotable(answer.text, _LONGEST_QUOTE)}"
                for window, answer in zip(*clips[number])
            ]
            prompt = fill(self.prompting.merge_prompt, captions="\n".join(lines))
            requests.append(Request(prompt, system=self.prompting.system))
        return merged | dict(zip(several, self.answer(requests) if requests else []))


def join(answers: Sequence[Answer]) -> Answer:
    """All sentences in order, each once; of an answer that was cut off, the whole sentences alone."""
    kept: dict[str, str] = {}
    for answer in answers:
        parts = sentences(answer.text)
        if not answer.finished and len(parts) > 1:
            parts = parts[:-1]
        for part in parts:
            kept.setdefault(" ".join(part.lower().split()), part)
    return Answer(" ".join(kept.values()), finished=len(answers) != 1 or answers[0].finished)
