"""Captioner: the interface of everything that writes captions."""

import abc
from collections.abc import Sequence
from typing import Any

from opensora.chat_client import Answer
from opensora.errors import BadClip

Row = dict[str, Any]


class Captioner(abc.ABC):
    """Built once per worker from `dict(type=NAME, **arguments)` of a config."""

    is_clean: bool = False  # True: its texts need no cleaning
    label: str  # of the column `captioner`: the registry's name, and the model's where there is one

    @abc.abstractmethod
    def caption(self, rows: Sequence[Row]) -> list[Answer | BadClip]:
        """One caption per row, in order, or the reason why there is none.

        Raises ConfigError for what is wrong with every row, such as a key that a server refuses.
        """
