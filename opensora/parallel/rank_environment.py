"""This process's rank as its launcher wrote it into the environment. Works before `world.init`, and without torch."""

import os

from opensora.errors import ConfigError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_REMEDY = "start with --ranks N or `torchrun --nproc_per_node N ...`, or unset all of them to run one process"


def rank_from_environment() -> tuple[int, int]:
    """(rank, number of ranks) from torchrun's variables; (0, 1) without them.

    Raises ConfigError when the variables are incomplete, not numbers or out of range.
    """
    present = [name for name in _VARIABLES if name in os.environ]
    if "RANK" not in present and "WORLD_SIZE" not in present:
        return 0, 1
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in present]
    if missing:
        raise ConfigError(
            f"environment: {', '.join(present)} set but not {', '.join(missing)}; "
            f"allowed: all of {', '.join(_VARIABLES)} or none; {_REMEDY}"
        )
    rank, size = integer("RANK", 0), integer("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise ConfigError(f"environment: RANK={rank} with WORLD_SIZE={size}; allowed: 0 to WORLD_SIZE - 1; {_REMEDY}")
    return rank, size


def local_size_from_environment() -> int:
    """Ranks that torchrun starts on this machine; all ranks when it does not say."""
    return integer("LOCAL_WORLD_SIZE", rank_from_environment()[1])


def integer(name: str, default: int) -> int:
    """The variable `name` as a number, `default` without it. Raises ConfigError for anything but a whole number."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"environment: {name}={text!r}; allowed: a whole number from 0; {_REMEDY}")
    return int(text)
