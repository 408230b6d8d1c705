"""Rebuilding a recorded denoiser and comparing its forward pass, whatever its family."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.golden import Golden, assert_parity

# Switches of the original that choose a faster kernel or a dtype; they do not change float32 numbers.
KERNEL_SWITCHES = {"dtype", "enable_flashattn", "enable_flash_attn", "enable_layernorm_kernel", "freeze"}


def arguments(golden: Golden) -> dict[str, Any]:
    """The constructor arguments of the original that mean something here."""
    return {k: v for k, v in golden.config["kwargs"].items() if k not in KERNEL_SWITCHES}


def recorded_model(golden: Golden, cls: Callable[..., nn.Module], **more: Any) -> Any:
    """The model of `cls` with the recorded arguments and weights, all of them and nothing else."""
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
    """Output and recorded inner outputs of one case.

    inputs: gives the recorded inputs the names they have here; `more`: arguments of forward that are no tensors.
    """
    case = golden.case(name)
    seen: dict[str, Tensor] = {}  # of a module that is called again, for the given frames, the first call
    for path in case.inner:
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: _keep(seen, path, out))
    with torch.no_grad():
        out = model(**inputs(case.inputs), **more)
    assert out.dtype == torch.float32
    for path, expected in case.inner.items():
        if path in seen:  # some modules are entered by another method than forward
            assert_parity(_laid_out(seen[path], expected), expected, what=path)
    assert_parity(out, case.out)


def _laid_out(seen: Tensor, expected: Tensor) -> Tensor:
    """Attention in windows was recorded as [B, H, W, T, D], and is [B, T, S, D] here; all else is in one order."""
    in_windows = expected.ndim == 5 and seen.ndim == 4
    return (seen.transpose(1, 2) if in_windows else seen).reshape(expected.shape)


def _keep(seen: dict[str, Tensor], path: str, out: Tensor) -> None:
    seen.setdefault(path, out)
