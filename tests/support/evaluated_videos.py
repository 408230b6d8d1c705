"""Videos as `opensora evaluate` reads them, from files that keep every byte of their frames."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import probe
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Measurement
from tests.support.media_files import write_video

Frame = NDArray[np.uint8]  # [H, W, 3]


def evaluated(
    path: Path, frames: Sequence[Frame], *, fps: int = 8, prompt: str | None = None, **changes: int
) -> EvaluatedVideo:
    """The frames in a new file, without loss; its ending becomes mkv. changes: fields of the video, such as first_frame."""
    path = Path(write_video(path.with_suffix(".mkv"), frames, fps=fps, codec="ffv1", pix_fmt="bgr0"))
    info = probe(str(path))
    video = EvaluatedVideo(path, info.num_frames, info.height, info.width, info.fps, prompt)
    return replace(video, **changes)  # type: ignore[arg-type]


def noise(seed: int, frames: int = 3, height: int = 48, width: int = 64) -> list[Frame]:
    """Frames of random bytes."""
    return list(np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3)).astype(np.uint8))


def values(measurement: Measurement) -> dict[str, float]:
    """The figures by name."""
    return {figure.name: figure.value for figure in measurement.figures}
