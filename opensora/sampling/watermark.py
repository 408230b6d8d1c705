"""A line of text over the lower right corner of a video, laid on by FFmpeg's `overlay` filter.

PyAV's FFmpeg draws no text (it comes without `drawtext`), so Pillow draws it, with the font it brings along.
Layout: T frames, H W rows and columns, RGB bytes.
"""

from fractions import Fraction
from typing import Any

import numpy as np

from opensora.errors import ConfigError

SHARE, SMALLEST = 16, 8  # the text is a 16th of the video high, in pixels at least SMALLEST
ALPHA = 180  # of 255


def add_watermark(frames_THWC: np.ndarray, text: str) -> np.ndarray:
    """All frames with the text over them, as new bytes. ConfigError where it does not fit."""
    from av import VideoFormat, VideoFrame
    from av.filter import Graph

    _, height, width, _ = frames_THWC.shape
    mark_HWC = draw_watermark(text, height, width)
    graph, base = Graph(), Fraction(1, 25)
    video = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=base)
    mark = graph.add_buffer(
        width=mark_HWC.shape[1], height=mark_HWC.shape[0], format=VideoFormat("rgba"), time_base=base
    )
    overlay, sink = graph.add("overlay", "x=W-w:y=H-h:format=gbrp"), graph.add("buffersink")
    video.link_to(overlay, 0, 0)
    mark.link_to(overlay, 0, 1)
    overlay.link_to(sink)
    graph.configure()
    frame = VideoFrame.from_ndarray(mark_HWC, format="rgba")
    frame.pts, frame.time_base = 0, base
    mark.push(frame)
    mark.push(None)  # it stays to the end
    marked = []
    for number, frame_HWC in enumerate(frames_THWC):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        frame.pts, frame.time_base = number, base
        video.push(frame)
        done: Any = sink.pull()
        marked.append(done.to_ndarray(format="rgb24"))
    return np.stack(marked)


def draw_watermark(text: str, height: int, width: int) -> np.ndarray:
    """The text, white with a dark edge, [h, w, 4], no larger than a video of these pixels; ConfigError where it cannot be."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SMALLEST)
    absent = font.getmask("\uffff")
    lacking = [letter for letter in text if not letter.isspace() and bytes(font.getmask(letter)) == bytes(absent)]
    if lacking or not text.isprintable() or not text.strip():
        raise ConfigError(
            f"config: key 'watermark': found {text!r}, of which {', '.join(map(repr, lacking)) or 'something'} cannot be "
            "drawn; allowed: letters, digits and signs of English; change the text"
        )
    for size in range(max(SMALLEST, height // SHARE), SMALLEST - 1, -1):
        font, edge = ImageFont.load_default(size), max(1, size // 12)
        left, top, right, bottom = font.getbbox(text, stroke_width=edge)
        columns, rows = int(right - left) + 2 * edge, int(bottom - top) + 2 * edge
        if columns <= width and rows <= height:
            picture = Image.new("RGBA", (columns, rows), (0, 0, 0, 0))
            ImageDraw.Draw(picture).text(
                (edge - left, edge - top),
                text,
                font=font,
                fill=(255, 255, 255, ALPHA),
                stroke_width=edge,
                stroke_fill=(0, 0, 0, ALPHA),
            )
            return np.asarray(picture)
    raise ConfigError(
        f"config: key 'watermark': {text!r} needs {columns} columns of pixels at the smallest, the video has {width} of "
        f"{height} rows; allowed: what fits; shorten it or make a larger video"
    )
