"""CONTRIBUTING.md, the hooks and the CI scripts agree with the Makefile and with the files that exist."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    # under `make test`, make would announce the folders that it enters
    command = ["make", "--no-print-directory", "help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[1] for line in printed.splitlines()}
    assert listed == set(phony[1].split())
    assert all(len(line.split()) > 3 for line in printed.splitlines())


def test_hooks_and_workflow_run_the_same_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert {"make lint", "make test"} <= set(script.splitlines())
    assert "entry: make lint" in (ROOT / ".pre-commit-config.yaml").read_text()
    assert "run: bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:opensora|tests|tools|docs|configs)/[\w./]+)`", text)) | set(
        re.findall(r"\((docs/[\w.]+)\)", text)
    )
    assert named
    assert not [name for name in sorted(named) if "NAME" not in name and not (ROOT / name).exists()]
