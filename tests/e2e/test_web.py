"""`opensora web` as its visitors use it: in a browser and over HTTP, alone and two at a time, well and badly."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.chromium import chromium, missing_browser, press, press_control, wait_until
from tests.support.command import ROOT, TRAIN
from tests.support.media_files import write_picture

if TYPE_CHECKING:
    from gradio_client import Client
    from selenium.webdriver import Chrome

pytest.importorskip("gradio")
PROMPT = "a red circle moves left"
# Fields of /generate after the prompt: negative prompt, model, resolution, ratio, length, steps, guidance, seed, and
# start from, two files, strength.
LEFT_ALONE = ("", "the config's", "as trained", "as trained", "")
ALONE = ("text alone", None, None, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, warm: str) -> Path:
    """A trained model and a sampling config for it. Trained in a process of its own, which takes its handlers with it."""
    folder = tmp_path_factory.mktemp("web")
    masks = "mask_ratios={'image_head': 0.5}"
    command = ["train", str(ROOT / TRAIN), f"run_dir={folder / 'run'}", "steps=2", "plugin=ddp", masks]
    subprocess.run([warm, "-m", "opensora.cli.main", *command], check=True)
    (folder / "sample.py").write_text(
        f"load = {str(folder / 'run')!r}\ndtype = 'fp32'\nsave_dir = {str(folder / 'made')!r}\nprompt = ['an example']\n"
    )
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    private = folder / "private"
    private.mkdir()
    command = [
        sys.executable,
        "-m",
        "opensora.cli.main",
        "web",
        str(folder / "sample.py"),
        "--port",
        "0",
        "--per-user",
        "9",
    ]
    environment = {**os.environ, "TMPDIR": str(private)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        yield process, address
        process.kill()


def client_of(address: str, downloads: Path) -> "Client":
    from gradio_client import Client

    return Client(address, verbose=False, download_files=str(downloads), analytics_enabled=False)


def text(driver: "Chrome", selector: str) -> str:
    return str(driver.find_element("css selector", selector).text)


def open_page(driver: "Chrome", address: str) -> None:
    driver.get(address)
    wait_until(driver, "the button", lambda: driver.find_element("css selector", "#generate").is_enabled())


@pytest.mark.skipif(bool(missing_browser()), reason=missing_browser())
def test_in_a_browser(
    folder: Path, site: tuple["subprocess.Popen[str]", str], tmp_path: Path, opensora: Callable[..., int]
) -> None:
    from selenium.webdriver.common.keys import Keys

    _, address = site
    with chromium() as driver:
        open_page(driver, address)
        assert text(driver, "#seed") == "Seed"
        press(driver, PROMPT)  # the field of the prompt has the focus
        press_control(driver, Keys.ENTER)
        made = wait_until(
            driver, "the video", lambda: (words := text(driver, "#state")).startswith("made in ") and words
        )
        name = made.rpartition(" ")[2]
        wait_until(
            driver,
            "the playing video",
            lambda: driver.execute_script(
                "const v = document.querySelector('#video video'); return v && v.readyState >= 2"
            ),
        )
        wait_until(driver, "the history", lambda: PROMPT in text(driver, "#before"))

        # The file is that of the command with the same settings.
        command = [str(folder / "sample.py"), "--prompt", PROMPT, "--save-dir", str(tmp_path)]
        assert opensora("sample", *command) == 0
        assert (folder / "made" / name).read_bytes() == (tmp_path / name).read_bytes()

        steps = driver.find_element("css selector", "input[aria-label='Steps']")
        steps.send_keys(Keys.END, "000")
        driver.find_element("css selector", "#generate").click()
        wait_until(driver, "progress", lambda: "of 4000" in text(driver, "#state"))
        wait_until(driver, "a preview", lambda: driver.find_element("css selector", "#state img.preview"))
        press(driver, Keys.ESCAPE)
        wait_until(driver, "the end", lambda: text(driver, "#state") == "cancelled")
        steps.send_keys(Keys.BACKSPACE * 3)

        # One of before brings its settings back, and plays next to the new one.
        driver.find_element("css selector", "#before .thumbnail-item, #before button.thumbnail-lg").click()
        wait_until(driver, "the chosen video", lambda: driver.find_element("css selector", "#other video"))
        prompt = driver.find_element("css selector", "#prompt textarea")
        prompt.clear()
        prompt.send_keys("other words")
        driver.find_element("css selector", "#same").click()
        wait_until(driver, "the old prompt", lambda: prompt.get_attribute("value") == PROMPT)

        # A picture as the first frame; then a file that is none.
        box = driver.find_element("css selector", "#condition input")
        box.click()
        box.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
        field = wait_until(
            driver, "the field", lambda: driver.find_element("css selector", "#first-file input[type=file]")
        )
        field.send_keys(write_picture(tmp_path / "first.png", 1))
        wait_until(driver, "the upload", lambda: "first.png" in text(driver, "#first-file").replace("\n", ""))
        driver.find_element("css selector", "#generate").click()
        wait_until(
            driver, "another video", lambda: "made in" in (words := text(driver, "#state")) and name not in words
        )
        (tmp_path / "text.png").write_text("no picture")
        driver.find_element(
            "css selector", "#first-file button[aria-label*='emove'], #first-file button[aria-label='Clear']"
        ).click()
        field = wait_until(
            driver, "the field", lambda: driver.find_element("css selector", "#first-file input[type=file]")
        )
        field.send_keys(str(tmp_path / "text.png"))
        wait_until(driver, "the upload", lambda: "text.png" in text(driver, "#first-file").replace("\n", ""))
        driver.find_element("css selector", "#generate").click()
        wait_until(driver, "why", lambda: "text.png: no picture that can be read" in text(driver, "body"))
        errors = [
            each for each in driver.get_log("browser") if each["level"] == "SEVERE" and "127.0.0.1" in each["message"]
        ]
        assert errors == []


def test_over_http(folder: Path, site: tuple["subprocess.Popen[str]", str], tmp_path: Path) -> None:
    """Two users at once, wrong values, and paths of the server; ends with SIGTERM, which is no error."""
    import httpx
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    process, address = site
    users: list[Client] = [client_of(address, tmp_path / str(number)) for number in range(2)]

    def submit(client: Client, prompt: str, *settings: Any, start: tuple[Any, ...] = ALONE) -> Any:
        numbers = (4, 2.0, 7)[len(settings) :]
        return client.submit(prompt, *LEFT_ALONE, *settings, *numbers, *start, api_name="/generate")

    jobs = [submit(users[number % 2], f"user {number % 2}, video {number}") for number in range(6)]
    names = [job.result()[0] for job in jobs]
    assert all("made in" in name for name in names)
    assert len(set(names)) == 6
    assert len(list((folder / "made").glob("0000-user-*.mp4"))) == 6

    [example] = re.findall("```python\n(.*?)```", (ROOT / "docs/web.md").read_text(encoding="utf-8"), re.DOTALL)
    names_of_example: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:7860", address).replace("    10,", "    2,"), names_of_example)
    assert Path(names_of_example["video"]["value"]).read_bytes()[4:8] == b"ftyp"

    def refusal(prompt: str, *settings: Any, start: tuple[Any, ...] = ALONE) -> str:
        with pytest.raises(AppError) as caught:
            submit(users[0], prompt, *settings, start=start).result()
        return str(caught.value)

    assert "the prompt is empty" in refusal("  ")
    assert "Value 0 is less than minimum value 1" in refusal(PROMPT, 0)
    assert "JSON with paths is not read" in refusal('a dog {"reference_path": "/etc/passwd"}')
    assert "no file was sent" in refusal(PROMPT, start=("first frame", None, None, 0.5))
    secret = tmp_path / "secret.png"
    write_picture(secret, 1)
    # A path in a request, which gradio's own client would upload.
    outside = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    values = [PROMPT, *LEFT_ALONE, 4, 2.0, 8, "first frame", outside, None, 0.5]
    event = httpx.post(f"{address}/gradio_api/call/generate", json={"data": values}).json()["event_id"]
    answer = httpx.get(f"{address}/gradio_api/call/generate/{event}", timeout=60).text
    assert "event: error" in answer
    assert "made in" not in answer
    assert httpx.get(f"{address}/gradio_api/file={secret}").status_code == 403
    assert httpx.get(f"{address}/gradio_api/file={folder / 'sample.py'}").status_code == 403
    assert httpx.get(address, headers={"Host": "elsewhere.example"}).status_code == 400
    # What was made is reached by the page's own copies, not by names in save_dir, where other users' files lie as well.
    for path in (folder / "made").iterdir():
        assert path.suffix in (".mp4", ".json", ".jsonl")
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code == 403
    [private] = (folder / "private").glob("opensora-web-*")
    assert (private / "gradio").is_dir()

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not private.exists()  # nothing of the visitors is left
