"""Check a manifest before training: columns, rows, captions, files, and frames enough for the clips of a config.

Run: python -m tools.datasets.validate train.csv
     python -m tools.datasets.validate train.parquet --decode --workers 8 --config configs/stdit2/train/debug_buckets.py

Printed: a table of the problems, and with --config the clips and optimizer steps of an epoch. Files must lie below the
manifest's folder: a manifest from elsewhere could name any file of this machine. Exits with 1 where there is a problem.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from opensora import files
from opensora.datasets.manifest import read_manifest
from opensora.datasets.row_report import Report
from opensora.datasets.table_writer import TABLES
from opensora.errors import ConfigError, DataError
from opensora.files import expand_argument
from opensora.progress_bar import ProgressBar
from tools.datasets.manifest_files import PathCheck, Problem, file_problems
from tools.datasets.table_command import INPUT, add_switch, run_command

_SHOWN = 3  # problems of a reason in the table
_MOST = 100  # problems of a reason that are kept


class Problems:
    """Problems by reason: the first of each, and how many there are."""

    def __init__(self) -> None:
        self.first: dict[str, list[str]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, problem: Problem, count: int = 1) -> None:
        self.counts[problem.reason] += count
        kept = self.first.setdefault(problem.reason, [])
        if len(kept) < _MOST:
            kept.append(problem.message)

    def add_all(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.add(problem)

    def add_report(self, report: Report) -> None:
        """Take over the rows that a data set drops."""
        for reason, messages in report.dropped.items():
            for message in messages:
                self.add(Problem(reason, message))
            self.counts[reason] += report.count(reason) - len(messages)

    def lines(self) -> list[str]:
        """The problems as lines, the most frequent first."""
        lines = []
        for reason, count in self.counts.most_common():
            lines.append(f"{count:,} x {reason}")
            messages = self.first.get(reason, [])
            lines += [f"    {message}" for message in messages[:_SHOWN]]
            if messages and count > _SHOWN:
                lines.append(f"    ... and {count - min(_SHOWN, len(messages)):,} more")
        return lines


def validate(
    path: str,
    *,
    captions: bool = True,
    root: str | None = None,
    allow_outside: bool = False,
    headers: bool = True,
    decode: bool = False,
    workers: int = 1,
) -> tuple[Problems, int]:
    """The problems of a manifest, and its usable rows. root: below which its files must lie; by default its own folder."""
    manifest = read_manifest(path, captions)
    problems = Problems()
    problems.add_report(Report.of(path, len(manifest.rows), manifest.dropped))
    folder = None if allow_outside else root or manifest.rows.folder
    rows, checked = manifest.rows, 0
    with ProgressBar("files", len(rows), lines=5) as bar:
        found_here = file_problems(
            rows, PathCheck(folder), headers=headers, decode=decode, workers=workers, done=bar.advance
        )
        for problem in found_here:
            problems.add(problem)
            checked += 1
    return problems, len(rows) - checked


def bucket_plan(path: str, config: str, overrides: Sequence[str], problems: Problems) -> None:
    """Print the clips that a run of this config makes of the manifest; rows that are no clip become problems."""
    from opensora.config import load
    from opensora.datasets.bucket_plan import TOO_SHORT, TOO_SMALL, UNSIZED, BucketOrder
    from opensora.datasets.buckets import Buckets
    from opensora.datasets.video import VideoTextDataset
    from opensora.schema import TrainRun

    run = load(config, [*overrides, f"dataset.data_path={path}"], TrainRun).run
    settings: dict[str, Any] = dict(run.dataset)
    if settings.pop("type") != "VideoTextDataset":
        raise ConfigError(
            f"{config}: key 'dataset.type': found {run.dataset['type']!r}; allowed here: VideoTextDataset"
        )
    dataset = VideoTextDataset(**settings)
    try:
        if run.bucket_config is None:
            report = dataset.report()
            for reason in (reason for reason in report.dropped if reason not in problems.counts):
                problems.add_report(Report.of(path, 0, []))
                for message in report.dropped[reason]:
                    problems.add(Problem(reason, message))
                problems.counts[reason] = report.count(reason)
            print("\n".join(report.lines()))
            report.require_rows()
            return
        order = BucketOrder(
            dataset,
            Buckets(run.bucket_config),
            seed=run.seed,
            micro_batches=run.micro_batches,
            image_ratio=run.image_ratio,
        )
        plan = order.report()
        for reason in (TOO_SHORT, TOO_SMALL, UNSIZED):
            if plan.dropped_before.get(reason):
                problems.counts[reason] += plan.dropped_before[reason]
        print("\n".join(plan.lines()))
    except DataError as error:
        problems.add(Problem("no optimizer step", str(error)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.datasets.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("manifest", metavar="MANIFEST", help=INPUT)
    parser.add_argument("problems", metavar="PROBLEMS", nargs="?", help="the problems as JSON lines: .jsonl")
    parser.add_argument("--config", help="training config whose clips the rows must fill")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="keys of the config")
    add_switch(parser, "--decode", "decode every frame of every row")
    add_switch(parser, "--headers", "open every file; off: for millions of rows", default=True)
    add_switch(parser, "--captions", "every row needs a caption", default=True)
    parser.add_argument("--root", metavar="FOLDER", help="below which the files lie (default: the manifest's folder)")
    add_switch(parser, "--allow-outside", "files may lie anywhere")
    parser.add_argument("--workers", type=int, default=1, help="files opened at a time (default: %(default)s)")
    return run_command(parser, argv, _validate)


def _validate(options: argparse.Namespace) -> int:
    if not os.path.isdir(options.manifest) and not options.manifest.lower().endswith(TABLES):
        raise ConfigError(
            f"validate: MANIFEST is {options.manifest!r}; allowed: a file that ends in {', '.join(TABLES)}, or a folder of them"
        )
    if options.problems is not None and not options.problems.lower().endswith((".jsonl", ".ndjson")):
        raise ConfigError(f"validate: PROBLEMS is {options.problems!r}; allowed: a name that ends in .jsonl")
    problems, usable = validate(
        options.manifest,
        captions=options.captions,
        root=options.root,
        allow_outside=options.allow_outside,
        headers=options.headers,
        decode=options.decode,
        workers=options.workers,
    )
    if options.config is not None:
        bucket_plan(options.manifest, options.config, [expand_argument(word) for word in options.set], problems)
    if usable == 0 and not problems.counts:
        problems.add(Problem("no row", f"{options.manifest}: has no row; training needs at least one"))
    if options.problems is not None:
        _write(options.problems, problems)
    total = sum(problems.counts.values())
    print("\n".join([f"{options.manifest}: {usable:,} rows can be used, {total:,} problems", *problems.lines()]))
    return 1 if problems.counts else 0


def _write(path: str, problems: Problems) -> None:
    lines = [
        json.dumps({"reason": reason, "problem": message}, ensure_ascii=False)
        for reason, messages in problems.first.items()
        for message in messages
    ]
    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, lambda part: files.write_text(part, "".join(f"{line}\n" for line in lines)))


if __name__ == "__main__":
    sys.exit(main())
