"""Weights are read from the disk where they are there, and from a hub that answers; all this takes seconds at most."""

from pathlib import Path
from typing import Any

import huggingface_hub.utils
import pytest

from opensora.models.hub import quiet_transformers, read_pretrained


class Hub:
    """A stand-in for the session of huggingface_hub. answers: False as without a network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
        self.answers, self.urls = answers, list[str]()
        monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: self)

    def head(self, url: str, *, timeout: float, **_: Any) -> None:
        assert timeout <= 5
        self.urls.append(url)
        if not self.answers:
            raise ConnectionError("no route to the host")


def reader(*local: bool) -> Any:
    """A function that finds files in these places alone: True on the disk, False at the hub. `reader.calls`: its arguments."""

    def read(local_files_only: bool) -> str:
        read.calls.append(local_files_only)  # type: ignore[attr-defined]
        if local_files_only not in local:
            raise OSError("config.json is missing")
        return "weights"

    read.calls = []  # type: ignore[attr-defined]
    return read


def test_the_disk_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, read = Hub(monkeypatch, answers=True), reader(True, False)
    assert read_pretrained("someone/a-model", read) == "weights"
    assert (read.calls, hub.urls) == ([True], [])


def test_the_hub_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, read = Hub(monkeypatch, answers=True), reader(False)
    assert read_pretrained("someone/a-model", read) == "weights"
    assert read.calls == [True, False]
    assert [url.endswith("/someone/a-model/resolve/main/config.json") for url in hub.urls] == [True]


def test_a_hub_that_cannot_be_reached_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, read = Hub(monkeypatch, answers=False), reader(False)
    with pytest.raises(OSError, match=r"^it is not in the local hub cache, and https?://[^/]+ cannot be reached$"):
        read_pretrained("someone/a-model", read)
    assert (read.calls, len(hub.urls)) == ([True], 1)


def test_a_folder_is_not_looked_for_at_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub, read = Hub(monkeypatch, answers=True), reader()
    with pytest.raises(OSError, match=r"config\.json is missing"):
        read_pretrained(str(tmp_path), read)
    assert (read.calls, hub.urls) == ([True], [])


def test_settings_of_transformers_come_back() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
