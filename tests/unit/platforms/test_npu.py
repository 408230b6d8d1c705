"""Ascend through a stand-in of torch_npu: every call's arguments, and the numbers against torch. No device was there."""

import functools
import importlib.metadata
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.cli.doctor import missing
from opensora.errors import ConfigError
from opensora.models.codec import Codec
from opensora.models.layers import kernels
from opensora.models.layers.attention import CrossAttention, SelfAttention, choose_kernel, sdpa_attention
from opensora.models.layers.kernels import use_kernels
from opensora.models.layers.norm import RMSNorm
from opensora.models.layers.text_context import TextContext
from opensora.models.text.classes import ClassLabels
from opensora.models.vae.causal_vae import CausalVAEModel
from opensora.models.vae.gaussian import Gaussian
from opensora.platforms import device_features, npu, select
from opensora.platforms.npu import NpuPlatform
from opensora.training import replay
from opensora.training.autoencoder_task import AutoencoderTask
from tests.unit.platforms import ascend

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> ascend.Npu:
    monkeypatch.setattr(kernels, "_by_device", {})
    return ascend.install(monkeypatch)


@pytest.fixture
def on_host(device: ascend.Npu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose tensors lie in host memory use the platform's kernels."""
    monkeypatch.setattr(NpuPlatform, "name", "cpu")
    use_kernels(NpuPlatform())


def qkv(width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, width, generator=draw).to(dtype) for n in (5, 7, 7)]


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "SBH"])
@pytest.mark.parametrize("masked", [False, True])
def test_fake_kernel_is_sdpa_with_inverted_mask(layout: str, masked: bool) -> None:
    """The tests below need this: polarity, layouts and scale as documented."""
    q, k, v = qkv(16)
    visible = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    visible[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible if masked else None)
    inputs = [ascend.from_bnsd(part, layout) for part in (q, k, v)]
    actual = ascend.npu_fusion_attention(*inputs, 3, layout, atten_mask=~visible if masked else None, scale=16**-0.5)[0]
    assert actual.shape == inputs[0].shape
    torch.testing.assert_close(ascend.as_bnsd(actual, 3, layout), expected)


@pytest.mark.parametrize("width", [16, 8, 72])
@pytest.mark.parametrize("mask", [None, "key", "pair"])
def test_attention_is_sdpa(device: ascend.Npu, width: int, mask: str | None) -> None:
    """Polarity, scale, layout and the padding of head widths, forward and backward, in float32 for exactness."""
    parts = [part.requires_grad_() for part in qkv(width)]
    shape = (2, 1, 1, 7) if mask == "key" else (2, 1, 5, 7)
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    visible[..., 3] = True
    attn_mask = None if mask is None else visible
    grad = torch.randn(2, 3, 5, width, generator=torch.Generator().manual_seed(3))
    actual = npu.fused_attention(*parts, attn_mask)
    actual_grads = torch.autograd.grad(actual, parts, grad)
    expected = F.scaled_dot_product_attention(*parts, attn_mask=attn_mask)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_grads, torch.autograd.grad(expected, parts, grad))


def test_which_attention_is_taken(device: ascend.Npu) -> None:
    use_kernels(NpuPlatform())
    for dtype in (torch.bfloat16, torch.float16):
        for masked in (False, True):
            assert choose_kernel("npu", dtype, 4096, 72, masked) is npu.fused_attention
    assert choose_kernel("npu", torch.float32, 4096, 72) is sdpa_attention
    assert choose_kernel("npu", torch.bfloat16, 16, npu.WIDEST_HEAD + 1) is sdpa_attention


