"""Counts of one epoch by bucket: rows in, trained on, and left out for each reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opensora.datasets.base import ClipSize
from opensora.datasets.buckets import Bucket
from opensora.datasets.row_report import SHOWN, Report
from opensora.errors import DataError

if TYPE_CHECKING:
    from rich.console import Group

NOT_FULL, OVER_RATIO = "would not fill an optimizer step of their bucket", "left out to keep image_ratio"


@dataclass(frozen=True)
class BucketLine:
    """One bucket that rows were put in."""

    bucket: Bucket
    size: ClipSize
    batch_size: int
    rows: int
    steps: int  # optimizer steps of an epoch
    clips_per_step: int  # over all ranks

    @property
    def clips(self) -> int:
        """Rows trained on in an epoch."""
        return self.steps * self.clips_per_step

    @property
    def left_over(self) -> int:
        """Rows that would not fill another step."""
        return self.rows % self.clips_per_step

    @property
    def surplus(self) -> int:
        """Rows of full steps that are not made, for the sake of image_ratio."""
        return self.rows - self.left_over - self.clips

    @property
    def volume(self) -> int:
        """Frames x rows x columns of a micro-batch."""
        frames, height, width = self.size
        return frames * height * width * self.batch_size

    def name(self) -> str:
        frames, height, width = self.size
        return f"{self.bucket.resolution} {self.bucket.ratio}: {frames}x{height}x{width}"


@dataclass(frozen=True)
class EmptyBucket:
    """A length of a resolution that no row was put in, with the reason in a few words."""

    resolution: str
    num_frames: int
    why: str

    def name(self) -> str:
        return f"{self.resolution}, {_frames(self.num_frames)}"


@dataclass(frozen=True)
class BucketReport:
    """Counts of one epoch; reads like `Report`."""

    where: str
    rows: int  # of the manifest
    dropped_before: dict[str, int]  # reason -> rows that no bucket took
    lines_by_bucket: list[BucketLine]
    steps: int  # optimizer steps of an epoch
    manifest: Report  # with the messages of the rows that the manifest itself rules out
    image_ratio: float | None = None
    empty: list[EmptyBucket] = field(default_factory=list)

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> rows that an epoch leaves out."""
        left = {
            NOT_FULL: sum(line.left_over for line in self.lines_by_bucket),
            OVER_RATIO: sum(line.surplus for line in self.lines_by_bucket),
        }
        return {**self.dropped_before, **{reason: rows for reason, rows in left.items() if rows}}

    @property
    def kept(self) -> int:
        return sum(line.clips for line in self.lines_by_bucket)

    @property
    def trained(self) -> Sequence[BucketLine]:
        """Buckets with at least one step, the largest micro-batch first."""
        return sorted((line for line in self.lines_by_bucket if line.steps), key=lambda line: -line.volume)

    @property
    def largest_share(self) -> BucketLine:
        """The bucket with the most pixels of an epoch."""
        return max(self.trained, key=lambda line: line.volume * line.steps)

    def lines(self) -> list[str]:
        """The report as plain lines, for a log."""
        lines = [f"{self.where}: {self.rows} rows in, {self.kept} trained on in {self.steps} steps of the first epoch"]
        lines += [
            f"  {line.name()}, batch {line.batch_size}: {line.rows} rows, {line.steps} steps, {line.left_over} left over"
            for line in self.lines_by_bucket
        ]
        lines += [f"  {each.name()}: 0 rows, {each.why}" for each in self.empty]
        for reason, rows in self.dropped.items():
            lines.append(f"  dropped, {reason}: {rows}")
            messages = self.manifest.dropped.get(reason, [])[:SHOWN]
            lines += [f"    {message}" for message in messages]
            if messages and rows > SHOWN:
                lines.append(f"    ... and {rows - SHOWN} more")
        return lines + [f"  note: {note}" for note in self.manifest.notes]

    def table(self) -> "Group":
        """The report as tables for a terminal."""
        from rich.console import Group
        from rich.table import Table

        table = Table(
            "bucket", "clip", "batch", "rows", "steps", "trained on", "left over", title=f"{self.where}, one epoch"
        )
        for line in self.lines_by_bucket:
            bucket, clip = line.name().split(": ")
            bucket += f", {_frames(line.bucket.num_frames)}"  # several lengths share resolution and ratio
            numbers = (line.batch_size, line.rows, line.steps, line.clips, line.left_over + line.surplus)
            table.add_row(bucket, clip, *(f"{number:,}" for number in numbers))
        for each in self.empty:
            table.add_row(each.name(), each.why, "", "0", "0", "0", "0")
        table.add_section()
        table.add_row(
            "all", "", "", f"{self.rows:,}", f"{self.steps:,}", f"{self.kept:,}", f"{self.rows - self.kept:,}"
        )
        dropped = Table("dropped of an epoch", "rows", "which")
        for reason, rows in self.dropped.items():
            dropped.add_row(reason, f"{rows:,}", "\n".join(self.manifest.dropped.get(reason, [])[:SHOWN]))
        for note in self.manifest.notes:
            dropped.add_row("note", "", note)
        return Group(table, dropped) if dropped.rows else Group(table)

    def require_steps(self, micro_batches: int) -> None:
        """Raise DataError when an epoch has no optimizer step."""
        if self.steps:
            return
        why = "; ".join(f"{reason}: {rows}" for reason, rows in self.dropped.items()) or "it has no rows"
        raise DataError(
            f"{self.where}: bucket_config makes no optimizer step of {self.rows} rows ({why}); needed: one bucket with rows "
            f"for {micro_batches} micro-batch(es); add rows, or lower batch sizes, micro_batches, frames or resolutions"
        )


def _frames(count: int) -> str:
    return f"{count} frame{'s' if count > 1 else ''}"
