"""Rows in, rows out: turns a function of one row into a command.

`run(fn)` makes a flag of each keyword-only argument of `fn(row, *, ...)` and adds --workers, --resume, --limit and
--dry-run. `fn` returns or yields the rows that come out; it raises BadClip (or another DataError) for a row that
cannot be used, which is logged with its line, counted and left out.

Inputs are manifests (.csv, .parquet), videos, or folders of videos. `row["path"]` is absolute. A journal next
to the output keeps each result, so that --resume repeats nothing after a stop at any moment; the output itself
is written at the end in the order of the input, whatever the number of workers.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.table import read_table, readable_rows, require_columns, write_table
from opensora.errors import ConfigError, DataError, OpenSoraError
from opensora.progress_bar import ProgressBar
from tools.flags import parse
from tools.journal import Journal, job_key

Row = dict[str, Any]
Rows = Iterator[Row]
Function = Callable[..., Any]  # (row, *, flags) -> row, rows or None

_QUEUED_PER_WORKER = 4


@dataclass(frozen=True)
class Job:
    """One row to work on."""

    label: str  # "videos.csv:3", for messages
    row: Row
    key: str  # names (function, flags, row) in the journal


@dataclass(frozen=True)
class Outcome:
    """The result of one row."""

    rows: list[Row]
    bad: str = ""  # why the row cannot be used
    crash: str = ""  # traceback of an error that is not about the row


def run(fn: Function, presets: Mapping[str, Callable[[], list[str]]] | None = None) -> None:
    """The command line of `fn`; exits 0 when the output was written, 2 for wrong flags, otherwise 1.

    presets: flags that stand for inputs, such as `demo` -> a function that finds the files.
    """
    sys.exit(main(fn, sys.argv[1:], presets))


def main(fn: Function, argv: Sequence[str], presets: Mapping[str, Callable[[], list[str]]] | None = None) -> int:
    """As `run`, for given arguments; returns the exit code."""
    try:
        return _main(fn, argv, presets or {})
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _main(fn: Function, argv: Sequence[str], presets: Mapping[str, Callable[[], list[str]]]) -> int:
    options = parse(fn, argv, list(presets))
    inputs = [path for name in options.presets for path in presets[name]()] + options.inputs
    jobs, messages = read_jobs(fn, options.flags, inputs, options.limit)
    if not jobs and not messages:
        raise DataError(f"{', '.join(inputs)}: found no rows; at least one is needed; check the path")
    with Journal(options.output, keep=options.resume, read_only=options.dry_run) as journal:
        waiting = [job for job in jobs if not _is_done(journal, job)]
        if options.dry_run:
            print(f"{len(jobs)} rows to {options.output}: {len(jobs) - len(waiting)} done, {len(waiting)} to do")
            print(f"flags: {options.flags}")
            for message in messages:
                print(f"would skip {message}")
            return 0
        progress = ProgressBar(fn.__name__, len(jobs), completed=len(jobs) - len(waiting))
        bad, crashes = list(messages), 0
        with progress:
            for message in messages:
                progress.print(f"skipped {message}")
            for job, outcome in _outcomes(fn, options.flags, waiting, options.workers):
                progress.advance()
                if outcome.crash or outcome.bad:
                    bad.append(f"{job.label}: {outcome.bad}")
                    crashes += bool(outcome.crash)
                    progress.print(f"skipped {bad[-1]}{outcome.crash and chr(10) + outcome.crash}")
                else:
                    journal.add(job.key, outcome.rows)
        results = [row for job in jobs for row in journal.done.get(job.key, [])]
    if len(bad) == len(jobs) + len(messages):
        raise DataError(f"{options.output}: not written, all {len(bad)} rows are bad; the first: {bad[0]}")
    write_table(options.output, results, _columns(results, jobs))
    note = f", {len(bad)} bad rows skipped (--resume tries them again)" if bad else ""
    print(f"{options.output}: {len(results)} rows from {len(jobs) + len(messages)}{note}", file=sys.stderr)
    if crashes:
        print(f"{crashes} rows failed with an unexpected error, shown above; please report it", file=sys.stderr)
    return 1 if crashes else 0


def _is_done(journal: Journal, job: Job) -> bool:
    """True if the journal has its rows, and the files made for them still exist."""
    rows = journal.done.get(job.key)
    if rows is None:
        return False
    made = [row["path"] for row in rows if row.get("path") not in (None, job.row["path"])]
    return all(os.path.exists(path) for path in made)


def _columns(results: list[Row], jobs: list[Job]) -> list[str]:
    """Columns in order of appearance; where nothing came out, those of the input, so that the file has a header."""
    return list(dict.fromkeys(name for row in results or [job.row for job in jobs] for name in row))


def read_jobs(fn: Function, flags: dict[str, Any], inputs: list[str], limit: int | None) -> tuple[list[Job], list[str]]:
    """Rows of all inputs in order, at most `limit`; and a message for each row that cannot be read."""
    jobs: list[Job] = []
    messages: list[str] = []
    for source in inputs:
        if source.lower().endswith((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)) or os.path.isdir(source):
            paths = _videos_below(source) if os.path.isdir(source) else [source]
            rows = [(path, {"path": os.path.abspath(path)}) for path in paths]
        else:
            table = read_table(source)
            require_columns(table.path, table.columns, ("path",))
            readable, bad = readable_rows(table)
            messages += bad
            rows = [(table.location(index), row) for index, row in readable]
        jobs += [Job(label, row, job_key(fn, flags, row)) for label, row in rows]
    return jobs[:limit], messages


def _videos_below(folder: str) -> list[str]:
    paths: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        names = [name for name in files if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in sorted(names)]
    if not paths:
        raise DataError(f"{folder}: found no video below this folder; known endings: {', '.join(VIDEO_SUFFIXES)}")
    return paths


def work(fn: Function, flags: dict[str, Any], row: Row) -> Outcome:
    """Run `fn` on one row, in this process."""
    try:
        result = fn(row, **flags)
        if result is None:
            return Outcome([])
        return Outcome([result] if isinstance(result, dict) else list(result))
    except ConfigError:  # a wrong flag is wrong for every row
        raise
    except DataError as error:
        return Outcome([], bad=str(error))
    except Exception as error:  # one odd file must not end a run of days; the exit code is 1
        return Outcome([], bad=f"unexpected {type(error).__name__}: {error}", crash=traceback.format_exc())


def _outcomes(fn: Function, flags: dict[str, Any], jobs: list[Job], workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come. Few jobs are queued at a time, so that memory does not grow with the input."""
    if workers <= 1:
        for job in jobs:
            yield job, work(fn, flags, job.row)
        return
    # Fresh processes: a forked one would inherit threads' locks from libraries that the parent has loaded.
    with ProcessPoolExecutor(min(workers, len(jobs) or 1), mp_context=get_context("spawn")) as pool:
        queue = iter(jobs)
        running: dict[Future[Outcome], Job] = {}
        try:
            while True:
                for job in queue:
                    running[pool.submit(work, fn, flags, job.row)] = job
                    if len(running) >= workers * _QUEUED_PER_WORKER:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    yield running.pop(future), outcome
        except BrokenProcessPool as error:
            labels = ", ".join(job.label for job in list(running.values())[:workers])
            raise DataError(
                f"a worker process died (out of memory, or killed by a decoder crash) at one of: {labels}; "
                "what is done is kept; run again with --resume and fewer --workers"
            ) from error
        finally:
            for future in running:
                future.cancel()
