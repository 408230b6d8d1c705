"""Pictures: orientation, transparency, depth, several frames, damage."""

from tests.e2e.odd_inputs.case import OddInput

CASES: list[OddInput] = []
