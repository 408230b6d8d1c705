"""`classes`: captions that name classes become class numbers, for denoisers conditioned on classes (DiT, Latte)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from opensora.errors import ConfigError, DataError
from opensora.registry import TEXT_ENCODERS
from opensora.types import EncodedText

SHOWN = 5  # names in a message


@TEXT_ENCODERS.register_module(name="classes")
class ClassLabels:
    """Class numbers from captions: a class's name, in any letter case, or its number.

    names: the names in order of their numbers, from 0, or a UTF-8 file with one name on each line.
    num_classes: instead of names, when captions are numbers only.
    Raises ConfigError when the names cannot be read or repeat.
    """

    def __init__(self, names: Sequence[str] | str | None = None, num_classes: int | None = None):
        if (names is None) == (num_classes is None):
            raise ConfigError(
                "text_encoder: 'classes' needs either names (a list, or a file with one class name on each line) or "
                "num_classes; give one of the two"
            )
        self.names = _read(names) if isinstance(names, str) else [str(name).strip() for name in names or []]
        self.num_classes = len(self.names) if num_classes is None else num_classes
        if self.num_classes < 1:
            raise ConfigError("text_encoder: there is no class; at least one is needed; add names, or set num_classes")
        self.numbers = {name.casefold(): number for number, name in enumerate(self.names)}
        for number, name in enumerate(self.names):
            if not name or self.numbers[name.casefold()] != number:
                fault = f"is {name!r} again" if name else "has no name"
                raise ConfigError(
                    f"text_encoder.names: class {number} {fault}; names are different and not empty; correct the list"
                )
        self.device = torch.device("cpu")

    @property
    def denoiser_args(self) -> dict[str, Any]:
        """Constructor arguments of a denoiser that takes these labels."""
        return {"condition": f"label_{self.num_classes}"}

    def load(self) -> Self:
        """Nothing to read."""
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Put labels on `device`; they are integers whatever `dtype`."""
        self.device = torch.device(device)
        return self

    @staticmethod
    def normalize_caption(caption: str, **config: object) -> str:
        """The caption without differences that do not matter: case and outer blanks."""
        return caption.strip().casefold()

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Labels int64 [B], no mask. Raises DataError for a caption that is no class."""
        return EncodedText(torch.tensor([self.label(caption) for caption in captions], device=self.device), None)

    def label(self, caption: str) -> int:
        """The number of the class that a caption names. Raises DataError when there is none."""
        word = caption.strip()
        number = self.numbers.get(word.casefold())
        if number is None and word.isdecimal() and int(word) < self.num_classes:
            number = int(word)
        if number is None:
            some = ", ".join(self.names[:SHOWN]) + (", ..." if len(self.names) > SHOWN else "")
            raise DataError(
                f"text_encoder: caption {caption!r} is no class; allowed: a number from 0 to {self.num_classes - 1}"
                + (f", or one of {self.num_classes} names ({some})" if self.names else "")
                + "; correct the caption, or the list of classes"
            )
        return number


def _read(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(
            f"text_encoder.names: {file} cannot be read ({reason}); a text file with one class name on each line is "
            "allowed; correct the path"
        ) from error
    return [line.strip() for line in lines]
