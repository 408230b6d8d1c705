"""Given frames of a conditioned STDiT3, of each sample its own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.frame_conditioning import frame_conditioning
from opensora.models.layers.text_context import TextCache
from opensora.models.shape_checks import ShapeError
from opensora.models.stdit.stdit3 import STDiT3
from opensora.rng import generator


@pytest.fixture(scope="module")
def model() -> STDiT3:
    """All gates open, so that text and given latents matter."""
    made = STDiT3(
        hidden_size=24,
        depth=2,
        num_heads=2,
        caption_channels=6,
        model_max_length=3,
        input_sq_size=32,
        kernel_size=(2, 2, -1),
        use_spatial_rope=True,
        conditioned=True,
    )
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, name))
    return made.eval()


def conditioned_arguments(frames: list[list[int]]) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    n = len(frames)
    latents, y_null = torch.randn(n, 4, 3, 4, 6, generator=rng), torch.randn(n, 1, 3, 6, generator=rng)
    return {
        "x": torch.randn(n, 4, 3, 4, 6, generator=rng),
        "timestep": torch.full((n,), 300.0),
        "y": torch.randn(n, 1, 3, 6, generator=rng),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])[:n],
        "height": torch.full((n,), 32.0),
        "width": torch.full((n,), 48.0),
        "fps": torch.full((n,), 24.0),
        **frame_conditioning(latents, frames, y_null),
    }


def row(arguments: dict[str, Any], i: int) -> dict[str, Any]:
    one = {name: value[i : i + 1] for name, value in arguments.items() if isinstance(value, Tensor)}
    return {**one, "mask_index": arguments["mask_index"][i]}


@torch.no_grad()
def test_mask_index_is_per_sample(model: STDiT3) -> None:
    """A batch of three with other frames given in each equals three batches of one with one list each."""
    arguments = conditioned_arguments([[0], [], [0, 2]])
    alone = torch.cat([model(**row(arguments, i)) for i in range(3)])
    torch.testing.assert_close(model(**arguments), alone, rtol=1e-5, atol=1e-5)
    cache = TextCache()
    for _ in range(2):
        torch.testing.assert_close(model(**arguments, text_cache=cache), alone, rtol=1e-5, atol=1e-5)
    swapped = model(**{**arguments, "mask_index": [[1], [], [0, 2]]})
    assert (swapped[0] - alone[0]).abs().max() > 1e-3
    torch.testing.assert_close(swapped[1:], alone[1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equal_lists_are_one_list(model: STDiT3) -> None:
    arguments = conditioned_arguments([[0, 1], [1, 0]])
    assert torch.equal(model(**arguments), model(**{**arguments, "mask_index": [0, 1]}))
    nothing = conditioned_arguments([[], []])
    assert torch.equal(model(**nothing), model(**{**nothing, "mask_index": []}))


def test_lists_for_another_batch_are_a_sentence(model: STDiT3) -> None:
    with pytest.raises(ShapeError, match=r"2 samples.*batch of 3"):
        model(**{**conditioned_arguments([[0], [], [2]]), "mask_index": [[0], []]})
    with pytest.raises(ShapeError, match=r"\[-1, 3\].* 3"):
        model(**{**conditioned_arguments([[0], [], [2]]), "mask_index": [[0], [3], [-1]]})


def test_frame_conditioning_by_hand() -> None:
    latents = torch.arange(24.0).view(3, 2, 4, 1, 1) + 1
    kwargs = frame_conditioning(latents, [[0, 3], [], [1]], y_null := torch.ones(3, 1, 2, 2), drop_last=1)
    assert kwargs["cond_mask"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 1]] * 2, [[0] * 4] * 2, [[0, 1, 0, 0]] * 2]
    assert kwargs["cond"][:, :, :, 0, 0].tolist() == [[[1, 0, 0, 4], [5, 0, 0, 8]], [[0] * 4] * 2, [[0] * 4] * 2]
    assert kwargs["mask_index"] == [[0, 3], [], [1]]
    assert kwargs["y_null"] is y_null
    assert not frame_conditioning(latents, [], y_null)["cond_mask"].any()
