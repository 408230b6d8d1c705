"""Fréchet distance of two sets of features: FID of frames, FVD of clips, once a network has made features of them.

N samples, F features. Source: Heusel et al. 2017, arXiv:1706.08500; Unterthiner et al. 2018, arXiv:1812.01717.
The networks that make such features do not come with this project.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-10  # singular values below are left as they are, as in the FVD figures people compare with


def frechet_distance(a_NF: Tensor, b_NF: Tensor) -> float:
    """|mean a - mean b|^2 + trace(A + B - 2 sqrt(A B)) of the covariances A and B.

    ValueError for fewer than two samples or different features, which leave no covariance, and for features that are not
    finite.
    """
    if min(len(a_NF), len(b_NF)) < 2 or a_NF.shape[1:] != b_NF.shape[1:] or a_NF.ndim != 2:
        raise ValueError(
            f"frechet: features of shape {tuple(a_NF.shape)} and {tuple(b_NF.shape)}; two sets of at least two samples "
            "with the same features are needed"
        )
    a_NF, b_NF = a_NF.double(), b_NF.double()
    for what, x_NF in (("first", a_NF), ("second", b_NF)):
        bad = int((~x_NF.isfinite()).any(1).sum())
        if bad:
            raise ValueError(
                f"frechet: {bad} of {len(x_NF)} samples of the {what} set hold NaN or infinity; finite features are needed; "
                "leave those samples out, or compute them again"
            )
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x_NF.T)) for x_NF in (a_NF, b_NF))
    root_a = _root(cov_a)
    # trace sqrt(A B) = trace sqrt(sqrt(A) B sqrt(A)), which is symmetric
    mixed = _root(root_a @ cov_b @ root_a).trace()
    return float((a_NF.mean(0) - b_NF.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed)


def clip_for_features(video_BCTHW: Tensor, size: int = 224) -> Tensor:
    """Clips in [0, 1] as the I3D network of FVD takes them: bytes, the short side `size`, its middle, [-1, 1]."""
    b, _, t, h, w = video_BCTHW.shape
    frames = (video_BCTHW * 255).to(torch.uint8).float().transpose(1, 2).flatten(0, 1) / 255
    scale = size / min(h, w)
    cover = (size, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), size)
    frames = functional.interpolate(frames, size=cover, mode="bilinear", align_corners=False)
    top, left = ((pixels - size) // 2 for pixels in cover)
    cut = frames[..., top : top + size, left : left + size].unflatten(0, (b, t)).transpose(1, 2)
    return (cut - 0.5) * 2


def _root(symmetric: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(symmetric)
    return u @ torch.diag(torch.where(s < _TINY, s, s.sqrt())) @ vh
