import pytest

from opensora.errors import ConfigError
from opensora.sampling.prompt_syntax import add_scores, last_loop, map_loops, split_json, text_of_loop


def test_scores_are_added_once_in_the_words_of_the_captions() -> None:
    assert add_scores("a cat.", 6.0, 2.25, "pan left") == (
        "a cat. aesthetic score: 6.0. motion score: 2.2. camera motion: pan left."
    )
    assert add_scores("a cat. motion score: 9.0.", flow=1.0) == "a cat. motion score: 9.0."
    assert add_scores("a cat.") == "a cat."


def test_words_by_loop() -> None:
    prompt = "|0| a day |2| a night"
    assert [text_of_loop(prompt, loop) for loop in range(4)] == ["a day", "a day", "a night", "a night"]
    assert text_of_loop("a |1| b", 3) == "a |1| b"
    assert (last_loop(prompt), last_loop("plain")) == (2, 0)
    assert map_loops(prompt, str.upper) == "|0|A DAY|2|A NIGHT"
    assert map_loops("plain", str.upper) == "PLAIN"


def test_json_at_the_end() -> None:
    assert split_json('a cat {"mask_strategy": "0,0,1"}', "p") == ("a cat", "", "0,0,1")
    assert split_json("a set {1, 2}", "p") == ("a set {1, 2}", "", "")
    with pytest.raises(ConfigError, match=r"p: .*JSON"):
        split_json('a cat {"reference_path": a.png}', "p")
    with pytest.raises(ConfigError, match=r"p: .*'mask': 'x'.*JSON.*reference_path"):
        split_json('a cat {"reference_path": "a.png", "mask": "x"}', "p")
    with pytest.raises(ConfigError, match="'mask_strategy': 0 in"):
        split_json('a cat {"mask_strategy": 0}', "p")
    with pytest.raises(ConfigError, match="comes twice"):
        split_json('a cat {"reference_path": "a.png", "reference_path": "b.png"}', "p")
