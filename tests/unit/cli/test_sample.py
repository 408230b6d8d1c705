"""Arguments of `opensora sample`."""

import pytest

from opensora.cli.sample import join_dashed


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        (["--prompt", "-rain", "-h"], ["--prompt=-rain", "-h"]),
        (["--prompt", "-- rain --", "--prompt", "-h"], ["--prompt=-- rain --", "--prompt", "-h"]),
        (["--negative-prompt", "-blurry, -dark", "--seed", "-1"], ["--negative-prompt=-blurry, -dark", "--seed=-1"]),
        (["--prompt", "--loop=2"], ["--prompt", "--loop=2"]),  # a prompt that was left out stays an error
        (["--prompt", "--loop", "2"], ["--prompt", "--loop", "2"]),
        (["a.py", "--prompt", "rain", "-x"], ["a.py", "--prompt", "rain", "-x"]),
    ],
)
def test_texts_that_begin_with_a_dash(arguments: list[str], joined: list[str]) -> None:
    assert join_dashed(arguments) == joined
