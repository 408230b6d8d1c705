"""The wait policy of OpenMP threads, which torch's CPU kernels run on."""

import os

POLICY = "OMP_WAIT_POLICY"  # of the OpenMP standard: libgomp, libomp and libiomp5 read it when torch loads them


def wait_passively() -> None:
    """Have idle threads sleep, unless the user has chosen a policy. Only before torch is imported does this work.

    By default they spin for a while. When another process needs the same cores, both then lose most of their time to
    threads that wait for a thread that is not running.
    """
    os.environ.setdefault(POLICY, "PASSIVE")
