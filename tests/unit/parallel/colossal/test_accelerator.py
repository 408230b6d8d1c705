import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.registry import PLUGINS, build, names
from tests.dist import one_rank, run_ranks
from tests.distributed import tiny

ROOT = Path(__file__).resolve().parents[4]


def streams_of_the_host() -> tuple[str, str]:
    from colossalai.accelerator import get_accelerator

    set_accelerator(torch.device("cpu"))
    host = get_accelerator()
    stream = host.Stream()
    stream.wait_stream(host.current_stream())
    with host.stream(stream):
        host.synchronize()
    return str(host.get_current_device()), host.communication_backend


def test_host_accelerator_has_dummy_streams() -> None:
    assert run_ranks(streams_of_the_host, 1) == [("cpu", "gloo")]


def test_missing_colossalai_is_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("colossalai"):
            raise ImportError("No module named 'colossalai'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"requirements/colossalai.txt"):
        import_colossalai()
    plugins = {name: build(PLUGINS, {"type": name}) for name in names(PLUGINS)}
    with one_rank() as here:
        for name in ("ddp", "fsdp"):
            plugins.pop(name).check(here)
        for plugin in plugins.values():  # before weights are read
            with pytest.raises(ConfigError, match=r": ddp and fsdp; .*requirements/colossalai.txt"):
                plugin.check(here)


IMPORT = """
import sys
import galore_torch  # the user's own, before
import torch
from opensora.parallel.colossal.accelerator import import_colossalai
from tests.dist import one_rank
from tests.distributed import tiny
compiler = torch.compile
for _ in range(2):
    import_colossalai()
    assert torch.compile is compiler
assert "torch._inductor.compile_fx" not in sys.modules
with one_rank():
    for plugin in ("zero1", "zero2", "hybrid"):
        print(tiny.train(plugin, "fp32", 2, {})["losses"][-1])
assert not {"peft", "bitsandbytes"} & {name.partition(".")[0] for name in sys.modules}
import colossalai.nn.optimizer
assert colossalai.nn.optimizer.GaLoreAdamW == galore_torch.GaLoreAdamW == "theirs"
import peft  # and after
import peft.utils.other
assert peft.PeftModel == peft.utils.other.EMBEDDING_LAYER_NAMES == "theirs"
"""


def test_import_skips_unused_packages(tmp_path: Path) -> None:
    """Neither does it stand in the way of a user who has it."""
    for file in ("peft/__init__.py", "peft/utils/__init__.py", "peft/utils/other.py", "galore_torch.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        names = ("PeftModel", "EMBEDDING_LAYER_NAMES", "GaLoreAdamW", "GaLoreAdafactor")
        (tmp_path / file).write_text("".join(f"{name} = 'theirs'\n" for name in names))
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert [float(line) for line in done.stdout.split()] == pytest.approx([tiny.run_plainly(2)[0][-1]] * 3, rel=1e-5)
