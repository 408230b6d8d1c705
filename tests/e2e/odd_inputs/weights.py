"""Weights as training programs leave them."""

from tests.e2e.odd_inputs.case import OddInput

CASES: list[OddInput] = []
