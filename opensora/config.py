"""Read a config file and `key=value` overrides, check every key at any depth, dump and explain the result.

Nothing is built here and no weight is read: a typo ends the command before anything is allocated.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmengine.registry import Registry
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from opensora import files
from opensora.errors import ConfigError
from opensora.foreign_keys import FOREIGN_KEYS, UNSUPPORTED
from opensora.ranges import LENGTHS, Range, numbers_in, range_of
from opensora.registry import class_of, constructor, names
from opensora.run_paths import RECORD, UTF8_ONLY, WRITTEN, Origin, change_paths
from opensora.schema import Run, TrainRun

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")  # the keys of a config: a Run, or the steps of a data pipeline
COMMAND_LINE = "command line"
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_NEAR = 0.6  # similarity from 0 to 1 above which a name is a likely typo of another
# last part of a key whose value is a list -> what a message says of it
_EXAMPLES = {
    "betas": "two numbers, such as (0.9, 0.999)",
    "image_size": "(height, width), such as (64, 96)",
    "input_size": "(frames, rows, columns), such as (3, 8, 12)",
    "patch_size": "(frames, rows, columns), such as (1, 2, 2)",
    "time_range": "(from, to), such as (0.0, 0.5)",
}


@dataclass(frozen=True)
class LoadedConfig(Generic[T]):
    """A checked run and where each of its keys came from."""

    run: T
    path: str
    origins: dict[str, str]  # key -> "file:line", "command line" or "default"
    written: frozenset[str]  # run-level keys that the file or a base of it sets

    def where(self, key: str) -> str:
        """The file and line, or the command line, that has the last word on `key`; else the file."""
        return _where(self.path, self.origins, key)

    @contextmanager
    def naming_origins(self) -> Iterator[None]:
        """ConfigErrors raised inside that begin with the file, or with "config", and a key name the key's origin.

        Functions that check parts against each other know the config's path alone.
        """
        try:
            yield
        except ConfigError as error:
            place = rf"(?:{re.escape(self.path)}|config)(?=: keys? ((?:'[\w.]+'(?:, )?)+))"
            begins = re.match(place, str(error))
            if begins is None:
                raise
            keys = re.findall(r"'([\w.]+)'", begins[1])
            origins = sorted(map(self.where, keys), key=lambda origin: not origin.startswith(COMMAND_LINE))
            raise ConfigError(origins[0] + str(error)[begins.end() :]) from error


def load(path: str, overrides: Sequence[str], schema: type[T]) -> LoadedConfig[T]:
    """Read `path`, put `overrides` on top, check everything; raises ConfigError with one sentence."""
    values, origins = read(path)
    moved = Origin.of(values.get(RECORD))
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    written = frozenset(values)
    paths = {field.name for field in dataclasses.fields(schema) if field.metadata.get("path")}
    for override in overrides:
        dotted, value = parse_override(override)
        if dotted in paths and type(value) in (int, float):  # a folder may be called 20260102
            value = override.partition("=")[2]
        _set(values, dotted, value, schema, path)
        origins[dotted] = COMMAND_LINE

    where = functools.partial(_where, path, origins)

    def usable(key: str, written_path: str) -> str:
        """The path with ~ expanded; one that a moved run recorded, where it lies now. Raises ConfigError."""
        fault = files.path_fault(written_path, utf8=key in UTF8_ONLY)
        if fault is not None:
            raise ConfigError(
                f"{where(key)}: key '{key}': found {fault}; allowed: the path of a file or folder; correct it"
            )
        written_path = files.expand_home(written_path)
        if moved is None or key in WRITTEN or where(key).startswith(COMMAND_LINE):
            return written_path
        return moved.locate(written_path, Path(path).parent) or written_path

    values = change_paths(values, paths, usable)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(_unknown_key(where(key), key, list(fields)))
        _check_value(where(key), key, value, hints[key])
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{path}: key '{name}': missing; allowed: {type_name(hints[name])}; add {name} = ...")
        if name in values and "range" in field.metadata:
            _check_range(where(name), name, values[name], field.metadata["range"], hints[name])
    run = schema(**values)
    if isinstance(run, TrainRun):
        run.check(where)
    # Only now components: their modules import torch, which takes seconds.
    for name, field in fields.items():
        value = getattr(run, name)
        if value is None:
            continue
        if "registry" in field.metadata and not ("type" not in value and field.metadata["partial"]):
            check_component(field.metadata["registry"], value, name, where, supplied=field.metadata["supplied"])
        elif "entries_registry" in field.metadata:
            for entry, config in value.items():
                check_component(field.metadata["entries_registry"], config, f"{name}.{entry}", where)
        elif "arguments_registry" in field.metadata:
            named_by = field.metadata["named_by"]
            typed = {"type": getattr(run, named_by), **value}
            check_component(field.metadata["arguments_registry"], typed, name, where, type_key=named_by)
    if isinstance(run, TrainRun):
        run.check_plugin(where)
    every_origin = {name: origins.get(name, "default") for name in fields} | _nested(origins)
    return LoadedConfig(run, path, every_origin, written)


def _where(path: str, origins: Mapping[str, str], key: str) -> str:
    parts = key.split(".")
    for stop in range(len(parts), 0, -1):
        origin = origins.get(".".join(parts[:stop]), "default")
        if origin != "default":
            return f"{COMMAND_LINE} ({path})" if origin == COMMAND_LINE else origin
    return path


def _nested(origins: Mapping[str, str]) -> dict[str, str]:
    return {key: origin for key, origin in origins.items() if "." in key}


def read(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a config file with its bases, and the file and line of each. Raises ConfigError; checks no key."""
    from mmengine.config import Config

    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file; allowed: a config file ending in .py or .json; check the path")
    if file.suffix not in (".py", ".json"):
        raise ConfigError(f"{path}: found a {file.suffix or 'nameless'} file; allowed: .py or .json")
    try:
        origins = _origins(file)  # first: its syntax errors name the line, mmengine's a copy of the file
        values = Config.fromfile(str(file), lazy_import=False)._cfg_dict.to_dict()
    except ConfigError:
        raise
    except Exception as error:  # the file is the user's program: whatever it raises is about the file
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}:{line} cannot be read: {type(error).__name__}: {reason}; fix the file") from error
    return values, origins


