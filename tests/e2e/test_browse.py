"""The page of tools.browse in a browser: keys, filter, marks, captions, damaged clips, and what reaches the manifest."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from opensora.datasets.table import read_table, write_table
from tests.support.chromium import chromium, missing_browser, press, press_control, retype, wait_until
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.history import read_history

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest.importorskip("gradio")
pytestmark = pytest.mark.skipif(bool(missing_browser()), reason=missing_browser())

ODD = "{{value}} ${1} `a` \\ <script>document.title = 'owned'</script> \"quoted\" & 'so' 😀"
COUNT = 14  # clips; a page shows 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browse")
    rows: list[dict[str, Any]] = []
    for number in range(COUNT):
        path = folder / f"clip {number}.mp4"
        if number == 3:
            path.write_text("no film")
        else:
            color_video(path, 6, number + 1)
        rows.append(
            {
                "path": str(path),
                "text": f"clip number {number}",
                "aes": number / 2,
                "start_frame": None,
                "end_frame": None,
            }
        )
    rows[1]["text"] = ODD
    rows[2].update(start_frame=2, end_frame=8)
    write_table(str(folder / "clips.csv"), rows)
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def server(manifest: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "tools.browse", str(manifest), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read() if process.stderr else ""
        yield process, address
        if process.poll() is None:
            process.kill()


class Page:
    """The page as a person sees it."""

    def __init__(self, driver: "Chrome", address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.wait("the first clip", lambda: self.summary().endswith(f"clip 1 of {COUNT}"))

    def wait(self, what: str, condition: Any) -> Any:
        return wait_until(self.driver, what, condition)

    def text(self, selector: str) -> str:
        return self.driver.find_element("css selector", selector).text

    def value(self, selector: str) -> str:
        return self.driver.find_element("css selector", selector).get_attribute("value") or ""

    def summary(self) -> str:
        return self.text("#summary p")

    def shows(self, place: int, of: int = COUNT) -> None:
        self.wait(f"clip {place} of {of}", lambda: f"clip {place} of {of}" in self.summary())

    def message(self, words: str) -> None:
        self.wait(words, lambda: words in self.value("#message input, #message textarea"))

    def clips(self) -> list[str]:
        return [each.text for each in self.driver.find_elements("css selector", ".clips button")]

    def filter(self, expression: str) -> None:
        from selenium.webdriver.common.keys import Keys

        press(self.driver, "f")
        retype(self.driver, expression)
        press(self.driver, Keys.ENTER, Keys.ESCAPE)

    def play_state(self) -> dict[str, Any]:
        return self.driver.execute_script(
            "const v = document.querySelector('#player video'); return v && {ready: v.readyState, seconds: v.duration}"
        )


def answer(address: str, host: str = "") -> tuple[int, str, str]:
    """Status, type and words or size of what the server sends. host: the name that the visitor has for it."""
    response = httpx.get(address, headers={"Host": host} if host else {})
    kind = response.headers["content-type"].partition(";")[0]
    return response.status_code, kind, response.text if kind == "text/plain" else str(len(response.content))


def test_files_are_reached_by_rows_alone(manifest: Path, server: tuple[subprocess.Popen[str], str]) -> None:
    _, address = server
    size = (manifest.parent / "clip 0.mp4").stat().st_size
    assert answer(f"{address}/clip/0") == (200, "video/mp4", str(size))
    assert answer(f"{address}/thumbnail/0")[:2] == (200, "image/jpeg")
    assert answer(f"{address}/thumbnail/3")[:2] == (200, "image/svg+xml")
    assert answer(f"{address}/clip/14") == (404, "text/plain", "no such row")
    status, _, words = answer(f"{address}/clip/3")
    assert (status, "clip 3.mp4: is a text file" in words) == (422, True)
    assert answer(f"{address}/clip/..%2fclips.csv")[0] in (404, 422)
    assert answer(f"{address}/clip/0", host="elsewhere.example")[0] == 400


def test_looking_marking_and_saving(manifest: Path, server: tuple[subprocess.Popen[str], str]) -> None:
    from selenium.webdriver.common.keys import Keys

    process, address = server
    with chromium() as driver:
        page = Page(driver, address)
        assert len(page.clips()) == 12
        state = page.wait("a playing clip", lambda: (state := page.play_state()) and state["ready"] >= 2 and state)
        assert state["seconds"] == pytest.approx(7 / 8)

        press(driver, "g")
        page.shows(2)
        page.message("row 0: good")
        assert page.clips()[0].splitlines() == ["0 good", "clip number 0"]
        assert ODD in page.value("#caption textarea")  # as it is written, and no part of the page
        assert page.clips()[1].splitlines()[1] == ODD[:80].strip()
        assert driver.title == "clips.csv: clips"

        press(driver, "b")
        page.shows(3)
        page.wait("the shot's copy", lambda: "Shown: a copy for the browser" in page.text("#player"))
        state = page.wait("the playing shot", lambda: (state := page.play_state()) and state["ready"] >= 2 and state)
        assert state["seconds"] == pytest.approx(6 / 8)

        press(driver, "j")
        page.shows(4)
        page.wait(
            "why there is no film", lambda: "clip 3.mp4: is a text file, not a video" in page.text("#player .error")
        )

        press(driver, Keys.ARROW_RIGHT)
        page.shows(5)
        press(driver, "e")
        retype(driver, "a gray dog, given j and g")
        press(driver, Keys.ESCAPE)
        page.message("row 4: caption changed, not saved yet")
        page.shows(5)  # letters in the field are no commands

        page.filter("mark = 'bad' OR text LIKE '%dog%'")
        page.shows(2, 2)
        assert [each.splitlines()[0] for each in page.clips()] == ["1 bad", "4"]
        page.filter("aes > ")
        page.wait("why the filter is refused", lambda: "allowed: a DuckDB expression" in page.text("body"))
        page.filter("")
        page.shows(5)

        press(driver, Keys.PAGE_DOWN)
        page.wait("the second page", lambda: len(page.clips()) == 2)
        page.driver.find_element("css selector", ".clips button[data-row='13']").click()
        page.shows(14)
        # The page is written part by part, and a key that comes between two parts may find no button.
        page.wait("all of clip 14", lambda: "clip 13.mp4" in page.text("#cells") and page.play_state())
        press_control(driver, "s")
        page.message("saved 3 changed rows")
        folder = os.environ.get("OPENSORA_SCREENSHOTS")
        if folder:
            press(driver, Keys.PAGE_UP)
            page.shows(2)
            driver.save_screenshot(f"{folder}/browse.png")
        errors = [
            each for each in driver.get_log("browser") if each["level"] == "SEVERE" and "127.0.0.1" in each["message"]
        ]
        assert errors == []

    rows = read_table(str(manifest)).rows
    assert [row["mark"] or "" for row in rows] == ["good", "bad", *[""] * 12]
    assert [rows[1]["text"], rows[4]["text"], rows[5]["text"]] == [ODD, "a gray dog, given j and g", "clip number 5"]
    assert [step["tool"] for step in read_history(str(manifest))] == ["tools.browse"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
