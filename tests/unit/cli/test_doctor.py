"""Features that are there, absent or broken, each with the one command that adds it."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from opensora.cli import doctor
from opensora.cli.doctor import FEATURES, Feature, doctor_command, installed_version, missing
from opensora.platforms import device_features

Package = Callable[[str, str], str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """`package(name, code)`: an importable stand-in."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_present_absent_and_broken(package: Package) -> None:
    good = package("stand_in_good", "x = 1\n")
    assert missing(Feature("f", (good,), "pip install f")) is None
    assert missing(Feature("f", ("stand_in_absent",), "pip install f")) == "not installed"
    assert missing(Feature("f", (good, "stand_in_absent"), "pip install f")) == "not installed"
    no_library = package("stand_in_no_library", "raise ImportError('libGL.so.1: cannot open\\n shared object file')\n")
    assert missing(Feature("f", (no_library,), "r")) == "installed, but: libGL.so.1: cannot open shared object file"
    other_torch = package("stand_in_other_torch", "raise RuntimeError('built for another torch')\n")
    assert missing(Feature("f", (other_torch,), "r")) == "installed, but: built for another torch"


def test_feature_of_files_is_not_imported(package: Package) -> None:
    broken = package("stand_in_files", "raise ImportError('never run')\n")
    assert missing(Feature("f", (broken,), "r", imported=False)) is None


def test_rows_name_state_and_needed_remedy(
    package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = (
        Feature("present thing", (package("stand_in_present", ""),), "pip install present"),
        Feature("absent thing", ("stand_in_absent",), "pip install absent"),
    )
    monkeypatch.setattr(doctor, "FEATURES", features)
    monkeypatch.setenv("COLUMNS", "160")
    assert doctor_command() == 0
    lines = capsys.readouterr().out.splitlines()
    present = next(line for line in lines if "present thing" in line)
    assert "found" in present
    assert "pip install" not in present
    absent = next(line for line in lines if "absent thing" in line)
    assert "not installed" in absent
    assert "pip install absent" in absent


def test_the_remedy_is_one_command() -> None:
    for feature in (*FEATURES, *device_features()):
        assert feature.install_command.startswith(("pip install ", "apt-get install "))
        assert "\n" not in feature.install_command


def test_files_that_remedies_install_from_exist() -> None:
    root = Path(__file__).resolve().parents[3]
    for feature in (*FEATURES, *device_features()):
        words = feature.install_command.split()
        for option, file in itertools.pairwise(words):
            if option == "-r":
                assert (root / file).is_file(), feature.install_command


def test_version_of_a_package_that_is_missing() -> None:
    assert installed_version("no-such-package-at-all") == "missing"
    assert installed_version("torch")[0].isdigit()