def _origins(file: Path) -> dict[str, str]:
    """Top-level key -> the file and line that assign it; a file's own lines win over those of its bases."""
    if file.suffix == ".json":
        return dict.fromkeys(json.loads(file.read_text(encoding="utf-8")), str(file))
    inherited: dict[str, str] = {}
    own: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            for name in [t for t in ast.walk(target) if isinstance(t, ast.Name)]:
                own[name.id] = f"{file}:{node.lineno}"
                if name.id == "_base_":
                    bases = ast.literal_eval(node.value)
                    for base in [bases] if isinstance(bases, str) else bases:
                        inherited |= _origins(Path(os.path.normpath(file.parent / base)))
    return inherited | own


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=3` -> ("a.b", 3): Python literals, true/false/none, anything else is a string."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted or not all(part.isidentifier() for part in dotted.split(".")):
        raise ConfigError(f"{COMMAND_LINE}: found {text!r}; allowed: key=value or key.part=value, without spaces")
    if raw.lower() in _WORDS:
        return dotted, _WORDS[raw.lower()]
    try:
        return dotted, ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return dotted, raw


def _set(values: dict[str, Any], dotted: str, value: object, schema: type[Any], path: str) -> None:
    *parents, last = dotted.split(".")
    here = values
    for depth, part in enumerate(parents):
        if part not in here and depth == 0:
            default = next(
                (f.default_factory for f in dataclasses.fields(schema) if f.name == part), dataclasses.MISSING
            )
            here[part] = default() if default is not dataclasses.MISSING else {}
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            parent = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"{COMMAND_LINE} ({path}): key '{dotted}': '{parent}' is {here!r}, not a dict; set '{parent}' itself"
            )
    if isinstance(value, dict) and value.pop("_delete_", False):  # as in config files
        here[last] = value
    elif isinstance(here.get(last), dict) and isinstance(value, dict):
        here[last].update(value)
    else:
        here[last] = value


def _unknown_key(where: str, key: str, allowed: Sequence[str], owner: str = "") -> str:
    last = key.rsplit(".", 1)[-1]
    if not owner and key in FOREIGN_KEYS:
        return f"{where}: key '{key}': called '{FOREIGN_KEYS[key]}' here; rename it"
    of = f" for {owner}" if owner else ""
    near = _near(last, allowed)
    if near:
        every = "" if owner else "; `opensora keys` lists all"
        return f"{where}: key '{key}': unknown{of}{near}; rename or remove it{every}"
    listed = ", ".join(sorted(allowed)) or "no keys"
    return f"{where}: key '{key}': unknown{of}; allowed: {listed}; rename or remove it"


def _near(name: str, allowed: Sequence[str]) -> str:
    """The part of a message that names the likely intention; empty when no allowed name is near."""
    nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=_NEAR)
    return f"; nearest: '{nearest[0]}'" if nearest else ""


def type_name(hint: object) -> str:
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    arguments = typing.get_args(hint)
    text = str(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    return text.replace("typing.", "").replace("collections.abc.", "")


def _allowed(key: str, hint: object) -> str:
    """The type in words, with an example for lists."""
    none = " or None" if type(None) in typing.get_args(hint) else ""
    kinds = [typing.get_origin(part) or part for part in (typing.get_args(hint) if none else [hint])]
    if Sequence not in kinds and list not in kinds:
        return type_name(hint)
    example = _EXAMPLES.get(key.rsplit(".", 1)[-1])
    if example is not None:
        return example + none
    return f"{type_name(hint)}, such as {'[1, 2]' if 'int' in str(hint) or 'float' in str(hint) else '[...]'}"


def _check_value(where: str, key: str, value: object, hint: object) -> None:
    try:
        # bool is an int to Python, but `steps=True` is a mistake
        if (
            isinstance(value, bool)
            and bool not in (hint, *typing.get_args(hint))
            and hint not in (Any, inspect.Parameter.empty)
        ):
            raise TypeCheckError("a bool is not a number here")
        check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        raise ConfigError(
            f"{where}: key '{key}': found {value!r} ({type(value).__name__}); allowed: {_allowed(key, hint)}; "
            "change the value"
        ) from error
    length = LENGTHS.get(key.rsplit(".", 1)[-1])
    if length is not None and isinstance(value, list | tuple) and len(value) != length:
        raise ConfigError(f"{where}: key '{key}': found {value!r}; allowed: {_allowed(key, hint)}; change the value")


def _check_range(where: str, key: str, value: object, allowed: Range, hint: object) -> None:
    if any(number not in allowed for number in numbers_in(value)):
        each = "" if isinstance(value, int | float) else ", for each number"
        none = ", or None" if type(None) in typing.get_args(hint) else ""
        raise ConfigError(f"{where}: key '{key}': found {value!r}; allowed: {allowed}{each}{none}; change the value")


def check_component(
    registry: Registry,
    config: Mapping[str, Any],
    key: str,
    where: typing.Callable[[str], str],
    supplied: Sequence[str] = (),
    type_key: str | None = None,
) -> None:
    """Check `dict(type=NAME, **arguments)` against the constructor of NAME; raises ConfigError.

    supplied: arguments that the run passes. type_key: the run-level key that holds NAME, where it stands apart.
    """
    name = config.get("type")
    type_path = type_key or f"{key}.type"
    allowed_names = names(registry)
    if not isinstance(name, str) or name not in allowed_names:
        finding = "missing" if name is None else f"found {name!r}"
        if f"{type_path} {name}" in UNSUPPORTED:
            raise ConfigError(
                f"{where(type_path)}: key '{type_path}': {finding}; allowed: {', '.join(allowed_names)}; "
                f"{UNSUPPORTED[f'{type_path} {name}']}"
            )
        near = "" if name is None else _near(str(name), allowed_names)
        raise ConfigError(
            f"{where(type_path)}: key '{type_path}': {finding}{near}; allowed: {', '.join(allowed_names)}; name one of them"
        )
    build = constructor(registry, name)
    parameters = inspect.signature(build).parameters
    hints = _hints(class_of(registry, name))
    allowed = [
        p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"
    ]
    weights = "from_pretrained"  # weights of any module may be named in the config, also where the class takes none
    for argument, value in config.items():
        if argument == "type":
            continue
        path = f"{key}.{argument}"
        if argument == weights and weights not in allowed and registry.name == "model":
            _check_value(where(path), path, value, str | None)
        elif argument not in allowed:
            raise ConfigError(_unknown_key(where(path), path, [a for a in allowed if a != "params"], owner=name))
        else:
            hint = hints.get(argument, Any)
            _check_value(where(path), path, value, hint)
            counts = re.search(r"\bint\b", type_name(hint)) is not None and "float" not in type_name(hint)
            _check_range(where(path), path, value, range_of(argument, counts), hint)
    for argument in allowed:
        missing = parameters[argument].default is inspect.Parameter.empty and argument not in config
        if missing and argument not in supplied:
            kind = _allowed(argument, hints.get(argument, Any))
            raise ConfigError(
                f"{where(key)}: key '{key}.{argument}': missing; {name} needs it; allowed: {kind}; add {argument}=..."
            )


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)


def as_dict(run: Run) -> dict[str, Any]:
    """The resolved run as plain JSON-able values."""
    return json.loads(json.dumps(dataclasses.asdict(run), default=list))


def digest(values: Mapping[str, Any]) -> str:
    """Twelve hex digits that change when any value does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()[:12]


def explain(loaded: LoadedConfig[Any]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every run-level key, and of every part that the command line changed."""
    rows = [(key, repr(value), loaded.origins[key]) for key, value in dataclasses.asdict(loaded.run).items()]
    changed = [(key, "", origin) for key, origin in loaded.origins.items() if "." in key]
    return rows + changed
