"""Row functions for the tests of the runner; worker processes import them by name."""

import importlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, Literal

from opensora.errors import BadClip, ConfigError, WeightsError
from tools.runner import Progress, Row, Rows


def double(
    row: Row,
    *,
    times: int = 2,
    word: str = "hi",
    half: bool = False,
    kind: Literal["a", "b"] = "a",
    log: str | None = None,
) -> Rows:
    """Yield the row several times.

    times: how many rows come out of one
    """
    if times < 0:
        raise ConfigError("double: --times must not be negative")
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{row['name']}\n")
    if row["name"] == "bad":
        raise BadClip("this one is bad")
    if row["name"] == "odd":
        raise KeyError("surprise")
    if row["name"] == "die":
        os._exit(9)
    if row["name"] == "stop":
        raise KeyboardInterrupt
    for number in range(times):
        yield {**row, "number": number, "word": word, "half": half, "kind": kind}


def needs(row: Row, *, folder: str) -> Row:
    """Write an empty file."""
    path = Path(folder) / f"{row['name']}.txt"
    path.touch()
    return {"path": str(path), "name": row["name"]}


def count(row: Row, state: dict[str, Any] | None = None, *, log: str, stop: str | None = None) -> Rows:
    """Add up the frame numbers 0 to 5, with a state after every second; ends at 4 until the file `stop` is there."""
    state = state or {"frames": 0, "sum": 0}
    total = state["sum"]
    for number in range(state["frames"], 6):
        with open(log, "a") as file:
            file.write(f"{number}\n")
        if number == 4 and stop is not None and not os.path.exists(stop):
            if multiprocessing.parent_process() is not None:
                os._exit(9)
            raise KeyboardInterrupt
        total += number
        if number % 2:
            yield Progress(number + 1, 6, {"frames": number + 1, "sum": total})
    yield {**row, "sum": total}


class Batches:
    """Say in which batch a row was, and how often this process has loaded the tool.

    log: file to write to
    """

    loaded = 0

    def __init__(self, *, log: str | None = None) -> None:
        if log == "no weights":
            raise WeightsError("no weights: they are not there")
        Batches.loaded += 1
        self.log, self.calls = log, 0

    def __call__(self, rows: list[Row]) -> list[Row | list[Row] | BadClip | None]:
        self.calls += 1
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{len(rows)}\n")
        if any(row["name"] == "odd" for row in rows):
            raise KeyError("surprise")
        return [self.one(row) for row in rows]

    def one(self, row: Row) -> Row | list[Row] | BadClip | None:
        if row["name"] == "bad":
            return BadClip("this one is bad")
        if row["name"] == "none":
            return None
        return [row, row] if row["name"] == "two" else {**row, "loaded": Batches.loaded, "pid": os.getpid()}


def needs_package(row: Row) -> Row:
    importlib.import_module("no_such_package")
    return row


def wait(row: Row) -> Row:
    """Say so, and work for longer than any test."""
    os.write(1, b"at work\n")  # whole, also where two processes write at once
    time.sleep(600)
    return row
