"""The paths in a run's config: ~ is the home folder, and what a moved run names is looked for where it may lie now."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Arguments of components that name a file or folder; `from_pretrained` may be a hub id as well.
COMPONENT_PATHS = ("data_path", "from_pretrained", "names", "weights")
_LISTS = ("weights",)  # may name several
WRITTEN = ("run_dir", "save_dir")  # keys of folders that a run makes
# Keys of folders in which libraries open files that take names of UTF-8 only: TensorBoard, safetensors.
UTF8_ONLY = ("run_dir", "load_video_features", "load_text_features")
RECORD = "_origin"  # key of an Origin in the config.json of a run
Change = Callable[[str, str], str]  # (dotted key, path) -> path


def change_paths(values: Mapping[str, Any], keys: Collection[str], change: Change, parent: str = "") -> dict[str, Any]:
    """A copy of a config's `values` in which `change` has replaced every path.

    keys: names of the keys on this level that hold a path; below it those of COMPONENT_PATHS do.
    """
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if name in keys and isinstance(value, str):
            value = change(parent + name, value)
        elif name in _LISTS and isinstance(value, list | tuple):
            value = [change(parent + name, each) if isinstance(each, str) else each for each in value]
        elif isinstance(value, dict):
            value = change_paths(value, COMPONENT_PATHS, change, f"{parent}{name}.")
        changed[name] = value
    return changed


def local_paths(values: Mapping[str, Any]) -> list[str]:
    """The dotted keys of those paths in components that exist here, apart from hub ids."""
    keys: list[str] = []

    def note(key: str, path: str) -> str:
        if os.path.exists(path):
            keys.append(key)
        return path

    change_paths(values, (), note)
    return keys


@dataclass(frozen=True)
class Origin:
    """The place of the command that recorded a config, from which its relative paths count."""

    folder: str  # its working directory
    run_dir: str  # absolute
    local: tuple[str, ...] = ()  # dotted keys of paths that existed, apart from hub ids

    @classmethod
    def here(cls, run_dir: str, values: Mapping[str, Any]) -> "Origin":
        """Of a run that trains in this process."""
        return cls(os.getcwd(), os.path.abspath(run_dir), tuple(local_paths(values)))

    @classmethod
    def of(cls, recorded: object) -> "Origin | None":
        """From its record; None for runs of earlier versions."""
        if not isinstance(recorded, Mapping) or not {"folder", "run_dir"} <= recorded.keys():
            return None
        return cls(str(recorded["folder"]), str(recorded["run_dir"]), tuple(recorded.get("local", ())))

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"folder": self.folder, "run_dir": self.run_dir, "local": list(self.local)}

    def locate(self, path: str, run_dir: str | Path | None) -> str | None:
        """The first place where a recorded `path` exists; None if there is none.

        It is looked for where it was, then from the working directory, then where it lay as seen from the run.
        run_dir: the run's folder now.
        """
        return next((place for place in self.places(path, run_dir) if os.path.exists(place)), None)

    def places(self, path: str, run_dir: str | Path | None) -> Iterator[str]:
        """The places where `locate` looks."""
        was = os.path.join(self.folder, path)
        if os.path.abspath(was) == os.path.abspath(path):
            yield path  # as written, so that a record stays as it is where nothing moved
        else:
            yield from (was, path)
        if run_dir is not None and os.path.abspath(run_dir) != self.run_dir:
            yield os.path.normpath(os.path.join(run_dir, os.path.relpath(was, self.run_dir)))


def run_of_weights(weights: Path) -> Path | None:
    """The run folder that holds a weights folder RUN/checkpoints/STEP/weights/NAME; None for any other."""
    parents = weights.absolute().parents
    inside = len(parents) > 3 and (parents[0].name, parents[2].name) == ("weights", "checkpoints")
    return parents[3] if inside else None
