import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError, OpenSoraError
from opensora.parallel.world import World
from opensora.progress_bar import ProgressBar
from opensora.sampling import sample as sample_module
from opensora.sampling import video_writer
from opensora.sampling.generate import Sampler
from opensora.sampling.metadata import is_done, output_path
from opensora.sampling.sample import LINES, make_batches, pending_batches, report_step, sample
from opensora.sampling.video_writer import WriteError
from tests.support.fake_sampler import SETTINGS, fake_sampler, request

ALONE = World(0, 1, data_rank=0, data_size=1, local_rank=0, device=torch.device("cpu"))
PROMPTS = ["a cat", "a small dog", "one red bird"]


def requests() -> list:
    return [request(prompt, index=index) for index, prompt in enumerate(PROMPTS)]


def batches_run(sampler: Sampler) -> int:
    """The number of batches that went through the model."""
    return len(sampler.model.calls) // sampler.scheduler.num_sampling_steps


def test_every_request_becomes_a_file_and_its_path_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sample(requests(), fake_sampler(), ALONE, tmp_path, SETTINGS)
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert sorted(paths) == sorted(tmp_path.glob("*.mp4"))
    assert all(is_done(path, one, SETTINGS) for path, one in zip(paths, requests(), strict=True))


def test_done_ones_are_skipped_and_changed_settings_are_redone(tmp_path: Path) -> None:
    paths = sample(requests(), fake_sampler(), ALONE, tmp_path, SETTINGS)
    first = [path.read_bytes() for path in paths]
    again = fake_sampler()
    assert sample(requests(), again, ALONE, tmp_path, SETTINGS) == paths
    assert batches_run(again) == 0
    paths[1].unlink()
    sample(requests(), again, ALONE, tmp_path, SETTINGS)
    assert batches_run(again) == 1
    assert [path.read_bytes() for path in paths] == first
    other = fake_sampler()
    assert sample(requests(), other, ALONE, tmp_path, replace(SETTINGS, guidance_scale=5.0)) == paths
    assert batches_run(other) == 3
    assert [path.read_bytes() for path in paths] != first


@pytest.mark.parametrize("save_format", ["mp4", "png"])
def test_an_interrupt_leaves_finished_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, save_format: str
) -> None:
    """Ctrl-C while the second video is written; the same command then makes what is missing."""
    write, written = video_writer.write_frames, []

    def interrupt(*arguments: Any) -> None:
        write(*arguments)
        written.append(arguments[1])
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(video_writer, "write_frames", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # training in this process may have left its own
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    each = [replace(one, save_format=save_format) for one in requests()]
    with pytest.raises(KeyboardInterrupt):
        sample(each, fake_sampler(), ALONE, tmp_path, SETTINGS)
    first = output_path(tmp_path, each[0])
    assert sorted(tmp_path.iterdir()) == sorted([first, first.with_suffix(".json")])
    assert is_done(first, each[0], SETTINGS)
    again = fake_sampler()
    assert all(path.exists() for path in sample(each, again, ALONE, tmp_path, SETTINGS))
    assert batches_run(again) == 2


def test_one_failure_does_not_lose_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = fake_sampler()
    encode = sampler.codec.encode_text

    def refuse(captions: list[str]) -> object:
        if "a small dog" in captions:
            raise RuntimeError("out of memory")
        return encode(captions)

    monkeypatch.setattr(sampler.codec, "encode_text", refuse)
    with pytest.raises(OpenSoraError, match=r"1 of 3 videos.*'a small dog'.*out of memory"):
        sample(requests(), sampler, ALONE, tmp_path, SETTINGS)
    assert len(list(tmp_path.glob("*.mp4"))) == len(list(tmp_path.glob("*.json"))) == 2
    assert len(capsys.readouterr().out.split()) == 2


def test_a_disk_that_refuses_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = fake_sampler()

    def refuse(*_: object) -> Path:
        raise WriteError("out/v.mp4: cannot be written (No space left on device)")

    monkeypatch.setattr(sample_module, "write_sample", refuse)
    with pytest.raises(OpenSoraError, match=r"3 of 3 videos.*out/v\.mp4: "):
        sample(requests(), sampler, ALONE, tmp_path, SETTINGS)
    assert batches_run(sampler) == 1


def test_wrong_sizes_and_folders_end_it_before_any_work(tmp_path: Path) -> None:
    sampler = fake_sampler()
    with pytest.raises(ConfigError, match="5 frames of 16x16"):
        sample([*requests(), request(num_frames=5)], sampler, ALONE, tmp_path, SETTINGS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="cannot be written"):
        sample(requests(), sampler, ALONE, tmp_path / "file", SETTINGS)
    assert batches_run(sampler) == 0


def test_batches_hold_one_size_in_list_order_and_stay_whole(tmp_path: Path) -> None:
    small, tall = [request(str(n), index=n) for n in range(3)], [request("t", index=3, height=32)]
    batches = make_batches([small[0], tall[0], small[1], small[2]], 2)
    assert batches == [small[:2], small[2:], tall]
    settings = replace(SETTINGS, batch_size=2)
    paths = sample(small, fake_sampler(), ALONE, tmp_path, settings)
    paths[1].unlink()
    assert pending_batches(make_batches(small, 2), tmp_path, settings) == [small[:2]]


def test_progress_is_a_few_plain_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    caplog.set_level(logging.INFO, "opensora")
    steps: list[int] = []
    with ProgressBar("sampling", 2, lines=2 * LINES, log=logging.getLogger("opensora").info) as bar:
        for batch in range(2):
            for done in range(1, 31):
                report_step(bar, lambda: steps.append(1), batch, done, 30)
    assert len(steps) == 60
    assert [record.message.rpartition(", ")[0] for record in caplog.records] == [
        f"sampling: batch {batch} of 2, step {done} of 30" for batch in (1, 2) for done in (8, 15, 23, 30)
    ]
