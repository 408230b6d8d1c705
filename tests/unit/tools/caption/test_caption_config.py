import json
from pathlib import Path

import pytest

from opensora.errors import ConfigError
from tools.caption.caption_config import CaptionConfig, settings_of
from tools.caption.prompting import REFINE, Prompting
from tools.caption.server import ServerCaptioner
from tools.caption.sidecar import SidecarCaptioner

CONFIGS = sorted(Path("configs/caption").glob("*.py"))
SERVER = "dict(type='server', url='http://h/v1', model='m')"


def write(folder: Path, text: str) -> str:
    path = folder / "config.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_that_ship(path: Path) -> None:
    config = CaptionConfig.read(str(path))
    prompting = Prompting.of(config.captioner["prompting"])
    assert prompting.frames >= 1
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert f"--captioner {path}" in text
    assert json.loads(settings_of(str(path)))["captioner"] == config.captioner


def test_configs_of_every_style_ship() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "llava",
        "llava_next_video",
        "internvl",
        "qwen2_5_vl",
        "sharegpt4video",
        "server",
        "server_refined",
    }


def test_registered_name() -> None:
    config = CaptionConfig.read("sidecar", "key=meta.long")
    assert config == CaptionConfig({"type": "sidecar", "key": "meta.long"}, None, REFINE)
    captioner, refiner = config.build()
    assert isinstance(captioner, SidecarCaptioner)
    assert (captioner.key, refiner) == ("meta.long", None)


def test_options_go_on_top(tmp_path: Path) -> None:
    path = write(tmp_path, f"captioner = {SERVER}\nrefine = {SERVER}")
    config = CaptionConfig.read(path, "model=other prompting.frames=4 'prompting.prompt=Say it.' refine.model=third")
    assert config.captioner == {
        "type": "server",
        "url": "http://h/v1",
        "model": "other",
        "prompting": {"frames": 4, "prompt": "Say it."},
    }
    assert config.refine == {"type": "server", "url": "http://h/v1", "model": "third"}


def test_settings_stand_for_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, f"captioner = {SERVER}")
    settings = settings_of(path)
    write(tmp_path, "captioner = dict(type='sidecar')")
    assert CaptionConfig.read(path, "", settings).captioner["type"] == "server"
    assert settings_of("sidecar") == ""


def test_one_model_for_both_passes(tmp_path: Path) -> None:
    captioner, refiner = CaptionConfig.read(write(tmp_path, f"captioner = refine = {SERVER}")).build()
    assert isinstance(captioner, ServerCaptioner)
    assert captioner is refiner


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("captoner = dict(type='sidecar')", "", "config.py:1: key 'captoner': unknown; allowed: captioner, refine"),
        ("refine = None", "", "key 'captioner': missing"),
        ("captioner = dict(type='sidecarr')", "", "key 'captioner.type': found 'sidecarr'; nearest: 'sidecar'"),
        (
            "\ncaptioner = dict(type='sidecar', keys='a')",
            "",
            "config.py:2: key 'captioner.keys': unknown for sidecar; nearest: 'key'",
        ),
        ("captioner = dict(type='server', url='http://h/v1')", "", "key 'captioner.model': missing; server needs it"),
        (f"captioner = {SERVER}", "parallel=many", "key 'captioner.parallel': found 'many' (str); allowed: int"),
        (f"captioner = {SERVER}", "url.port=1", "url.port: 'url' is 'http://h/v1', not a dict; set url itself"),
        (f"captioner = {SERVER}", "model='a", "--options: No closing quotation; put quotes around"),
        (f"captioner = {SERVER}", "model", "found 'model'; allowed: key=value"),
        (f"captioner = {SERVER}\nrefine_prompt = 'Again.'", "", "key 'refine_prompt': has no {text}"),
        (f"captioner = {SERVER}\nrefine_prompt = 'Again: {{text}}'", "", "key 'refine_prompt': needs 'refine'"),
        ("captioner = dict(", "", "cannot be read: SyntaxError"),
    ],
)
def test_configs_that_are_refused(text: str, options: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        CaptionConfig.read(write(tmp_path, text), options)
    assert expected in str(caught.value)


def test_names_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"found 'qwen'; allowed: .*sidecar.*, or a config such as configs/caption/qwen2_5_vl.py"
    ):
        CaptionConfig.read("qwen")
    with pytest.raises(ConfigError, match="no such file"):
        CaptionConfig.read("qwen.py")
    with pytest.raises(ConfigError, match="allowed: a model that answers prompts"):
        CaptionConfig.read(write(tmp_path, "captioner = refine = dict(type='sidecar')")).build()
