"""Rebuild a recorded denoiser of any family and compare its forward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.golden import Golden, assert_parity

# Switches of the original that choose a faster kernel or a dtype; they do not change float32 numbers.
KERNEL_SWITCHES = {"dtype", "enable_flashattn", "enable_flash_attn", "enable_layernorm_kernel", "freeze"}


def arguments(golden: Golden) -> dict[str, Any]:
    """The recorded constructor arguments without KERNEL_SWITCHES."""
    return {k: v for k, v in golden.config["kwargs"].items() if k not in KERNEL_SWITCHES}


def recorded_model(golden: Golden, cls: Callable[..., nn.Module], **more: Any) -> Any:
    """A model of `cls` with the recorded arguments and weights; the keys must be equal."""
    model = cls(**{**more, **arguments(golden)})
    model.load_state_dict(golden.state(), strict=True)
    return model.eval()


def assert_keys(model: nn.Module, golden: Golden) -> None:
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == golden.config["state_shapes"]


def assert_forward(
    model: nn.Module,
    golden: Golden,
    name: str,
    inputs: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    **more: Any,
) -> None:
    """Compare the output and the recorded inner outputs of one case.

    inputs: renames the recorded inputs to the arguments of forward; more: arguments that are not tensors.
    """
    case = golden.case(name)
    outputs: dict[str, Tensor] = {}  # of the first call, if a module is called twice
    for path in case.inner:
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: _keep(outputs, path, out))
    with torch.no_grad():
        out = model(**inputs(case.inputs), **more)
    assert out.dtype == torch.float32
    for path, expected in case.inner.items():
        if path in outputs:  # modules called by another method than forward have no output here
            assert_parity(_laid_out(outputs[path], expected), expected, what=path)
    assert_parity(out, case.out)


def _laid_out(actual: Tensor, expected: Tensor) -> Tensor:
    """Reshape to the recorded layout: window attention was recorded as [B, H, W, T, D] and is [B, T, S, D] here."""
    in_windows = expected.ndim == 5 and actual.ndim == 4
    return (actual.transpose(1, 2) if in_windows else actual).reshape(expected.shape)


def _keep(outputs: dict[str, Tensor], path: str, out: Tensor) -> None:
    outputs.setdefault(path, out)
