"""Arguments of a denoiser that the other parts determine, and building it from them."""

import inspect
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from opensora.errors import ConfigError, OpenSoraError
from opensora.models.build import (
    assemble,
    build_denoiser,
    check_image_size,
    fill_model_config,
    inferred_model_args,
)
from opensora.models.text.classes import ClassLabels
from opensora.registry import MODELS, constructor

VAE: Any = SimpleNamespace(
    latent_channels=4,
    compression=(4, 8, 8),
    latent_size=lambda size: (size[0], size[1] // 8, size[2] // 8),
    holds_frames=lambda num_frames: True,
)
TEXT = SimpleNamespace(denoiser_args={"condition": "text", "caption_channels": 6, "model_max_length": 3})
POOLED = SimpleNamespace(denoiser_args={"condition": "text", "caption_channels": 6, "model_max_length": 1})
CLASSES = ClassLabels(["walk", "run"])
SMALL = {"hidden_size": 24, "depth": 1, "num_heads": 2}


def completed(model: str, text: Any, **stated: Any) -> dict[str, Any]:
    return fill_model_config({"type": model, **SMALL, **stated}, inferred_model_args(VAE, text, (2, 32, 32)))


def test_a_model_gets_what_its_constructor_takes() -> None:
    sizes = {"input_size": [2, 4, 4], "in_channels": 4}
    captions = {"caption_channels": 6, "model_max_length": 3}
    assert completed("STDiT", TEXT) == {"type": "STDiT", **SMALL, **sizes, **captions}
    pooled = {"condition": "text", "caption_channels": 6, "model_max_length": 1}
    assert completed("DiT", POOLED) == {"type": "DiT", **SMALL, **sizes, **pooled}
    by_class = completed("Latte", CLASSES)
    assert by_class == {"type": "Latte", **SMALL, **sizes, "condition": "label_2"}
    assert build_denoiser(by_class).null_text(1).tolist() == [2]


def test_model_without_caption_sizes_gets_none() -> None:
    class Bare:
        def __init__(self, input_size: list[int], in_channels: int) -> None: ...

    MODELS.register_module(name="Bare", module=Bare)
    try:
        inputs = inferred_model_args(VAE, TEXT, (2, 32, 32))
        assert fill_model_config({"type": "Bare"}, inputs) == {
            "type": "Bare",
            "input_size": [2, 4, 4],
            "in_channels": 4,
        }
    finally:
        del MODELS.module_dict["Bare"]


@pytest.mark.parametrize(
    ("size", "model", "message"),
    [
        ((60, 90), {"type": "STDiT"}, r"found \(60, 90\); allowed: multiples of 16 \(autoencoder 8 x patch 2\); .* \(64, 96\);"),
        ((7, 64), {"type": "STDiT", "patch_size": (1, 1, 2)}, r"multiples of 8 .* x patch 1\) and multiples of 16 .*\(8, 64\)"),
        ((24, 16), {"type": "LatteT2V"}, r"multiples of 16 .*nearest: \(32, 16\)"),
    ],
)  # fmt: skip
def test_sizes_that_patches_do_not_divide_are_refused_in_pixels(
    size: tuple[int, int], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_image_size("config: key 'image_size'", size, VAE, model)


@pytest.mark.parametrize(("size", "model"), [((64, 96), "STDiT"), ((60, 90), "STDiT2"), ((32, 16), "LatteT2V")])
def test_sizes_that_fit_pass(size: tuple[int, int], model: str) -> None:
    """STDiT2 pads its latents."""
    check_image_size("config: key 'image_size'", size, VAE, {"type": model})


def test_classes_for_a_model_of_captions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'text_encoder'.*label_2.*PixArt"):
        completed("PixArt", CLASSES)


@pytest.mark.parametrize(
    ("text", "condition", "allowed"), [(POOLED, "label_2", "text"), (CLASSES, "text", "label_2"), (CLASSES, "label_3", "label_2")]
)  # fmt: skip
def test_another_condition_than_the_text_encoder_gives_is_refused(text: Any, condition: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=rf"'model.condition'.*{condition}.*{allowed}"):
        completed("DiT", text, condition=condition)


def test_captions_of_many_tokens_are_refused_by_a_model_of_one() -> None:
    with pytest.raises(ConfigError, match=r"model\.model_max_length.*3.*one"):
        build_denoiser(completed("DiT", TEXT))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_dropout_prob": 1.5}, r"class_dropout_prob.*1\.5.*0 to 1"),
        ({"drop_path": 1.0}, r"drop_path.*1\.0"),
        ({"space_scale": 0.0}, r"scale.*0\.0.*above 0"),
        ({"time_scale": -1.0}, r"scale.*-1\.0.*above 0"),
    ],
)
def test_numbers_that_training_would_stumble_over_are_refused(wrong: dict[str, float], message: str) -> None:
    tried = 0
    for model in ("STDiT", "PixArt", "DiT", "STDiT2", "STDiT3"):
        config = {"type": model, "hidden_size": 48, "depth": 1, "num_heads": 2, "input_size": [2, 4, 4]}
        if wrong.keys() <= inspect.signature(constructor(MODELS, model)).parameters.keys():
            tried += 1
            with pytest.raises(OpenSoraError, match=message):
                build_denoiser({**config, **wrong})
    assert tried


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_text_encoder_is_read_in_the_dtype_that_it_computes_in(dtype: torch.dtype | None) -> None:
    """In float32 T5-XXL takes 19 GB of host memory on every rank."""
    calls: list[tuple[Any, ...]] = []

    class Spy(ClassLabels):
        def to(self, device: Any, dtype: torch.dtype | None = None) -> Self:
            calls.append(("to", device, dtype))
            return self

        def load(self) -> Self:
            calls.append(("load",))
            return self

    text: Any = Spy(["walk", "run"])
    vae: Any = VAE
    with torch.device("meta"):
        assemble(
            {"type": "Latte", **SMALL},
            {},
            {},
            num_frames=1,
            image_size=(32, 32),
            text_dtype=dtype,
            stored_vae=vae,
            stored_text=text,
        )
    assert calls == [("to", "cpu", dtype), ("load",)]
