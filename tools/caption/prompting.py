"""Prompting: the frames that a model sees, and the words that it gets with them."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from typeguard import TypeCheckError, check_type

from opensora.errors import ConfigError

WHOLE = (
    "Describe this video in one paragraph of plain English for someone who will film it again. Name the subjects, what "
    "they look like and what they do from beginning to end, the place, the light and the movement of the camera. "
    "Describe only what can be seen. Do not begin with words such as 'the video shows'."
)
DIFFERENCE = (
    'These are the next moments of a video. The moments before were described so: "{previous}" Describe in one or two '
    "sentences what is new or has changed: actions, subjects, place, light and movement of the camera. Do not repeat what "
    "stays as it was."
)
MERGE = (
    "These are descriptions of the parts of one video, in order, with their times:\n{captions}\nWrite one paragraph that "
    "describes the whole video from beginning to end. Use only what the descriptions say, mention nothing twice, and do "
    "not mention times, parts or descriptions."
)
REFINE = (
    "Rewrite this description of a video as one paragraph of plain English. Keep every fact, add none, and remove "
    "repetitions, guesses and remarks about the video as such. Answer with the paragraph alone.\n{text}"
)
OCR = 'These words can be read in the video: "{ocr}". Where they matter, quote them exactly.'
_PLACES = {"difference_prompt": "previous", "merge_prompt": "captions", "ocr_prompt": "ocr"}

Layout = Literal["images", "video", "grid"]


@dataclass(frozen=True)
class Prompting:
    """The config's `prompting=dict(...)`.

    prompt: for the whole clip, or its first window.
    frames: of a clip, or of each window; taken from the middles of equal parts.
    layout: "images": every frame is a picture of its own. "video": one video, for models with a video input. "grid": all
        frames in one picture, row by row, for models that read a single picture.
    max_side: longer side of a frame in pixels; larger ones are shrunk, 0 leaves them as they are.
    system: text of the system turn; "" leaves it out.
    window_seconds: length of a window; None describes the clip at once.
    most_windows: longer windows are taken where a clip would have more of them.
    overlap: True begins each window with the last frame of the one before.
    difference_prompt: for every window but the first; {previous} is the caption of the window before.
    merge: "model" has the model merge the captions of the windows, "join" puts their sentences one behind the other and
        leaves out those that were said before.
    merge_prompt: {captions} is the list of all windows' captions.
    ocr_column: text that was read on the frames; a row that has it gets `ocr_prompt` behind the prompt.
    ocr_characters: the text's longest part that is used.
    """

    prompt: str = WHOLE
    frames: int = 8
    layout: Layout = "images"
    max_side: int = 448
    system: str = ""
    window_seconds: float | int | None = None
    most_windows: int = 16
    overlap: bool = False
    difference_prompt: str = DIFFERENCE
    merge: Literal["model", "join"] = "model"
    merge_prompt: str = MERGE
    ocr_column: str = "ocr_text"
    ocr_prompt: str = OCR
    ocr_characters: int = 200

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Prompting":
        """Check the keys and values of a config. Raises ConfigError."""
        fields = {field.name: field for field in dataclasses.fields(Prompting)}
        for key, value in config.items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                nearest = f"; nearest: {near[0]!r}" if near else ""
                raise ConfigError(
                    f"prompting.{key}: unknown{nearest}; allowed: {', '.join(fields)}; rename or remove it"
                )
            _check(key, value, fields[key].type)
        return Prompting(**config)

    def ocr_sentence(self, row: Mapping[str, Any]) -> str:
        """The sentence about the text on the frames, with a blank before it; "" for a row without one."""
        cell = row.get(self.ocr_column)
        words = " ".join(map(str, cell)) if isinstance(cell, list | tuple) else str(cell or "")
        text = quotable(words, self.ocr_characters)
        return " " + fill(self.ocr_prompt, ocr=text) if text else ""


def _check(key: str, value: object, kind: Any) -> None:
    try:
        if isinstance(value, bool) and kind is not bool:
            raise TypeCheckError("a bool is not a number here")
        check_type(value, kind)
    except TypeCheckError:
        words = getattr(kind, "__name__", str(kind)).replace("typing.", "")
        raise ConfigError(f"prompting.{key}: found {value!r}; allowed: {words}; change the value") from None
    lowest = {"frames": 1, "most_windows": 1, "max_side": 0, "ocr_characters": 0}.get(key)
    if lowest is not None and isinstance(value, int) and value < lowest:
        raise ConfigError(f"prompting.{key}: found {value}; allowed: from {lowest}; raise it")
    if key == "window_seconds" and isinstance(value, int | float) and not value > 0:
        raise ConfigError(f"prompting.{key}: found {value}; allowed: more than 0 seconds, or None; change the value")
    place = _PLACES.get(key)
    if place is not None and f"{{{place}}}" not in str(value):
        raise ConfigError(f"prompting.{key}: has no {{{place}}}; the text goes there; write it into the prompt")


def fill(prompt: str, **texts: str) -> str:
    """The prompt with each {name} replaced; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), prompt)


def quotable(text: str, longest: int) -> str:
    """The text for quoting inside a prompt: one line, no marks that a chat template could take for its own.

    Longer than `longest` characters, it is cut at a word.
    """
    text = re.sub(r"<[^<>]{0,40}>", " ", text)  # <image>, <|im_end|>
    text = re.sub(r"[<>|\x00-\x1f\x7f]+", " ", text).replace('"', "'")
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    return text[: longest + 1].rpartition(" ")[0] or text[:longest]
