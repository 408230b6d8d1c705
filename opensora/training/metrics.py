"""Logging of a run: metrics.jsonl, TensorBoard, a progress bar, and wandb on request."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensora import files
from opensora.log import logger
from opensora.progress_bar import ProgressBar
from opensora.training.step_stats import StepRecord


class Metrics:
    """Writes on the main rank; a no-op elsewhere. On resume, removes the records past the checkpoint."""

    def __init__(self, run_dir: Path, start_step: int, steps: int, main: bool, wandb: bool, config: Mapping[str, Any]):
        self.main = main
        self.steps = steps
        self._line_complete, self._warned = True, False  # of the last line; of a failed write
        if not main:
            return
        self.path = run_dir / "metrics.jsonl"
        _remove_after(self.path, start_step)
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)
        self.start_step = start_step
        self.started = time.monotonic()
        self.progress = ProgressBar("starting", steps, completed=start_step, lines=None, log=logger().info).start()
        self.wandb = _start_wandb(run_dir, config) if wandb else None

    def log(self, record: StepRecord) -> None:
        if not self.main:
            return
        self._append(record.json())
        totals = record.totals
        scalars = {"loss": totals.loss, "grad_norm": record.grad_norm, "lr": record.lr, "seconds": record.seconds}
        scalars |= {"skipped": record.skipped} if record.skipped else {}
        scalars |= {f"loss_bin/{name}": value for name, value in totals.loss_per_bin.items()}
        self._scalars(record.step, scalars | {f"part/{name}": value for name, value in totals.metrics.items()})
        rate = totals.tokens / record.seconds if record.seconds > 0 else math.nan
        text = f"loss {totals.loss:.4f}  norm {record.grad_norm:.2f}  {record.seconds:.2f} s/step  {rate:,.0f} tokens/s"
        done = record.step - self.start_step
        left = int((time.monotonic() - self.started) / max(1, done) * (self.steps - record.step))
        line = f"step {record.step}/{self.steps}  {text}  {left // 60}:{left % 60:02d} left"
        self.progress.update(record.step, text, line)

    def log_validation(self, step: int, values: Mapping[str, float]) -> None:
        if not self.main:
            return
        self._append({"step": step, "validation": dict(values)})
        self._scalars(step, {f"validation/{name}": value for name, value in values.items()})
        heads = [f"{name} {value:.4f}" for name, value in values.items() if "/" not in name]  # parts go to the files
        logger().info("step %d validation: %s", step, ", ".join(heads))

    def log_trouble(self, step: int, trouble: Mapping[str, Any]) -> None:
        """Log a skipped step: what was wrong, what was done, and its samples, so that it can be replayed."""
        if not self.main:
            return
        self._append({"step": step, "trouble": dict(trouble)})
        self._scalars(step, {"skipped": trouble["skipped"]})
        logger().warning("step %d: %s; not made (%d so far)", step, trouble["what"], trouble["skipped"])

    def log_save(self, step: int, waited: float) -> None:
        """waited: seconds that training waited for the save after `step`."""
        if not self.main:
            return
        self._append({"step": step, "save": {"waited": round(waited, 4)}})
        self._scalars(step, {"save/waited": waited})

    def close(self, failed: bool = False) -> None:
        """Flush. failed: skip wandb, which may take minutes and then calls the run crashed."""
        if self.main:
            self.progress.close()
            try:
                self.board.close()
            except OSError as error:
                self._warn(error)
            if self.wandb is not None and not failed:
                self.wandb.finish()

    def _append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(_plain(values), allow_nan=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line if self._line_complete else f"\n{line}")
            self._line_complete = True
        except OSError as error:
            self._line_complete = False
            self._warn(error)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        try:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:
            self._warn(error)
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)

    def _warn(self, error: OSError) -> None:
        """A failed metrics write does not stop training; if the disk is still full, the next checkpoint raises."""
        if not self._warned:
            self._warned = True
            logger().warning(
                "%s: cannot be written (%s); training goes on, without some of its numbers", self.path, error
            )


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a kill cut off."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _plain(value: object) -> object:
    """Replace NaN and infinity, which JSON lacks, by text that float() reads."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _remove_after(path: Path, step: int) -> None:
    """Remove what a killed run logged after the checkpoint it resumes from."""
    if path.exists():
        kept = [json.dumps(record) for record in read(path) if record["step"] <= step]
        files.atomic_write(path, lambda part: files.write_text(part, "".join(line + "\n" for line in kept)))


def _start_wandb(run_dir: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        from opensora.errors import ConfigError

        message = (
            "key 'wandb': found True, but the package is missing; allowed: False, or after `pip install wandb` True"
        )
        raise ConfigError(message) from None
    return wandb.init(project="opensora", name=run_dir.name, dir=str(run_dir), config=dict(config), resume="allow")
