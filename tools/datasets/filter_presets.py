"""Conditions of the filter by stage of training: each stage has those of the one before, and stricter ones.

Sources: [A] arXiv:2503.09642 (Open-Sora 2.0), section on data: length, rate, aspect ratio, bits per pixel. [B] data pipeline
of Open-Sora 1.1 and 1.2, whose example keeps aes >= 5 and match >= 20. [C] arXiv:2412.00131 (Open-Sora Plan 1.3): aes >=
4.75. The others are this project's: look at the histograms of tools.datasets.analyze before you trust them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """A DuckDB expression that true rows are kept for. maker: the tool that makes its columns."""

    expression: str
    columns: tuple[str, ...]
    maker: str


_PROBE = "tools.datasets.probe"
_IMAGE = "num_frames = 1 OR "  # an image has neither length nor rate

_FILES = [
    Condition(f"{_IMAGE}num_frames / fps >= 2", ("num_frames", "fps"), _PROBE),  # [A], seconds
    Condition(f"{_IMAGE}fps >= 16", ("num_frames", "fps"), _PROBE),  # [A]
    Condition("height / width BETWEEN 1 / 3 AND 3", ("height", "width"), _PROBE),  # [A]
    Condition(  # [A], bits per pixel
        f"{_IMAGE}bitrate >= 0.02 * height * width * fps", ("num_frames", "bitrate", "height", "width", "fps"), _PROBE
    ),
    Condition("duplicate_of IS NULL", ("duplicate_of",), "tools.dedupe"),
    Condition("nsfw < 0.5", ("nsfw",), "tools.score.safety"),
    Condition("black_frames < 0.5", ("black_frames",), "tools.score.technical"),
]
PRESETS: dict[str, list[Condition]] = {
    "pretrain": [
        *_FILES,
        Condition("least(height, width) >= 240", ("height", "width"), _PROBE),
        Condition("aes >= 4.5", ("aes",), "tools.score.aesthetic"),
        Condition("flow >= 1", ("flow",), "tools.score.motion"),  # percent of the shorter side per second: no stills
        Condition("text_area <= 0.1", ("text_area",), "tools.score.text_area"),
    ],
    "high_quality": [
        *_FILES,
        Condition("least(height, width) >= 480", ("height", "width"), _PROBE),
        Condition("aes >= 4.75", ("aes",), "tools.score.aesthetic"),  # [C]
        Condition("flow BETWEEN 2 AND 200", ("flow",), "tools.score.motion"),
        Condition("jitter <= 60", ("jitter",), "tools.score.motion"),
        Condition("text_area <= 0.02", ("text_area",), "tools.score.text_area"),
        Condition("watermark <= 0.002", ("watermark",), "tools.score.text_area"),  # share of the frame
        Condition("letterbox <= 0.05", ("letterbox",), "tools.score.text_area"),
        Condition("border <= 0.05", ("border",), "tools.score.text_area"),
        Condition("match >= 0.2", ("match",), "tools.score.match"),  # [B]: cosine, of which Open-Sora writes 100 times
        Condition("length(trim(text)) >= 20", ("text",), "tools.caption"),
    ],
    "final": [
        *_FILES,
        Condition("least(height, width) >= 720", ("height", "width"), _PROBE),
        Condition("aes >= 5", ("aes",), "tools.score.aesthetic"),  # [B]
        Condition("flow BETWEEN 3 AND 150", ("flow",), "tools.score.motion"),
        Condition("jitter <= 30", ("jitter",), "tools.score.motion"),
        Condition("text_area <= 0.005", ("text_area",), "tools.score.text_area"),
        Condition("watermark <= 0.0005", ("watermark",), "tools.score.text_area"),
        Condition("letterbox <= 0.01", ("letterbox",), "tools.score.text_area"),
        Condition("border <= 0.01", ("border",), "tools.score.text_area"),
        Condition("match >= 0.22", ("match",), "tools.score.match"),
        Condition("length(trim(text)) >= 40", ("text",), "tools.caption"),
    ],
}
