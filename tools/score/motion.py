"""Measure how much moves: mean optical flow, the share of the picture that rests, jitter.

Run: python -m tools.score.motion clips.csv moving.csv

opensora/evaluation/motion_amount.py defines the three.
"""

from opensora.datasets.decode import Video
from opensora.errors import ConfigError
from opensora.evaluation.motion_amount import RUNS, motion_of
from tools.runner import Row, run
from tools.score.clip_span import clip_span

PACKAGES = ("cv2",)


def motion(row: Row, *, runs: int = RUNS) -> Row:
    """The row with flow, static_share and jitter.

    runs: places in the clip that are looked at, each for a third of a second
    """
    if runs < 1:
        raise ConfigError(f"motion: --runs {runs}; at least 1 is needed")
    with Video(row["path"]) as video:
        amount = motion_of(video, *clip_span(row, video.info), runs)
    return {
        **row,
        "flow": round(amount.flow, 3),
        "static_share": round(amount.static_share, 4),
        "jitter": round(amount.jitter, 3),
    }


if __name__ == "__main__":
    run(motion, packages=PACKAGES)
