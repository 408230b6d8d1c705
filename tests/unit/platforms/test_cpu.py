import pytest
import torch

from opensora.platforms import cpu, select


def test_the_cpu_is_always_there() -> None:
    platform = select("cpu")
    assert platform.device(3) == torch.device("cpu")
    assert platform.backend == "gloo"
    assert platform.device_count() == cpu.cores() >= 1
    assert str(platform.device_count()) in platform.device_name()
    platform.synchronize()


def test_memory_is_in_bytes_and_the_peak_only_grows() -> None:
    platform = select("cpu")
    before = platform.peak_memory_bytes()
    assert 2**24 < before <= platform.memory_bytes()  # torch alone is more than 16 MiB
    block = torch.ones(2**25)
    assert platform.peak_memory_bytes() >= before
    assert platform.peak_memory_bytes() > block.nbytes


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cpu, "_CGROUP_LIMITS", (limit, tmp_path / "missing"))
    limit.write_text("max\n")
    unlimited = select("cpu").memory_bytes()
    limit.write_text("1048576\n")
    assert select("cpu").memory_bytes() == 2**20 < unlimited


def test_autocast_is_off_for_float32() -> None:
    x = torch.ones(2, 2)
    with select("cpu").autocast(torch.float32):
        assert (x @ x).dtype is torch.float32
    with select("cpu").autocast(torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx2": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")],
)
def test_auto_takes_bf16_only_where_the_processor_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = select("cpu")
    assert cpu.choose_dtype("auto") == dtype
    assert cpu.choose_dtype("bf16") == "bf16"
    assert cpu.choose_dtype("fp32") == "fp32"
