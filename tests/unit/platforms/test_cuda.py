"""Kernels of CUDA devices, with stand-ins for their packages: the arguments of calls. Numerics need the device."""

import logging
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.models.layers import kernels
from opensora.models.layers.attention import choose_kernel, sdpa_attention
from opensora.models.layers.kernels import use_kernels
from opensora.models.layers.norm import norm_modulate
from opensora.platforms import cuda, select
from opensora.platforms.cuda import CudaPlatform


@pytest.fixture(autouse=True)
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_by_device", {})
    cuda.works.cache_clear()


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(name=name, submodule_search_locations=[])  # type: ignore[assignment]
    module.__path__ = []
    for key, function in functions.items():
        setattr(module, key, function)
    monkeypatch.setitem(sys.modules, name, module)


def qkv(width: int = 8, keys: int = 7) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, width, dtype=torch.bfloat16) for n in (5, keys, keys)]


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As documented: [B, N, h, d], scale d^-0.5."""
    assert q.shape[1:3] == (5, 3)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def test_flash_attn_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash_attn", flash_attn_func=flash_attn_func)
    kernel = CudaPlatform().attention(torch.bfloat16, 72, masked=False)
    assert kernel is cuda.flash_attention
    q, k, v = qkv()
    assert torch.equal(kernel(q, k, v, None), F.scaled_dot_product_attention(q, k, v))
    with pytest.raises(ValueError, match="mask"):
        kernel(q, k, v, torch.ones(2, 1, 1, 7, dtype=torch.bool))


@pytest.mark.parametrize("deterministic", [False, True])
def test_flash_attn_gets_the_choice_of_its_backward(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    choices = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, deterministic: bool = False) -> Tensor:
        choices.append(deterministic)
        return q

    stand_in(monkeypatch, "flash_attn", flash_attn_func=flash_attn_func)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    use_kernels(CudaPlatform())
    choose_kernel("cuda", torch.bfloat16, 16, 8)(*qkv(), None)
    assert choices == [deterministic]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "masked"),
    [(torch.float32, 72, False), (torch.bfloat16, 264, False), (torch.bfloat16, 72, True)],
)
def test_flash_attn_is_left_out_where_it_does_not_apply(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int, masked: bool
) -> None:
    stand_in(monkeypatch, "flash_attn", flash_attn_func=flash_attn_func)
    assert CudaPlatform().attention(dtype, head_dim, masked) is None
    use_kernels(CudaPlatform())
    assert choose_kernel("cuda", dtype, 256, head_dim, masked) is sdpa_attention


def test_without_the_packages_torch_does_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may have them")
    assert CudaPlatform().attention(torch.bfloat16, 72, masked=False) is None
    assert CudaPlatform().layer_norm() is None


def test_package_that_does_not_import_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wheel for another torch, and the other package that is called apex."""
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c105Error')")
    (tmp_path / "apex.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("flash_attn", "apex"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    for _ in range(2):
        assert CudaPlatform().attention(torch.bfloat16, 72, masked=False) is None
        assert CudaPlatform().layer_norm() is None
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("flash_attn is installed but cannot be imported (undefined symbol")
    assert second.startswith("apex.normalization.fused_layer_norm is installed but cannot be imported")


def test_apex_gets_both_vectors_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def affine(x: Tensor, weight: Tensor, bias: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
        calls.append("affine")
        return F.layer_norm(x, shape, weight, bias, eps)

    def plain(x: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
        calls.append("plain")
        return F.layer_norm(x, shape, None, None, eps)

    stand_in(monkeypatch, "fused_layer_norm_cuda")
    stand_in(monkeypatch, "apex")
    stand_in(monkeypatch, "apex.normalization")
    stand_in(monkeypatch, "apex.normalization.fused_layer_norm", fused_layer_norm=plain, fused_layer_norm_affine=affine)
    monkeypatch.setattr(CudaPlatform, "name", "cpu")
    use_kernels(CudaPlatform())
    x, vector, per_frame = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 1, 8), torch.randn(1, 2, 1, 8)
    expected = F.layer_norm(x, (8,), eps=1e-6)
    torch.testing.assert_close(norm_modulate(x, vector, vector), expected * (1 + vector) + vector)
    torch.testing.assert_close(norm_modulate(x, per_frame, per_frame), expected * (1 + per_frame) + per_frame)
    assert calls == ["affine", "plain"]


def test_apex_without_its_compiled_part_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed from source without its options, apex is Python alone, and its norm fails when it is first called."""
    for part in ("apex", "apex.normalization"):
        stand_in(monkeypatch, part)
    stand_in(monkeypatch, "apex.normalization.fused_layer_norm", fused_layer_norm=None, fused_layer_norm_affine=None)
    assert CudaPlatform().layer_norm() is None
    stand_in(monkeypatch, "fused_layer_norm_cuda")
    cuda.works.cache_clear()
    assert CudaPlatform().layer_norm() is cuda.apex_layer_norm


@pytest.fixture
def numerics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process computes as before when the test is over."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", algorithms.append)
    algorithms.clear()
    owners: list[tuple[Any, str]] = [(torch.backends.cuda.matmul, "allow_tf32")]
    owners += [(torch.backends.cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark")]
    before = [getattr(owner, name) for owner, name in owners]
    yield
    for (owner, name), value in zip(owners, before, strict=True):
        setattr(owner, name, value)


algorithms: list[bool] = []


@pytest.mark.parametrize("on", [False, True])
def test_one_key_sets_all_tf32_of_cuda_and_one_all_determinism(numerics: None, on: bool) -> None:
    CudaPlatform().set_numerics(tf32=on, deterministic=on)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is on
    assert torch.backends.cudnn.deterministic is on
    assert torch.backends.cudnn.benchmark is False
    assert algorithms == [on]
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if on else None)


def test_the_choice_of_the_user_stays(numerics: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    CudaPlatform().set_numerics(deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize("name", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_cuda_memory_grows_in_segments_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    for each in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(each, "")
        monkeypatch.delenv(each)
    if name is not None:
        monkeypatch.setenv(name, "max_split_size_mb:512")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert CudaPlatform().device(1) == torch.device("cuda", 1)
    settings = {each: value for each, value in os.environ.items() if each.endswith("ALLOC_CONF")}
    expected = "PYTORCH_ALLOC_CONF" if torch.__version__ >= "2.9" else "PYTORCH_CUDA_ALLOC_CONF"
    assert settings == ({expected: "expandable_segments:True"} if name is None else {name: "max_split_size_mb:512"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_kernels_agree_with_torch() -> None:
    platform = CudaPlatform()
    q, k, v = (part.cuda() for part in qkv(64))
    kernel = platform.attention(q.dtype, 64, masked=False)
    if kernel is not None:
        expected = F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(kernel(q, k, v, None), expected, rtol=2e-2, atol=2e-2)
    norm, x = platform.layer_norm(), torch.randn(4, 64, device="cuda")
    if norm is not None:
        torch.testing.assert_close(norm(x, None, None, 1e-6), F.layer_norm(x, (64,), eps=1e-6))


@pytest.mark.gpu
@pytest.mark.skipif(not CudaPlatform.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    platform = select("cuda")
    device = platform.device(0)
    torch.ones(2**20, device=device)
    platform.synchronize()
    assert 0 < platform.peak_memory_bytes() <= platform.memory_bytes()
