"""BlockedWords: refuse prompts by a list of words."""

import re
import unicodedata
from pathlib import Path

from opensora.datasets.decode import Frames
from opensora.errors import ConfigError
from opensora.files import expand_home
from opensora.registry import SAFETY_FILTERS


@SAFETY_FILTERS.register_module()
class BlockedWords:
    """Refuses prompts that hold a word or phrase of a file, whole words alone, in any case and width of letters.

    path: text file, a word or phrase per line; empty lines and those that begin with # do not count. It stops no misspelling, no
    paraphrase and no other language, and sees no video.
    """

    def __init__(self, path: str) -> None:
        try:
            lines = Path(expand_home(path)).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"safety_filter.path: {path} cannot be read ({error}); name a text file of words"
            ) from None
        phrases = [_plain(line) for line in lines if line.strip() and not line.startswith("#")]
        if not phrases:
            raise ConfigError(f"safety_filter.path: {path} holds no word; write one per line, or remove the filter")
        # \w on both sides rather than \b, so that a phrase may begin or end with a sign
        self._blocked = re.compile("|".join(rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in phrases))

    def refuse_prompt(self, prompt: str) -> str | None:
        """The word that stands in it."""
        match = self._blocked.search(_plain(prompt))
        return None if match is None else f"it holds {match[0]!r}"

    def refuse_video(self, frames_THWC: Frames) -> str | None:
        """None: videos are not looked at."""
        return None


def _plain(text: str) -> str:
    """Folded case and width, single spaces, without letters that are not shown."""
    shown = "".join(letter for letter in unicodedata.normalize("NFKC", text) if unicodedata.category(letter) != "Cf")
    return " ".join(shown.casefold().split())
