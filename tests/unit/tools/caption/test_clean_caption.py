import pytest

from opensora.errors import BadClip
from tools.caption.clean_caption import clean_caption, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs on the beach.", "A dog runs on the beach."),
        ("The video shows a dog that runs.", "A dog that runs."),
        ("This short video clip captures a dog that runs.", "A dog that runs."),
        ("The image depicts two men in a car.", "Two men in a car."),
        ("In this video, we can see a red car on a road.", "A red car on a road."),
        ("In the video, a red car stops.", "A red car stops."),
        ("A video of a red car.", "A red car."),
        ("Sure! Here is a description of the video: A red car stops.", "A red car stops."),
        ("Here's the caption: a red car stops.", "A red car stops."),
        ("Caption: A red car stops.", "A red car stops."),
        ('"A red car stops."', "A red car stops."),
        ("assistant\nA red car stops.", "assistant A red car stops."),
        ("<think>What do I see?</think>A red car stops.", "A red car stops."),
        ("A red car stops.</s>", "A red car stops."),
        ("Tom &amp; Ann walk.<|im_end|>", "Tom & Ann walk."),
        ("**Description**\n\nA *red* car **stops** at a `sign`.", "A red car stops at a sign."),
        ("## Scene\n- A red car stops\n- A man gets out.\n\n---", "A red car stops. A man gets out."),
        ("1. A red car stops.\n2. A man gets out.", "A red car stops. A man gets out."),
        ("# A red car stops.", "A red car stops."),
        ("A car at 2.5 m. Mr. Smith waves. He is old.", "A car at 2.5 m. Mr. Smith waves. He is old."),
        ("A car stops. A man gets out. A car stops. The car stops.", "A car stops. A man gets out. The car stops."),
        ("A man, a man, a man, a man walks.", "A man walks."),
        ("A dog and a cat and a dog and a cat and a dog and a cat and a bird.", "A dog and a cat and a bird."),
        ("He shouts go, go, go!", "He shouts go!"),
        ("A very very long road.", "A very very long road."),
        ("A car stops. Overall, the video conveys a sense of calm.", "A car stops."),
        ("A car stops. Let me know if you need more!", "A car stops."),
        ("A man walks. The man turns to the", "A man walks."),
        ("A man walks. He turns left", "A man walks. He turns left"),
        ("a man on a bike", "a man on a bike"),
        ("The video shop closes.", "The video shop closes."),
        ("The film shows.", "The film shows."),
        ('He says "Stop!" Then he runs.', 'He says "Stop!" Then he runs.'),
        ("A cafe\u0301 at night.", "A caf\u00e9 at night."),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean_caption(text) == expected
    assert clean_caption(expected) == expected


def test_last_sentence_that_was_cut_off() -> None:
    text = "A man walks. He turns left and smiles at"
    assert clean_caption(text, finished=False) == "A man walks."
    assert clean_caption("A man walks. He turns left", finished=False) == "A man walks."
    assert clean_caption("A man walks. He turns left.", finished=False) == "A man walks. He turns left."
    with pytest.raises(
        BadClip, match="cut off inside its first sentence: 'A man walks and'; raise the number of new tokens"
    ):
        clean_caption("A man walks and", finished=False)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I cannot see the video.",
        "Sorry, I can't help.",
        "I cannot view videos.",
        "As an AI language model, I cannot watch videos.",
        "I am unable to describe this.",
        "Unfortunately, I do not see a video.",
        "No video was provided.",
        "Please provide the video.",
    ],
)
def test_refusals(text: str) -> None:
    with pytest.raises(BadClip, match=r"the model refused: .*use another model or prompt"):
        clean_caption(text)


@pytest.mark.parametrize("text", ["", "  ", "...", "</s>", "<think>so", "```", "\ufffd"])
def test_nothing_left(text: str) -> None:
    with pytest.raises(BadClip, match="empty after cleaning"):
        clean_caption(text)


def test_model_that_does_not_stop() -> None:
    numbers = [f"There are {number} dogs." for number in range(3000)]
    text = clean_caption(" ".join(numbers))
    assert text.startswith("There are 0 dogs. There are 1 dogs.")
    assert len(text) <= 8000
    assert text.endswith("dogs.")


def test_sentences() -> None:
    assert sentences("One.  Two!\nThree? and more") == ["One.", "Two!", "Three? and more"]
    assert sentences('She says "No." He goes') == ['She says "No."', "He goes"]
    assert sentences("") == []
