"""Record the golden runs again, or compare the code with the records.

    python -m tests.golden.rewrite              overwrite the losses tests/golden/*_debug.txt
    python -m tests.golden.rewrite --runs       also overwrite the run folders tests/golden/runs/*.tar.xz
    python -m tests.golden.rewrite --exact      compare bit for bit; exit 1 on a difference
    python -m tests.golden.rewrite --exact --against CHECKOUT   the same, with the numbers another checkout gives here

Kernels differ between processors: `--exact` needs the kind of processor named in the files, `--against` needs none.
`--code CHECKOUT` records with the code of another checkout, for example one from before a change.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.golden.records import DEBUG, GOLDEN, RUNS, SAVED, STEPS, Record, processor, read_records, read_steps

ROOT = Path(__file__).resolve().parents[2]
REWRITE = "python -m tests.golden.rewrite"


def train(code: Path, config: Path | str, folder: Path, *overrides: str) -> Path:
    """Run `opensora.cli.train` with the code of a checkout, on one rank and one thread; the run folder, FOLDER/run."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "opensora.cli.train", str(config), "run_dir=run", "log_every=1", *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return folder / "run"


def debug_records(code: Path, name: str, folder: Path) -> list[Record]:
    """The ten steps of one debug config."""
    config, overrides = DEBUG[name]
    return read_steps(train(code, code / config, folder / name, f"steps={STEPS}", "save_every=0", *overrides))


def run_records(code: Path, name: str, folder: Path) -> list[Record]:
    """The steps after the saved one, of a run that was never cut."""
    run = train(code, GOLDEN / f"runs/{name}.py", folder / name)
    return [record for record in read_steps(run) if record.step > SAVED]


def write(path: Path, records: list[Record], title: str, command: str) -> None:
    import torch

    head = [title, f"Written by `{command}` with torch {torch.__version__} on a processor with: {processor()}."]
    lines = [f"# {line}" for line in head] + ["# step loss grad_norm"]
    lines += [f"{record.step} {record.loss!r} {record.grad_norm!r}" for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def keep_run(run: Path, name: str) -> None:
    """Pack the run folder as it was after SAVED steps. An archive: saved states are mostly repeated text."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[: SAVED + 1]), encoding="utf-8")  # the last: of the save
    with tarfile.open(GOLDEN / f"runs/{name}.tar.xz", "w:xz") as archive:
        for inside in ("config.json", "metrics.jsonl", f"checkpoints/step-{SAVED:08d}"):
            archive.add(run / inside, inside, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without owner and time."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def rewrite(code: Path, folder: Path, runs: bool) -> None:
    for name, (config, overrides) in DEBUG.items():
        title = " ".join([f"{STEPS} steps of {config}, one rank, one thread", *overrides])
        write(GOLDEN / f"{name}_debug.txt", debug_records(code, name, folder), title, REWRITE)
    for name in RUNS if runs else ():
        records = run_records(code, name, folder)
        keep_run(folder / name / "run", name)
        title = f"Steps {SAVED + 1} and later of runs/{name}.py, one rank, one thread"
        write(GOLDEN / f"runs/{name}.txt", records, title, f"{REWRITE} --runs")


def differences(code: Path, against: Path | None, folder: Path) -> list[str]:
    """The runs whose numbers are not bit for bit equal."""
    changed = []
    for name in (*DEBUG, *RUNS):
        make = debug_records if name in DEBUG else run_records
        path = GOLDEN / (f"{name}_debug.txt" if name in DEBUG else f"runs/{name}.txt")
        expected = read_records(path) if against is None else make(against, name, folder / "against")
        records = make(code, name, folder / "code")
        changed += [f"{name}: {new}, before {old}" for new, old in zip(records, expected, strict=True) if new != old][
            :1
        ]
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout whose code runs")
    parser.add_argument("--runs", action="store_true", help="record the run folders as well")
    parser.add_argument("--exact", action="store_true", help="compare, write nothing")
    parser.add_argument("--against", type=Path, help="with --exact: compare with this checkout, not with the files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        if not arguments.exact:
            rewrite(arguments.code, Path(folder), arguments.runs)
            return 0
        changed = differences(arguments.code, arguments.against, Path(folder))
    print("\n".join(changed) or "all golden runs are bit for bit equal")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
