"""Profile of a forward and a backward on the meta device: it counts allocations and FLOP, and computes nothing.

The modules and autograd are those of training, so saved, recomputed and short-lived activations need no formulas.
Bytes are those of storages; the overhead of an allocator is not counted.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from opensora.interfaces import Autoencoder, Denoiser
from opensora.models.layers.attention import SHORT_KEYS, softmax_attention
from opensora.models.layers.kernels import Attention, use_kernels
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.planning.meta_autocast import MetaAutocast, run_inside
from opensora.planning.meta_rules import RULES

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class MemoryPoint:
    """A stretch of the backward between two parameters' gradients."""

    gradients: int  # elements of the gradient that exist when it begins
    live: int  # peak bytes until the next gradient


@dataclass(frozen=True)
class StepProfile:
    """One micro-batch. Bytes do not include parameters, inputs, or finished gradients."""

    saved: int  # alive after the forward, for the backward
    points: tuple[MemoryPoint, ...]
    forward_flops: int
    backward_flops: int  # recomputation included
    sent: int = 0  # bytes to the other ranks of a sequence group

    @property
    def peak(self) -> int:
        return max(point.live for point in self.points)


def profile_step(
    model: Denoiser | Autoencoder,
    forward: Callable[[Any], Any],
    *,
    checkpointed: bool = False,
    autocast: bool = False,
    plain_softmax: bool = False,
) -> StepProfile:
    """Run `forward(model)` and the backward of a loss over its outputs; everything must lie on the meta device.

    checkpointed: recompute the blocks' activations. autocast: matrix products in bfloat16, as ddp runs bf16. Both
    change the model for good. plain_softmax: half precision as on the CPU, where attention over few keys is two products
    and a softmax.
    """
    for block in model.checkpoint_blocks():
        if checkpointed:
            run_inside(block, _FusedEverywhere)
        if autocast:
            run_inside(block, MetaAutocast)  # its own: a weight's cast is freed with the block
    if checkpointed:
        checkpoint_activations(model.checkpoint_blocks())
    handles: list[Any] = []
    points: list[MemoryPoint] = []
    gradients = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _kernels(plain_softmax):
        live = LiveBytes(model)

        def on_gradient(parameter: nn.Parameter) -> None:
            nonlocal gradients
            points.append(MemoryPoint(gradients, live.take_peak()))
            gradients += parameter.numel()
            parameter.grad = None

        for parameter in parameters:
            handles.append(parameter.register_post_accumulate_grad_hook(on_gradient))
        try:
            with live:
                with _FusedEverywhere(), MetaAutocast() if autocast else nullcontext():
                    outputs = forward(model)
                loss = _loss(outputs)
                del outputs
                saved, forward_flops = live.now, live.flops
                loss.backward()
                points.append(MemoryPoint(gradients, live.take_peak()))
        finally:
            for handle in handles:
                handle.remove()
    return StepProfile(saved, tuple(points), forward_flops, live.flops - forward_flops)


def profile_forward(work: Callable[[], Any], *modules: nn.Module) -> tuple[int, int]:
    """(peak bytes, FLOP) of `work` without gradients; the parameters of `modules` are not counted."""
    with torch.no_grad(), _kernels(False), _FusedEverywhere(), LiveBytes(*modules) as live:
        work()
        return live.take_peak(), live.flops


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that operations allocate, and the FLOP of matrix products.

    torch's FlopCounterMode counts the same FLOP but keeps recomputed tensors alive, so it cannot run around a step.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.now = 0  # bytes
        self.flops = 0
        self._peak = 0
        self._sizes: dict[int, int] = {}  # bytes of a storage, by its address
        self._finalizers: dict[int, ref] = {}
        self._uncounted = [t.untyped_storage() for each in modules for t in [*each.parameters(), *each.buffers()]]
        for storage in self._uncounted:
            self._sizes[storage._cdata] = 0

    def take_peak(self) -> int:
        """The peak bytes since the last call."""
        peak, self._peak = self._peak, self.now
        return peak

    def __torch_dispatch__(
        self, function: OpOverload, types: Collection[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        with torch._C.DisableTorchFunction():  # torch's rules are Python, and each step of one would pass the modes
            result = RULES.get(function, function)(*args, **(kwargs or {}))
        if function._overloadpacket in _FLOPS:
            self.flops += _FLOPS[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
        for each in result if isinstance(result, list | tuple) else (result,):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self._peak = max(self._peak, self.now)
        self._finalizers[key] = ref(storage, partial(self._remove, key))

    def _remove(self, key: int, _: ref) -> None:
        self.now -= self._sizes.pop(key)
        del self._finalizers[key]


def _loss(outputs: Any) -> Tensor:
    """A scalar that depends on every output, as a squared error would."""
    terms = [each for each in tree_leaves(_tensors(outputs)) if isinstance(each, Tensor) and each.requires_grad]
    return torch.stack([each.float().square().mean() for each in terms]).sum()


def _tensors(outputs: Any) -> Any:
    """Nested lists of tensors; an autoencoder returns a posterior next to the reconstruction."""
    if isinstance(outputs, tuple | list):
        return [_tensors(output) for output in outputs]
    return outputs if isinstance(outputs, Tensor) else [outputs.mean, outputs.logvar]


class _MetaPlatform:
    """An accelerator whose attention keeps no scores."""

    name = "meta"
    launches_kernels = False  # both forms of the modulated norm keep the same bytes; this one has torch's own backward

    def __init__(self, kernel: Attention | None, short: bool):
        self._kernel, self._short = kernel, short

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Attention | None:
        if self._short and self._kernel is not None and dtype is torch.bfloat16:
            return _short_or_fused
        return self._kernel

    def layer_norm(self) -> None:
        return None

    def rms_norm(self) -> None:
        return None

    def pads_wrongly(self, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> bool:
        return False

    def misjudges_weights(self, x: Tensor) -> bool:
        return False


@contextmanager
def _kernels(plain_softmax: bool) -> Iterator[None]:
    """Use fused attention for meta tensors; torch itself would use plain products there, with all scores."""
    use_kernels(_MetaPlatform(fused_attention, plain_softmax))
    try:
        yield
    finally:
        use_kernels(_MetaPlatform(None, False))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The shapes of a fused kernel: it saves the result and one number per query, never the scores."""
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return _fused(q, k, v, 0.0, False, attn_mask=bias)[0]


class _FusedEverywhere(TorchFunctionMode):
    """Gives torch's own attention function, which autoencoders call, the shapes of a fused kernel as well."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Collection[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention and len(args) >= 3 and args[0].is_meta:
            return fused_attention(args[0], args[1], args[2], (kwargs or {}).get("attn_mask"))
        return function(*args, **(kwargs or {}))


def _short_or_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return (softmax_attention if k.shape[-2] <= SHORT_KEYS else fused_attention)(q, k, v, mask)


def _attention_flops(q: Tensor, k: Tensor, *rest: object, **options: object) -> int:
    """Two products of [N, d] and [d, M] for each head (Dao et al. 2022, arXiv:2205.14135, sec. 2.2)."""
    return 4 * q.numel() * k.shape[-2]


def _attention_backward_flops(grad: Tensor, q: Tensor, k: Tensor, *rest: object, **options: object) -> int:
    """Four products, and the scores again."""
    return 10 * q.numel() * k.shape[-2]


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _fused: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
