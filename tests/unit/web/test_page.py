"""Fields of the page and keys of a config."""

import pytest

from opensora.cli.web import read_users
from opensora.errors import ConfigError
from opensora.web.page import _fields, form_of
from opensora.web.serve import literal_html


def test_fields_that_are_left_alone_are_no_keys() -> None:
    assert form_of("a dog") == {"prompt": "a dog"}
    full = form_of("a dog", "rain", "outputs/run", "480p", "9:16", "4s", 30.0, 7.5, 3.0)
    assert full == {
        "prompt": "a dog",
        "negative_prompt": "rain",
        "load": "outputs/run",
        "resolution": "480p",
        "aspect_ratio": "9:16",
        "num_frames": "4s",
        "scheduler.num_sampling_steps": 30,
        "scheduler.cfg_scale": 7.5,
        "seed": 3,
    }
    assert form_of(*_fields(full)) == full
    assert form_of("a dog", num_frames=" 16 ")["num_frames"] == 16


def test_html_holds_no_template() -> None:
    assert (
        literal_html("<b>${1} {{x}} `a` \\</b>")
        == "<b>&#36;&#123;1&#125; &#123;&#123;x&#125;&#125; &#96;a&#96; &#92;</b>"
    )


def test_users_of_a_file(tmp_path) -> None:
    path = tmp_path / "users"
    path.write_text("ann:a:b\n\n bob :secret\n")
    assert read_users(str(path)) == [("ann", "a:b"), ("bob", "secret")]
    for text, words in (("ann\n", "line 1"), ("", "names no user"), ("ann:\n", "line 1")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_users(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_users(str(tmp_path / "none"))
