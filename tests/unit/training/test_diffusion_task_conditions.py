"""Training with clean frames as conditions: the inputs of the model and the target of its loss."""

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


class RecordingModel:
    """A velocity that depends on the conditions; records its inputs."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, x: Tensor, t_B: Tensor, **inputs: Any) -> Tensor:
        self.calls.append({"x": x, "t": t_B, **inputs})
        return inputs["cond"] - x * inputs["cond_mask"]


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


def test_conditioned_model_gets_noise_and_clean_latents() -> None:
    """The loss is that of all frames; here worked out by hand from the model's inputs."""
    model, clips = RecordingModel(), batch([0, 1, 2])
    loss = task({"i2v_loop": 1.0}).loss(model, clips)
    [call] = model.calls
    assert call["mask_index"] == [[0, 3]] * 3
    assert call["x_mask"] is None
    assert torch.equal(call["cond"][:, :, [0, 3]], clips.video_BCTHW[:, :, [0, 3]])
    assert not call["cond"][:, :, [1, 2]].any()
    assert call["cond_mask"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 1]] * 2] * 3
    assert torch.equal(call["y_null"], torch.full((3, 1, 3, 5), 7.0, dtype=torch.float16))
    tau = call["t"].view(-1, 1, 1, 1, 1) / 1000
    noise = (call["x"] - (1 - tau) * clips.video_BCTHW) / tau
    assert not torch.allclose(call["x"][:, :, 0], clips.video_BCTHW[:, :, 0], atol=1e-2)  # clean frames are noised too
    answer = call["cond"] - call["x"] * call["cond_mask"]
    by_hand = (answer - (clips.video_BCTHW - noise)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.loss_B, by_hand, rtol=1e-3, atol=1e-4)


def test_conditions_depend_on_sample_not_micro_batch() -> None:
    ratios = {"i2v": 0.25, "i2v_tail": 0.25, "v2v_head": 0.25}
    together, apart, later = RecordingModel(), RecordingModel(), RecordingModel()
    loss = task(ratios).loss(together, batch(list(range(60))))
    alone = [task(ratios).loss(apart, batch([sample_id])).loss_B for sample_id in range(60)]
    frames = together.calls[0]["mask_index"]
    assert [one["mask_index"] for one in apart.calls] == [[each] for each in frames]
    torch.testing.assert_close(loss.loss_B, torch.cat(alone))
    shares = Counter(map(tuple, frames))
    assert set(shares) == {(0,), (3,), (0, 1), ()}
    assert min(shares.values()) >= 6
    task(ratios).loss(later, batch(list(range(60)), step=1))
    assert later.calls[0]["mask_index"] != frames


@pytest.mark.parametrize("ratios", [None, {"i2v_head": 1.0}])
def test_no_conditions_are_zero_conditions(ratios: dict[str, float] | None) -> None:
    """In validation, with no `mask_ratios` and for pictures, as in sampling from a prompt alone."""
    model = RecordingModel()
    task(ratios).validate(model, [batch([0, 1])])
    task(None).loss(model, batch([0, 1]))
    task(ratios).loss(model, batch([0, 1], frames=1))
    for call in model.calls:
        assert not any(call["mask_index"])
        assert not call["cond"].any()
        assert not call["cond_mask"].any()
        assert call["y_null"].shape == (2, 1, 3, 5)
