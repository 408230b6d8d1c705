"""Every command of the README and the docs is run, in order, as it is printed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.media_files import write_video

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("opensora", "torchrun", "python", "printf", "pip", "make")
# Run by `make demo` or by CI, or not run because they would install into the environment of this test.
ELSEWHERE = ("make demo", "make test", "make lint", "pip install", "python -m venv")
# the README's runs take minutes
SHORTER = {
    "steps=200": "steps=1 batch_size=1 dataset.image_size=[32,48] validation_dataset.image_size=[32,48] validation_batches=1",
    "steps=300": "steps=1 batch_size=1 dataset.image_size=[32,48] model.depth=2 scheduler.num_sampling_steps=2",
    "steps=10": "steps=10 dataset.clips=16",  # fewer captions to encode
    "run_dir=outputs/debug-vae": "run_dir=outputs/debug-vae steps=2 dataset.clips=4 validation_batches=1",
}
PLACEHOLDERS = {"FOLDER": "footage", "CONFIG": "configs/stdit/train/debug.py"}


def commands(document: Path) -> Iterator[str]:
    """Indented or fenced lines that start with one of PROGRAMS; a trailing backslash joins lines."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("    "):
            command = line.strip().split("   #")[0].strip()
            if command.split(" ")[0] in PROGRAMS:
                yield command


def start(program: str, python: str) -> list[str]:
    """The command words that start one of PROGRAMS."""
    if program == "python":
        return [python]
    script = Path(sys.executable).with_name(program)
    if not script.exists():
        return [program]
    return [python, str(script)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the checkout in which commands may write."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "assets", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "footage").mkdir()
    for number in range(2):
        write_video(folder / f"clip{number + 1}.mp4", 24)
        shutil.copy(folder / f"clip{number + 1}.mp4", folder / "footage")
    (folder / "captions.csv").write_text("video,shot,text\nclip1.mp4,0,stripes\nclip2.mp4,0,more stripes\n")
    (folder / "prompts.txt").write_text("a red circle moves left\n")
    return folder


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/training.md",
        "docs/data.md",
        "docs/parallelism.md",
        "docs/planning.md",
        "docs/sampling.md",
        "docs/weights.md",
        "docs/models.md",
        "docs/numbers.md",
        "docs/evaluation.md",
    ],
)
def test_commands_run_as_printed(workplace: Path, document: str, warm: str) -> None:
    """Commands start in a warm interpreter; test_train_story.py and tests/unit/cli/test_bench.py start cold ones."""
    printed_commands = [command for command in commands(ROOT / document) if not command.startswith(ELSEWHERE)]
    assert len(printed_commands) >= 1
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm}
    for printed in printed_commands:
        command = printed
        made = str(next(workplace.glob("outputs/debug/samples/*.mp4"), "FILE"))
        for word, replacement in {**PLACEHOLDERS, **SHORTER, "FILE": made}.items():
            command = re.sub(rf"(?<![^\s=]){re.escape(word)}(?!\S)", replacement, command)
        redirect = command.partition(" > ")
        program, *words = shlex.split(redirect[0])
        done = subprocess.run(
            [*start(program, warm), *words],
            cwd=workplace,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{document}: {printed}\n{done.stdout}\n{done.stderr}"
        if redirect[2]:
            (workplace / redirect[2].strip()).write_text(done.stdout)
    if document == "docs/training.md":
        assert (workplace / "train.csv").read_text().count("stripes") == 2
    if document == "docs/sampling.md":
        videos = list((workplace / "outputs/debug/samples").glob("*.mp4"))
        assert {"a-red-circle", "a-blue-square"} <= {re.sub(r"^\d+-(a-\w+-\w+)-.*", r"\1", v.name) for v in videos}


def test_config_commands_name_themselves() -> None:
    """The `Run:` line at the head of each config starts the very file it stands in."""
    configs = [path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts]
    for path in configs:
        text = path.read_text(encoding="utf-8").split('"""')[1]
        assert "make demo" in text or str(path.relative_to(ROOT)) in text, path
