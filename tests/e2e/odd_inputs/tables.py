"""Manifests, prompt tables and caption tables."""

from tests.e2e.odd_inputs.case import OddInput

CASES: list[OddInput] = []
