"""Row functions for the tests of the runner; worker processes import them by name."""

import os
from pathlib import Path
from typing import Literal

from opensora.errors import BadClip, ConfigError
from tools.runner import Row, Rows


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
