"""The page over HTTP with a stand-in for the model: accounts, many requests at once, and what is left of them."""

import gc
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from opensora.errors import ConfigError
from opensora.web.job_queue import Job, JobQueue, Report
from opensora.web.sample_service import Form, Made, SampleService
from opensora.web.serve import sentences

pytest.importorskip("gradio")
USERS = [(name, f"{name}'s password") for name in ("ann", "bob", "eve", "joe", "kim")]
EACH = 10


class Service:
    """Makes a file of a few bytes for each form, and keeps the order of prompts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.steps, self.guidance_scale = folder, [], 4, 2.0
        self.run = SimpleNamespace(prompt=[], seed=1, save_dir=str(folder))
        self.order: list[str] = []
        self.made: list[Made] = []
        self.go = threading.Event()

    def plan(self, form: Form) -> None:
        if not str(form["prompt"]).strip():
            raise ConfigError("prompt: is empty")

    def sample(self, form: Form, report: Report) -> Path:
        assert self.go.wait(60)
        self.order.append(form["prompt"])
        report.step(1, 1)
        if form["prompt"] == "a picture":
            path = self.folder / "picture.gif"
            Image.new("RGB", (8, 8)).save(path)
            return path
        path = self.folder / f"{form['prompt']}.mp4"
        path.write_bytes(b"video")
        return path

    def remember(self, made: Made) -> None:
        self.made.append(made)

    def history(self, user: str) -> list[Made]:
        return [made for made in self.made if made.user == user]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    import uvicorn

    from opensora.web.site import build_site

    service = Service(tmp_path_factory.mktemp("made"))
    queue = JobQueue(service.sample, per_user=EACH)
    app = build_site(service, queue, "127.0.0.1", USERS)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield service, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    service.go.set()
    queue.close()
    server.should_exit = True
    thread.join()


def visitor(address: str, name: str = "", password: str = "") -> httpx.Client:
    client = httpx.Client(base_url=address, timeout=60)
    if name:
        answer = client.post("/login", data={"username": name, "password": password})
        assert answer.status_code == 200, answer.text
    return client


def values(prompt: str) -> dict[str, Any]:
    numbers = (4, 2.0, 1)
    return {
        "data": [prompt, "", "the config's", "as trained", "as trained", "", *numbers, "text alone", None, None, 0.5]
    }


def test_accounts(site: tuple[Service, str]) -> None:
    _, address = site
    stranger = visitor(address)
    assert "ann" not in stranger.get("/").text
    assert stranger.post("/gradio_api/call/generate", json=values("stolen")).status_code == 401
    assert stranger.post("/login", data={"username": "ann", "password": "bob's password"}).status_code == 400
    assert visitor(address, *USERS[0]).get("/config").status_code == 200


def test_many_at_once_lose_none_and_take_turns(site: tuple[Service, str]) -> None:
    """Fifty requests of five users, the first user's all before the others'."""
    service, address = site
    visitors = {name: visitor(address, name, password) for name, password in USERS}
    events = {}
    for name, client in visitors.items():
        for number in range(EACH):
            prompt = f"{name} {number}"
            answer = client.post("/gradio_api/call/generate", json=values(prompt))
            events[prompt] = (client, answer.json()["event_id"])
    results: dict[str, str] = {}

    def wait_for(prompt: str) -> None:
        client, event = events[prompt]
        results[prompt] = client.get(f"/gradio_api/call/generate/{event}").text

    waiting = [threading.Thread(target=wait_for, args=(prompt,)) for prompt in events]
    for thread in waiting:
        thread.start()
    deadline = time.monotonic() + 60
    while sum(isinstance(each, Job) for each in gc.get_objects()) < len(events):  # all are in the queue
        assert time.monotonic() < deadline
        time.sleep(0.05)
    eleventh = visitors["bob"].post("/gradio_api/call/generate", json=values("bob 10")).json()["event_id"]
    refused = visitors["bob"].get(f"/gradio_api/call/generate/{eleventh}").text
    assert "event: error" in refused
    assert "10 of your videos wait" in refused
    service.go.set()
    for thread in waiting:
        thread.join()
    assert sorted(service.order) == sorted(events)
    assert all(f"{prompt}.mp4" in results[prompt] for prompt in events)
    assert all("event: complete" in result for result in results.values())
    # Users take turns: in each five after the first, which began at once, everybody is there once.
    names = [prompt.split()[0] for prompt in service.order[1:]]
    assert all(len(set(names[start : start + 5])) == 5 for start in range(0, 40, 5))
    for name in ("ann 0.mp4", ".history.jsonl"):  # save_dir holds the files of all users
        (service.folder / name).touch()
        assert visitors["eve"].get(f"/gradio_api/file={service.folder / name}").status_code == 403
    last = json.loads(results["eve 9"].rpartition("data: ")[2])
    assert {entry["caption"].split()[0] for entry in last[2]} == {"eve"}  # a user sees own videos alone
    gc.collect()
    left = [each for each in gc.get_objects() if isinstance(each, Job)]
    assert len(left) <= 1, left  # finished jobs are not kept


def test_pictures_are_shown_as_such(site: tuple[Service, str]) -> None:
    service, address = site
    service.go.set()
    client = visitor(address, *USERS[4])
    event = client.post("/gradio_api/call/generate", json=values("a picture")).json()["event_id"]
    answer = client.get(f"/gradio_api/call/generate/{event}").text
    _, video, _, picture = json.loads(answer.rpartition("data: ")[2])
    assert (video["value"], video["visible"], picture["visible"]) == (None, False, True)
    assert client.get(picture["value"]["url"]).content == (service.folder / "picture.gif").read_bytes()


def test_formats_that_browsers_do_not_show_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("save_format = 'hevc'\n")
    with pytest.raises(ConfigError, match="'hevc', which browsers do not show; allowed on a page: mp4, webm, av1, gif"):
        SampleService(str(tmp_path / "sample.py"), [], torch.device("cpu"), "fp32")


def test_errors_of_handlers_are_sentences() -> None:
    import gradio

    def handler(value: str) -> str:
        raise ConfigError(f"{value}: is wrong")

    with pytest.raises(gradio.Error, match="size: is wrong"):
        sentences(handler)("size")
