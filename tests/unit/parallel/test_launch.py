"""Ranks that are small Python programs: exit codes, the last line, signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from opensora.errors import ConfigError
from opensora.parallel import launch
from opensora.parallel.launch import start_ranks

PLACE = "import os, sys, time; rank = int(os.environ['RANK']);"


def ranks(script: str, count: int = 2) -> int:
    return start_ranks(count, ["-S", "-c", PLACE + script])


def test_ranks_know_their_places(tmp_path: Path) -> None:
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    script = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names!r}))"
    assert ranks(script) == 0
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in (0, 1))
    assert first[:5] == ["0", "0", "2", "2", "127.0.0.1"]
    assert second[:5] == ["1", "1", "2", "2", "127.0.0.1"]
    assert first[5] == second[5]


@pytest.mark.parametrize(
    ("script", "code", "last"),
    [
        ("sys.exit(2 if rank == 0 else time.sleep(60))", 2, ""),
        ("sys.exit(2 if rank == 1 else time.sleep(60))", 2, ""),
        (
            "sys.exit(1 if rank == 1 else time.sleep(60))",
            1,
            "error: rank 1 failed; its message stands above, the other ranks were stopped\n",
        ),
        (
            "os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)",
            1,
            "error: rank 1 was ended by SIGKILL; the system kills processes when memory runs out; the other ranks were "
            "stopped\n",
        ),
    ],
    ids=["mistake", "mistake on one machine", "failure", "killed"],
)
def test_first_failure_decides(capfd: pytest.CaptureFixture[str], script: str, code: int, last: str) -> None:
    assert ranks(script) == code
    assert capfd.readouterr().err == last


def test_signals_reach_every_rank_and_the_handlers_return(tmp_path: Path) -> None:
    """Both ranks write after the signal what they then save."""
    script = (
        f"import signal; signal.signal(signal.SIGTERM, lambda *_: (open(f'{tmp_path}/{{rank}}', 'w').close(), os._exit(0)));"
        f"open(f'{tmp_path}/ready{{rank}}', 'w').close(); time.sleep(60)"
    )

    def stop() -> None:
        while len(list(tmp_path.glob("ready*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=stop)
    sender.start()
    assert ranks(script) == 0
    sender.join()
    assert sorted(path.name for path in tmp_path.glob("[01]")) == ["0", "1"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_that_do_not_stop_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.0)
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.exit(1 if rank else time.sleep(60))"
    assert ranks(script) == 1


def test_ranks_below_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="--ranks: found in a process that torchrun started"):
        ranks("")


def test_launcher_needs_no_torch() -> None:
    script = "import sys, opensora.parallel.launch; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
