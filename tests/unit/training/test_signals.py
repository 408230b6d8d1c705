"""A signal requests a stop; the loop reads the request at the end of a step."""

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
def test_signal_requests_stop(number: int) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    assert signal.getsignal(number) is before  # handlers are installed by listen() alone
    stop.listen()
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested


def test_second_interrupt_stops_at_once_but_a_second_sigterm_does_not() -> None:
    stop = StopRequest().listen()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


@pytest.mark.parametrize(
    ("number", "step", "line"),
    [
        (signal.SIGINT, 7, "stopping: finishing step 7 and saving; again to stop at once\n"),
        (signal.SIGTERM, 7, "stopping: finishing step 7 and saving\n"),
        (signal.SIGINT, None, "stopping: finishing the first step and saving; again to stop at once\n"),
    ],
)
def test_first_signal_says_what_follows(
    capfd: pytest.CaptureFixture[str], number: int, step: int | None, line: str
) -> None:
    """The main rank alone announces it, once."""
    loud, quiet = StopRequest(announces=True), StopRequest()
    loud.step = quiet.step = step
    for stop in (quiet, loud):
        stop.listen()
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == line


def test_condition_is_evaluated_every_time() -> None:
    stop, full = StopRequest(), False
    stop.also_when(lambda: full)
    assert not stop.requested
    full = True
    assert stop.requested