def test_nothing_made_for_another_device_is_offered(device: ascend.Npu, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn and apex may be installed on the same machine."""
    for name in ("flash_attn", "apex"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    platform = NpuPlatform()
    assert platform.layer_norm() is None
    assert platform.attention(torch.bfloat16, 64, False) is npu.fused_attention
    assert platform.attention(torch.float32, 64, False) is None
    assert "cuda" not in platform.backend
    assert "nccl" not in platform.backend


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layer_under_autocast_calls_kernels_with_their_dtypes(
    on_host: None, monkeypatch: pytest.MonkeyPatch, qk_norm: bool, dtype: torch.dtype
) -> None:
    """Weights in float32 and products in bfloat16, as `ddp` trains; and all in one type, as zero1 and zero2 do."""
    torch.manual_seed(0)
    own = SelfAttention(72, 3, qk_norm=qk_norm)
    text = CrossAttention(72, 3)
    x, y = torch.randn(2, 5, 72), torch.randn(2, 4, 72)
    mask = torch.tensor([[True, True, False, False], [True] * 4])

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            return text(own(x), TextContext(y, mask)).float()

    actual = run()
    grads = torch.autograd.grad(actual.sum(), [own.qkv.weight, text.kv_linear.weight])
    monkeypatch.setattr(kernels, "_by_device", {})
    expected = run()
    tolerance = 5e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    wanted = torch.autograd.grad(expected.sum(), [own.qkv.weight, text.kv_linear.weight])
    for grad, reference in zip(grads, wanted):
        assert (grad - reference).norm() <= tolerance * reference.norm()


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_rms_norm_is_ours(
    on_host: None, monkeypatch: pytest.MonkeyPatch, x_dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(8, eps=1e-2).to(weight_dtype), torch.randn(2, 3, 5, 8).to(x_dtype)
    torch.nn.init.normal_(norm.weight)
    actual = norm(x)
    assert kernels.kernels_for("cpu").rms_norm is npu.fused_rms_norm
    monkeypatch.setattr(kernels, "_by_device", {})
    expected = norm(x)
    assert actual.dtype == expected.dtype
    tolerance = 1e-6 if x_dtype == weight_dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


def test_devices_and_memory(device: ascend.Npu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NpuPlatform.is_available()
    assert "npu" in str(type(select())).lower()
    platform = NpuPlatform()
    monkeypatch.setattr(torch, "device", lambda kind, index: (kind, index))  # torch alone refuses the name npu
    assert platform.device(3) == ("npu", 3)
    assert device.now == 3
    assert platform.device_name() == "Ascend910B2"
    assert (platform.device_count(), platform.memory_bytes(), platform.peak_memory_bytes()) == (8, 2**36, 7 * 2**20)
    platform.synchronize()
    assert device.waited == 1
    assert platform.backend == "cpu:gloo,npu:hccl"


def test_the_wheel_without_devices_libraries_or_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ascend.install(monkeypatch, count=0)
    assert not NpuPlatform.is_available()
    device = ascend.install(monkeypatch)

    def no_driver() -> bool:
        raise RuntimeError(
            "Initialize:torch_npu/csrc/core/npu/sys_ctrl/npu_sys_ctrl.cpp NPU error, error code is 507008"
        )

    monkeypatch.setattr(device, "is_available", no_driver)
    assert not NpuPlatform.is_available()
    monkeypatch.delattr(sys.modules["torch_npu"], "npu")  # as of a wheel for another torch
    assert not NpuPlatform.is_available()
    monkeypatch.delitem(sys.modules, "torch_npu")
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not NpuPlatform.is_available()
    feature = next(each for each in device_features() if each.modules == ("torch_npu",))
    assert missing(feature) == "installed, but: libhccl.so: cannot open shared object file"


def test_bf16_only_where_there_are_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ascend.install(monkeypatch, bf16=True)
    assert [NpuPlatform().choose_dtype(each) for each in ("auto", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    ascend.install(monkeypatch, bf16=False)
    assert [NpuPlatform().choose_dtype(each) for each in ("auto", "fp32")] == ["fp32", "fp32"]
    with pytest.raises(ConfigError, match=r"dtype.*'bf16'.*Ascend910A.*dtype='auto'"):
        NpuPlatform().choose_dtype("bf16")


def test_autocast_names_the_device(device: ascend.Npu, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: calls.append((args, kwargs)))
    NpuPlatform().autocast(torch.bfloat16)
    NpuPlatform().autocast(torch.float32)
    assert calls == [
        (("npu",), {"dtype": torch.bfloat16, "enabled": True}),
        (("npu",), {"dtype": torch.float32, "enabled": False}),
    ]


def test_the_profiler_is_torch_npus(device: ascend.Npu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profiler: Any = types.ModuleType("torch_npu.profiler")
    profiler.ProfilerActivity = types.SimpleNamespace(CPU="host", NPU="device")
    profiler.tensorboard_trace_handler = lambda dir_name=None, worker_name=None: (dir_name, worker_name)
    profiler.profile = lambda **arguments: arguments
    sys.modules["torch_npu"].profiler = profiler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu.profiler", profiler)
    assert NpuPlatform().profile(tmp_path, "rank0") == {
        "activities": ["host", "device"],
        "on_trace_ready": (str(tmp_path), "rank0"),
        "record_shapes": True,
        "profile_memory": True,
    }


def test_colossalai_is_given_its_own_accelerator(device: ascend.Npu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, events and the memory figures that ZeRO reads come from `torch.npu`."""
    from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator

    import_colossalai()
    from colossalai.accelerator import api

    monkeypatch.setattr(api, "_ACCELERATOR", None)
    streams = types.SimpleNamespace(
        Stream=lambda *_, **__: "a stream",
        Event=lambda *_, **__: "an event",
        current_stream=lambda *_: "the stream",
        current_device=lambda: 3,
    )
    monkeypatch.setattr(torch, "npu", streams, raising=False)
    set_accelerator(types.SimpleNamespace(type="npu", index=3))  # type: ignore[arg-type]
    chosen = api.get_accelerator()
    assert type(chosen).__name__ == "NpuAccelerator"
    assert (chosen.name, chosen.communication_backend) == ("npu", "hccl")
    assert (chosen.Stream(), chosen.Event(), chosen.current_stream()) == ("a stream", "an event", "the stream")
    assert chosen.current_device() == 3


@torch.no_grad()
def test_float64_stays_on_the_host() -> None:
    """These devices have none; where more precision is wanted, tensors are brought to the host first."""
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    vae = CausalVAEModel(hidden_size=8, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    codec = Codec(vae, ClassLabels(num_classes=2), "cpu", torch.float32)
    expected = codec.encode_moments(video, [])
    there = vae.posterior(video)
    vae.posterior = lambda *_: Gaussian(*(x.as_subclass(ascend.OnDevice) for x in (there.mean, there.logvar)))  # type: ignore[method-assign]
    assert torch.equal(codec.encode_moments(video, []).cpu(), expected)
    batch = types.SimpleNamespace(video_BCTHW=video)
    distance = lambda *frames: frames[0].flatten(1).mean(1).as_subclass(ascend.OnDevice)  # noqa: E731
    task = types.SimpleNamespace(device="cpu", validation_distance=("distance", distance))
    task._measure = functools.partial(AutoencoderTask._measure, task)
    model = lambda x, rngs: (x.as_subclass(ascend.OnDevice), None)  # noqa: E731
    figures = AutoencoderTask.validate(task, model, [batch])  # type: ignore[arg-type]
    assert figures["psnr"] == (100.0, 1)
    assert figures["distance"] == (pytest.approx(video.mean().item()), 1)
    assert replay._norm([torch.full((4,), 2.0).as_subclass(ascend.OnDevice)]) == 4.0


def pinned(file: str) -> dict[str, str]:
    text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, flags=re.MULTILINE))


