"""Training with given frames as conditions: what the model is told, and what it is asked."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from opensora.datasets.frame_masks import FrameConditions
from opensora.rng import generator
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.training.diffusion_task import DiffusionTask
from opensora.types import Batch, EncodedText

FRAMES = 4
SIZE = (2, FRAMES, 2, 2)
NULL = torch.full((1, 3, 5), 7.0)


class Codec:
    """Latents are the video; captions are ones."""

    def encode_video(self, video_BCTHW: Tensor, rngs: list[Generator]) -> Tensor:
        return video_BCTHW

    def encode_text(self, captions: list[str]) -> EncodedText:
        shape = (len(captions), 1, 3, 5)
        return EncodedText(torch.ones(shape, dtype=torch.float16), torch.ones(len(captions), 3, dtype=torch.long))


class ConditioningMode:
    """A velocity that leans on what it is told; remembers it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, x: Tensor, t_B: Tensor, **told: Any) -> Tensor:
        self.asked.append({"x": x, "t": t_B, **told})
        return told["cond"] - x * told["cond_mask"]


def task(ratios: dict[str, float] | None) -> DiffusionTask:
    model = SimpleNamespace(
        class_dropout_prob=0.0,
        input_size=SIZE[1:],
        patch_size=(1, 2, 2),
        size_conditions=(),
        conditioned=True,
        null_text=lambda n: NULL.expand(n, 1, 3, 5),
    )
    masks = None if ratios is None else FrameConditions(ratios)
    return DiffusionTask(model, Codec(), RectifiedFlow(), 1, {}, {}, masks)  # type: ignore[arg-type]


def batch(sample_ids: list[int], step: int = 0, frames: int = FRAMES) -> Batch:
    shape = (SIZE[0], frames, *SIZE[2:])
    video = torch.stack([torch.randn(shape, generator=generator(0, "video", sample_id)) for sample_id in sample_ids])
    return Batch(
        video, [str(sample_id) for sample_id in sample_ids], torch.ones(len(sample_ids)), step, sample_ids, sample_ids
    )


def test_the_model_sees_noise_everywhere_and_the_given_latents_beside_it() -> None:
    """The loss is that of all frames; here worked out by hand from what the model was told."""
    seen, clips = ConditioningMode(), batch([0, 1, 2])
    loss = task({"i2v_loop": 1.0}).loss(seen, clips)
    [asked] = seen.asked
    assert asked["mask_index"] == [[0, 3]] * 3
    assert asked["x_mask"] is None
    assert torch.equal(asked["cond"][:, :, [0, 3]], clips.video_BCTHW[:, :, [0, 3]])
    assert not asked["cond"][:, :, [1, 2]].any()
    assert asked["cond_mask"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 1]] * 2] * 3
    assert torch.equal(asked["y_null"], torch.full((3, 1, 3, 5), 7.0, dtype=torch.float16))
    tau = asked["t"].view(-1, 1, 1, 1, 1) / 1000
    noise = (asked["x"] - (1 - tau) * clips.video_BCTHW) / tau
    assert not torch.allclose(asked["x"][:, :, 0], clips.video_BCTHW[:, :, 0], atol=1e-2)  # given frames are noised too
    answer = asked["cond"] - asked["x"] * asked["cond_mask"]
    by_hand = (answer - (clips.video_BCTHW - noise)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.loss_B, by_hand, rtol=1e-3, atol=1e-4)


def test_what_is_given_depends_on_the_sample_not_on_its_micro_batch() -> None:
    ratios = {"i2v": 0.25, "i2v_tail": 0.25, "v2v_head": 0.25}
    together, apart, later = ConditioningMode(), ConditioningMode(), ConditioningMode()
    loss = task(ratios).loss(together, batch(list(range(60))))
    alone = [task(ratios).loss(apart, batch([sample_id])).loss_B for sample_id in range(60)]
    given = together.asked[0]["mask_index"]
    assert [one["mask_index"] for one in apart.asked] == [[frames] for frames in given]
    torch.testing.assert_close(loss.loss_B, torch.cat(alone))
    shares = Counter(map(tuple, given))
    assert set(shares) == {(0,), (3,), (0, 1), ()}
    assert min(shares.values()) >= 6
    task(ratios).loss(later, batch(list(range(60)), step=1))
    assert later.asked[0]["mask_index"] != given


@pytest.mark.parametrize("ratios", [None, {"i2v_head": 1.0}])
def test_without_given_frames_the_model_is_told_that_there_are_none(ratios: dict[str, float] | None) -> None:
    """In validation, with no `mask_ratios` and for pictures, as in sampling from a prompt alone."""
    seen = ConditioningMode()
    task(ratios).validate(seen, [batch([0, 1])])
    task(None).loss(seen, batch([0, 1]))
    task(ratios).loss(seen, batch([0, 1], frames=1))
    for asked in seen.asked:
        assert not any(asked["mask_index"])
        assert not asked["cond"].any()
        assert not asked["cond_mask"].any()
        assert asked["y_null"].shape == (2, 1, 3, 5)
