"""Clean what a model writes: openers, markdown, repetitions, a last sentence that was cut off, refusals."""

import html
import re
import unicodedata

from opensora.errors import BadClip

_LONGEST = 8000  # characters that are read
_LOOP_WORDS, _LOOP_TIMES = 8, 3  # a loop is up to 8 words, three times or more
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[^|<>]{0,40}\|>|</?s>|<(?:image|video|pad|unk|bos|eos)>|\[/?INST\]", re.IGNORECASE)
_TURN = re.compile(
    r"^\s*(?:assistant|caption|description|answer|video caption|video description)\s*[:：]\s*", re.IGNORECASE
)
_MARKDOWN = [  # (pattern, replacement), line by line
    (re.compile(r"^\s*```.*$"), ""),
    (re.compile(r"^\s*(?:[-*_]\s*){3,}$"), ""),  # a ruler
    (re.compile(r"^\s*#{1,6}\s+"), ""),
    (re.compile(r"^\s*>\s?"), ""),
    (re.compile(r"!?\[([^\[\]]{0,200})\]\([^()]{0,500}\)"), r"\1"),  # links
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])[*](?=\S)([^*]+?)(?<=\S)[*](?![\w*])"), r"\1"),
    (re.compile(r"`([^`]*)`"), r"\1"),
]
_HEADING = re.compile(r"^\s*(?:#{1,6}\s.*|\*\*[^*]{1,60}\*\*\s*:?|\*\*[^*]{1,60}:\*\*)\s*$")
_ENTRY = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s+")
_MEDIUM = r"(?:video|clip|footage|scene|image|picture|photo|photograph|frame|shot|sequence|film)s?"
_SHOWS = (
    r"(?:shows?|depicts?|features?|captures?|presents?|displays?|portrays?|showcases?|illustrates?|contains?|"
    r"appears to (?:show|depict|be)|begins with|starts with|opens with|opens on)"
)
_OPENERS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^(?:sure|certainly|of course|okay|ok)[!,.:]\s+(?:here(?:'s| is| are)[^:.]{0,80}[:.]\s*)?",
        r"^here(?:'s| is| are) (?:a|an|the|your|one)\b[^:]{0,80}:\s*",
        rf"^(?:in|throughout|across) (?:this|the|these)(?: (?:provided|given|short|brief))* {_MEDIUM}(?: provided)?,\s*"
        r"(?:(?:we|you) (?:can )?see\s+)?",
        r"^(?:the|this|these)(?: (?:provided|given|short|brief|whole|entire|first|following|silent))*"
        rf"(?: {_MEDIUM}){{1,2}} {_SHOWS}\s+(?:us\s+)?(?:that\s+)?",
        r"^(?:a|an|the|this)(?: short| brief)? (?:video|clip|footage|video clip) (?:of|showing|that shows|in which)\s+",
        r"^(?:we|you|one|the viewer)(?: can)? sees?\s+",
    )
]
_REMARKS = re.compile(  # sentences about the answer, or about the feeling that a video leaves
    r"^(?:overall|in (?:summary|conclusion|short)|to (?:summarize|sum up)),?\s+(?:the |this )?(?:overall )?"
    rf"(?:{_MEDIUM}|atmosphere|mood|composition|it)\b|"
    r"^(?:let me know|i hope|feel free|note:|please note|if you (?:need|have|want|would))",
    re.IGNORECASE,
)
_REFUSALS = re.compile(
    r"^(?:(?:i'm |i am )?(?:very )?sorry\b|i apologi[sz]e|unfortunately,? i|(?:i am|i'm) (?:not able|unable)|"
    r"i (?:can't|cannot|can not|could not|couldn't|won't|will not) (?:assist|help|provide|see|view|watch|describe|"
    r"identify|access|process|comply|determine)|as an? (?:ai|language model|artificial)|i do(?:n't| not) (?:see|have)\b|"
    r"no (?:video|image|frames?) (?:was|were|is|are)\b|please (?:provide|upload|share) )",
    re.IGNORECASE,
)
_END = re.compile(r"""(?<=[.!?…])["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9À-Þ])""")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sgt|Lt|No|vs|etc|e\.g|i\.e|approx|Jr|Sr|[A-Z]))\.$")
# a text that ends so was cut off
_DANGLING = re.compile(
    r"(?:[,;:(-]|\b(?:a|an|the|and|or|of|in|on|at|to|with|for|from|by|as|is|are|was|were|its|his|her|their|that|which|while))\s*$",
    re.IGNORECASE,
)
_ENDED = re.compile(r"""[.!?…]["'”’)\]]*$""")


