from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.frame_conditioning import frame_conditioning
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.shape_checks import ShapeError
from opensora.models.stdit.stdit3 import STDiT3
from opensora.rng import generator

SIZE: dict[str, Any] = {
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 6,
    "model_max_length": 3,
    "input_sq_size": 32,
}
OF_1_3: dict[str, Any] = {"kernel_size": (2, 2, -1), "use_spatial_rope": True, "conditioned": True}
GIVEN = {"cond": torch.ones(2, 4, 3, 4, 6), "cond_mask": torch.ones(2, 4, 3, 4, 6)}


def make(**changes: Any) -> STDiT3:
    torch.manual_seed(0)
    return STDiT3(**{**SIZE, **changes}).eval()


def opened(**changes: Any) -> STDiT3:
    model = make(**changes)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return model


def arguments(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    inputs: dict[str, Any] = {
        "x": torch.randn(2, 4, 3, 4, 6),
        "timestep": torch.tensor([5.0, 700.0]),
        "y": torch.randn(2, 1, 3, 6),
        "mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "height": torch.tensor([32.0, 32.0]),
        "width": torch.tensor([48.0, 48.0]),
        "fps": torch.tensor([24.0, 8.0]),
    }
    return {**inputs, **changes}


def call(model: STDiT3, **changes: Any) -> Tensor:
    with torch.no_grad():
        return model(**arguments(**changes))


def test_fresh_temporal_blocks_rate_and_given_latents_do_nothing() -> None:
    whole = make(**OF_1_3)
    out = call(whole)
    assert out.any()  # unlike STDiT's, the final layer starts open
    assert torch.equal(call(whole, fps=torch.tensor([3.0, 3.0])), out)
    assert torch.equal(call(whole, **GIVEN, mask_index=[]), out)
    spatial = make(**OF_1_3, skip_temporal=True)
    spatial.load_state_dict({k: v for k, v in whole.state_dict().items() if "temporal" not in k})
    torch.testing.assert_close(call(spatial), out)


def test_only_1_3_embeds_given_latents() -> None:
    assert not any("cond" in key for key in make().state_dict())
    assert any("x_embedder_cond_mask" in key for key in make(**OF_1_3).state_dict())


@pytest.mark.parametrize("name", ["fps", "height", "width"])
def test_every_condition_counts(name: str) -> None:
    model = opened()
    assert not torch.allclose(call(model, **{name: torch.tensor([3.0, 4.0])}), call(model))


def test_rows_and_columns_are_turned_in_spatial_blocks() -> None:
    plain, turned = opened(**{**OF_1_3, "use_spatial_rope": False}), opened(**OF_1_3)
    plain.load_state_dict(turned.state_dict())
    assert not torch.allclose(call(plain), call(turned), atol=1e-5)


def test_captions_may_come_embedded_and_packed() -> None:
    """The same captions through the embedder or past it."""
    model, packed = opened(), opened(skip_y_embedder=True)
    inputs = arguments()
    y_BLD = model.y_embedder(inputs["y"])[:, 0]
    y_1ND = torch.cat([y_BLD[0, :2], y_BLD[1]])[None]
    torch.testing.assert_close(call(packed, y=y_1ND, mask=torch.tensor([2, 3])), call(model))
    torch.testing.assert_close(call(packed, y=y_1ND, mask=[2, 3]), call(model))
    with pytest.raises(ShapeError, match=r"\[1, 5, 24\].*\[2, 2\]"):
        call(packed, y=y_1ND, mask=[2, 2])
    with pytest.raises(ShapeError, match="drop_B"):
        call(packed, y=y_1ND, mask=[2, 3], drop_B=torch.tensor([True, False]))
    with pytest.raises(ShapeError, match="lengths"):
        call(packed, y=y_1ND, mask=None)


def test_a_frozen_caption_embedder_is_not_trained() -> None:
    model = opened(freeze_y_embedder=True).train()
    model(**arguments()).square().mean().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    assert still == {"rope.freqs"} | {f"y_embedder.{name}" for name, _ in model.y_embedder.named_parameters()}
    assert model.state_dict().keys() == opened().state_dict().keys()


def test_given_frames_attend_to_the_other_caption() -> None:
    """With nothing else that joins frames, each frame is as in a clip whose every frame has its caption."""
    model = opened(**OF_1_3, skip_temporal=True)
    y_null = torch.randn(2, 1, 3, 6)
    mixed = call(model, **GIVEN, mask_index=[2, 0, 2], y_null=y_null)
    free = call(model, **GIVEN, mask_index=[])
    null_output = call(model, **GIVEN, mask_index=[], y=y_null)
    torch.testing.assert_close(mixed[:, :, 1], free[:, :, 1])
    torch.testing.assert_close(mixed[:, :, ::2], null_output[:, :, ::2])
    assert not torch.allclose(mixed[:, :, 0], free[:, :, 0])
    every = call(model, **GIVEN, mask_index=[0, 1, 2], y_null=y_null)
    torch.testing.assert_close(every, null_output)


def test_kept_captions_give_the_same_numbers() -> None:
    """Two captions per prompt, the null one for given frames: each is kept for itself."""
    model, inputs = opened(**OF_1_3), arguments(**GIVEN, mask_index=[1], y_null=torch.randn(2, 1, 3, 6))
    cache = ClipCache()
    with torch.no_grad():
        first, second = model(**inputs, clip_cache=cache), model(**inputs, clip_cache=cache)
    torch.testing.assert_close(first, call(model, **inputs))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, {**GIVEN, "mask_index": [0]}, "conditioned=True"),
        (OF_1_3, {"mask_index": [0]}, "cond and cond_mask"),
        (OF_1_3, {**GIVEN, "cond": GIVEN["cond"][:, :, :1], "mask_index": []}, r"\[2, 4, 1, 4, 6\]"),
        (OF_1_3, {**GIVEN, "mask_index": [0]}, "y_null"),
        (OF_1_3, {**GIVEN, "mask_index": [1, 3], "y_null": torch.zeros(2, 1, 3, 6)}, r"frames \[3\] of a clip of 3"),
    ],
)
def test_what_given_frames_need(options: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call(make(**options), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_spatial_rope": True}, "kernel_size"),
        ({"kernel_size": (2, 2, -1), "num_heads": 3}, "8 .*multiple of 3"),
        ({"num_heads": 5}, "24 .*multiple of 5"),
    ],
)
def test_options_that_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make(**changes)