def test_the_wheels_fit_each_other() -> None:
    """torch-npu wants its own torch to the last digit, and that torch its own torchvision (2.x goes with 0.(x + 15))."""
    wheels = pinned("npu.txt")
    assert wheels["torch"] == wheels["torch-npu"]
    major, minor, patch = wheels["torch"].split(".")
    assert wheels["torchvision"] == f"0.{int(minor) + 15}.{patch}"
    tested = pinned("constraints.txt")["torch"].split(".")
    assert [major, minor] == tested[:2], "the tests run on another torch than Ascend gets"
    assert f"torch-npu {wheels['torch-npu']}" in (ROOT / "opensora/platforms/npu.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("on", [False, True])
def test_keys_of_tf32_and_determinism(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    algorithms: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", algorithms.append)
    monkeypatch.setenv("HCCL_DETERMINISTIC", "")
    monkeypatch.delenv("HCCL_DETERMINISTIC")
    device = ascend.install(monkeypatch)
    NpuPlatform().set_numerics(tf32=on, deterministic=on)
    assert device.matmul.allow_hf32 is device.conv.allow_hf32 is on
    assert algorithms == [on]
    assert os.environ.get("HCCL_DETERMINISTIC") == ("true" if on else None)


@pytest.mark.npu
@pytest.mark.skipif(not NpuPlatform.is_available(), reason="needs an Ascend device")
def test_a_real_device() -> None:
    platform = NpuPlatform()
    where = platform.device(0)
    x = torch.randn(64, 64, device=where)
    with platform.autocast(torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
    platform.synchronize()
    assert 0 < platform.peak_memory_bytes() <= platform.memory_bytes()
    assert importlib.metadata.version("torch-npu").startswith(pinned("npu.txt")["torch"])


@pytest.mark.npu
@pytest.mark.skipif(not NpuPlatform.is_available(), reason="needs an Ascend device")
def test_ascend_kernels_agree_with_torch() -> None:
    device = NpuPlatform().device(0)
    q, k, v = (part.to(device) for part in qkv(72, torch.bfloat16))
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(npu.fused_attention(q, k, v).float(), expected, rtol=2e-2, atol=2e-2)
    weight, x = torch.randn(64, device=device), torch.randn(4, 64, device=device)
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    torch.testing.assert_close(npu.fused_rms_norm(x, weight, 1e-6), expected, rtol=1e-3, atol=1e-3)
