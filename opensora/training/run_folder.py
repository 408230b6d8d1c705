"""The folder of one run: its config, its checkpoints and their weights.

RUN_DIR/config.json  checkpoints/  metrics.jsonl  tensorboard/
"""

import copy
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import IO, Any

from opensora import files
from opensora.config import as_dict
from opensora.errors import CheckpointError
from opensora.log import logger
from opensora.parallel import collectives
from opensora.parallel.async_save import AsyncWorker, HostSnapshot
from opensora.parallel.collectives import broadcast_object
from opensora.parallel.engine import Engine
from opensora.parallel.world import World
from opensora.platforms import select
from opensora.run_paths import RECORD, Origin
from opensora.schema import TrainRun
from opensora.training import checkpoint
from opensora.training.anomalies import AnomalyDetector
from opensora.training.ema import Ema
from opensora.training.task import Task

DISCRIMINATOR = "discriminator"  # name of its weights in a checkpoint
RESUME_SAFE_KEYS = {field.name for field in fields(TrainRun) if field.metadata.get("resume_safe")}


class RunFolder:
    """Saves and resumes one run; every method is called by all ranks."""

    change_note = "the run goes on with the new value"

    def __init__(
        self,
        run: TrainRun,
        world: World,
        engine: Engine,
        ema: Ema | None,
        task: Task,
        anomalies: AnomalyDetector,
        lock: IO[str] | None = None,
    ):
        """lock: of `claim_folder`, kept while this object lives."""
        self.path = Path(run.run_dir)
        self.run = run
        self.world = world
        self.engine = engine
        self.ema = ema
        self.task = task
        self.anomalies = anomalies
        self._lock = lock
        self.rows = ""  # how many rows the data set has, in words; saved, and compared on resume
        set_device = partial(select(world.device.type).device, world.local_rank)
        self._background = AsyncWorker(run.timeout_seconds, set_device) if run.background_save else None
        self._host = HostSnapshot()

    def resume(self) -> tuple[int, list[str]]:
        """Load the newest intact checkpoint; returns (optimizer steps done, messages for bad rows so far)."""
        saved = checkpoint.find(self.path)
        if saved is None:
            self._write_config()
            return 0, []
        self._restore_and_report(saved, saved.meta["config"])
        self._write_config()
        logger().info("resumed from %s at step %d", saved.folder, saved.step)
        return saved.step, list(saved.meta["bad_rows"])

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Load a checkpoint into the live state; changes nothing on the disk."""
        state = self._state()
        checkpoint.load(saved, state)
        self.engine.load_state(state)
        if self.ema is not None:
            self.ema.load_state(state)
        if self.task.discriminator is not None:
            self.task.discriminator.load_state(state)
        if "guard" in saved.meta:  # not in checkpoints of earlier versions
            self.anomalies.load_state(saved.meta["guard"])

    def save(self, step: int, bad_rows: list[str]) -> float:
        """Copy the state of `step`; a thread writes it while training goes on. Returns the seconds that training waited.

        Waits for the save before first. Raises CheckpointError, on every rank, when that one failed, or when this one
        failed and `background_save` is off; earlier checkpoints are untouched. `finish` waits for this one.
        """
        began = time.monotonic()
        self.finish()
        write = self._copy(step, bad_rows)
        waited = time.monotonic() - began
        if self._background is not None:
            self._background.submit(lambda group: self._report(step, write(group), waited, began))
            return time.monotonic() - began
        folder = write(None)
        waited = time.monotonic() - began
        self._report(step, folder, waited, began)
        return waited

    def finish(self) -> None:
        """Wait until the last save is on the disk. Raises CheckpointError, on every rank, when it failed."""
        if self._background is not None:
            self._background.join()

    def save_failed(self) -> bool:
        """True if the last save in the background failed; `finish` or the next save raises its error."""
        return self._background is not None and self._background.failed

    def _copy(self, step: int, bad_rows: list[str]) -> Callable[[collectives.Group], Path]:
        """Copy everything that a checkpoint holds; the returned function writes it."""
        weights = {checkpoint.WEIGHTS: self.engine.gather_state_dict()}
        if self.ema is not None:
            weights[checkpoint.AVERAGE] = self.ema.weights()
        configs = dict.fromkeys(weights, self._task_config())
        if self.ema is not None and self.task.measures_weights:
            with self.ema.applied():
                configs[checkpoint.AVERAGE] = self._task_config()
        if (discriminator := self.task.discriminator) is not None:
            weights[DISCRIMINATOR], configs[DISCRIMINATOR] = discriminator.weights(), dict(discriminator.config)
        return partial(
            checkpoint.save,
            self.path,
            step,
            self._host.copy(self._state()) if self._background is not None else self._state(),
            weights,
            copy.deepcopy(configs),
            copy.deepcopy(
                {"config": as_dict(self.run), "bad_rows": bad_rows, "guard": self.anomalies.state(), "rows": self.rows}
            ),
            self.run.keep_last,
        )

    def _task_config(self) -> dict[str, Any]:
        return self.task.config() if self.world.is_main else {}

    def _report(self, step: int, folder: Path, waited: float, began: float) -> None:
        """Log the save: from this line on the checkpoint can be resumed."""
        took = time.monotonic() - began
        logger().info("step %d saved: %s (training waited %.2f s of %.2f s)", step, folder, waited, took)

    def describe_latest(self) -> str:
        try:
            self.finish()
        except CheckpointError as error:
            logger().error("%s", error)
        try:
            saved = checkpoint.find(self.path)
        except CheckpointError:
            saved = None
        return "none yet" if saved is None else str(saved.folder)

    def _state(self) -> dict[str, Any]:
        parts = (self.engine, self.ema, self.task.discriminator)
        return {key: value for part in parts if part is not None for key, value in part.state().items()}

    def _write_config(self) -> None:
        if self.world.is_main:
            # atomically, because a replay may read it at any moment
            config = {**as_dict(self.run), RECORD: Origin.here(self.run.run_dir, {}).record()}
            files.atomic_write(self.path / "config.json", lambda part: files.write_json(part, config))

    def _restore_and_report(self, saved: checkpoint.Checkpoint, before: Mapping[str, Any]) -> None:
        """Load the checkpoint, then warn of each value of its config `before` that this run has changed.

        Raises CheckpointError, with those values, when the checkpoint does not fit.
        """
        now = {key: value for key, value in as_dict(self.run).items() if key not in RESUME_SAFE_KEYS and key in before}
        changes = list(differences({key: before[key] for key in now}, now))
        try:
            self.restore(saved)
        except CheckpointError as error:
            if not changes:
                raise
            raise CheckpointError(
                f"{self.path}: its checkpoint does not fit this config, which differs in {', '.join(changes)}; set the "
                f"values of the run again, or choose another run_dir ({error})"
            ) from error
        for change in changes:
            logger().warning("%s: %s; %s", self.path, change, self.change_note)
        rows = saved.meta.get("rows")  # checkpoints of earlier versions do not have it
        if rows and rows != self.rows:
            message = "%s: the data set has %s, and had %s when step %d was saved; from here on steps take other rows"
            logger().warning(message, self.path, self.rows, rows, saved.step)


class ReplayFolder(RunFolder):
    """A run's folder that is only read: resumes from the newest checkpoint after at most `up_to` optimizer steps."""

    change_note = "the step is made with the new value"

    def __init__(self, *parts: Any, up_to: int):
        super().__init__(*parts)
        self._up_to = up_to

    def resume(self) -> tuple[int, list[str]]:
        """Load that checkpoint; without one the run's first weights stay."""
        saved = checkpoint.find(self.path, self._up_to)
        if saved is None:
            message = "%s: no checkpoint of step %d or before is kept: from the beginning"
            logger().warning(message, self.path, self._up_to)
            return 0, []
        # a replay leaves the average out
        self._restore_and_report(saved, {**saved.meta["config"], "ema_decay": self.run.ema_decay})
        logger().info("replaying from %s", saved.folder)
        return saved.step, list(saved.meta["bad_rows"])

    def save(self, step: int, bad_rows: list[str]) -> float:
        raise AssertionError("a replay saves nothing")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """ "model.depth: 6 -> 4" for each value, at any depth of dicts, that is not the same in both."""
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{within}{key}.")
        elif old != new or (key in before) != (key in now):
            words = [repr(values[key]) if key in values else "not set" for values in (before, now)]
            yield f"{within}{key}: {' -> '.join(words)}"


def claim_folder(run: TrainRun, world: World) -> IO[str] | None:
    """Lock the run's folder for this run, and test that checkpoints can be written; all ranks call it.

    Returns the main rank's lock. Raises CheckpointError on all ranks.
    """
    path = Path(run.run_dir)
    own, holder = lock(path) if world.is_main else (None, None)
    holder = broadcast_object(holder)
    if holder is not None:  # a second run would delete what the first one saves
        raise CheckpointError(
            f"{path}: in use by another training run ({holder}); allowed: one at a time; wait until it ends, "
            "stop it, or choose another run_dir"
        )
    checkpoint.prepare(path)
    return own


def lock(folder: Path) -> tuple[IO[str] | None, str | None]:
    """(open file that locks the folder, None), or (None, the holder). The system frees the lock when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError:
        return None, None  # cannot be written: `checkpoint.prepare` reports it
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger().warning("%s: no locks on this file system (%s): start no second run in it", folder, error)
            return file, None
        file.seek(0)
        return None, file.read().strip() or "unknown process"
    with suppress(OSError):  # a full disk, which `checkpoint.prepare` reports
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file, None
