"""Print the table of every run key, which is docs/config.md.

Run: opensora keys > docs/config.md
"""

import argparse
import dataclasses
import typing
from collections.abc import Iterator, Sequence

from opensora.config import type_name
from opensora.schema import EvaluateRun, Run, SampleRun, TrainRun

HEAD = """# Keys of a config

`opensora keys > docs/config.md` writes this page from `opensora/schema.py`. A key without a default is required. On the
command line `key=value` wins over the file. Arguments of a component are those of the class that `type` names:
`opensora check CONFIG` checks them, and names what is allowed. ✓: the value may change when a run resumes, without a
warning, since nothing learned before depends on it.
"""


def main(argv: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="opensora keys", description="Print docs/config.md.").parse_args(argv)
    print(page())
    return 0


def page() -> str:
    """The whole page, in Markdown."""
    tables = [_table("Training", TrainRun), _table("Sampling", SampleRun), _table("Evaluation", EvaluateRun)]
    return "\n".join([HEAD, *"\n\n".join("\n".join(table) for table in tables).split("\n")])


def _table(title: str, schema: type[Run]) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    resumes = schema is TrainRun
    yield f"## {title}: `{schema.__name__}`"
    yield "| key | type | default | unit | purpose |" + (" resume |" if resumes else "")
    yield "|---|---|---|---|---|" + ("---|" if resumes else "")
    for field in dataclasses.fields(schema):
        metadata = field.metadata
        cells = [f"`{field.name}`", _type(field, hints[field.name]), _default(field), metadata["unit"], metadata["doc"]]
        if resumes:
            cells.append("✓" if metadata["resume_safe"] else "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dataclasses.Field, hint: object) -> str:
    if "registry" in field.metadata:
        return f"{field.metadata['registry'].name}, a component"
    if "entries_registry" in field.metadata:
        return f"dict of {field.metadata['entries_registry'].name}s, components"
    return type_name(hint)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "required"
