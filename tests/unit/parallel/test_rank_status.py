"""Who is told to hold the job up, on a clock that the tests move."""

from typing import Any

import pytest

from opensora.parallel.watchdog.rank_status import AT_WORK, LOADING, Clock, Progress, Table

LIMIT = 30.0


def at(beat: int, doing: str = AT_WORK, step: int = 12, exchanges: int = 100, **more: Any) -> Progress:
    """exchanges: of all ranks. more: those of other groups, by name, or what else a rank tells."""
    told = {key: more.pop(key) for key in ("left", "cut_off") if key in more}
    return Progress(beat, doing, step, {"all": exchanges, **more}, **told)


def table_of(ranks: int) -> Table:
    table = Table(ranks, now=0.0)
    table.note({rank: at(1) for rank in range(ranks)}, now=1.0)
    return table


def test_progress_travels_as_text() -> None:
    progress = at(3, LOADING, left="ValueError: x", cut_off=True)
    assert Progress.read(progress.text().encode()) == progress


def test_a_rank_that_keeps_the_others_waiting_is_named_once_it_has_done_so_for_the_limit() -> None:
    """Ranks 0 and 2 have entered the next exchange; rank 1 beats, but does not come."""
    table = table_of(3)
    for now in (2.0, 31.5, 32.5):
        table.note({0: at(int(now), exchanges=101), 1: at(int(now)), 2: at(int(now), exchanges=101)}, now)
        expected = None if now < 32 else "rank 1: kept the others waiting for 30 s, at work on step 12"
        assert table.standstill(now, LIMIT) == expected


def test_a_long_step_is_no_standstill() -> None:
    table = table_of(2)
    table.note({0: at(500), 1: at(500)}, now=500.0)
    assert table.standstill(500.0, LIMIT) is None


def test_a_long_validation_is_no_standstill_when_one_rank_is_through_with_it_before_another() -> None:
    """What counts is how long somebody waited, not how long nothing was exchanged."""
    table = table_of(2)
    for now in (70.0, 99.0, 101.0):
        table.note({0: at(int(now), exchanges=101), 1: at(int(now))}, now)
        expected = None if now < 100 else "rank 1: kept the others waiting for 31 s, at work on step 12"
        assert table.standstill(now, LIMIT) == expected


def test_a_rank_that_hangs_in_a_group_of_some_ranks_is_named_alone() -> None:
    """Ranks 2 and 3 share samples; 3 hangs before their exchange, so that 2 does not come to that of all ranks."""
    table = table_of(4)
    for now in (2.0, 33.0):
        mine = {rank: at(int(now), exchanges=101, pair_0=7) for rank in (0, 1)}
        table.note({**mine, 2: at(int(now), pair_1=8), 3: at(int(now), pair_1=7)}, now)
    assert table.standstill(33.0, LIMIT) == "rank 3: kept the others waiting for 31 s, at work on step 12"


@pytest.mark.parametrize("of_rank_0", [{}, {"left": "RuntimeError: gloo", "cut_off": True}], ids=["waits", "waited"])
def test_data_that_does_not_come_is_a_hang_although_the_others_have_not_waited_for_as_long(
    of_rank_0: dict[str, Any],
) -> None:
    table = table_of(2)
    table.note({0: at(2), 1: at(2, LOADING)}, 2.0)
    for now in (5.0, 33.0):
        table.note({0: at(int(now), exchanges=101, **of_rank_0), 1: at(int(now), LOADING)}, now)
    assert table.standstill(33.0, LIMIT) == "rank 1: kept the others waiting for 28 s, loading the data of step 12"


def test_ranks_that_wait_for_each_other_are_both_named() -> None:
    table = table_of(2)
    for now in (2.0, 33.0):
        table.note({0: at(int(now), exchanges=101, pair=7), 1: at(int(now), pair=8)}, now)
    told = table.standstill(33.0, LIMIT)
    assert told is not None
    assert told.count("kept the others waiting for 31 s") == 2


