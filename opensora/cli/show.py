"""Print the settings inside a video or picture that `opensora sample` made, and the command that makes it again.

Run: opensora show FILE
"""

import argparse
import json
import shlex
from collections.abc import Sequence

from opensora.cli.run_main import run_main

COMMAND = "command"  # the key whose value is the command, word by word


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora show", description=__doc__)
    parser.add_argument("file", help="a video, a picture or a folder of pictures")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args(argv)
    return run_main(lambda: show(arguments.file, as_json=arguments.json))


def show(file: str, *, as_json: bool = False) -> int:
    """Print the settings of a file; returns the exit code. Raises DataError for a file without any."""
    from opensora.sampling.video_formats import read_settings

    settings = read_settings(file)
    if as_json:
        print(json.dumps(settings))
        return 0
    width = max(map(len, settings))
    for key, value in settings.items():
        if key != COMMAND and value not in (None, ""):
            print(
                f"{key:{width}}  {_printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}"
            )
    if COMMAND in settings:
        print(f"\n{_printable(shlex.join(settings[COMMAND]))}")
    return 0


def _printable(text: str) -> str:
    """The text without what would steer a terminal: files come from anywhere."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
