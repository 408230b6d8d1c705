"""The camera's movement between two frames: a similarity fitted to the optical flow of textured places.

A moving object in front of a background does not count, and where too little texture shows there is no answer.
Units: pixels of shrunken frames (opensora/evaluation/optical_flow.py), about the middle of the frame.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opensora.evaluation.optical_flow import Flow, Gray, optical_flow

_CELL = 8  # pixels: of each cell the most textured place counts
_TEXTURE = 4e-6  # smaller eigenvalue of the structure tensor; below it there is nothing but rounding
_ROUND = 0.03  # smaller eigenvalue over the larger one: along an edge the movement cannot be seen
_PATCH = 9  # pixels: what lies around a place must look the same where the flow leads; noise does not
_ALIKE = 0.7  # correlation of both patches
_ALIKE_SHARE = 0.15  # of the places: fewer are alike by chance
_FEWEST = 16  # places
_SPREAD = 0.12  # standard deviation of the places over the side of the frame; evenly spread ones have 0.29
_INLIER = 0.6  # pixels beyond which a place moves otherwise, plus the part below of its movement
_INLIER_SHARE = 0.06
_FEWEST_INLIERS = 0.35  # share of the places that move with the camera
_AT_REST = 0.25  # pixels
_REST_SHARE = 0.3  # at rest and spread wider than those that move: they are the background


@dataclass(frozen=True)
class Step:
    """Movement of the content from one frame to the next."""

    right: float  # pixels
    down: float  # pixels
    growth: float  # logarithm of the scale
    turn: float  # radians, clockwise as seen
    share: float  # of the textured places that move so


def camera_step(before: Gray, after: Gray) -> Step | None:
    """The step from one frame to the next, or None where too little texture shows, or nothing moves alike."""
    places, flow = textured_places(before), optical_flow(before, after)
    alike = _likeness(before, after, flow)[places[:, 1], places[:, 0]] > _ALIKE
    if alike.sum() < _ALIKE_SHARE * len(places):
        return None
    return fit(places[alike].astype(np.float32), flow)


def textured_places(gray: Gray) -> NDArray[np.intp]:
    """Places [N, 2], x and y, where the movement in both directions can be seen: corners, not edges."""
    import cv2

    tensor = cv2.cornerEigenValsAndVecs(gray, 5, 3)
    large, strength = np.maximum(tensor[..., 0], tensor[..., 1]), np.minimum(tensor[..., 0], tensor[..., 1])
    strength = np.where(strength > _ROUND * large, strength, 0)
    rows, columns = gray.shape[0] // _CELL, gray.shape[1] // _CELL
    cells = strength[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL).swapaxes(1, 2)
    flat = cells.reshape(rows, columns, _CELL * _CELL)
    best = flat.argmax(2)
    y = np.arange(rows)[:, None] * _CELL + best // _CELL
    x = np.arange(columns)[None] * _CELL + best % _CELL
    textured = flat.max(2) > _TEXTURE
    return np.stack([x[textured], y[textured]], 1)


def _likeness(before: Gray, after: Gray, flow: Flow) -> NDArray[np.float32]:
    """Correlation [H, W] of the surroundings of each pixel with those where its flow leads, -1 to 1."""
    import cv2

    y, x = np.indices(before.shape, np.float32)
    moved = cv2.remap(after, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    one, other = before.astype(np.float32), moved.astype(np.float32)

    def mean(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(image, (_PATCH, _PATCH)), np.float32)

    one, other = one - mean(one), other - mean(other)
    products = mean(one * one) * mean(other * other)
    return np.asarray(mean(one * other) / np.sqrt(np.maximum(products, 1e-6)), np.float32)


def fit(places: NDArray[np.float32], flow: Flow) -> Step | None:
    """The similarity that most places follow."""
    import cv2

    height, width = flow.shape[:2]
    size = np.array([width, height], np.float32)
    moves = flow[places[:, 1].astype(int), places[:, 0].astype(int)]
    inside = ((places + moves > 2) & (places + moves < size - 3)).all(1)  # flow out of the frame is a guess
    places, moves = places[inside], moves[inside]
    if not _is_spread(places, size):
        return None
    middle = (size - 1) / 2
    tolerance = _INLIER + _INLIER_SHARE * float(np.median(np.linalg.norm(moves, axis=1)))
    matrix, inliers = cv2.estimateAffinePartial2D(
        places - middle, places - middle + moves, method=cv2.RANSAC, ransacReprojThreshold=tolerance, maxIters=1000
    )
    if matrix is None:
        return None
    follow = inliers[:, 0].astype(bool)
    at_rest = np.linalg.norm(moves, axis=1) < _AT_REST
    apart = at_rest & ~follow
    if apart.mean() > _REST_SHARE and _spread(places[apart], size) > _spread(places[follow], size):
        return Step(0.0, 0.0, 0.0, 0.0, float(at_rest.mean()))
    if follow.mean() < _FEWEST_INLIERS or not _is_spread(places[follow], size):
        return None
    return Step(
        right=float(matrix[0, 2]),
        down=float(matrix[1, 2]),
        growth=math.log(max(1e-6, math.hypot(matrix[0, 0], matrix[1, 0]))),
        turn=math.atan2(matrix[1, 0], matrix[0, 0]),
        share=float(follow.mean()),
    )


def _is_spread(places: NDArray[np.float32], size: NDArray[np.float32]) -> bool:
    return len(places) >= _FEWEST and _spread(places, size) >= _SPREAD


def _spread(places: NDArray[np.float32], size: NDArray[np.float32]) -> float:
    """Standard deviation over the side of the frame, of the direction where it is smaller."""
    return float((places.std(0) / size).min()) if len(places) else 0.0
