"""The parser of a command: its errors are one sentence, and it knows what `--key value` should have been."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from opensora.cli.run_main import run_main
from opensora.errors import ConfigError
from opensora.parallel.launch import start_ranks


def run_on_ranks(module: str, argv: Sequence[str] | None) -> int | None:
    """Run the command on the ranks that `--ranks N` requests and return its exit code; None without the flag."""
    flag = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flag.add_argument("--ranks", action="append", nargs="?", const="")
    values, rest = flag.parse_known_args(sys.argv[1:] if argv is None else argv)
    if values.ranks is None:
        return None
    return run_main(lambda: start_ranks(_count(values.ranks), ["-m", module, *rest]))


def _count(values: Sequence[str]) -> int:
    text = values[-1]
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"command line: --ranks: found {text!r}; allowed: a whole number from 1; write --ranks 2")
    return int(text)


class CommandParser(argparse.ArgumentParser):
    """argparse's parser for `opensora COMMAND ... key=value`. Call `read` in place of `parse_args`."""

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments, with flags and key=value in any order; a mistake ends the process with exit code 2."""
        words = list(sys.argv[1:] if argv is None else argv)
        arguments, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            self.error(self._unknown(unknown[0], words))
        return arguments

    def add_ranks(self) -> None:
        """Add the flag --ranks to the usage; `run_on_ranks` reads it, before the other arguments are read."""
        self.add_argument("--ranks", metavar="N", help="use N processes on this machine, one for each device")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: command line: {message}; see {self.prog} --help\n")

    def _unknown(self, word: str, words: Sequence[str]) -> str:
        name, equals, value = word.lstrip("-").partition("=")
        key = name.replace("-", "_")
        options = ", ".join(option for action in self._actions for option in action.option_strings if len(option) > 2)
        if not word.startswith("--") or not all(part.isidentifier() for part in key.split(".")):
            return f"found {word!r}; allowed: {options} and key=value; remove it"
        if not equals:
            following = words[words.index(word) + 1 :]
            value = following[0] if following and not following[0].startswith("--") else "VALUE"
            word = f"{word} {value}" if following else word
        return f"found {word!r}; allowed: {options} and key=value; write {key}={value}"
