"""The debug configs learn as they did: losses and gradient norms equal the recorded ones.

Bit for bit is asked by `python -m tests.golden.rewrite --exact`, on one kind of processor.
"""

from pathlib import Path

import pytest

from tests.dist import run_ranks
from tests.distributed.test_training import train_to
from tests.golden.records import DEBUG, GOLDEN, STEPS, read_records, read_steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", DEBUG)
def test_debug_config_gives_recorded_losses(tmp_path: Path, name: str) -> None:
    config, overrides = DEBUG[name]
    run_ranks(train_to, 1, str(ROOT / config), str(tmp_path), f"steps={STEPS}", "save_every=0", *overrides)
    records, expected = read_steps(tmp_path), read_records(GOLDEN / f"{name}_debug.txt")
    assert [record.step for record in expected] == list(range(1, STEPS + 1))
    assert [record.step for record in records] == [record.step for record in expected]
    for column in ("loss", "grad_norm"):
        found, golden = ([getattr(record, column) for record in each] for each in (records, expected))
        assert found == pytest.approx(golden, rel=RTOL[name]), column


# relative; ten times what AVX2 and AVX-512 kernels were seen to differ by
RTOL = {"stdit": 1e-5, "vae": 1e-5, "latte_t2v": 1e-5, "adversarial": 1e-4}
