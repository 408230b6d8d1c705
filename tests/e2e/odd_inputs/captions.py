"""Captions and prompts on their way to the text encoder."""

from tests.e2e.odd_inputs.case import OddInput

CASES: list[OddInput] = []
