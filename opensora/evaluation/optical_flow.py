"""Dense optical flow between shrunken frames, by OpenCV's DIS.

Source: Kroeger et al. 2016, arXiv:1603.03590. Shapes: H W rows and columns of the shrunken frame.
Units: flow is in pixels of frames whose shorter side is SIDE; `per_second` turns it into percent of the shorter side per
second, which depends neither on the size nor on the rate of the video.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import Frames

SIDE = 128  # pixels
LONGEST = 512  # pixels; a banner is cut to this length, in its middle
SECONDS_BETWEEN = 1 / 15  # of the two frames of a pair: short enough for fast motion, long enough for slow motion

Gray = NDArray[np.uint8]  # [H, W]
Flow = NDArray[np.float32]  # [H, W, 2]: pixels to the right, pixels down


def shrink(frame_HWC: Frames) -> Gray:
    """The gray frame with a shorter side of SIDE pixels; small frames are enlarged."""
    import cv2

    height, width = frame_HWC.shape[:2]
    scale = SIDE / min(height, width)
    kept_height, kept_width = min(height, int(LONGEST / scale)), min(width, int(LONGEST / scale))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    part = np.ascontiguousarray(frame_HWC[top : top + kept_height, left : left + kept_width])
    size = max(SIDE, round(kept_width * scale)), max(SIDE, round(kept_height * scale))
    gray = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8)


def optical_flow(before: Gray, after: Gray, finest_scale: int = 1) -> Flow:
    """Movement of each pixel of `before` on the way to `after`.

    finest_scale: the pictures are halved this often. 1 is enough for shrunken frames; 0, all pixels, measures movements of
    half a pixel without bias.
    """
    return np.asarray(_dis(finest_scale).calc(before, after, None), np.float32)


def per_second(pixels: Any, seconds: float) -> Any:
    """Percent of the shorter side per second."""
    return 100 * pixels / SIDE / seconds


@cache
def _dis(finest_scale: int) -> Any:
    import cv2

    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    dis.setFinestScale(finest_scale)  # at 2, which is preset, zoom and roll come out a tenth too slow
    return dis
