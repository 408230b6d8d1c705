"""Signals ask; the loop answers at the end of a step."""

import os
import signal
from collections.abc import Iterator

import pytest

from opensora.training.signals import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_remembered(number: int) -> None:
    stop = StopRequest()
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested


def test_the_second_interrupt_means_now_but_a_second_sigterm_does_not() -> None:
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


def test_a_reason_is_asked_every_time() -> None:
    stop, found = StopRequest(), False
    stop.also_when(lambda: found)
    assert not stop.requested
    found = True
    assert stop.requested
