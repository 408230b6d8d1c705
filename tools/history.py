"""The history of a table: the tools that made it, their arguments and the bytes that they read, oldest first.

Parquet files carry it in their schema, so that it stays with the file. Other tables have `TABLE.history.json` next to them.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import opensora
from opensora import files
from opensora.datasets.table_writer import is_parquet

KEY = "opensora.history"
Entry = dict[str, Any]  # tool, version, arguments, inputs, rows


def history_path(table: str) -> str:
    """The file next to a table that is not Parquet."""
    return f"{table.rstrip(os.sep)}.history.json"


def read_history(table: str) -> list[Entry]:
    """The steps that made a table, oldest first; empty for a table of another origin."""
    try:
        text = _text(table)
        entries = json.loads(text) if text else []
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _text(table: str) -> str:
    if is_parquet(table) and os.path.exists(table):
        import pyarrow
        import pyarrow.parquet

        try:
            metadata = pyarrow.parquet.read_schema(table).metadata or {}
        except pyarrow.ArrowInvalid:
            return ""
        return str(metadata.get(KEY.encode(), b"").decode())
    return Path(history_path(table)).read_text(encoding="utf-8")


def extend_history(
    tool: str, arguments: Mapping[str, Any], inputs: Sequence[str], hashes: Sequence[str], **counts: int
) -> list[Entry]:
    """The steps of all inputs, each once, and this one. hashes: of the inputs, by hash_input."""
    steps: list[Entry] = []
    for table in inputs:
        steps += [entry for entry in read_history(table) if entry not in steps]
    read = [{"path": path, "hash": digest} for path, digest in zip(inputs, hashes, strict=True)]
    step = {"tool": tool, "version": opensora.__version__, "arguments": dict(arguments), "inputs": read, **counts}
    return [*steps, step]


def history_metadata(table: str, history: Iterable[Entry]) -> dict[str, str]:
    """The history as metadata of a Parquet file; empty for other tables."""
    return {KEY: json.dumps(list(history), default=str)} if is_parquet(table) else {}


def write_history(table: str, history: Iterable[Entry]) -> None:
    """Write the file next to a table that is not Parquet; a Parquet file has its history inside."""
    if not is_parquet(table):
        entries = list(history)
        files.atomic_write(history_path(table), lambda part: files.write_json(part, entries))


def hash_input(path: str) -> str:
    """A hash of a file's bytes; of a folder, of the names and sizes of the files in it."""
    if not os.path.isdir(path):
        return files.hash_file(path, "blake2b")[:32]
    digest = hashlib.blake2b(digest_size=16)
    for parent, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(parent, name)
            size = os.stat(file).st_size if os.path.exists(file) else -1
            digest.update(json.dumps([os.path.relpath(file, path), size]).encode())
    return digest.hexdigest()
