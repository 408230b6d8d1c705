from collections import Counter

import numpy as np
import pytest
import torch

from opensora.datasets.moving_objects import (
    BACKGROUNDS,
    MOTIONS,
    SPEEDS,
    MovingObjects,
    ObjectAttributes,
    draw_background,
    object_combinations,
    pairs,
    prompts_of_unseen_pairs,
)
from opensora.datasets.object_drawings import object_drawings
from opensora.rng import Draw


def start_of(data: MovingObjects, row: int, draw: Draw) -> torch.Tensor:
    return data.clip(row, draw).video_CTHW[:, 0]


def test_a_fifth_of_the_pairs_is_held_out_and_every_word_is_trained() -> None:
    train, holdout = pairs("train"), pairs("holdout")
    assert (len(train), len(holdout), len({*train, *holdout})) == (640, 160, 800)
    assert set(Counter(motion for _, motion in holdout).values()) == {20}
    assert set(Counter(name for name, _ in holdout).values()) == {1, 2}
    assert {name for name, _ in train} == set(object_drawings().names)
    assert holdout[:3] == [("airplane", "left"), ("airplane", "shrink"), ("ambulance", "up")]  # fixed: runs compare


@pytest.mark.parametrize(("split", "count"), [("train", 5120), ("holdout", 1280)])
def test_combinations_are_complete_and_mixed(split: str, count: int) -> None:
    combinations = object_combinations(split)  # type: ignore[arg-type]
    assert len(combinations) == len(set(combinations)) == count == len(pairs(split)) * 8  # type: ignore[arg-type]
    first = combinations[:64]
    assert len({each.object for each in first}) > 35
    assert {each.motion for each in first} == set(MOTIONS)
    assert {(each.background, each.speed) for each in first} == {(b, s) for b in BACKGROUNDS for s in SPEEDS}


def test_captions() -> None:
    data = MovingObjects()
    row = data.combinations.index(ObjectAttributes("axe", "rotate", "sea", "quickly"))
    assert data.captions(row) == [
        "an axe rotates quickly on the sea",
        "on the sea an axe is quickly rotating",
        "an axe, rotating quickly on the sea",
    ]
    assert ObjectAttributes("bat", "left", "night", "slowly").caption() == "a bat moves left slowly at night"
    assert {data.caption(row, Draw(0, 0, n)) for n in range(20)} == set(data.captions(row))
    unseen = MovingObjects(split="holdout")
    every, others = (
        {caption for row in range(len(each.combinations)) for caption in each.captions(row)} for each in (data, unseen)
    )
    assert (len(every), len(others), len(every & others)) == (3 * 5120, 3 * 1280, 0)


def test_prompts_are_one_of_each_unseen_pair() -> None:
    prompts = prompts_of_unseen_pairs()
    assert len(set(prompts)) == 160
    assert prompts[0] == "an airplane moves left slowly on snow"
    assert not set(prompts) & {each.caption() for each in object_combinations("train")}
    for words in (["slowly", "quickly"], [each.place for each in BACKGROUNDS.values()]):
        assert len({sum(word in prompt for prompt in prompts) for word in words}) == 1  # each one equally often


def test_clip_has_requested_shape_range_and_rate() -> None:
    clip = MovingObjects(num_frames=5, image_size=(48, 80), fps=12.0).clip(3, Draw(0, 0, 0))
    assert clip.video_CTHW.shape == (3, 5, 48, 80)
    assert clip.video_CTHW.dtype == torch.float32
    assert -1 <= clip.video_CTHW.min() < clip.video_CTHW.max() <= 1
    assert (clip.fps, clip.row) == (12.0, 3)


def test_the_first_frame_says_nothing_of_the_motion() -> None:
    """With one draw, every motion and speed begins with the same picture."""
    data = MovingObjects(num_frames=5)
    for name, draw in (("axe", Draw(0, 0, 1)), ("whale", Draw(0, 0, 2))):
        data.combinations = [ObjectAttributes(name, motion, "sea", speed) for motion in MOTIONS for speed in SPEEDS]
        first = start_of(data, 0, draw)
        for row in range(1, len(data.combinations)):
            torch.testing.assert_close(start_of(data, row, draw), first, atol=1e-5, rtol=0)
        ends = [data.clip(row, draw).video_CTHW[:, 1:] for row in range(len(data.combinations))]
        nearest = [
            (one - other).abs().mean().item() for n, one in enumerate(ends) for m, other in enumerate(ends) if n < m
        ]
        assert min(nearest) > 0.003  # and every one goes on in a way of its own


def test_objects_stay_inside_the_picture() -> None:
    data = MovingObjects(num_frames=5)
    for row in range(60):
        video = data.clip(row, Draw(0, 0, row)).video_CTHW
        empty = draw_background(data.attributes(row).background, data.image_size)[:, None] * 2 - 1
        shown = (video - empty).abs().amax(dim=(0, 1))
        assert max(shown[0].max(), shown[-1].max(), shown[:, 0].max(), shown[:, -1].max()) < 1e-4
        assert (video - empty).abs().amax(dim=0).flatten(1).amax(dim=1).min() > 0.3  # in every frame


def test_motions_are_those_of_their_names() -> None:
    time_T = np.linspace(0, 1, 5)
    ends = {name: motion.path(0.5, time_T) for name, motion in MOTIONS.items() if name not in ("rotate", "bounce")}
    assert {name: (path.x_T[-1], path.y_T[-1]) for name, path in ends.items()} == {
        "left": (-0.5, 0), "right": (0.5, 0), "up": (0, -0.5), "down": (0, 0.5), "grow": (0, 0), "shrink": (0, 0),
    }  # fmt: skip
    assert MOTIONS["grow"].path(1.5, time_T).zoom_T[[0, -1]] == pytest.approx([1, 1.5])
    assert MOTIONS["shrink"].path(1.5, time_T).zoom_T[[0, -1]] == pytest.approx([1, 1 / 1.5])
    assert MOTIONS["rotate"].path(90, time_T).angle_T[-1] == pytest.approx(np.pi / 2)
    assert MOTIONS["bounce"].path(1.2, time_T).y_T == pytest.approx([0, -0.2 * 0.5**0.5, -0.2, -0.2 * 0.5**0.5, 0])
    assert MOTIONS["bounce"].path(2.2, time_T).y_T == pytest.approx([0, -0.2, 0, -0.2, 0])
    for name, motion in MOTIONS.items():
        assert motion.ranges[0][1] < motion.ranges[1][0], name  # quick is beyond slow


def test_clip_depends_on_row_and_draw() -> None:
    data = MovingObjects(num_frames=3)
    once, again = (data.clip(7, Draw(seed=1, step=2, sample_id=3)) for _ in range(2))
    assert torch.equal(once.video_CTHW, again.video_CTHW)
    for other in (Draw(2, 2, 3), Draw(1, 3, 3), Draw(1, 2, 4)):
        assert not torch.equal(once.video_CTHW, data.clip(7, other).video_CTHW)
