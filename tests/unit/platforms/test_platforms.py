import pytest

from opensora.errors import ConfigError
from opensora.platforms import select
from opensora.platforms.cuda import CudaPlatform
from opensora.platforms.npu import NpuPlatform


def test_unknown_and_absent_devices_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'tpu'.*cpu, cuda, npu"):
        select("tpu")
    monkeypatch.setattr(CudaPlatform, "is_available", classmethod(lambda cls: False))
    with pytest.raises(ConfigError, match=r"'cuda'.*: cpu"):
        select("cuda")


def test_the_fastest_usable_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in (((False, False), "cpu"), ((True, False), "cuda"), ((True, True), "npu")):
        for platform, available in zip((CudaPlatform, NpuPlatform), there, strict=True):
            monkeypatch.setattr(platform, "is_available", classmethod(lambda cls, answer=available: answer))
        assert select().name == expected
