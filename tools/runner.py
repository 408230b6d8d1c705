"""Rows in, rows out: turns a function of one row into a command.

`run(fn)` makes a flag of each keyword-only argument of `fn(row, *, ...)` and adds --workers, --resume, --limit and
--dry-run. `fn` returns or yields the rows that come out; it raises BadClip (or another DataError) for a row that
cannot be used, which is logged with its line, counted and left out, and LeftOut for one that need not be used, which is
counted alone.

Inputs are manifests (.csv, .parquet), videos, or folders of videos. `row["path"]` is absolute. A journal next
to the output keeps each result, so that --resume repeats nothing after a stop at any moment; the output itself
is written at the end in the order of the input, whatever the number of workers. Then the journal is removed, unless
rows are left: bad ones, or those beyond --limit.

A function whose rows take minutes is `fn(row, state=None, *, ...)`. It yields `Progress` besides its rows, and after a
stop it gets the state of the last one back.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.table import read_table, readable_rows, require_columns, write_table
from opensora.errors import BadClip, ConfigError, DataError, OpenSoraError
from opensora.files import expand_argument
from opensora.progress_bar import ProgressBar
from tools.flags import Options, parse
from tools.journal import Journal, job_key
from tools.packages import missing_package, require_packages
from tools.worker_processes import end_with_parent

Row = dict[str, Any]
Function = Callable[..., Any]  # (row, *, flags) -> row, rows or None
Check = Callable[..., None]  # (rows, *, flags)

_QUEUED_PER_WORKER = 4
_LOOK_SECONDS = 0.5  # between two looks at the progress of the workers


@dataclass(frozen=True)
class Progress:
    """Part of one row is done. state: what JSON can hold, from which the function can go on."""

    done: int
    total: int
    state: dict[str, Any]
    unit: str = "frame"


Rows = Iterator[Row | Progress]
Report = Callable[[str, Progress], None]  # (key of the job, progress)


class LeftOut(BadClip):
    """A row that is left out as its user wanted: the first is named, the others are counted."""


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
    left_out: bool = False  # as its user wanted, for the reason in `bad`
    crash: str = ""  # traceback of an error that is not about the row


def run(
    fn: Function,
    presets: Mapping[str, Callable[[], list[str]]] | None = None,
    packages: Sequence[str] = (),
    check: Check | None = None,
    suffixes: Sequence[str] = VIDEO_SUFFIXES,
) -> None:
    """The command line of `fn`; exits 0 when the output was written, 2 for wrong flags, otherwise 1.

    presets: flags that stand for inputs, such as `demo` -> a function that finds the files.
    packages: modules that `fn` imports and not every installation has; a missing one ends the command at once.
    check: called once with all rows before the first one; raises an OpenSoraError where they do not fit together.
    suffixes: of the files that are listed in folders.
    """
    sys.exit(main(fn, sys.argv[1:], presets, packages, check, suffixes))


def main(
    fn: Function,
    argv: Sequence[str],
    presets: Mapping[str, Callable[[], list[str]]] | None = None,
    packages: Sequence[str] = (),
    check: Check | None = None,
    suffixes: Sequence[str] = VIDEO_SUFFIXES,
) -> int:
    """As `run`, for given arguments; returns the exit code."""
    try:
        return _main(fn, argv, presets or {}, packages, check, suffixes)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _main(
    fn: Function,
    argv: Sequence[str],
    presets: Mapping[str, Callable[[], list[str]]],
    packages: Sequence[str],
    check: Check | None,
    suffixes: Sequence[str],
) -> int:
    options = parse(fn, [expand_argument(word) for word in argv], list(presets))
    require_packages(packages)
    inputs = [path for name in options.presets for path in presets[name]()] + options.inputs
    jobs, messages = read_jobs(fn, options.flags, inputs, suffixes)
    every_row = [job.row for job in jobs]
    beyond_limit = len(jobs) - len(jobs[: options.limit])
    jobs = jobs[: options.limit]
    if not jobs and not messages:
        raise DataError(f"{', '.join(inputs)}: found no rows; at least one is needed; check the path")
    if check is not None:
        check(every_row, **options.flags)
    with Journal(options.output, keep=options.resume, read_only=options.dry_run) as journal:
        waiting = [job for job in jobs if not _is_done(journal, job)]
        if options.dry_run:
            begun = sum(job.key in journal.states for job in waiting)
            note = f", {begun} of them begun" if begun else ""
            print(f"{len(jobs)} rows to {options.output}: {len(jobs) - len(waiting)} done, {len(waiting)} to do{note}")
            print(f"flags: {options.flags}")
            for message in messages:
                print(f"would skip {message}")
            return 0
        unused = _work_on(fn, options, waiting, len(jobs), messages, journal)
        bad, left_out = unused.bad, unused.left_out
        if len(bad) + len(left_out) == len(jobs) + len(messages):
            what, first = ("bad", bad[0]) if bad else ("left out", left_out[0])
            raise DataError(
                f"{options.output}: not written, all {len(bad) + len(left_out)} rows are {what}; the first: {first}"
            )
        results = [row for job in jobs for row in journal.done.get(job.key, [])]
        write_table(options.output, results, _columns(results, jobs))
        journal.complete = not bad and not beyond_limit
    note = f", {len(bad)} bad rows skipped (--resume tries them again)" if bad else ""
    if left_out:
        print(f"left out: {len(left_out)} of {len(jobs)} rows, the first: {left_out[0]}", file=sys.stderr)
    print(f"{options.output}: {len(results)} rows from {len(jobs) + len(messages)}{note}", file=sys.stderr)
    if unused.crashes:
        print(f"{unused.crashes} rows failed with an unexpected error, shown above; please report it", file=sys.stderr)
    return 1 if unused.crashes else 0


@dataclass
class _Unused:
    """Messages of the rows that gave no result."""

    bad: list[str]
    left_out: list[str] = field(default_factory=list)
    crashes: int = 0  # of the bad ones


def _work_on(
    fn: Function, options: Options, waiting: list[Job], total: int, messages: list[str], journal: Journal
) -> _Unused:
    """Run `fn` on the jobs and keep the results. messages: of rows that could not be read."""
    unused = _Unused(list(messages))
    with _Bar(fn.__name__, waiting, total, journal) as bar:
        for message in messages:
            bar.print(f"skipped {message}")
        for job, outcome in _outcomes(fn, options.flags, waiting, options.workers, journal.states, bar.report):
            bar.finish(job)
            if outcome.left_out:
                unused.left_out.append(f"{job.label}: {outcome.bad}")
            elif outcome.crash or outcome.bad:
                unused.bad.append(f"{job.label}: {outcome.bad}")
                unused.crashes += bool(outcome.crash)
                bar.print(f"skipped {unused.bad[-1]}{outcome.crash and chr(10) + outcome.crash}")
            else:
                journal.add(job.key, outcome.rows)
    return unused


class _Bar:
    """The bar over all rows, which counts the parts of rows that are not finished, and keeps their states."""

    def __init__(self, title: str, waiting: list[Job], total: int, journal: Journal) -> None:
        self._bar = ProgressBar(title, total, completed=total - len(waiting))
        self._title, self._journal = title, journal
        self._finished = total - len(waiting)
        self._jobs = {job.key: job for job in waiting}
        self._parts: dict[str, float] = {}  # of the rows at work
        self.print = self._bar.print

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self, key: str, progress: Progress) -> None:
        """Show how far one row is, and keep its state."""
        if key not in self._jobs:  # its end has overtaken it
            return
        self._journal.add_state(key, progress.state)
        self._parts[key] = progress.done / max(1, progress.total)
        name = os.path.basename(str(self._jobs[key].row.get("path", "")))
        self._show(f"{self._title}: {name}, {progress.unit} {progress.done:,} of {progress.total:,}")

    def finish(self, job: Job) -> None:
        self._finished += 1
        self._jobs.pop(job.key, None)
        self._parts.pop(job.key, None)
        self._show(f"{self._title}: {self._finished} of {self._bar.total} rows")

    def _show(self, line: str) -> None:
        self._bar.update(self._finished + sum(self._parts.values()), line, line)


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


def read_jobs(
    fn: Function, flags: dict[str, Any], inputs: list[str], suffixes: Sequence[str] = VIDEO_SUFFIXES
) -> tuple[list[Job], list[str]]:
    """Rows of all inputs in order, and a message for each row that cannot be read.

    suffixes: of the files that are listed in folders.
    """
    jobs: list[Job] = []
    messages: list[str] = []
    for source in inputs:
        if source.lower().endswith((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)) or os.path.isdir(source):
            paths = _files_below(source, tuple(suffixes)) if os.path.isdir(source) else [source]
            rows = [(path, {"path": os.path.abspath(path)}) for path in paths]
        else:
            table = read_table(source)
            require_columns(table.path, table.columns, ("path",))
            readable, bad = readable_rows(table)
            messages += bad
            rows = [(table.location(index), row) for index, row in readable]
        jobs += [Job(label, row, job_key(fn, flags, row)) for label, row in rows]
    return jobs, messages


def _files_below(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    paths: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        names = [name for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in sorted(names)]
    if not paths:
        kind = "video or picture" if suffixes[-1] in IMAGE_SUFFIXES else "video"
        raise DataError(f"{folder}: found no {kind} below this folder; known endings: {', '.join(suffixes)}")
    return paths


def work(
    fn: Function,
    flags: dict[str, Any],
    row: Row,
    state: dict[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Run `fn` on one row, in this process. state: of the last Progress of an earlier run."""
    try:
        result = fn(row, state, **flags) if state is not None and _takes_state(fn) else fn(row, **flags)
        if result is None:
            return Outcome([])
        if isinstance(result, dict):
            return Outcome([result])
        rows: list[Row] = []
        for each in result:
            if isinstance(each, Progress):
                report(each)
            else:
                rows.append(each)
        return Outcome(rows)
    except ConfigError:  # a wrong flag is wrong for every row
        raise
    except DataError as error:
        return Outcome([], bad=str(error), left_out=isinstance(error, LeftOut))
    except ImportError as error:  # a package that is not installed is missing for every row
        raise missing_package(error) from error
    except Exception as error:  # one odd file must not end a run of days; the exit code is 1
        return Outcome([], bad=f"unexpected {type(error).__name__}: {error}", crash=traceback.format_exc())


