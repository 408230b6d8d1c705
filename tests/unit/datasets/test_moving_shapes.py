import torch

from opensora.datasets.moving_shapes import COLORS, DIRECTIONS, HOLDOUT, SHAPES, MovingShapes, combinations
from opensora.rng import Draw


def test_holdout_is_not_trained_but_its_words_are() -> None:
    train, holdout = combinations("train"), combinations("holdout")
    assert len(train) + len(holdout) == len(COLORS) * len(SHAPES) * len(DIRECTIONS) == len({*train, *holdout})
    assert holdout == list(HOLDOUT)
    for kind, words in (("color", COLORS), ("shape", SHAPES), ("direction", DIRECTIONS)):
        assert {getattr(what, kind) for what in train} == set(words)
        assert {getattr(what, kind) for what in holdout} == set(words)
    captions = {split: {MovingShapes(96, split=split).clip(row, Draw(0, 0, row)).caption for row in range(96)}
                for split in ("train", "holdout")}  # fmt: skip
    assert not captions["train"] & captions["holdout"]


def test_clip_has_requested_shape_range_and_rate() -> None:
    clip = MovingShapes(num_frames=5, image_size=(24, 40), fps=12.0).clip(3, Draw(0, 0, 0))
    assert clip.video_CTHW.shape == (3, 5, 24, 40)
    assert clip.video_CTHW.dtype == torch.float32
    assert clip.video_CTHW.min() == -1
    assert clip.video_CTHW.max() <= 1
    assert (clip.fps, clip.row) == (12.0, 3)


def test_clip_depends_on_row_and_draw() -> None:
    data = MovingShapes(num_frames=3)
    once, again = (data.clip(7, Draw(seed=1, step=2, sample_id=3)) for _ in range(2))
    assert torch.equal(once.video_CTHW, again.video_CTHW)
    for other in (Draw(2, 2, 3), Draw(1, 3, 3), Draw(1, 2, 4)):
        assert not torch.equal(once.video_CTHW, data.clip(7, other).video_CTHW)


def test_object_is_never_cut_by_the_border() -> None:
    """A cut shape could pass for another: the visible part keeps its area."""
    data = MovingShapes(num_frames=4)
    for row in range(200):
        what, video = data.attributes(row), data.clip(row, Draw(0, 0, row)).video_CTHW
        area_T = ((video + 1) / 2).sum(dim=(0, 2, 3)) / sum(COLORS[what.color])
        assert area_T.max() / area_T.min() < 1.03
        assert area_T.min() > torch.pi * (0.17 * 32) ** 2


def test_every_shape_has_the_same_area() -> None:
    """Else size would give the shape away."""
    areas = {}
    for row, what in enumerate(combinations("train")):
        if what.color == "white":
            video = MovingShapes(num_frames=2, image_size=(64, 64)).clip(row, Draw(0, 0, 0)).video_CTHW
            areas[what.shape] = float(((video[0] + 1) / 2).sum())
    assert set(areas) == set(SHAPES)
    assert max(areas.values()) / min(areas.values()) < 1.03


def test_report_drops_nothing() -> None:
    report = MovingShapes(clips=50).report()
    assert (report.rows, report.kept, len(MovingShapes(clips=50))) == (50, 50, 50)
