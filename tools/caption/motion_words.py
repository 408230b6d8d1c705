"""Words for the measured motion of the picture and of the camera, to put behind a caption."""

from collections.abc import Mapping
from typing import Any, Literal

from opensora.datasets.missing_values import is_missing

Style = Literal["none", "sentences", "open_sora"]

CAMERA = {  # column cmotion -> sentence
    "static": "The camera is static.",
    "pan_left": "The camera pans left.",
    "pan_right": "The camera pans right.",
    "tilt_up": "The camera tilts up.",
    "tilt_down": "The camera tilts down.",
    "zoom_in": "The camera zooms in.",
    "zoom_out": "The camera zooms out.",
    "roll_cw": "The camera rolls clockwise.",
    "roll_ccw": "The camera rolls counterclockwise.",
    "shake": "The camera shakes.",
    "mixed": "The camera moves.",
}


def with_motion_words(text: str, row: Mapping[str, Any], style: Style) -> str:
    """The caption with what the row's columns cmotion and flow say; columns without a value add nothing.

    sentences: "The camera pans left."; a caption that speaks of the camera already keeps its own words.
    open_sora: " motion score: 5.2. camera motion: pan left.", as Open-Sora 1.2 trained; sampling takes the same words.
    """
    camera = "" if is_missing(row.get("cmotion")) else str(row["cmotion"]).strip()
    flow = _number(row.get("flow"))
    if style == "sentences" and camera in CAMERA and "camera" not in text.lower():
        return f"{_ended(text)} {CAMERA[camera]}"
    if style == "open_sora":
        if flow is not None and "motion score:" not in text:
            text = f"{_ended(text)} motion score: {flow:.1f}."
        if camera and "camera motion:" not in text:
            text = f"{_ended(text)} camera motion: {camera.replace('_', ' ')}."
    return text


def _ended(text: str) -> str:
    text = text.rstrip()
    return text if text.endswith((".", "!", "?", '."', '!"', '?"')) else f"{text}."


def _number(cell: object) -> float | None:
    if is_missing(cell):
        return None
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
