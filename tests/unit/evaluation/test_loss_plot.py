from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora.evaluation.loss_plot import loss_figure, plot_loss, smooth


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


@pytest.mark.parametrize(
    ("most", "least", "shown"),
    [
        (1.62, 0.0745, ["0.1", "0.2", "0.5", "1"]),  # the demo's, where 0.9 once lay on 1
        (11.0, 0.9, ["1", "2", "5", "10"]),
        (0.068, 0.052, None),
        (9.9, 1.0, None),
        (1.0, 0.0, None),
        (3.0, 3.0, None),
        (5e3, 1e-9, None),
        (70.0, 0.008, None),
    ],
)
def test_ticks_do_not_overlap(most: float, least: float, shown: list[str] | None) -> None:
    """Whatever the range of the loss is: two ticks or more, and their labels apart."""
    records = [{"step": step, "loss": most + (least - most) * (step - 1) / 99} for step in range(1, 101)]
    figure = loss_figure(records, "loss")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for axis, side, span in ((axes.yaxis, "y", axes.get_ylim()), (axes.xaxis, "x", axes.get_xlim())):
        labels = [
            (label, tick)
            for minor in (False, True)
            for tick, label in zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor), strict=True)
            if label.get_text() and span[0] <= tick <= span[1]
        ]
        assert len(labels) >= 2
        boxes = sorted(
            (getattr(box, f"{side}0"), getattr(box, f"{side}1"))
            for box in (label.get_window_extent() for label, _ in labels)
        )
        assert all(end < begin for (_, end), (begin, _) in pairwise(boxes))
        if side == "y" and shown is not None:
            assert [label.get_text() for label, _ in labels] == shown


def test_steps_are_whole_numbers() -> None:
    figure = loss_figure([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], "loss")
    assert {float(tick).is_integer() for tick in figure.axes[0].get_xticks()} == {True}


def test_smooth_keeps_length_and_level() -> None:
    assert smooth([3.0]) == [3.0]
    assert smooth([0.0, 3.0, 0.0, 3.0]) == [1.5, 1.0, 2.0, 1.5]


def test_no_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        plot_loss([{"step": 1, "validation": {"loss": 1.0}}], tmp_path / "a.png")
