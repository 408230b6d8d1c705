"""Fields of a run's schema: a default, the line of documentation and the unit that stand in docs/config.md.

A component's arguments are checked against the constructor that its `type` is registered with, minus the arguments
that the run supplies itself.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import MISSING, field
from typing import Any

from mmengine.registry import Registry

from opensora.ranges import FINITE, Range


def key(
    default: object = MISSING,
    doc: str = "",
    *,
    unit: str = "",
    resume_safe: bool = False,
    range: Range = FINITE,
    path: bool = False,
) -> Any:
    """A field of a run; a missing default makes it required.

    doc, unit: its line in docs/config.md, which `opensora keys` prints. resume_safe: True if the value may change when
    a run resumes: nothing learned before depends on it, so no warning is logged. range: of every number in the value.
    path: True for a file or folder.
    """
    return _field(default, {"doc": doc, "unit": unit, "resume_safe": resume_safe, "range": range, "path": path})


def component(
    of: Registry,
    default: object = MISSING,
    doc: str = "",
    *,
    supplied: Sequence[str] = (),
    partial: bool = False,
    resume_safe: bool = False,
) -> Any:
    """A field that holds one registered component, `dict(type=NAME, **arguments)`.

    supplied: arguments that the run passes. partial: the config may leave out `type` and change single arguments of what
    a checkpoint recorded. doc, resume_safe: as for `key`.
    """
    metadata = {"registry": of, "supplied": tuple(supplied), "partial": partial}
    return _field(default, metadata | {"doc": doc, "unit": "", "resume_safe": resume_safe})


def components(of: Registry, doc: str = "") -> Any:
    """A field that holds registered components by names of the user's choice, `dict(NAME=dict(type=..., ...), ...)`."""
    return _field({}, {"entries_registry": of, "doc": doc, "unit": "", "resume_safe": False})


def arguments_of(of: Registry, named_by: str, doc: str) -> Any:
    """A field that holds the arguments of the component that another key names, as `plugin_config` does for `plugin`."""
    return _field({}, {"arguments_registry": of, "named_by": named_by, "doc": doc, "unit": "", "resume_safe": False})


def _field(default: object, metadata: Mapping[str, object]) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
