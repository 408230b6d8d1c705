"""Verdicts on ranks that hold the job up, on a clock that the tests move."""

from typing import Any

import pytest

from opensora.parallel.watchdog.rank_status import AT_WORK, LOADING, Progress, RankTable, SuspendAwareClock

LIMIT = 30.0


def at(beat: int, doing: str = AT_WORK, step: int = 12, collectives: int = 100, **more: Any) -> Progress:
    """collectives: of the group of all ranks. more: counts of other groups by name, and other fields of Progress."""
    state = {key: more.pop(key) for key in ("left", "cut_off") if key in more}
    return Progress(beat, doing, step, {"all": collectives, **more}, **state)


def table_of(ranks: int) -> RankTable:
    table = RankTable(range(ranks), now=0.0)
    table.update({rank: at(1) for rank in range(ranks)}, now=1.0)
    return table


def test_progress_survives_json() -> None:
    progress = at(3, LOADING, left="ValueError: x", cut_off=True)
    assert Progress.from_json(progress.to_json().encode()) == progress


def test_late_rank_is_named_after_limit() -> None:
    """Ranks 0 and 2 have entered the next exchange; rank 1 beats, but does not come."""
    table = table_of(3)
    for now in (2.0, 31.5, 32.5):
        table.update({0: at(int(now), collectives=101), 1: at(int(now)), 2: at(int(now), collectives=101)}, now)
        expected = None if now < 32 else "rank 1: kept the others waiting for 30 s, at work on step 12"
        assert table.find_stalled(now, LIMIT) == expected


def test_long_step_is_no_stall() -> None:
    table = table_of(2)
    table.update({0: at(500), 1: at(500)}, now=500.0)
    assert table.find_stalled(500.0, LIMIT) is None


def test_stall_counts_from_first_waiting_rank() -> None:
    """The time that a rank waited counts, not the time without a collective."""
    table = table_of(2)
    for now in (70.0, 99.0, 101.0):
        table.update({0: at(int(now), collectives=101), 1: at(int(now))}, now)
        expected = None if now < 100 else "rank 1: kept the others waiting for 31 s, at work on step 12"
        assert table.find_stalled(now, LIMIT) == expected


def test_hang_in_subgroup_names_one_rank() -> None:
    """Ranks 2 and 3 share samples; 3 hangs before their exchange, so that 2 does not come to that of all ranks."""
    table = table_of(4)
    for now in (2.0, 33.0):
        reports = {rank: at(int(now), collectives=101, pair_0=7) for rank in (0, 1)}
        table.update({**reports, 2: at(int(now), pair_1=8), 3: at(int(now), pair_1=7)}, now)
    assert table.find_stalled(33.0, LIMIT) == "rank 3: kept the others waiting for 31 s, at work on step 12"


@pytest.mark.parametrize("of_rank_0", [{}, {"left": "RuntimeError: gloo", "cut_off": True}], ids=["waits", "waited"])
def test_stuck_data_is_named_before_others_waited_as_long(
    of_rank_0: dict[str, Any],
) -> None:
    table = table_of(2)
    table.update({0: at(2), 1: at(2, LOADING)}, 2.0)
    for now in (5.0, 33.0):
        table.update({0: at(int(now), collectives=101, **of_rank_0), 1: at(int(now), LOADING)}, now)
    assert table.find_stalled(33.0, LIMIT) == "rank 1: kept the others waiting for 28 s, loading the data of step 12"


def test_deadlocked_ranks_are_both_named() -> None:
    table = table_of(2)
    for now in (2.0, 33.0):
        table.update({0: at(int(now), collectives=101, pair=7), 1: at(int(now), pair=8)}, now)
    verdict = table.find_stalled(33.0, LIMIT)
    assert verdict is not None
    assert verdict.count("kept the others waiting for 31 s") == 2