def clean_caption(text: str, finished: bool = True) -> str:
    """The caption in one paragraph.

    finished: False if the writer ran out of tokens: the last sentence is removed unless it has an end. Of other texts it is
    removed where it ends in a word like "the". Raises BadClip for a refusal, and for a text of which nothing is left.
    """
    text = _THINKING.sub(" ", html.unescape(text))
    if len(text) > _LONGEST:  # of a model that does not stop
        text, finished = text[:_LONGEST], False
    text = unicodedata.normalize("NFC", _SPECIAL.sub(" ", text).replace("\ufffd", ""))
    text = _plain(text).strip().strip('"“”').strip()
    text = _TURN.sub("", text)
    if _REFUSALS.match(text.replace("’", "'")):
        raise BadClip(f"the model refused: {text[:120]!r}; use another model or prompt, or caption this clip by hand")
    text = _without_openers(text)
    parts = sentences(text)
    if parts and not _ENDED.search(parts[-1]) and (not finished or _DANGLING.search(parts[-1])):
        if len(parts) > 1:
            parts = parts[:-1]
        elif not finished:
            raise BadClip(
                f"the caption was cut off inside its first sentence: {text[-60:]!r}; raise the number of new tokens"
            )
    kept = _without_repeats([part for part in parts if not _REMARKS.match(part)])
    if not re.search(r"\w", " ".join(kept)):
        raise BadClip("the caption is empty after cleaning; use another model or prompt, or --no-clean")
    return " ".join(kept)


def sentences(text: str) -> list[str]:
    """The sentences of a text without its line breaks; one that lacks its end comes last."""
    text = " ".join(text.split())
    parts: list[str] = []
    begin = 0
    for match in _END.finditer(text):
        part = text[begin : match.end()].strip()
        if not _ABBREVIATION.search(part[-8:]):
            parts.append(part)
            begin = match.end()
    rest = text[begin:].strip()
    return [*parts, rest] if rest else parts


def _plain(text: str) -> str:
    """The text without markdown, in one line; entries of a list become sentences, headings above other text go."""
    written = [line for line in text.splitlines() if line.strip()]
    body = [line for line in written if not _HEADING.match(line)] or written
    lines = []
    for line in body:
        entry = _ENTRY.match(line)
        plain = line[entry.end() :] if entry else line
        for pattern, replacement in _MARKDOWN:
            plain = pattern.sub(replacement, plain)
        plain = plain.strip()
        if plain:
            lines.append(f"{plain}." if entry and plain[-1] not in ".!?:;," else plain)
    return " ".join(lines)


def _without_openers(text: str) -> str:
    """The text without "The video shows" and the like, with a capital letter again."""
    for _ in range(3):
        for pattern in _OPENERS:
            rest = pattern.sub("", text, count=1)
            if rest != text and len(rest.split()) >= 2:
                text = rest[:1].upper() + rest[1:]
                break
        else:
            break
    return text


def _without_repeats(parts: list[str]) -> list[str]:
    """Each sentence once, and no loops of words inside one."""
    kept: dict[str, str] = {}
    for part in parts:
        part = _without_loops(part)
        kept.setdefault(re.sub(r"\W+", " ", part).strip().lower(), part)
    return [part for key, part in kept.items() if key]


def _without_loops(sentence: str) -> str:
    """The sentence with words that come again and again once: "a man, a man, a man walks" -> "a man walks"."""
    words = sentence.split()
    keys = [word.strip(".,;:!?\"'()").lower() for word in words]
    kept: list[str] = []
    at = 0
    while at < len(words):
        for count in range(1, _LOOP_WORDS + 1):
            loop, times = keys[at : at + count], 1
            while any(loop) and keys[at + times * count : at + (times + 1) * count] == loop:
                times += 1
            if times >= _LOOP_TIMES:
                # The last word is that of the last time: what follows fits its comma or period.
                kept += [*words[at : at + count - 1], words[at + times * count - 1]]
                at += times * count
                break
        else:
            kept.append(words[at])
            at += 1
    return " ".join(kept)
