"""Gradients of every denoiser and autoencoder against finite differences in float64.

Every registered class is tested at a tiny size; OPTIONS adds arguments and inputs that use other branches of a class.
A model must keep float64 for this: it may widen to float32 only what is narrower (layers/patch.py, `at_least_float32`).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from opensora.registry import MODELS, VAES, build, constructor, names
from tests.support.small_models import DENOISERS, full, inputs, open_gates, small, vae

# class, arguments, additional inputs of its forward
OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "STDiT, given frames": ("STDiT", {}, {"x_mask": [True, False, True]}),
    "STDiT2, given frames": ("STDiT2", {"qk_norm_legacy": False}, {"x_mask": [True, False, True]}),
    "STDiT3, given frames": ("STDiT3", {"patch_size": (2, 2, 2)}, {"x_mask": [True, False]}),
    "STDiT3, windows": (
        "STDiT3",
        {"kernel_size": (2, 2, -1), "use_spatial_rope": True, "conditioned": True},
        {"mask_index": [0, 2]},
    ),
    "LatteT2V, rotations": ("LatteT2V", {"use_rope": True}, {}),
    "LatteT2V, an image, padding, compressed keys": (
        "LatteT2V",
        {"compress_kv_factor": 2},
        {
            "use_image_num": 1,
            "y": torch.linspace(-2, 2, 240).sin().view(2, 2, 5, 12),
            "mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).expand(2, -1, -1),
            "attention_mask": (torch.arange(6) < 4).expand(2, 3, 4, 6),
        },
    ),
}
CLASSES = [name for name in DENOISERS if not hasattr(constructor(MODELS, full(name)["type"]), "__wrapped_class__")]


def directional_derivatives(call: Callable[[], Tensor], free: list[Tensor], seed: int) -> tuple[float, float]:
    """Directional derivative of a random linear function of what `call` returns: (by autograd, by differences).

    The direction is random in the `free` tensors, on which the output depends.
    """
    rng = Generator().manual_seed(seed)
    direction = [torch.randn(each.shape, dtype=torch.float64, generator=rng) for each in free]
    weights = torch.randn(call().shape, dtype=torch.float64, generator=rng)

    def value() -> Tensor:
        out = call()
        assert out.dtype == torch.float64
        return (out * weights).sum()

    gradients = torch.autograd.grad(value(), free)
    exact = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    step = 1e-6
    with torch.no_grad():
        sides = []
        for sign in (1, -2):  # to one side, then from there to the other
            for each, d in zip(free, direction, strict=True):
                each.add_(d, alpha=sign * step)
            sides.append(value().item())
    return exact, (sides[0] - sides[1]) / (2 * step)


def _is_real(arguments: dict[str, Any], key: str) -> bool:
    return isinstance(arguments.get(key), Tensor) and arguments[key].is_floating_point()


def check(model: Any, **kwargs: Any) -> None:
    model = open_gates(model).double().train()
    arguments = {**inputs(model), **kwargs}
    arguments = {
        key: value.double() if _is_real(arguments, key) and value.ndim > 2 else value
        for key, value in arguments.items()
    }
    free = [p for p in model.parameters() if p.requires_grad]
    free += [
        arguments[key].requires_grad_() for key in ("x", "y", "cond", "cond_mask", "y_null") if _is_real(arguments, key)
    ]
    for seed in (1, 2):
        exact, measured = directional_derivatives(lambda: model(**arguments), free, seed)
        assert exact == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    check(build(MODELS, small(name)))


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_with_options(name: str) -> None:
    cls, arguments, kwargs = OPTIONS[name]
    if "x_mask" in kwargs:
        kwargs = {"x_mask": torch.tensor([kwargs["x_mask"]] * 2)}
    torch.manual_seed(0)
    check(build(MODELS, small(cls) | arguments), **kwargs)


@pytest.mark.parametrize(
    "name", [name for name in names(VAES) if not hasattr(constructor(VAES, name), "__wrapped_class__")]
)
def test_gradients_of_autoencoders(name: str) -> None:
    """Gradients of the reconstruction from the mode of the posterior, and of its mean and logvar."""
    model = vae(name).double()
    rng = Generator().manual_seed(3)
    x = torch.rand(1, 3, model.compression[0] + 1, 16, 16, generator=rng).double().requires_grad_()

    def call() -> Tensor:
        output, posterior = model(x, None)
        return torch.cat([each.flatten() for each in (output, posterior.mean, posterior.logvar)])

    exact, measured = directional_derivatives(call, [*model.parameters(), x], seed=1)
    assert exact == pytest.approx(measured, rel=1e-5)
