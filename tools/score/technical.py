"""Measure technical faults: blur, exposure, blocks of a codec, duplicate and black frames, and a quality of all.

Run: python -m tools.score.technical clips.csv scored.csv

`quality` ranks copies of one clip; between clips of different content it says little.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import Frames, Video
from opensora.datasets.sampled_frames import sampled_frames, spread_runs
from opensora.errors import ConfigError
from opensora.evaluation.optical_flow import Gray, shrink
from tools.runner import Row, run
from tools.score.clip_span import clip_span

PACKAGES = ("cv2",)
_RUN = 5  # frames one after the other
_BLUR_WINDOW = 9  # pixels, as in the paper
_BLOCK = 8  # pixels: JPEG, MPEG, H.264; larger blocks have their edges on the same grid
_COMPARED = 3  # the strongest place with the third: with blocks of 4 pixels two places of 8 are strong
_DARKEST, _BRIGHTEST = 16, 239  # gray levels of 255: darker or brighter pixels show nothing
_BLACK, _BLACK_SHARE = 25, 0.98  # gray level and share of pixels, as in FFmpeg's blackdetect
# Twice as large a copy has no more lines: with this power of the sharpness it has about those of the original.
_SHARPNESS = 3
_CELL = 16  # pixels of a shrunken frame
_SAME = 0.3  # gray levels between equal frames
_CODED_AGAIN = 1.5  # gray levels between equal frames after lossy coding,
_STANDS = 0.2  # where the frames that move differ by five times that


def technical(row: Row, *, runs: int = 5) -> Row:
    """The row with blur, exposure, underexposed, overexposed, blocking, duplicate_frames, black_frames and quality.

    runs: places in the clip that are looked at, each for five frames
    """
    if runs < 1:
        raise ConfigError(f"technical: --runs {runs}; at least 1 is needed")
    blurs: list[float] = []
    blocks: list[float] = []
    grays: dict[int, Gray] = {}
    with Video(row["path"]) as video:
        chosen = spread_runs(*clip_span(row, video.info), 1, runs, _RUN)
        looked_at = {index for each in chosen for index in each[::_RUN]}
        wanted = sorted({index for each in chosen for index in each})
        for index, frame in zip(wanted, sampled_frames(video, wanted), strict=True):
            grays[index] = shrink(frame)
            if index in looked_at and not is_black(grays[index]):
                gray = _gray(frame)
                blurs.append(blur(gray))
                blocks.append(blocking(gray))
    under, over = (float(share) for share in np.mean([exposure(gray) for gray in grays.values()], axis=0))
    differences = [difference(grays[before], grays[after]) for each in chosen for before, after in pairwise(each)]
    values = {
        "blur": float(np.mean(blurs)) if blurs else 1.0,
        "exposure": under + over,
        "underexposed": under,
        "overexposed": over,
        "blocking": float(np.mean(blocks)) if blocks else 0.0,
        "duplicate_frames": count_duplicates(differences) / max(1, len(differences)),
        "black_frames": float(np.mean([is_black(gray) for gray in grays.values()])),
    }
    side = min(video.info.height, video.info.width)
    values["quality"] = quality(side, values["blur"], values["blocking"], values["exposure"])
    return {**row, **{name: round(value, 4) for name, value in values.items()}}


def blur(gray: Gray) -> float:
    """0 (sharp) to 1 (nothing left to blur): the part of the gradients that another blur does not take away.

    Source: Crete et al. 2007, "The blur effect". Here the edges of a codec's blocks, which only look sharp, do not count.
    A frame without any gradient has 1.
    """
    import cv2

    parts = []
    for image in (gray, gray.T):
        image = image.astype(np.float32)
        before = np.abs(np.diff(image, axis=1))
        after = np.abs(np.diff(cv2.blur(image, (_BLUR_WINDOW, 1), borderType=cv2.BORDER_REPLICATE), axis=1))
        inside = np.arange(before.shape[1]) % _BLOCK != _strongest_phase(before)
        before, after = before[:, inside], after[:, inside]
        total = float(before.sum())
        parts.append(1.0 if total == 0 else 1 - float(np.maximum(0, before - after).sum()) / total)
    return max(parts)


def blocking(gray: Gray) -> float:
    """0 (none) to 1: how far steps between neighboring pixels stand out on a grid of 8 pixels, wherever the grid begins.

    A step is the part of a difference that exceeds the mean of the differences on both sides of it. Pictures without
    blocks have up to 0.2; those of a size that was changed after the coding have no grid of 8 pixels.
    """
    strengths = []
    for image in (gray, gray.T):
        phases = np.sort(_phases(np.abs(np.diff(image.astype(np.float32), axis=1))))
        strengths.append(0.0 if phases[-1] == 0 else 1 - float(phases[-_COMPARED] / phases[-1]))
    return max(strengths)


def _strongest_phase(differences: NDArray[np.float32]) -> int:
    return int(_phases(differences).argmax())


def _phases(differences: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean step at each of the 8 places where a grid may begin, from the differences [H, W - 1] between columns."""
    steps = np.zeros(differences.shape[1], np.float32)
    steps[1:-1] = np.maximum(0, differences[:, 1:-1] - (differences[:, :-2] + differences[:, 2:]) / 2).mean(0)
    if len(steps) < 4 * _BLOCK:  # too few blocks to say
        return np.zeros(_BLOCK, np.float32)
    return np.asarray(steps[: len(steps) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).mean(0))


def exposure(gray: Gray) -> tuple[float, float]:
    """Shares of the pixels that are too dark and too bright to show anything."""
    return float((gray < _DARKEST).mean()), float((gray > _BRIGHTEST).mean())


def is_black(gray: Gray) -> bool:
    """True for a frame of which nearly all pixels are dark."""
    return bool((gray < _BLACK).mean() >= _BLACK_SHARE)


def difference(before: Gray, after: Gray) -> float:
    """Mean difference, in gray levels, of the part of the picture that differs most."""
    import cv2

    cells = cv2.blur(cv2.absdiff(before, after).astype(np.float32), (_CELL, _CELL))
    return float(cells[_CELL // 2 :: _CELL, _CELL // 2 :: _CELL].max())


def count_duplicates(differences: Sequence[float]) -> int:
    """Frames that repeat the one before: no part differs, or no more than coding makes equal frames differ.

    A clip without any motion has nothing but duplicates.
    """
    if not differences:
        return 0
    most = min(_CODED_AGAIN, _STANDS * float(np.percentile(differences, 75)))
    return sum(each < max(_SAME, most) for each in differences)


def quality(side: int, blurred: float, blocked: float, exposed: float) -> float:
    """Lines of the frame's shorter `side` (pixels) that show something, to rank copies of one clip: more are better.

    Smaller, blurred and strongly coded copies have fewer, and so have those that were made smaller and large again.
    """
    return side * (1 - blurred) ** _SHARPNESS * (1 - blocked / 2) * (1 - exposed / 2)


def _gray(frame: Frames) -> Gray:
    import cv2

    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), np.uint8)


if __name__ == "__main__":
    run(technical, packages=PACKAGES)
