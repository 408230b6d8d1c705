"""Settings of all tests."""

import gc
import logging
import signal
import sys
from collections.abc import Generator, Iterator

import pytest

from opensora.parallel.openmp import wait_passively
from tests.support.warm_python import warm_python

wait_passively()  # before torch: threads of tests that run at the same time do not spin against each other
logging.getLogger("torch.distributed").setLevel(logging.WARNING)  # at DEBUG it names every file of every checkpoint


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without looking for garbage, which takes a third of the time and finds none; nor is it later looked
    for in what was imported."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    """Signal handlers of training that is built in the test process do not reach the next test."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def restored_log() -> Iterator[None]:
    """Log handlers that a command sets up do not reach the next test."""
    log = logging.getLogger("opensora")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate, log.level = handlers, propagate, level


@pytest.fixture(scope="session")
def warm() -> str:
    """An executable that starts programs as `python` does, without the seconds that imports take."""
    return warm_python()


@pytest.fixture
def warm_children(warm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that a test starts with `sys.executable` start warm."""
    monkeypatch.setattr(sys, "executable", warm)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
