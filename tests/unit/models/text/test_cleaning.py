import warnings

import pytest

from opensora.models.text.cleaning import clean, preprocess


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  A Cat\n on a   MAT ", "a cat on a mat"),
        ("visit https://example.com/page now", "visit now"),
        ("<b>bold</b> &amp; plain", "bold plain"),
        ("@someone waves", "waves"),
        ("中文 and カタカナ", "and カタカナ"),
        ("sold at 10.0.0.1", "sold at"),
        ("item jc6640 photo.png", "item"),
        ("a-b-c-d-e", "a b c d e"),
        ("a-b-c-d", "a-b-c-d"),
        ("free shipping page 3", ""),
        ("1920x1080 and 3×4", "and"),
        ("one,two : three", "one, two: three"),
        ("'all of it'", "all of it"),
        ("plus%20encoded+text", "plus encoded text"),
        (".hidden", ""),
    ],
)
def test_one_pass(caption: str, cleaned: str) -> None:
    assert clean(caption) == cleaned


def test_two_passes_go_further_than_one() -> None:
    caption = "free shipping worldwide and free download, click for details"
    assert clean(caption) == "worldwide and ,"
    assert preprocess(caption) == "worldwide and"


def test_without_cleaning_only_case_and_ends_change() -> None:
    assert preprocess("  <b>UPPER  Case</b> ", use_text_preprocessing=False) == "<b>upper  case</b>"


def test_a_caption_that_looks_like_a_file_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean("./some/path") == ". some path"
