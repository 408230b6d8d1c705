"""Every odd input has its right value. The run ends with one table: case, expected, got."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.odd_inputs import captions, configs, names, pictures, tables, video_files, weights
from tests.e2e.odd_inputs.case import OddInput, Workbench

CASES = [case for module in (video_files, pictures, tables, captions, names, weights, configs) for case in module.CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_right_value(
    case: OddInput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    got = case.measure(Workbench(tmp_path, monkeypatch))
    record_property("odd_input", (case.name, str(case.expected), str(got)))
    assert got == case.expected


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
