"""Thin mains: they read arguments, call one function and turn errors into sentences and exit codes."""
