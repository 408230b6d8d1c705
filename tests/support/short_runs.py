"""Training runs of a few steps on the ranks of `tests.dist`, whole or cut as by a kill."""

from pathlib import Path

from opensora.config import load
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
DEBUG = str(ROOT / "tests/distributed/debug.py")
STEPS = 5


def train_to(config: str, run_dir: str, *overrides: str, until: int = STEPS) -> None:
    """Train, leaving as a kill would once `until` steps are done: whatever was not saved is lost."""
    run = load(config, [f"steps={STEPS}", f"run_dir={run_dir!r}", "save_every=2", *overrides], TrainRun).run
    training = build_training(run, world.current(), config)
    if until < STEPS:
        stop_after(training, until)
    try:
        train(training)
    except Killed:
        pass
    finally:
        training.metrics.close()


class Killed(BaseException):
    pass


def stop_after(training, steps: int) -> None:
    log = training.metrics.log

    def log_then_die(record) -> None:
        log(record)
        if record.step == steps:
            raise Killed

    training.metrics.log = log_then_die


def kill_after_three(config: str, run_dir: str, *overrides: str) -> None:
    train_to(config, run_dir, *overrides, until=3)
