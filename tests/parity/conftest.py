"""Print the expected folder of golden data at the end of the run if parity tests were skipped without it."""

from typing import Any

from tests.parity.golden import golden_folder, golden_root


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if golden_root() is None:
        terminalreporter.write_line(
            f"parity: skipped, no golden data in {golden_folder()} (set OPENSORA_GOLDEN to the folder)"
        )
