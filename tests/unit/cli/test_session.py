from collections.abc import Callable
from types import SimpleNamespace

import pytest

from opensora.cli.session import session, set_up_rank, training_sequence_size
from opensora.config import load
from opensora.errors import ConfigError
from opensora.parallel import world as worlds
from opensora.schema import TrainRun
from tests.support.short_runs import DEBUG


def debug_run(*overrides: str) -> TrainRun:
    return load(DEBUG, overrides, TrainRun).run


def test_session_joins_and_leaves() -> None:
    setup = set_up_rank(debug_run("dtype=auto"), lambda size: size)
    assert setup.run.dtype in ("bf16", "fp32")
    with session(setup) as ranks:
        assert (ranks.world.size, ranks.world.is_main) == (1, True)
        assert worlds.current() is ranks.world
        ranks.watch.count_step()
    with pytest.raises(RuntimeError):
        worlds.current()


@pytest.mark.parametrize(("rank", "waits"), [("0", 0), ("1", 1)])
def test_size_error_is_reported_by_main_rank(monkeypatch: pytest.MonkeyPatch, rank: str, waits: int) -> None:
    """Another rank first waits for the launcher to end it, then raises for itself."""
    for name, value in dict(RANK=rank, WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1").items():
        monkeypatch.setenv(name, value)
    waited: list[Callable] = []
    monkeypatch.setattr(
        "opensora.cli.run_main.signal", SimpleNamespace(SIGTERM=15, sigtimedwait=lambda *args: waited.append(args))
    )
    run = debug_run("sp_size=3")
    with pytest.raises(ConfigError, match="sp_size"):
        set_up_rank(run, training_sequence_size(run, DEBUG))
    assert len(waited) == waits
