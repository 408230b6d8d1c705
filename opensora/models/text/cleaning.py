"""Clean captions from the web: remove links, markup, ids, file names and stray punctuation.

Released models were trained on captions cleaned by exactly these rules, in this order, run twice.
Source: the caption cleaning of DeepFloyd-IF, as in diffusers (Apache-2.0).
"""

import functools
import html
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote_plus

_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_DASHES = (
    r"\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0"
    r"\uFE31\uFE32\uFE58\uFE63\uFF0D"
)
_JOINERS = re.compile(r"[-_]")

# (what the rule removes or unifies, pattern, replacement)
_BEFORE_MARKUP = [
    ("the person tag", r"<person>", "person"),
    ("links and bare domains", rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    ("links that begin www:", rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
]
_AFTER_MARKUP = [
    ("@handles", r"@[\w\d]+\b", ""),
    ("CJK strokes to unified ideographs; kana stay", r"[\u31C0-\u31FF\u3200-\u4DFF\u4E00-\u9FFF]+", ""),
    ("all dashes", rf"[{_DASHES}]+", "-"),
    ("double quotes", "[`´«»“”¨]", '"'),
    ("single quotes", "[‘’]", "'"),
    ("the entity of a quote", r"&quot;?", ""),
    ("the entity of an ampersand", r"&amp", ""),
    ("IP addresses", r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    ("durations before trailing blanks", r"\d:\d\d\s+$", ""),
    ("a backslash and an n", r"\\n", " "),
    ("# and a short number", r"#\d{1,3}\b", ""),
    ("# and a long number", r"#\d{5,}\b", ""),
    ("long numbers", r"\b\d{6,}\b", ""),
    ("file names", rf"\S+\.(?:{_FILE_TYPES})", ""),
    ("runs of quotes", r"[\"']{2,}", '"'),
    ("runs of dots", r"\.{2,}", " "),
    ("decorations", r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    ("a dot between blanks", r"\s+\.\s+", " "),
]
_AFTER_REPAIR = [
    ("ids such as jc6640", r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    ("ids such as jc6640vc", r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    ("ids such as 6640vc231", r"\b\d+[a-zA-Z]+\d+\b", ""),
    ("shipping", r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    ("downloads", r"(?:free\s)?download(?:\sfree)?", ""),
    ("click for, click on", r"\bclick\b\s(?:for|on)\s\w+", ""),
    ("file types", rf"\b(?:{_FILE_TYPES})(?:\simages?)?", ""),
    ("page numbers", r"\bpage\s+\d+\b", ""),
    ("blobs such as j2d1a2a", r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    ("sizes such as 4x4, with a Latin or Cyrillic letter or a sign", r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    ("blanks before a colon", r"\b\s+:\s+", ": "),
    ("no blank after a comma, a dot or a slash", r"(\D[,./])\b", r"\1 "),
    ("blanks", r"\s+", " "),
    ("quotes around everything", r"^[\"']([\w\W]+)[\"']$", r"\1"),
    ("leading punctuation", r"^['_,\-:;]", ""),
    ("trailing punctuation", r"['_,\-:+]$", ""),
    ("a single word after a dot", r"^\.\S+$", ""),
]

Rules = Sequence[tuple[re.Pattern[str], str]]


def _compile(table: list[tuple[str, str, str]]) -> Rules:
    return [(re.compile(pattern), replacement) for _, pattern, replacement in table]


_BEFORE_MARKUP_RULES, _AFTER_MARKUP_RULES = _compile(_BEFORE_MARKUP), _compile(_AFTER_MARKUP)
_AFTER_REPAIR_RULES = _compile(_AFTER_REPAIR)


def preprocess(caption: str, use_text_preprocessing: bool = True) -> str:
    """The caption as a text encoder gets it: cleaned twice, or only lowercased and stripped."""
    return clean(clean(caption)) if use_text_preprocessing else caption.lower().strip()


def clean(caption: str) -> str:
    """One pass of the rules."""
    caption = _apply(_BEFORE_MARKUP_RULES, unquote_plus(caption).strip().lower())
    caption = _apply(_AFTER_MARKUP_RULES, _text_of_markup()(caption))
    if len(_JOINERS.findall(caption)) > 3:  # this-is-my-cute-cat
        caption = _JOINERS.sub(" ", caption)
    caption = html.unescape(html.unescape(_repair()(caption))).strip()
    return _apply(_AFTER_REPAIR_RULES, caption).strip()


def _apply(rules: Rules, caption: str) -> str:
    for pattern, replacement in rules:
        caption = pattern.sub(replacement, caption)
    return caption


@functools.cache
def _text_of_markup() -> Callable[[str], str]:
    import warnings

    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    def text_of_markup(caption: str) -> str:
        with warnings.catch_warnings():  # a caption that looks like a file name is still a caption
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
            return BeautifulSoup(caption, "html.parser").text

    return text_of_markup


@functools.cache
def _repair() -> Callable[[str], str]:
    import ftfy

    return ftfy.fix_text
