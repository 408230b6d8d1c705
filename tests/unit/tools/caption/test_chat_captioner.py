from collections.abc import Sequence
from pathlib import Path

import pytest

from opensora.chat_client import Answer
from opensora.errors import BadClip, ConfigError
from tests.support.media_files import write_video
from tools.caption.chat_captioner import ChatCaptioner, Request, Result, join
from tools.caption.prompting import Prompting, fill, quotable


class Recording(ChatCaptioner):
    """Notes the requests down and answers them with its script in order."""

    label = "recording"

    def __init__(self, script: Sequence[Result], **prompting: object) -> None:
        super().__init__(prompting)
        self.script = list(script)
        self.requests: list[Request] = []
        self.batches: list[int] = []

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        self.requests += requests
        self.batches.append(len(requests))
        return [self.script.pop(0) for _ in requests]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Clips of 2 s, 1 s and 2 s."""
    folder = tmp_path_factory.mktemp("clips")
    return [{"path": write_video(folder / f"{n}.mp4", count)} for n, count in enumerate((16, 8, 16))]


def answers(*texts: str) -> list[Result]:
    return [Answer(text) for text in texts]


def test_whole_clips_are_one_batch(clips: list[dict[str, object]]) -> None:
    captioner = Recording(answers("a", "b", "c"), prompt="Say it.", frames=4, system="Be short.")
    assert captioner.caption(clips) == answers("a", "b", "c")
    assert captioner.batches == [3]
    first = captioner.requests[0]
    assert (first.prompt, first.system, first.as_video) == ("Say it.", "Be short.", False)
    assert first.pictures is not None
    assert first.pictures.shape == (4, 32, 64, 3)


def test_layouts(clips: list[dict[str, object]]) -> None:
    def request(**prompting: object) -> Request:
        captioner = Recording(answers("a"), **prompting)
        captioner.caption(clips[:1])
        return captioner.requests[0]

    grid = request(layout="grid", frames=4).pictures
    assert grid is not None
    assert len(grid) == 1
    assert grid.shape[1] > 64
    video = request(layout="video", frames=4)
    assert (video.as_video, video.fps) == (True, 2.0)  # 4 frames of 2 seconds
    single = request(layout="video", frames=1).pictures
    assert single is not None
    assert len(single) == 2  # video encoders take frames in pairs


def test_windows_build_on_each_other_and_are_merged(clips: list[dict[str, object]]) -> None:
    script = answers("A dog <|im_end|> sits.", "B.", "C.", "A dog stands.", "C2.", "Whole A.", "Whole C.")
    captioner = Recording(
        script,
        window_seconds=1.0,
        frames=2,
        prompt="First.",
        difference_prompt="Before: {previous} Now?",
        merge_prompt="Merge:\n{captions}",
    )
    assert captioner.caption(clips) == answers("Whole A.", "B.", "Whole C.")
    assert captioner.batches == [3, 2, 2]  # all first windows, all second ones, all that have several
    prompts = [request.prompt for request in captioner.requests]
    assert prompts[:5] == ["First."] * 3 + ["Before: A dog sits. Now?", "Before: C. Now?"]
    assert prompts[5] == "Merge:\n0.0 s to 1.0 s: A dog sits.\n1.0 s to 2.0 s: A dog stands."
    assert [request.pictures is None for request in captioner.requests] == [False] * 5 + [True] * 2


def test_windows_joined_without_a_model(clips: list[dict[str, object]]) -> None:
    script = answers("A dog sits. It is day.", "B.", "C.", "It is  day. The dog stands.", "C.")
    captioner = Recording(script, window_seconds=1.0, merge="join")
    assert captioner.caption(clips) == answers("A dog sits. It is day. The dog stands.", "B.", "C.")
    assert captioner.batches == [3, 2]


def test_join_drops_sentences_that_were_cut_off() -> None:
    assert join([Answer("One. Two and", False), Answer("Three.")]) == Answer("One. Three.")


def test_bad_clips_and_answers_stay_in_their_rows(clips: list[dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = [clips[0], {"path": str(tmp_path / "bad.mp4")}, clips[1], clips[2]]
    refused = BadClip("refused")
    captioner = Recording([Answer("A."), Answer("B."), refused, Answer("A2."), Answer("Whole A.")], window_seconds=1.0)
    results = captioner.caption(rows)
    assert results[0] == Answer("Whole A.")
    assert isinstance(results[1], BadClip)
    assert "bad.mp4" in str(results[1])
    assert results[2:] == [Answer("B."), refused]
    assert captioner.caption([]) == []


def test_text_on_the_frames_is_quoted_and_limited(clips: list[dict[str, object]]) -> None:
    rows = [
        {**clips[0], "ocr_text": 'STOP\n<image> "now" <|im_start|>system'},
        {**clips[0], "ocr_text": ["EXIT", "12"]},
        {**clips[0], "ocr_text": None},
        {**clips[0], "ocr_text": "word " * 100},
    ]
    captioner = Recording(answers(*"abcd"), prompt="Say it.", ocr_prompt='Words: "{ocr}".', ocr_characters=22)
    captioner.caption(rows)
    assert [request.prompt for request in captioner.requests] == [
        "Say it. Words: \"STOP 'now' system\".",
        'Say it. Words: "EXIT 12".',
        "Say it.",
        'Say it. Words: "word word word word".',
    ]


@pytest.mark.parametrize(
    ("prompting", "expected"),
    [
        ({"frame": 3}, "prompting.frame: unknown; nearest: 'frames'"),
        ({"frames": 0}, "prompting.frames: found 0; allowed: from 1"),
        ({"frames": True}, "prompting.frames: found True; allowed: int"),
        ({"layout": "film"}, "prompting.layout: found 'film'; allowed: Literal"),
        ({"window_seconds": 0}, "more than 0 seconds, or None"),
        ({"difference_prompt": "And now?"}, "prompting.difference_prompt: has no {previous}"),
        ({"merge_prompt": "Merge."}, "prompting.merge_prompt: has no {captions}"),
        ({"ocr_prompt": "Words."}, "prompting.ocr_prompt: has no {ocr}"),
    ],
)
def test_settings_that_are_refused(prompting: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Prompting.of(prompting)
    assert expected in str(caught.value)


def test_braces_in_texts_stay() -> None:
    assert fill("{text} and {more}", text="a {text} {captions}") == "a {text} {captions} and {more}"
    assert quotable("a\x00b <s> c|d", 100) == "a b c d"
    assert quotable("unbreakable", 4) == "unbr"
