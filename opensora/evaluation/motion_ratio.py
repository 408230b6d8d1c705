"""The motion of generated clips next to that of the real clips they should look like.

Layout: C T H W colors, frames, rows, columns. Flow is in pixels of the clip per frame.
"""

from itertools import pairwise

import numpy as np
from torch import Tensor

from opensora.datasets.transforms import to_uint8
from opensora.evaluation.optical_flow import optical_flow

ENOUGH, TOO_MUCH = 0.5, 2.0  # ratios between which a clip moves about as much as the real one


def mean_flow(clip_CTHW: Tensor) -> float:
    """Mean length of the optical flow over all pixels and all neighboring frames, at the clip's own size, pixels per frame.

    clip: RGB in [-1, 1]. Raises ValueError for fewer than two frames.
    """
    import cv2

    frames_THWC = to_uint8(clip_CTHW.detach().cpu()).permute(1, 2, 3, 0).contiguous().numpy()
    if len(frames_THWC) < 2:
        raise ValueError(f"motion: {len(frames_THWC)} frame; at least two are needed")
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
    flows = [optical_flow(before, after, finest_scale=0) for before, after in pairwise(grays)]
    return float(np.mean([np.linalg.norm(flow, axis=2).mean() for flow in flows]))


def motion_ratio(flow: float, real_flow: float) -> float | None:
    """`flow` over that of the real clip; None where the real one rests, for nothing compares with that."""
    return flow / real_flow if real_flow > 0 else None


def moves_alike(ratio: float | None) -> bool:
    """True for a ratio from ENOUGH to TOO_MUCH."""
    return ratio is not None and ENOUGH <= ratio <= TOO_MUCH