def _takes_state(fn: Function) -> bool:
    return "state" in inspect.signature(fn).parameters


_progress_queue: Any = None  # of this worker process to the parent


def _start_worker(parent: int, progress_queue: Any) -> None:
    global _progress_queue
    end_with_parent(parent)
    _progress_queue = progress_queue


def _work_in_process(fn: Function, flags: dict[str, Any], row: Row, key: str, state: dict[str, Any] | None) -> Outcome:
    return work(fn, flags, row, state, lambda progress: _progress_queue.put((key, progress)))


def _outcomes(
    fn: Function,
    flags: dict[str, Any],
    jobs: list[Job],
    workers: int,
    states: Mapping[str, dict[str, Any]],
    report: Report,
) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come. Few jobs are queued at a time, so that memory does not grow with the input."""
    if workers <= 1:
        for job in jobs:
            yield job, work(fn, flags, job.row, states.get(job.key), partial(report, job.key))
        return
    # Fresh processes: a forked one would inherit threads' locks from libraries that the parent has loaded.
    context = get_context("spawn")
    progress_queue = context.SimpleQueue()
    with ProcessPoolExecutor(
        min(workers, len(jobs) or 1), context, initializer=_start_worker, initargs=(os.getpid(), progress_queue)
    ) as pool:
        queue = iter(jobs)
        running: dict[Future[Outcome], Job] = {}
        try:
            while True:
                for job in queue:
                    task = pool.submit(_work_in_process, fn, flags, job.row, job.key, states.get(job.key))
                    running[task] = job
                    if len(running) >= workers * _QUEUED_PER_WORKER:
                        break
                if not running:
                    return
                finished = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done
                while not progress_queue.empty():
                    report(*progress_queue.get())
                for future in finished:
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