@pytest.fixture(scope="module")
def conditioned() -> STDiT3:
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


def one_sample(arguments: dict[str, Any], i: int) -> dict[str, Any]:
    one = {name: value[i : i + 1] for name, value in arguments.items() if isinstance(value, Tensor)}
    return {**one, "mask_index": arguments["mask_index"][i]}


@torch.no_grad()
def test_mask_index_is_per_sample(conditioned: STDiT3) -> None:
    """A batch of three with other frames given in each equals three batches of one with one list each."""
    arguments = conditioned_arguments([[0], [], [0, 2]])
    alone = torch.cat([conditioned(**one_sample(arguments, i)) for i in range(3)])
    torch.testing.assert_close(conditioned(**arguments), alone, rtol=1e-5, atol=1e-5)
    cache = ClipCache()
    for _ in range(2):
        torch.testing.assert_close(conditioned(**arguments, clip_cache=cache), alone, rtol=1e-5, atol=1e-5)
    swapped = conditioned(**{**arguments, "mask_index": [[1], [], [0, 2]]})
    assert (swapped[0] - alone[0]).abs().max() > 1e-3
    torch.testing.assert_close(swapped[1:], alone[1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equal_lists_are_one_list(conditioned: STDiT3) -> None:
    arguments = conditioned_arguments([[0, 1], [1, 0]])
    assert torch.equal(conditioned(**arguments), conditioned(**{**arguments, "mask_index": [0, 1]}))
    nothing = conditioned_arguments([[], []])
    assert torch.equal(conditioned(**nothing), conditioned(**{**nothing, "mask_index": []}))


def test_lists_for_another_batch_are_a_sentence(conditioned: STDiT3) -> None:
    with pytest.raises(ShapeError, match=r"2 samples.*batch of 3"):
        conditioned(**{**conditioned_arguments([[0], [], [2]]), "mask_index": [[0], []]})
    with pytest.raises(ShapeError, match=r"\[-1, 3\].* 3"):
        conditioned(**{**conditioned_arguments([[0], [], [2]]), "mask_index": [[0], [3], [-1]]})
