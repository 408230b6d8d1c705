"""Logging: one line per message on the main rank, warnings and errors on every rank."""

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def logger() -> logging.Logger:
    return logging.getLogger("opensora")


def setup(rank: int = 0, file: str | None = None) -> logging.Logger:
    """Send messages to stderr, and to `file` as well; ranks other than 0 keep warnings and errors only."""
    log = logger()
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    tag = "" if rank == 0 else f"[rank {rank}] "
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None and rank == 0:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(tag + _FORMAT, datefmt="%H:%M:%S"))
        log.addHandler(handler)
    return log
