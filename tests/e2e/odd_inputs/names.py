"""Names of files and folders, and paths that are read or written."""

from tests.e2e.odd_inputs.case import OddInput

CASES: list[OddInput] = []
