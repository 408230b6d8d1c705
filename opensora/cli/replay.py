"""Make one optimizer step of a run again: `opensora replay RUN step=N [key=value ...]`, or on N devices
`opensora replay --ranks N RUN step=N`.

Starts from the newest checkpoint before the step, with the same data and noise, and writes nothing into the run.
key=value changes the run's config, for example dtype=fp32 or plugin=ddp; gradients=true measures each sample's gradient.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.cli.command_parser import CommandParser, run_on_ranks
from opensora.cli.run_main import report_on_main_rank_only, run_main
from opensora.config import load, parse_override
from opensora.errors import ConfigError
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.schema import TrainRun

if TYPE_CHECKING:
    from opensora.training.replay import Replay

CAPTION_LENGTH = 48  # characters shown


def main(argv: Sequence[str] | None = None) -> int:
    code = run_on_ranks("opensora.cli.replay", argv)
    if code is not None:
        return code
    parser = CommandParser(prog="opensora replay", description=__doc__)
    parser.add_ranks()
    parser.add_argument("run", help="a run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="step=N, and changes of the config")
    arguments = parser.read(argv)
    return run_main(lambda: replay_command(arguments.run, arguments.overrides))


def replay_command(run_dir: str, overrides: Sequence[str]) -> int:
    """Rebuild the run, make the step, print it; returns the exit code."""
    with report_on_main_rank_only():
        step, gradients, changes = _own_words(overrides)
        config = Path(run_dir) / "config.json"
        if not config.is_file():
            raise ConfigError(f"{run_dir}: no config.json there; allowed: the folder of a training run; check the path")
        loaded = load(str(config), [*changes, f"run_dir={run_dir!r}"], TrainRun)

    # These imports take seconds; a typo in the config is reported before them.
    from opensora.cli.session import session, set_up_rank, training_sequence_size
    from opensora.training.replay import build_replay, replay

    with loaded.naming_origins():
        setup = set_up_rank(loaded.run, training_sequence_size(loaded.run, str(config)))
        with session(setup) as ranks:
            result = replay(build_replay(setup.run, ranks.world, str(config), step), step, gradients)
            if ranks.world.is_main:
                _show(result, Path(run_dir))
    return 0


def _own_words(overrides: Sequence[str]) -> tuple[int, bool, list[str]]:
    """(step, gradients, changes of the config)."""
    own: dict[str, Any] = {"gradients": False}
    changes = []
    for override in overrides:
        key, value = parse_override(override)
        if key in ("step", "gradients"):
            own[key] = value
        else:
            changes.append(override)
    if type(own.get("step")) is not int:
        raise ConfigError(
            f"command line: key 'step': found {own.get('step')!r}; allowed: a whole number from 1; add step=N"
        )
    if type(own["gradients"]) is not bool:
        raise ConfigError(f"command line: key 'gradients': found {own['gradients']!r}; allowed: true or false")
    return own["step"], own["gradients"], changes


def _show(result: "Replay", run_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from opensora.training.replay import describe_difference, logged_step

    console = Console(soft_wrap=True, markup=False)
    table = Table(title=f"step {result.step} of {run_dir}, from the state after step {result.start}")
    measured = any("grad_norm" in each for each in result.samples)
    for heading in ("place", "row", "noise level", "loss", *(["gradient norm"] if measured else []), "caption"):
        table.add_column(heading)
    suspects = result.suspects()
    for each in result.samples:
        level = "" if each["level"] is None else f"{each['level']:.3f}"
        norm = [_number(each["grad_norm"])] if measured else []
        caption = (
            each["caption"] if len(each["caption"]) <= CAPTION_LENGTH else each["caption"][: CAPTION_LENGTH - 1] + "…"
        )
        style = "red" if each in suspects else None
        table.add_row(str(each["place"]), str(each["row"]), level, _number(each["loss"]), *norm, caption, style=style)
    console.print(table)
    then = logged_step(run_dir, result.step)
    for name, now in (("loss", result.loss), ("gradient norm", result.grad_norm)):
        key = "loss" if name == "loss" else "grad_norm"
        if then is None:
            console.print(f"{name} {now!r} (not compared: {_unlogged(run_dir, result.step)})")
        else:
            difference = describe_difference(now, then[key], result.rel_tol)
            console.print(f"{name} {now!r}, logged {then[key]!r}: {difference}")
    if result.anomaly is not None:
        console.print(f"the run does not make this step: {result.anomaly}")
    for each in suspects:
        what = "loss" if not math.isfinite(each["loss"]) else "gradient"
        console.print(f"not finite: the {what} of manifest row {each['row']} (counted from 0), place {each['place']}")


def _unlogged(run_dir: Path, step: int) -> str:
    """The reason why the run logged nothing of the step, in words."""
    every = json.loads((run_dir / "config.json").read_text(encoding="utf-8")).get("log_every", 1)
    return f"the run logged every {every} steps" if step % every else "metrics.jsonl holds no such step"


def _number(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else str(value)


if __name__ == "__main__":
    exit_process(main())
