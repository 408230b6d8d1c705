"""The reason that a failed measurement gives."""

from bench import subprocesses


def test_first_failed_rank_is_named_with_its_exit_code() -> None:
    ended = (
        "Failures:\n[1]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 6)\n"  # by torchrun, after rank 1
    )
    stderr = f"{ended}Root Cause\n[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -11 (pid: 7)\n===="
    assert subprocesses._reason(stderr, 1) == "rank 1 was ended by signal 11 (Segmentation fault)"
    assert subprocesses._reason(stderr.replace("-11", "3"), 1) == "rank 1 ended with exit code 3"
    assert subprocesses._reason(f"[rank0]: ValueError: no such thing\n{stderr}", 1) == "no such thing"


def test_signal_of_the_launcher_comes_before_its_last_line() -> None:
    stderr = "****\nSetting OMP_NUM_THREADS environment variable\n****"
    expected = "the process was ended by signal 9 (Killed), as the system does when memory runs out"
    assert subprocesses._reason(stderr, -9) == expected
    assert subprocesses._reason("", 3) == "the process ended with exit code 3"
    assert subprocesses._reason(f"no such thing\n{stderr[:4]}\n", 1) == "no such thing"
