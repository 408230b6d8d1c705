"""Command line flags from a function's signature and docstring."""

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


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


def parse(fn: Callable[..., Any], argv: Sequence[str], presets: Sequence[str] = ()) -> Options:
    """Exits with code 2 and a usage line when the arguments are wrong."""
    module = inspect.getmodule(fn)
    parser = argparse.ArgumentParser(
        prog=_command(module), description=inspect.getdoc(module), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="*", metavar="IN", help="manifest (.csv, .parquet), video, or folder of videos")
    parser.add_argument("output", metavar="OUT", help="table to write, .csv or .parquet")
    parser.add_argument("--workers", type=_positive_int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep rows done by an earlier run of the same command")
    parser.add_argument("--limit", type=_positive_int, help="only the first LIMIT rows")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    for name in presets:
        parser.add_argument(
            f"--{name}", action="append_const", dest="presets", const=name, help=f"the {name} videos as IN"
        )
    types_of = typing.get_type_hints(fn)
    docstring = inspect.getdoc(fn) or ""
    names = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for parameter in names:
        _add_flag(parser, parameter, types_of[parameter.name], _help(docstring, parameter.name))
    options = vars(parser.parse_intermixed_args(argv))
    chosen = options.pop("presets", None) or []
    if not options["inputs"] and not chosen:
        parser.error("IN and OUT are needed" + (f", or --{presets[0]} and OUT" if presets else ""))
    if not options["output"].lower().endswith((".csv", ".parquet", ".pq")):
        parser.error(f"OUT is {options['output']}; it must end in .csv or .parquet")
    flags = {parameter.name: options.pop(parameter.name) for parameter in names}
    return Options(presets=chosen, flags=flags, **options)


def _command(module: types.ModuleType | None) -> str:
    name = module.__spec__.name if module is not None and module.__spec__ is not None else "tool"
    return f"python -m {name}"


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
