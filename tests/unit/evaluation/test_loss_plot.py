from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora.evaluation.loss_plot import plot_loss, smooth


def dark_blue(path: Path) -> np.ndarray:
    """A mask of the picture: the pixels of the average's line."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (image[..., 2] > image[..., 0] + 60) & (image[..., 0] < 80)


def test_a_falling_loss_falls_in_the_picture(tmp_path: Path) -> None:
    falling = [{"step": step, "loss": 1 - step / 200} for step in range(1, 101)]
    records = [*falling, {"step": 50, "validation": {"loss": 0.8}}, {"step": 101, "loss": float("nan")}]
    line = dark_blue(plot_loss(records, tmp_path / "deep" / "loss.png"))[40:400]
    rows = [np.nonzero(line[:, column])[0].mean() for column in (200, 400, 600)]
    assert rows[0] < rows[1] < rows[2]


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    once = plot_loss([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], tmp_path / "a.png")
    twice = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 0.5}]
    assert plot_loss(twice, tmp_path / "b.png").read_bytes() == once.read_bytes()


def test_smooth_keeps_length_and_level() -> None:
    assert smooth([3.0]) == [3.0]
    assert smooth([0.0, 3.0, 0.0, 3.0]) == [1.5, 1.0, 2.0, 1.5]


def test_no_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        plot_loss([{"step": 1, "validation": {"loss": 1.0}}], tmp_path / "a.png")
