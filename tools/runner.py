"""Rows in, rows out: turns a function of one row, or a class for batches of rows, into a command.

`run(fn)` makes a flag of each keyword-only argument of `fn(row, *, ...)` and adds --workers, --engine, --resume, --where,
--shard, --limit, --max-errors and --dry-run. `fn` returns or yields the rows that come out; it raises BadClip (or another
DataError) for a row that cannot be used, which is logged with its line, counted, left out and kept in OUT.errors.jsonl, and
LeftOut for one that need not be used, which is counted alone.

Inputs are manifests (.csv, .parquet, .jsonl), folders of their shards, videos, or folders of videos. `row["path"]` is
absolute. A journal next to the output keeps each result, so that --resume repeats nothing after a stop at any moment;
the output itself is written at the end in the order of the input, whatever the number of workers. Then the journal
is removed, unless rows are left: bad ones, or those beyond --limit. Rows are never all in memory.

A function whose rows take minutes is `fn(row, state=None, *, ...)`. It yields `Progress` besides its rows, and after a
stop it gets the state of the last one back. A tool with a model is a class, see tools.work.Tool.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from opensora import files
from opensora.datasets.decode import VIDEO_SUFFIXES
from opensora.datasets.table_writer import write_rows
from opensora.errors import DataError, OpenSoraError
from opensora.files import expand_argument
from opensora.progress_bar import ProgressBar
from tools import local_engine, ray_engine
from tools.flags import Options, parse
from tools.history import extend_history, hash_input, history_metadata, write_history
from tools.journal import Journal
from tools.packages import require_packages
from tools.row_source import RowSource
from tools.work import Function, Job, LeftOut, Outcome, Progress, Row, Rows, Tool

__all__ = ["LeftOut", "Progress", "Row", "Rows", "main", "run"]

Check = Callable[..., None]  # (rows, *, flags)

_MESSAGES = 50  # of bad rows that are printed; the others are in the file of errors only


@dataclass(frozen=True)
class Command:
    """The parts of a tool's command line.

    presets: flags that stand for inputs, such as `demo` -> a function that finds the files.
    packages: modules that `fn` imports and not every installation has; a missing one ends the command at once.
    check: called once with all rows before the first one; raises an OpenSoraError where they do not fit together.
    suffixes: of the files that are listed in folders.
    batch_size: rows that a class takes at a time. cpus, gpus: that one worker needs on a Ray cluster.
    needs_files: rows name a file in the column path; otherwise `fn` gets all cells as they are in the table.
    """

    fn: Function
    presets: Mapping[str, Callable[[], list[str]]] | None = None
    packages: Sequence[str] = ()
    check: Check | None = None
    suffixes: Sequence[str] = VIDEO_SUFFIXES
    batch_size: int = 1
    cpus: float = 1
    gpus: float = 0
    needs_files: bool = True


def run(fn: Function, *arguments: Any, **settings: Any) -> None:
    """The command line of `fn`; exits 0 when the output was written, 2 for wrong flags, otherwise 1.

    arguments, settings: of Command.
    """
    sys.exit(main(fn, sys.argv[1:], *arguments, **settings))


def main(fn: Function, argv: Sequence[str], *arguments: Any, **settings: Any) -> int:
    """As `run`, with these words of a command line; returns the exit code."""
    try:
        return _main(Command(fn, *arguments, **settings), argv)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _main(command: Command, argv: Sequence[str]) -> int:
    presets = command.presets or {}
    words = [expand_argument(word) for word in argv]
    options = parse(command.fn, words, list(presets), command.cpus, command.gpus)
    require_packages(command.packages)
    inputs = [path for name in options.presets for path in presets[name]()] + options.inputs
    tool = Tool(command.fn, options.flags, command.batch_size if isinstance(command.fn, type) else 1)
    source = RowSource(
        inputs,
        command.suffixes,
        where=options.where,
        shard=options.shard,
        limit=options.limit,
        needs_files=command.needs_files,
    )
    if command.check is not None:
        command.check(source.rows(), **options.flags)
    with Journal(options.output, keep=options.resume, read_only=options.dry_run) as journal:
        counts = _count(source, tool, journal)
        if not counts.jobs and not counts.unreadable:
            raise DataError(f"{', '.join(inputs)}: found no rows; at least one is needed; check the path")
        if options.dry_run:
            _print_plan(source, options, counts)
            return 0
        journal.forget_unused()
        unused = _work_on(tool, options, source, counts, journal)
        results = _Results(source, tool, journal)
        _write_errors(options.output, results)
        if len(unused) == counts.jobs + counts.unreadable:
            what, first = ("bad", unused.first_bad) if unused.bad else ("left out", unused.first_left_out)
            raise DataError(f"{options.output}: not written, all {len(unused)} rows are {what}; the first: {first}")
        history = extend_history(
            _module(command.fn), _arguments(options), inputs, [hash_input(path) for path in inputs],
            rows=counts.jobs + counts.unreadable, bad=unused.bad, left_out=unused.left_out,
        )  # fmt: skip
        columns = None if results.any() else results.input_columns()
        written = write_rows(options.output, results.rows, columns, history_metadata(options.output, history))
        write_history(options.output, history)
        journal.complete = not unused.bad and not source.beyond_limit()
    note = f", {unused.bad} bad rows skipped, see {_errors_path(options.output)} (--resume tries them again)"
    if unused.left_out:
        text = f"left out: {unused.left_out} of {counts.jobs} rows, the first: {unused.first_left_out}"
        print(text, file=sys.stderr)
    every = counts.jobs + counts.unreadable
    print(f"{options.output}: {written} rows from {every}{note if unused.bad else ''}", file=sys.stderr)
    if unused.crashes:
        print(f"{unused.crashes} rows failed with an unexpected error, shown above; please report it", file=sys.stderr)
    return 1 if unused.crashes else 0


@dataclass
class _Counts:
    jobs: int = 0
    unreadable: int = 0
    done: int = 0  # by an earlier run
    begun: int = 0


def _count(source: RowSource, tool: Tool, journal: Journal) -> _Counts:
    counts = _Counts()
    for each in source:
        if each.error:
            counts.unreadable += 1
            continue
        counts.jobs += 1
        if journal.keep:
            key = tool.key(each.row)
            done = _is_done(journal, key, each.row)
            counts.done += done
            counts.begun += not done and journal.state(key) is not None
    return counts


def _print_plan(source: RowSource, options: Options, counts: _Counts) -> None:
    note = f", {counts.begun} of them begun" if counts.begun else ""
    waiting = counts.jobs - counts.done
    print(f"{counts.jobs} rows to {options.output}: {counts.done} done, {waiting} to do{note}")
    print(f"flags: {options.flags}")
    for each in source:
        if each.error:
            print(f"would skip {each.label}: {each.error}")


@dataclass
class _Unused:
    """Counts of the rows that gave no result."""

    bad: int = 0
    left_out: int = 0
    crashes: int = 0  # of the bad ones
    first_bad: str = ""
    first_left_out: str = ""

    def __len__(self) -> int:
        return self.bad + self.left_out

    def add(self, message: str, outcome: Outcome) -> None:
        if outcome.left_out:
            self.left_out += 1
            self.first_left_out = self.first_left_out or message
        else:
            self.bad += 1
            self.first_bad = self.first_bad or message
            self.crashes += bool(outcome.crash)


def _work_on(tool: Tool, options: Options, source: RowSource, counts: _Counts, journal: Journal) -> _Unused:
    """Run the tool on the jobs that are not done, and keep the results."""
    unused = _Unused()

    def skip(message: str, outcome: Outcome) -> None:
        unused.add(message, outcome)
        if outcome.left_out:
            return
        if unused.bad <= _MESSAGES or outcome.crash:
            bar.print(f"skipped {message}{outcome.crash and chr(10) + outcome.crash}")
        elif unused.bad == _MESSAGES + 1:
            bar.print(f"further bad rows are in {_errors_path(options.output)} only")
        if options.max_errors is not None and unused.bad > options.max_errors:
            raise DataError(
                f"{options.output}: stopped, {unused.bad} rows are bad and --max-errors is {options.max_errors}; the first: "
                f"{unused.first_bad}; what is done is kept; correct the cause and run again with --resume"
            )

    def waiting() -> Iterator[Job]:
        for each in source:
            if each.error:
                skip(f"{each.label}: {each.error}", Outcome([], bad=each.error))
                continue
            key = tool.key(each.row)
            if not (journal.keep and _is_done(journal, key, each.row)):
                yield Job(each.label, each.row, key, journal.state(key))

    title = getattr(tool.fn, "__name__", "tool")
    with _Bar(title, counts, journal, unused) as bar:
        for job, outcome in _outcomes(tool, options, waiting(), bar.report):
            bar.finish(job)
            if outcome.bad:
                journal.add_unused(job.key, outcome.bad, outcome.left_out)
                skip(f"{job.label}: {outcome.bad}", outcome)
            else:
                journal.add(job.key, outcome.rows)
    return unused


def _outcomes(
    tool: Tool, options: Options, jobs: Iterator[Job], report: Callable[[Job, Progress], None]
) -> Iterator[tuple[Job, Outcome]]:
    if options.engine == "local":
        return local_engine.outcomes(tool, jobs, options.workers, report)
    place = {"address": options.ray_address, "cpus": options.worker_cpus, "gpus": options.worker_gpus}
    return ray_engine.outcomes(tool, jobs, options.workers, **place)  # type: ignore[arg-type]


class _Bar:
    """The bar over all rows, which counts the parts of rows that are not finished, and keeps their states."""

    def __init__(self, title: str, counts: _Counts, journal: Journal, unused: _Unused) -> None:
        self._bar = ProgressBar(title, counts.jobs, completed=counts.done)
        self._title, self._journal, self._unused = title, journal, unused
        self._finished = self._before = counts.done
        self._parts: dict[str, float] = {}  # of the rows at work
        self._began = time.monotonic()
        self.print = self._bar.print

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self, job: Job, progress: Progress) -> None:
        """Show how far one row is, and keep its state."""
        self._journal.add_state(job.key, progress.state)
        self._parts[job.key] = progress.done / max(1, progress.total)
        name = os.path.basename(str(job.row.get("path", "")))
        self._show(f"{self._title}: {name}, {progress.unit} {progress.done:,} of {progress.total:,}")

    def finish(self, job: Job) -> None:
        self._finished += 1
        self._parts.pop(job.key, None)
        self._show(f"{self._title}: {self._finished:,} of {int(self._bar.total):,} rows{self._rate()}")

    def _rate(self) -> str:
        seconds = time.monotonic() - self._began
        rate = (self._finished - self._before) / max(seconds, 1e-3)
        errors = f", {self._unused.bad} bad" if self._unused.bad else ""
        return f", {rate:,.3g} rows/s{errors}"

    def _show(self, line: str) -> None:
        self._bar.update(self._finished + sum(self._parts.values()), line, line)


class _Results:
    """The rows that came out, in the order of the input, read from the journal."""

    def __init__(self, source: RowSource, tool: Tool, journal: Journal) -> None:
        self._source, self._tool, self._journal = source, tool, journal

    def rows(self) -> Iterator[Row]:
        for each in self._source:
            if not each.error:
                yield from self._journal.rows(self._tool.key(each.row)) or []

    def any(self) -> bool:
        return next(self.rows(), None) is not None

    def input_columns(self) -> list[str]:
        """The columns of a file without rows, which has at least a header."""
        return list(dict.fromkeys(name for each in self._source for name in each.row))

    def errors(self) -> Iterator[Row]:
        """The bad rows: where they come from, why, and their cells."""
        for each in self._source:
            if each.error:
                yield {"location": each.label, "error": each.error}
                continue
            key = self._tool.key(each.row)
            entry = None if self._journal.rows(key) is not None else self._journal.unused(key)
            if entry is not None and not entry[1]:
                yield {"location": each.label, "error": entry[0], "row": each.row}


def _errors_path(output: str) -> str:
    return f"{output.rstrip(os.sep)}.errors.jsonl"


def _write_errors(output: str, results: _Results) -> None:
    """Write the bad rows, or remove the file of an earlier run where there is none."""
    path = _errors_path(output)
    errors = results.errors()
    first = next(errors, None)
    if first is None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        return

    def lines() -> Iterable[Row]:
        yield first
        yield from errors

    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, lambda part: _write_lines(str(part), lines()))


def _write_lines(path: str, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _is_done(journal: Journal, key: str, row: Row) -> bool:
    """True if the journal has its rows, and the files made for them still exist."""
    rows = journal.rows(key)
    if rows is None:
        return False
    made = [each["path"] for each in rows if each.get("path") not in (None, row.get("path"))]
    return all(os.path.exists(path) for path in made)


def _module(fn: Function) -> str:
    main = sys.modules["__main__"]
    if fn.__module__ == "__main__" and main.__spec__ is not None:
        return main.__spec__.name
    return fn.__module__


def _arguments(options: Options) -> dict[str, Any]:
    """The flags that decide which rows come out; workers and engines do not."""
    chosen = {"where": options.where, "shard": options.shard, "limit": options.limit}
    return options.flags | {name: value for name, value in chosen.items() if value is not None}
