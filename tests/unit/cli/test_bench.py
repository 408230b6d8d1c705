"""`opensora bench` finds its modules in the checkout, also where only opensora/ is on the path."""

import subprocess
import sys
from pathlib import Path

import pytest

from opensora.cli import bench
from opensora.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("what", list(bench.BENCHES))
def test_every_bench_has_its_module(what: str) -> None:
    module = bench.import_bench(what)
    assert callable(module.run)
    assert callable(module.tables)


def test_editable_install_finds_bench_from_any_folder(tmp_path: Path) -> None:
    """An editable install makes opensora importable but not the checkout's other folders."""
    (tmp_path / "opensora").symlink_to(ROOT / "opensora")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from opensora.cli.bench import import_bench\n"
        "try:\n    import bench\nexcept ImportError:\n    print(import_bench('tokens').__name__)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "bench.long_sequence\n", done.stderr


def test_installation_without_checkout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bench/crash_resume.py.*pip install -e ."):
        bench.import_bench("faults", checkout=tmp_path)
