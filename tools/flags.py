"""Command line flags from the signature and the docstring of a function or class."""

import argparse
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_ENDINGS = (".csv", ".parquet", ".pq", ".jsonl", ".ndjson", "")


@dataclass(frozen=True)
class Options:
    """A parsed command line."""

    inputs: list[str]
    presets: list[str]  # names of the presets that stand for inputs
    output: str
    flags: dict[str, Any]  # keyword arguments of the function
    workers: int
    resume: bool
    limit: int | None
    dry_run: bool
    where: str | None
    shard: tuple[int, int] | None  # (i, n), from 1
    max_errors: int | None
    engine: str
    ray_address: str
    worker_cpus: float
    worker_gpus: float


def parse(
    fn: Callable[..., Any], argv: Sequence[str], presets: Sequence[str] = (), cpus: float = 1, gpus: float = 0
) -> Options:
    """The command line of a function, or of a class whose `__init__` takes the flags.

    Exits with code 2 and a usage line when the arguments are wrong.
    """
    module = inspect.getmodule(fn)
    parser = argparse.ArgumentParser(
        prog=_command(module), description=inspect.getdoc(module), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="IN",
        help="manifest (.csv, .parquet, .jsonl, folder of them), video, or folder of videos",
    )
    parser.add_argument(
        "output", metavar="OUT", help="table to write, .csv, .parquet or .jsonl; without an ending, a folder of shards"
    )
    parser.add_argument("--workers", type=_positive_int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep rows done by an earlier run of the same command")
    parser.add_argument(
        "--where", metavar="EXPRESSION", help="only rows for which a DuckDB expression is true: 'aes > 5'"
    )
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="every Nth row from the Ith; 1/4 to 4/4 are all rows"
    )
    parser.add_argument("--limit", type=_positive_int, help="only the first LIMIT rows")
    parser.add_argument("--max-errors", type=_count, metavar="N", help="stop at more than N bad rows (default: never)")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="where workers are: here, or on a Ray cluster"
    )
    parser.add_argument("--ray-address", default="auto", help="of the cluster; local starts one (default: %(default)s)")
    parser.add_argument(
        "--worker-cpus", type=float, default=cpus, help="cores of a worker on Ray (default: %(default)s)"
    )
    parser.add_argument(
        "--worker-gpus", type=float, default=gpus, help="GPUs of a worker on Ray (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    for name in presets:
        parser.add_argument(
            f"--{name}", action="append_const", dest="presets", const=name, help=f"the {name} videos as IN"
        )
    types_of = typing.get_type_hints(vars(fn)["__init__"] if isinstance(fn, type) else fn)
    docstring = inspect.getdoc(fn) or ""
    names = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for parameter in names:
        _add_flag(parser, parameter, types_of[parameter.name], _help(docstring, parameter.name))
    options = vars(parser.parse_intermixed_args(argv))
    chosen = options.pop("presets", None) or []
    if not options["inputs"] and not chosen:
        parser.error("IN and OUT are needed" + (f", or --{presets[0]} and OUT" if presets else ""))
    if os.path.splitext(options["output"])[1].lower() not in _ENDINGS:
        parser.error(
            f"OUT is {options['output']}; it must end in .csv, .parquet or .jsonl, or be a folder without an ending"
        )
    flags = {parameter.name: options.pop(parameter.name) for parameter in names}
    return Options(presets=chosen, flags=flags, **options)


def _command(module: types.ModuleType | None) -> str:
    name = module.__spec__.name if module is not None and module.__spec__ is not None else "tool"
    folder, _, last = name.rpartition(".")
    if folder.endswith(f".{last}"):  # the function of a folder that is itself a command
        name = folder
    return f"python -m {name}"


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: I/N with I from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _help(docstring: str, name: str) -> str:
    line = re.search(rf"^{name}: (.+)$", docstring, flags=re.MULTILINE)
    return line[1].replace("%", "%%") if line else ""


def _add_flag(parser: argparse.ArgumentParser, parameter: inspect.Parameter, kind: Any, help_text: str) -> None:
    flag = f"--{parameter.name.replace('_', '-')}"
    required = parameter.default is parameter.empty
    shown = help_text if required else f"{help_text} (default: {parameter.default})".strip()
    keywords: dict[str, Any] = {"required": True} if required else {"default": parameter.default}
    if isinstance(kind, types.UnionType):  # `float | None`: the flag gives a float, its absence None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=shown, **keywords)
    elif typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        parser.add_argument(flag, type=type(choices[0]), choices=choices, help=shown, **keywords)
    elif kind in (int, float, str):
        parser.add_argument(flag, type=kind, help=shown, **keywords)
    else:
        raise TypeError(f"{parameter.name}: a flag is int, float, str, bool or Literal, not {kind}")
