import builtins
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.parallel.accelerator import import_colossalai, set_accelerator
from tests.dist import run_ranks


def streams_of_the_host() -> tuple[str, str]:
    from colossalai.accelerator import get_accelerator

    set_accelerator(torch.device("cpu"))
    host = get_accelerator()
    stream = host.Stream()
    stream.wait_stream(host.current_stream())
    with host.stream(stream):
        host.synchronize()
    return str(host.get_current_device()), host.communication_backend


def test_the_host_answers_where_colossalai_asks_for_streams() -> None:
    assert run_ranks(streams_of_the_host, 1) == [("cpu", "gloo")]


def test_a_missing_colossalai_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("colossalai"):
            raise ImportError("No module named 'colossalai'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"requirements/colossalai.txt"):
        import_colossalai()
