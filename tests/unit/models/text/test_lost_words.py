"""The words of captions that a text encoder does not get."""

import pytest

from opensora.models.text.hugging_face import HuggingFaceEncoder
from opensora.models.text.lost_words import Cut, cleaner, share_left
from opensora.models.text.t5 import T5Encoder
from tests.support.text_models import tiny_bert, tiny_t5

T5 = {"type": "t5", "from_pretrained": "google/t5-v1_1-small"}


def test_encoders_that_remove_words() -> None:
    assert cleaner({"type": "hf", "from_pretrained": "x"}) is None
    assert cleaner({"type": "classes", "num_classes": 3}) is None
    assert cleaner({**T5, "use_text_preprocessing": False}) is None


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("一只猫在草地上奔跑", 0.0),
        ("一只猫，在草地上。", 0.0),
        ("IMG_1234.mp4", 0.0),
        ("@someone #123", 0.0),
        ("城市 aesthetic score: 6.5. motion score: 3.0. camera motion: pan left.", 0.0),
        ("城市的夜晚 a dog", 4 / 9),
        ("A dog runs", 1.0),
        ("!!!", 1.0),
        ("\U0001f431", 1.0),
    ],
)
def test_share_that_cleaning_leaves(caption: str, share: float) -> None:
    clean = cleaner(T5)
    assert clean is not None
    assert share_left(caption, clean(caption)) == pytest.approx(share)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceEncoder | T5Encoder]:
    bert, t5 = tiny_bert(tmp_path_factory.mktemp("bert")), tiny_t5(tmp_path_factory.mktemp("t5"))
    return {"hf": HuggingFaceEncoder(str(bert), 6).load(), "t5": T5Encoder(str(t5), 6).load()}


@pytest.mark.parametrize("kind", ["hf", "t5"])
def test_words_beyond_the_length(kind: str, encoders: dict[str, HuggingFaceEncoder | T5Encoder]) -> None:
    encoder = encoders[kind]
    fits = "a red" if kind == "t5" else "a red circle moves"
    cut = encoder.cut(f"{fits} over the blue lake")
    assert encoder.cut(fits) is None
    assert isinstance(cut, Cut)
    assert (cut.limit, cut.words[-4:]) == (6, "lake")
    assert cut.tokens > 6
    assert cut.words.startswith("over") or kind == "t5"
    if kind == "t5":  # whose pieces of words do not add up to the same ones
        return
    kept = encoder.prepare(f"{fits} over the blue lake").removesuffix(cut.words)
    same = encoder.encode([kept.strip(), f"{fits} over the blue lake"]).text_B1LC
    assert same[0].equal(same[1])