def test_slow_rank_that_moves_is_no_stall() -> None:
    table = table_of(2)
    for now in range(2, 100):
        table.update({0: at(now, collectives=200), 1: at(now, collectives=100 + now // 20)}, float(now))
        assert table.find_stalled(now, LIMIT) is None


def test_stopped_process_is_silent() -> None:
    table = table_of(2)
    table.update({0: at(40), 1: at(1)}, now=40.0)
    assert table.find_stalled(40.0, LIMIT) == "rank 1: sent no sign of life for 39 s, at work on step 12"
    assert table.is_silent(1, 40.0, LIMIT) == "rank 1: sent no sign of life for 39 s, at work on step 12"
    assert table.is_silent(0, 40.0, LIMIT) is None


def test_rank_that_never_reported_is_silent() -> None:
    table = RankTable(range(2), now=0.0)
    table.update({0: at(31)}, now=31.0)
    assert table.find_stalled(31.0, LIMIT) == "rank 1: sent no sign of life for 31 s, starting"


def test_stuck_data_on_all_ranks_is_a_stall() -> None:
    table = table_of(5)
    for now in (2.0, 33.0):
        table.update({rank: at(int(now), LOADING, step=13) for rank in range(5)}, now)
    verdict = table.find_stalled(33.0, LIMIT)
    assert verdict is not None
    assert verdict.startswith("rank 0: stood still for 31 s, loading the data of step 13; rank 1: ")
    assert verdict.endswith("; and 2 more")


def test_rank_that_left_is_not_blamed() -> None:
    table = table_of(2)
    table.update({0: at(2), 1: at(2, left="")}, now=2.0)
    table.update({0: at(90)}, now=90.0)
    assert table.find_stalled(90.0, LIMIT) is None
    assert table.first_failure(90.0, silence=3.0) is None


@pytest.mark.parametrize(
    ("of_rank_1", "verdict"),
    [
        (at(3, left="ValueError: x"), "rank 1: failed, at work on step 12: ValueError: x"),
        (at(1), "rank 1: sent no sign of life for 4 s, at work on step 12"),
        (at(3), None),
    ],
)
def test_first_failure_names_failed_or_silent_rank(of_rank_1: Progress, verdict: str | None) -> None:
    table = table_of(3)
    cut_off = at(3, collectives=101, left="RuntimeError: gloo", cut_off=True)
    table.update({0: cut_off, 1: of_rank_1, 2: cut_off}, now=5.0)
    assert table.first_failure(5.0, silence=3.0) == verdict
    assert table.missing_from_collective() == "rank 1: kept the others waiting, at work on step 12"


def test_no_verdict_when_all_ranks_are_cut_off() -> None:
    table = table_of(2)
    table.update(dict.fromkeys(range(2), at(3, left="RuntimeError: gloo", cut_off=True)), now=5.0)
    assert table.first_failure(5.0, silence=3.0) is None
    assert table.missing_from_collective() is None


def test_error_text_like_a_collective_blames_no_rank() -> None:
    """Rank 1 raised what only sounds like a failed exchange; rank 0 waits for it and must not be named."""
    table = table_of(2)
    table.update({0: at(3, collectives=101), 1: at(3, left="RuntimeError: timed out", cut_off=True)}, now=5.0)
    assert table.missing_from_collective() is None


def test_rank_missing_from_subgroup_collective_is_named() -> None:
    """Rank 2 was cut off waiting for rank 3; ranks 0 and 1 are still at work, and 1 waits for 3 in turn."""
    table = table_of(4)
    of_2 = at(3, collectives=100, pair_1=8, left="RuntimeError: gloo", cut_off=True)
    table.update({0: at(3, pair_0=5), 1: at(3, pair_0=4), 2: of_2, 3: at(3, pair_1=7)}, now=5.0)
    assert table.missing_from_collective() == "rank 3: kept the others waiting, at work on step 12"


def test_suspended_job_is_no_stall() -> None:
    """A scheduler suspends all ranks for an hour: when they go on, no rank has been silent."""
    clock = SuspendAwareClock(now=10.0, longest=LIMIT / 2)
    table = RankTable(range(2), clock.read(10.0))
    for now in (11.0, 12.0, 3612.0):
        beat = int(min(now, 12.0))  # the watcher looks before the others have beaten again
        table.update({0: at(beat, LOADING), 1: at(beat)}, clock.read(now))
        assert table.find_stalled(clock.read(now), LIMIT) is None
    assert clock.read(3613.0) == 13.0
    assert clock.read(3623.0) == 23.0


PATIENCE, SILENCE = 10.0, 20.0


def test_failed_rank_is_named_though_no_collective_breaks() -> None:
    """Rank 1 failed; the others stand in a collective that never returns, as NCCL's do, and then wait for each other."""
    table = table_of(3)
    for now in (5.0, 14.0, 16.0):
        waiting = at(int(now), collectives=101)
        table.update({0: waiting, 1: at(5, left="RuntimeError: CUDA error: ECC"), 2: waiting}, now)
        verdict = None if now < 15 else "rank 1: failed, at work on step 12: RuntimeError: CUDA error: ECC"
        assert table.find_stalled(now, LIMIT) is None
        assert table.find_lost(now, PATIENCE, SILENCE) == verdict


def test_ranks_that_work_on_are_not_ended_by_a_failed_one() -> None:
    table = table_of(2)
    for now in (5.0, 50.0, 59.0, 61.0):
        table.update({0: at(int(now), step=12 if now < 50 else 13), 1: at(5, left="OSError: x")}, now)
        assert (table.find_lost(now, PATIENCE, SILENCE) is None) == (now < 61)


def test_killed_rank_is_named_before_the_limit_when_all_wait() -> None:
    table = table_of(3)
    for now in (5.0, 24.0, 26.0):
        waiting = at(int(now), collectives=101)
        table.update({0: waiting, 2: waiting}, now)
        verdict = None if now < 25 else "rank 1: sent no sign of life for 25 s, at work on step 12"
        assert table.find_stalled(now, LIMIT) is None
        assert table.find_lost(now, PATIENCE, SILENCE) == verdict


def test_silent_rank_is_not_lost_while_another_moves() -> None:
    """The whole limit is for a rank that only computes for long, in one call that lets no other thread run."""
    table = table_of(3)
    for now in range(2, 30):
        table.update({0: at(now, collectives=101), 2: at(now, collectives=100 + now)}, float(now))
        assert table.find_lost(now, PATIENCE, SILENCE) is None


def test_rank_0_is_judged_by_another_rank() -> None:
    for of_rank_0, verdict in (
        ({}, "rank 0: sent no sign of life for 25 s, at work on step 12"),
        ({0: at(2, left="OSError: x")}, "rank 0: failed, at work on step 12: OSError: x"),
    ):
        table = RankTable((0, 3), now=0.0)
        table.update({0: at(1), 3: at(1)}, 1.0)
        for now in (2.0, 26.0):
            table.update({**of_rank_0, 3: at(int(now))}, now)
        assert table.find_lost(26.0, PATIENCE, SILENCE) == verdict


@pytest.mark.parametrize(
    "reports",
    [
        {0: at(99), 1: at(99)},
        {0: at(99), 1: at(5, left="")},
        {0: at(99), 1: at(5, left="RuntimeError: gloo", cut_off=True)},
        {0: at(5, left="ValueError: x"), 1: at(5, left="ValueError: x")},
    ],
    ids=["all live", "one is done", "one is cut off", "all failed"],
)
def test_no_rank_is_lost(reports: dict[int, Progress]) -> None:
    table = table_of(2)
    for now in (5.0, 99.0):
        table.update(reports, now)
    assert table.find_lost(99.0, PATIENCE, SILENCE) is None