def test_a_rank_that_still_moves_is_no_standstill_although_it_is_behind() -> None:
    table = table_of(2)
    for now in range(2, 100):
        table.note({0: at(now, exchanges=200), 1: at(now, exchanges=100 + now // 20)}, float(now))
        assert table.standstill(now, LIMIT) is None


def test_a_process_that_is_stopped_sends_no_sign_of_life() -> None:
    table = table_of(2)
    table.note({0: at(40), 1: at(1)}, now=40.0)
    assert table.standstill(40.0, LIMIT) == "rank 1: sent no sign of life for 39 s, at work on step 12"
    assert table.silent(1, 40.0, LIMIT) == "rank 1: sent no sign of life for 39 s, at work on step 12"
    assert table.silent(0, 40.0, LIMIT) is None


def test_a_rank_that_never_spoke_is_silent_from_the_beginning() -> None:
    table = Table(2, now=0.0)
    table.note({0: at(31)}, now=31.0)
    assert table.standstill(31.0, LIMIT) == "rank 1: sent no sign of life for 31 s, starting"


def test_data_that_does_not_come_is_a_standstill_even_on_all_ranks() -> None:
    table = table_of(5)
    for now in (2.0, 33.0):
        table.note({rank: at(int(now), LOADING, step=13) for rank in range(5)}, now)
    told = table.standstill(33.0, LIMIT)
    assert told is not None
    assert told.startswith("rank 0: stood still for 31 s, loading the data of step 13; rank 1: ")
    assert told.endswith("; and 2 more")


def test_who_has_left_holds_nobody_up() -> None:
    table = table_of(2)
    table.note({0: at(2), 1: at(2, left="")}, now=2.0)
    table.note({0: at(90)}, now=90.0)
    assert table.standstill(90.0, LIMIT) is None
    assert table.culprit(90.0, silence=3.0) is None


@pytest.mark.parametrize(
    ("of_rank_1", "told"),
    [
        (at(3, left="ValueError: x"), "rank 1: failed, at work on step 12: ValueError: x"),
        (at(1), "rank 1: sent no sign of life for 4 s, at work on step 12"),
        (at(3), None),
    ],
)
def test_after_a_failed_exchange_the_one_that_failed_otherwise_or_is_gone_is_named(
    of_rank_1: Progress, told: str | None
) -> None:
    table = table_of(3)
    cut_off = at(3, exchanges=101, left="RuntimeError: gloo", cut_off=True)
    table.note({0: cut_off, 1: of_rank_1, 2: cut_off}, now=5.0)
    assert table.culprit(5.0, silence=3.0) == told
    assert table.behind() == "rank 1: kept the others waiting, at work on step 12"


def test_nobody_is_named_when_all_are_cut_off() -> None:
    table = table_of(2)
    table.note(dict.fromkeys(range(2), at(3, left="RuntimeError: gloo", cut_off=True)), now=5.0)
    assert table.culprit(5.0, silence=3.0) is None
    assert table.behind() is None


def test_a_failure_that_is_no_ones_lateness_is_blamed_on_nobody() -> None:
    """Rank 1 raised what only sounds like a failed exchange; rank 0 waits for it and must not be named."""
    table = table_of(2)
    table.note({0: at(3, exchanges=101), 1: at(3, left="RuntimeError: timed out", cut_off=True)}, now=5.0)
    assert table.behind() is None


def test_in_a_group_of_some_the_one_that_did_not_come_is_named() -> None:
    """Rank 2 was cut off waiting for rank 3; ranks 0 and 1 are still at work, and 1 waits for 3 in turn."""
    table = table_of(4)
    of_2 = at(3, exchanges=100, pair_1=8, left="RuntimeError: gloo", cut_off=True)
    table.note({0: at(3, pair_0=5), 1: at(3, pair_0=4), 2: of_2, 3: at(3, pair_1=7)}, now=5.0)
    assert table.behind() == "rank 3: kept the others waiting, at work on step 12"


def test_a_pause_of_the_whole_job_does_not_count() -> None:
    """A scheduler suspends all ranks for an hour: when they go on, nobody has been silent."""
    clock = Clock(now=10.0, longest=LIMIT / 2)
    table = Table(2, clock.read(10.0))
    for now in (11.0, 12.0, 3612.0):
        beat = int(min(now, 12.0))  # the watcher looks before the others have beaten again
        table.note({0: at(beat, LOADING), 1: at(beat)}, clock.read(now))
        assert table.standstill(clock.read(now), LIMIT) is None
    assert clock.read(3613.0) == 13.0
    assert clock.read(3623.0) == 23.0
