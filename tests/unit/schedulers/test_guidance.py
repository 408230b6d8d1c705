from typing import Any

import torch

from opensora.schedulers.guidance import Guidance, is_guided


def test_scale_one_is_not_guided() -> None:
    assert not is_guided(None)
    assert not is_guided(1.0)
    assert is_guided(0.0)
    assert is_guided(7.0)


def test_doubled_batch_is_pushed_from_null_to_text() -> None:
    text = torch.tensor([1.0, 2.0, 10.0, 20.0])  # two captions, then two null captions
    inputs = []

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        inputs.append((x, t_B, x_mask))
        return text.view(-1, 1, 1, 1, 1).expand(4, 4, 1, 1, 1)

    x, t, mask = torch.randn(2, 2, 1, 1, 1), torch.tensor([5.0, 6.0]), torch.tensor([[True], [False]])
    answer = Guidance(3.0, guided_channels=3).predictor(denoise)(x, t, mask)
    assert torch.equal(answer[:, :3, 0, 0, 0], torch.tensor([[-17.0] * 3, [-34.0] * 3]))
    assert torch.equal(answer[:, 3, 0, 0, 0], torch.tensor([1.0, 2.0]))
    assert torch.equal(inputs[0][0], torch.cat([x, x]))
    assert torch.equal(inputs[0][1], torch.cat([t, t]))
    assert torch.equal(inputs[0][2], torch.cat([mask, mask]))
    assert torch.equal(Guidance(3.0).predictor(denoise)(x, t, mask)[:, 3, 0, 0, 0], torch.tensor([-17.0, -34.0]))


def test_without_guidance_the_batch_is_not_doubled() -> None:
    x = torch.randn(2, 2, 1, 1, 1)
    assert torch.equal(Guidance(1.0).predictor(lambda x, t_B, x_mask=None: x)(x, torch.zeros(2), None), x)


def test_order_says_which_half_has_the_text() -> None:
    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        return torch.tensor([10.0, 1.0]).view(2, 1, 1, 1, 1)  # null, then text

    x = torch.zeros(1, 1, 1, 1, 1)
    assert Guidance(2.0, order="null,cond").predictor(denoise)(x, torch.zeros(1), None).item() == 10 + 2 * (1 - 10)
    assert (
        Guidance(2.0, order="null,cond", guided_channels=0).predictor(denoise)(x, torch.zeros(1), None).item() == 1
    ), "the answer with the text"


def predictions(*values: float, frames: int = 3) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full((2, 1, frames, 1, 1), value) for value in values)


def test_three_copies_push_from_bare_to_frames_and_from_null_to_text() -> None:
    guidance = Guidance(scale=7.0, image_scale=3.0)
    assert guidance.copies == 3
    mixed = guidance.combine(predictions(5.0, 2.0, 1.0), step=0, steps=10)
    assert torch.equal(mixed, torch.full_like(mixed, 1 + 3 * (2 - 1) + 7 * (5 - 2)))
    assert Guidance(scale=None, image_scale=3.0).combine(predictions(5.0, 2.0, 1.0), 0, 10)[0, 0, 0] == 1 + 3 + 1 * (
        5 - 2
    )
    assert Guidance(scale=1.0).copies == Guidance(scale=None).copies == 1
    assert Guidance(scale=7.0).copies == 2


def test_scales_rest_on_odd_steps() -> None:
    def scales(**kwargs: Any) -> list[float]:
        guidance = Guidance(scale=7.0, force_num=3, **kwargs)
        return [
            guidance.combine(predictions(1.0, 0.0, *[0.0] * (guidance.copies - 2)), i, 8)[0, 0, 0].item()
            for i in range(8)
        ]

    assert scales() == [7.0] * 8
    assert scales(oscillate_text=True) == [7, 7, 7, 1, 7, 1, 7, 1]
    assert scales(oscillate_image=True) == [7.0] * 8
    image = Guidance(scale=None, image_scale=4.0, force_num=0, oscillate_image=True)
    assert [image.combine(predictions(1.0, 1.0, 0.0), i, 4)[0, 0, 0].item() for i in range(4)] == [4, 1, 4, 1]


def test_image_scale_rises_over_frames_to_a_value_that_falls_over_steps() -> None:
    guidance = Guidance(scale=None, image_scale=5.0, scale_image_weight=True)
    per_step = [guidance.combine(predictions(1.0, 1.0, 0.0), step, 3)[0, 0, :, 0, 0].tolist() for step in range(3)]
    assert per_step == [[1, 3, 5], [1, 2, 3], [1, 1, 1]]


def test_rescaling_gives_the_spread_of_the_text_answer_back() -> None:
    cond, null = torch.randn(2, 1, 4, 3, 3), torch.randn(2, 1, 4, 3, 3)
    plain = Guidance(scale=7.0).combine((cond, null), 0, 1)
    whole = Guidance(scale=7.0, rescale=1.0).combine((cond, null), 0, 1)
    torch.testing.assert_close(whole.flatten(1).std(1), cond.flatten(1).std(1))
    part = Guidance(scale=7.0, rescale=0.7).combine((cond, null), 0, 1)
    torch.testing.assert_close(part, 0.7 * whole + 0.3 * plain)
    nothing = torch.zeros(2, 1, 4, 3, 3)  # as an untrained model answers
    assert torch.equal(Guidance(scale=7.0, rescale=0.7).combine((nothing, nothing), 0, 1), nothing)
