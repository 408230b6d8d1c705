import contextlib
import io
from pathlib import Path
from unittest import mock

import pytest
import torch

from opensora.errors import OpenSoraError
from opensora.parallel import world
from opensora.sampling import sample as sample_module
from opensora.sampling.sample import sample
from tests.dist import run_ranks
from tests.support.fake_sampler import SETTINGS, request, stdit_sampler

REQUESTS = [request(prompt, index=n, repeat=r) for n, prompt in enumerate(["a cat", "a small dog"]) for r in range(2)]


def sample_all(folder: str, broken: str | None = None) -> tuple[list[Path], str, int]:
    """(paths, printed text, number of videos of this rank); `broken` is a prompt whose text cannot be encoded."""
    sampler, made = stdit_sampler(), 0
    encode, decode = sampler.codec.encode_text, sampler.codec.decode_video

    def encode_text(captions: list[str]) -> object:
        if broken in captions:
            raise RuntimeError("no such words")
        return encode(captions)

    def decode_video(z: torch.Tensor, num_frames: int) -> torch.Tensor:
        nonlocal made
        made += 1
        return decode(z, num_frames)

    sampler.codec.encode_text, sampler.codec.decode_video = encode_text, decode_video
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        paths = sample(REQUESTS, sampler, world.current(), folder, SETTINGS)
    return paths, printed.getvalue(), made


def warnings_of(folder: str, count: int) -> list[str]:
    """Warnings of this rank when `count` videos are sampled."""
    with mock.patch.object(sample_module, "logger") as log, contextlib.redirect_stdout(io.StringIO()):
        sample(REQUESTS[:count], stdit_sampler(), world.current(), folder, SETTINGS)
    return [call.args[0] % call.args[1:] for call in log().warning.call_args_list]


def test_warning_if_ranks_have_no_video(tmp_path: Path) -> None:
    (warning,), others = run_ranks(warnings_of, 2, str(tmp_path / "one"), 1)
    assert others == []
    assert "1 of 2 ranks" in warning
    assert "sp_size=N" in warning
    assert run_ranks(warnings_of, 2, str(tmp_path / "two"), 2) == [[], []]
    assert run_ranks(warnings_of, 2, str(tmp_path / "two"), 2) == [[], []]  # all videos exist already


def expect_failure(folder: str) -> str:
    with pytest.raises(OpenSoraError) as caught:
        sample_all(folder, broken="a cat")
    return str(caught.value)


def test_the_videos_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    files = []
    for size in (1, 2, 3):
        results = run_ranks(sample_all, size, str(tmp_path / str(size)))
        assert [made for _, _, made in results] == {1: [4], 2: [2, 2], 3: [2, 1, 1]}[size]
        assert [printed.split() for _, printed, _ in results] == [[str(p) for p in results[0][0]]] + [[]] * (size - 1)
        files.append({path.name: path.read_bytes() for path in (tmp_path / str(size)).iterdir()})
    assert len(files[0]) == 2 * len(REQUESTS)
    assert files[0] == files[1] == files[2]


def test_what_is_missing_is_shared_anew_and_a_failure_reaches_every_rank(tmp_path: Path) -> None:
    """The two videos of one prompt fail, one on each rank; the rerun does just these, one on each rank."""
    messages = run_ranks(expect_failure, 2, str(tmp_path))
    assert messages[0] == messages[1]
    assert "2 of 4 videos" in messages[0]
    assert len(list(tmp_path.glob("*.mp4"))) == 2
    assert [made for _, _, made in run_ranks(sample_all, 2, str(tmp_path))] == [1, 1]
    assert len(list(tmp_path.glob("*.mp4"))) == 4
