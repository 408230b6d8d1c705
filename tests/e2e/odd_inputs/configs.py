"""Values of config keys and flags that make no sense."""

from tests.e2e.odd_inputs.case import OddInput

CASES: list[OddInput] = []
