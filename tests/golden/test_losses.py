"""The debug configs learn as they did: losses and gradient norms equal the recorded ones.

`python -m tests.golden.rewrite --exact` compares bit for bit, on one kind of processor.
"""

from pathlib import Path

import pytest

from tests.dist import run_ranks
from tests.golden.records import DEBUG, GOLDEN, STEPS, read_records, read_steps
from tests.support.short_runs import train_to

ROOT = Path(__file__).resolve().parents[2]
# Relative, for losses and for norms: several times what AVX2 kernels differ by from the AVX-512 ones of the files. An L1
# loss has gradients that jump, so that rounding grows.
RTOL = {"stdit": (1e-6, 3e-6), "vae": (3e-4, 5e-3), "latte_t2v": (1e-6, 3e-6), "adversarial": (1e-3, 3e-3)}


@pytest.mark.parametrize("name", DEBUG)
def test_debug_config_gives_recorded_losses(tmp_path: Path, name: str) -> None:
    config, overrides = DEBUG[name]
    run_ranks(train_to, 1, str(ROOT / config), str(tmp_path), f"steps={STEPS}", "save_every=0", *overrides)
    records, expected = read_steps(tmp_path), read_records(GOLDEN / f"{name}_debug.txt")
    assert [record.step for record in expected] == list(range(1, STEPS + 1))
    assert [record.step for record in records] == [record.step for record in expected]
    for column, rtol in zip(("loss", "grad_norm"), RTOL[name], strict=True):
        actual, golden = ([getattr(record, column) for record in each] for each in (records, expected))
        assert actual == pytest.approx(golden, rel=rtol), column
