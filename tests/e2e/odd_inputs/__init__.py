"""Inputs that people report in public, one module for each kind of file; `tests.e2e.test_odd_inputs` tries them all."""
