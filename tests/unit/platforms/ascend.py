"""A stand-in for torch_npu: signatures of its operators as in torch-npu 2.14.0, what its documentation says they compute,
in plain torch, and an error for every argument that documentation forbids. Nothing here has met a device."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = {"BSH", "SBH", "BSND", "BNSD"}


def as_bnsd(x: Tensor, heads: int, layout: str) -> Tensor:
    if layout == "SBH":
        x, layout = x.transpose(0, 1), "BSH"
    if layout == "BSH":
        x, layout = x.unflatten(-1, (heads, -1)), "BSND"
    return x.transpose(1, 2) if layout == "BSND" else x


def from_bnsd(x: Tensor, layout: str) -> Tensor:
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2)
    if layout == "BSND":
        return x
    x = x.flatten(-2)
    return x if layout == "BSH" else x.transpose(0, 1)


def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    prefix: Any = None,
    actual_seq_qlen: Any = None,
    actual_seq_kvlen: Any = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """softmax(Mask(scale * q k^T, atten_mask)) v: a True of the mask hides that key from that query."""
    assert input_layout in LAYOUTS
    assert query.dtype == key.dtype == value.dtype
    assert query.dtype in FLOATS
    assert key.shape == value.shape
    assert query.dim() == len(input_layout)
    for unused in (pse, padding_mask, prefix, actual_seq_qlen, actual_seq_kvlen, sink, dropout_mask):
        assert unused is None
    assert (sparse_mode, inner_precise, keep_prob) == (0, 0, 1.0)
    q, k, v = (as_bnsd(part, head_num, input_layout).float() for part in (query, key, value))
    b, heads, queries, width = q.shape
    assert (heads, len(k), k.shape[1], k.shape[3]) == (head_num, b, head_num, width)
    assert head_num <= 256
    assert width <= 768
    assert width % 16 == 0  # of CANN before 8; later versions take every width
    scores = scale * q @ k.transpose(-2, -1)
    if atten_mask is not None:
        assert atten_mask.dtype in (torch.bool, torch.uint8)
        pair = (queries, k.shape[2])
        assert tuple(atten_mask.shape) in {(b, heads, *pair), (b, 1, *pair), (1, 1, *pair), pair}
        scores = scores.masked_fill(atten_mask.bool(), float("-inf"))
    largest, total = scores.amax(-1, keepdim=True), scores.logsumexp(-1, keepdim=True).exp()
    out = from_bnsd(scores.softmax(-1) @ v, input_layout).to(query.dtype)
    eight = (b, heads, queries, 8)  # kept for the backward of the kernel, eight times over
    return out, largest.expand(eight), total.expand(eight), query.new_empty(0), 0, 0, 0


def npu_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y = x / sqrt(mean(x^2) + epsilon) * gamma along the axes of gamma, inside in float32; x and gamma of one type."""
    assert self.dtype == gamma.dtype
    assert self.dtype in FLOATS
    assert 2 <= self.dim() <= 8
    assert gamma.shape == self.shape[-gamma.dim() :]
    axes = tuple(range(-gamma.dim(), 0))
    rstd = torch.rsqrt(self.float().square().mean(axes, keepdim=True) + epsilon)
    return (self.float() * rstd * gamma.float()).to(self.dtype), rstd


class Npu(types.ModuleType):
    """`torch_npu.npu`: eight devices of 64 GiB."""

    def __init__(self, bf16: bool = True, count: int = 8):
        super().__init__("torch_npu.npu")
        self.bf16, self.count = bf16, count
        self.now = 0
        self.matmul, self.conv = types.SimpleNamespace(allow_hf32=False), types.SimpleNamespace(allow_hf32=True)
        self.waited = 0

    def is_available(self) -> bool:
        return self.count > 0

    def set_device(self, device: int) -> None:
        assert 0 <= device < self.count
        self.now = device

    def current_device(self) -> int:
        return self.now

    def device_count(self) -> int:
        return self.count

    def get_device_name(self, device_name: int | None = None) -> str:
        return "Ascend910B2" if self.bf16 else "Ascend910A"

    def get_device_properties(self, device_name: int | None = None) -> Any:
        assert device_name in (None, self.now)
        return types.SimpleNamespace(name=self.get_device_name(), total_memory=64 * 2**30)

    def max_memory_allocated(self, device: int | None = None) -> int:
        return 7 * 2**20

    def is_bf16_supported(self, including_emulation: bool = False) -> bool:
        return self.bf16

    def synchronize(self, device: int | None = None) -> None:
        self.waited += 1


class OnDevice(Tensor):
    """A tensor that behaves as on a device without float64; `.cpu()` brings it to the host."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        out = super().__torch_function__(func, types, args, kwargs or {})
        assert not (isinstance(out, OnDevice) and out.dtype is torch.float64), f"float64 on a device, by {func}"
        return out


def install(monkeypatch: pytest.MonkeyPatch, **npu: Any) -> Npu:
    """`import torch_npu` gives the stand-in from now on."""
    module: Any = types.ModuleType("torch_npu")
    module.__spec__ = types.SimpleNamespace(name="torch_npu", submodule_search_locations=[])
    module.npu = Npu(**npu)
    module.npu_fusion_attention, module.npu_rms_norm = npu_fusion_attention, npu_rms_norm
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    return module.npu
