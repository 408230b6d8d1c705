"""docs/architecture.md lists the code of the training step and the modules that a batch crosses."""

import inspect
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import opensora
from opensora.config import load
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train_step
from tests.dist import one_rank

PACKAGE = Path(opensora.__file__).parent
ROOT = PACKAGE.parent
DOCUMENT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
CONFIG = str(ROOT / "configs/stdit/train/debug.py")
ANYWHERE = {"rng.py", "registry.py"}

Call = tuple[str, str]  # file below opensora/, qualified name of the function


def stations() -> tuple[list[Call], list[str]]:
    """(file and function of each station, files and folders that the stations call), read from the document."""
    calls, helpers = [], []
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1].startswith("`"):
            calls.append((cells[1].strip("`"), cells[2].strip("`")))
            helpers += re.findall(r"`([^`]+)`", cells[4])
    return calls, helpers


def calls_of_a_step(run_dir: str) -> list[Call]:
    """Every function of the package that one micro-batch's optimizer step enters, in order of first entry."""
    entered: dict[Call, None] = {}

    def enter(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents:
            entered.setdefault((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_qualname))

    keys = ["plugin=zero2", "micro_batches=1", "num_workers=0", "wandb=False", f"run_dir={run_dir!r}"]
    with one_rank() as world:
        state = build_training(load(CONFIG, keys, TrainRun).run, world, CONFIG)
        sys.setprofile(enter)
        try:
            train_step(state, 0)
        finally:
            sys.setprofile(None)
            state.metrics.close()
    return list(entered)


def test_listing_is_the_code() -> None:
    listings = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert inspect.getsource(train_step) in listings


def test_batch_crosses_the_documented_modules(tmp_path: Path) -> None:
    """The stations are entered in their order; every other module that is entered is listed as called by one."""
    documented, helpers = stations()
    assert len({file for file, _ in documented[:11]}) == 9
    entered = calls_of_a_step(str(tmp_path))
    assert [call for call in entered if call in documented] == documented
    files = {file for file, _ in entered} - {file for file, _ in documented} - ANYWHERE
    assert {file for file in files if not file.startswith(tuple(helpers))} == set()
    assert {helper for helper in helpers if not any(file.startswith(helper) for file in files)} == set()
