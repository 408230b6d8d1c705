"""ChangeJournal: changes of a manifest's rows that are not in the manifest yet, in a hidden file next to it."""

import json
import os
from pathlib import Path
from typing import Any

from opensora import files
from opensora.errors import ConfigError, DataError
from tools.history import read_history

TOOL = "tools.browse"  # in the history of a manifest


class ChangeJournal:
    """One JSON line for each change after a line with the manifest's hash; the last change of a row counts.

    state: the hash of the manifest that the changes belong to.
    """

    def __init__(self, manifest: str, state: str) -> None:
        self._manifest, self._state = manifest, state
        target = Path(os.path.abspath(manifest))
        self.path = target.with_name(f".{target.name}.changes.jsonl")

    def read(self) -> dict[int, dict[str, Any]]:
        """Row number -> mark and text. Raises ConfigError for changes of another state of the manifest."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: cannot be read ({error}); remove it or correct its rights") from error
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        state = entries[0].get("manifest") if entries else None
        changes = {entry["row"]: entry for entry in entries[1:] if isinstance(entry.get("row"), int)}
        if state == self._state:
            return changes
        if not changes or self._is_saved(state):
            self.remove()
            return {}
        raise ConfigError(
            f"{self._manifest}: {self.path} holds {len(changes)} changes that were not saved, for another state of the "
            "manifest; put the old manifest back, or start with --discard to lose them"
        )

    def _is_saved(self, state: object) -> bool:
        """True if the manifest was written with these changes: the command was killed before it removed the file."""
        history = read_history(self._manifest)
        inputs = history[-1].get("inputs") if history else None
        read = [each.get("hash") for each in inputs if isinstance(each, dict)] if isinstance(inputs, list) else []
        return bool(history) and history[-1].get("tool") == TOOL and state in read

    def add(self, row: int, mark: str, text: str | None) -> None:
        """Keep the change of a row on the disk."""
        is_new = not self.path.exists()
        lines = [{"manifest": self._state}] if is_new else []
        with (
            files.write_errors_as(DataError, self.path, "choose a writable place with free space"),
            open(self.path, "a", encoding="utf-8") as file,
        ):
            for line in (*lines, {"row": row, "mark": mark, "text": text}):
                file.write(
                    "\n" + json.dumps(line)
                )  # the line break comes first: a kill may have cut off the line before
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _entry(line: str) -> dict[str, Any] | None:
    """None for a line that a kill cut off."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
