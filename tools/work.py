"""Tool: a function of one row, or a class whose objects take a batch of rows, and what becomes of each row."""

import functools
import inspect
import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from opensora import files
from opensora.errors import BadClip, DataError, OpenSoraError
from tools.packages import missing_package

Row = dict[str, Any]
Function = Callable[..., Any]  # (row, *, flags) -> row, rows or None; or a class, see Tool


@dataclass(frozen=True)
class Progress:
    """Part of one row is done. state: what JSON can hold, from which the function can go on."""

    done: int
    total: int
    state: dict[str, Any]
    unit: str = "frame"


Rows = Iterator[Row | Progress]


class LeftOut(BadClip):
    """A row that is left out as its user wanted: the first is named, the others are counted."""


@dataclass(frozen=True)
class Job:
    """One row to work on."""

    label: str  # "videos.csv:3", for messages
    row: Row
    key: str  # names (function, flags, row) in the journal
    state: dict[str, Any] | None = None  # of the last Progress of an earlier run


@dataclass(frozen=True)
class Outcome:
    """The result of one row."""

    rows: list[Row]
    bad: str = ""  # why the row cannot be used
    left_out: bool = False  # as its user wanted, for the reason in `bad`
    crash: str = ""  # traceback of an error that is not about the row


Report = Callable[[Job, Progress], None]


@dataclass
class Tool:
    """A tool with its flags. It travels to worker processes, where a class is made once: it may load a model.

    fn: `fn(row, *, flags)`, or a class: `fn(*, flags)` makes an object that takes up to `batch_size` rows, and gives for each
    of them, in order, a row, a list of rows, None, or the DataError that says why it cannot be used.
    """

    fn: Function
    flags: dict[str, Any]
    batch_size: int = 1
    _loaded: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}

    def key(self, row: Row) -> str:
        """Names (function, flags, row) in the journal."""
        return files.hash_text(self._name + json.dumps(row, sort_keys=True, default=str), 12)

    @functools.cached_property
    def _name(self) -> str:
        name = f"{os.path.basename(inspect.getsourcefile(self.fn) or '')}:{self.fn.__qualname__}"  # not __main__
        return json.dumps([name, self.flags], sort_keys=True, default=str)

    @functools.cached_property
    def _takes_state(self) -> bool:
        return "state" in inspect.signature(self.fn).parameters

    def work(self, jobs: Sequence[Job], report: Report = lambda job, progress: None) -> list[Outcome]:
        """Run the tool on a batch, in this process."""
        if not isinstance(self.fn, type):
            return [self._work_on_row(job, report) for job in jobs]
        try:
            if self._loaded is None:
                self._loaded = self.fn(**self.flags)
            results = list(self._loaded([job.row for job in jobs]))
            if len(results) != len(jobs):
                raise RuntimeError(f"{self.fn.__name__} gave {len(results)} results for {len(jobs)} rows")
        except ImportError as error:  # a package that is not installed is missing for every row
            raise missing_package(error) from error
        except Exception as error:
            if _is_for_every_row(error) or (self._loaded is None and isinstance(error, OpenSoraError)):
                raise
            if len(jobs) == 1 or self._loaded is None:
                return [_failed(error)] * len(jobs)
            return [outcome for job in jobs for outcome in self.work([job], report)]  # one of them may be odd
        return [_outcome(result) for result in results]

    def _work_on_row(self, job: Job, report: Report) -> Outcome:
        try:
            if job.state is not None and self._takes_state:
                result = self.fn(job.row, job.state, **self.flags)
            else:
                result = self.fn(job.row, **self.flags)
            if result is None or isinstance(result, (dict, list)):
                return _outcome(result)
            rows: list[Row] = []
            for each in result:
                if isinstance(each, Progress):
                    report(job, each)
                else:
                    rows.append(each)
            return Outcome(rows)
        except ImportError as error:
            raise missing_package(error) from error
        except Exception as error:  # one odd file must not end a run of days; the exit code is 1
            if _is_for_every_row(error):
                raise
            return _failed(error)


def _is_for_every_row(error: Exception) -> bool:
    """True for a wrong flag or missing weights, as against a row that cannot be used."""
    return isinstance(error, OpenSoraError) and not isinstance(error, DataError)


def _outcome(result: Any) -> Outcome:
    if isinstance(result, Exception):
        return _failed(result)
    if result is None:
        return Outcome([])
    return Outcome([result] if isinstance(result, dict) else list(result))


def _failed(error: Exception) -> Outcome:
    if isinstance(error, DataError):
        return Outcome([], bad=str(error), left_out=isinstance(error, LeftOut))
    crash = "".join(traceback.format_exception(error))
    return Outcome([], bad=f"unexpected {type(error).__name__}: {error}", crash=crash)
