"""The `opensora` command."""

import importlib
import sys
from collections.abc import Sequence

from opensora.parallel.watchdog.process_exit import exit_process

COMMANDS = {
    "bench": "measure speed and memory on this machine",
    "check": "dry run of a training config: keys, parameters, tokens, rows, memory",
    "doctor": "what this machine has and what a missing feature needs",
    "keys": "print the table of every run key: type, default, unit, purpose",
    "evaluate": "measure videos: PSNR and SSIM, Frechet distance of features, prompts followed",
    "replay": "make one optimizer step of a run again: same weights, data and noise",
    "sample": "generate mp4s from prompts",
    "tune-batch": "find micro-batch sizes per bucket for a step time, and write them into a config",
    "show": "the settings inside a generated video, and the command that makes it again",
    "web": "a page in the browser to sample from",
    "train": "train; on N devices: opensora train --ranks N CONFIG",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: opensora COMMAND ...\n")
        width = max(map(len, COMMANDS))
        for name, purpose in COMMANDS.items():
            print(f"  {name:{width}} {purpose}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(
            f"error: command line: found {name!r}; allowed: {', '.join(COMMANDS)}; see opensora --help", file=sys.stderr
        )
        return 2
    return importlib.import_module(f"opensora.cli.{name.replace('-', '_')}").main(arguments[1:])


def program() -> None:
    """`main` for a process of its own: one rank has the threads of a group, too."""
    exit_process(main())


if __name__ == "__main__":
    program()
