import os

import pytest

from opensora.parallel.openmp import POLICY, wait_passively


def test_policy_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLICY, raising=False)
    wait_passively()
    assert os.environ[POLICY] == "PASSIVE"
    monkeypatch.setenv(POLICY, "ACTIVE")
    wait_passively()
    assert os.environ[POLICY] == "ACTIVE"
