from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from opensora.chat_client import Answer
from opensora.errors import ConfigError
from tests.support.media_files import write_video
from tests.support.vision_language_models import (
    LLAVA_MARKS,
    teach,
    tiny_internvl,
    tiny_llama,
    tiny_llava,
    tiny_llava_next,
    tiny_qwen2_5_vl,
)
from tools.caption.caption_config import CaptionConfig
from tools.caption.chat_captioner import Request
from tools.caption.transformers_captioner import TransformersCaptioner

PROMPT = "Describe the video."
COLORS = {
    "A red square.": (230, 20, 20),
    "A green square.": (20, 200, 20),
    "A blue square moves to the left.": (20, 20, 230),
}
WORDS = [*COLORS, PROMPT, "user assistant USER: ASSISTANT:\n"]


def plain(color: tuple[int, int, int], frames: int = 4) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(color, np.uint8), (frames, 32, 32, 3)).copy()


def captioner(folder: Path, **arguments: object) -> TransformersCaptioner:
    return TransformersCaptioner(str(folder), **{"device": "cpu", "dtype": "fp32", **arguments})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Qwen2.5-VL that has learned three colors, saved as released models are."""
    folder = tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen"), WORDS)
    student = captioner(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teach(student, {text: plain(color) for text, color in COLORS.items()}, PROMPT, as_video=True)
    student.model.save_pretrained(folder)
    return folder


def test_videos_are_captioned_by_what_they_show(qwen: Path, tmp_path: Path) -> None:
    """mp4s of one color each through decoding, frame choice, processor, batch and greedy decoding."""
    rows = [
        {"path": write_video(tmp_path / f"{number}.mp4", list(plain(color, 12)), pix_fmt="yuv444p")}
        for number, color in enumerate(COLORS.values())
    ]
    model = captioner(
        qwen, prompting={"layout": "video", "frames": 4, "prompt": PROMPT}, max_new_tokens=20, batch_size=2
    )
    assert model.caption(rows) == [Answer(text) for text in COLORS]
    assert model.caption(rows[::-1]) == [Answer(text) for text in list(COLORS)[::-1]]
    assert model.label == f"transformers:{qwen.name}"


def test_answer_that_runs_out_of_tokens(qwen: Path) -> None:
    model = captioner(qwen, max_new_tokens=3)
    (answer,) = model.answer([Request(PROMPT, plain(COLORS["A red square."]), True, 2.0)])
    assert answer == Answer("A red square", finished=False)


def test_times_of_the_frames_reach_the_model(qwen: Path) -> None:
    model = captioner(qwen)
    pictures = plain((0, 0, 0))
    inputs = model._inputs([Request(PROMPT, pictures, True, 4.0), Request(PROMPT, pictures, True, 0.5)])
    assert [float(each) for each in inputs["second_per_grid_ts"]] == [0.5, 4.0]  # a grid is two frames
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 4], [2, 4, 4]]  # no frame is left out


def test_batches_of_pictures_videos_and_words(qwen: Path) -> None:
    """Rows of unequal length are padded on the left, so that each has the answer that it has alone."""
    model = captioner(qwen, max_new_tokens=8, batch_size=3)
    picture = plain(COLORS["A red square."])
    requests = [
        Request(PROMPT, picture[:1]),
        Request("A red"),
        Request(PROMPT, picture, True, 2.0),
        Request("Describe", picture[:3]),
        Request("A green square. A blue square."),
        Request(PROMPT, picture[:2], True, 1.0, system="Describe"),
    ]
    together = model.answer(requests)
    assert together == [model.answer([request])[0] for request in requests]
    assert len({answer.text for answer in together if isinstance(answer, Answer)}) > 1


def test_llava_reads_pictures(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path, WORDS)
    model = captioner(folder, max_new_tokens=6)
    requests = [Request(PROMPT, plain((200, 0, 0), 2)), Request("Describe", plain((0, 0, 200), 1)), Request(PROMPT)]
    answers = model.answer(requests)
    assert answers == [model.answer([request])[0] for request in requests]
    assert all(mark not in answer.text for answer in answers for mark in LLAVA_MARKS if isinstance(answer, Answer))
    with pytest.raises(ConfigError, match=r"has no video input; allowed for it: prompting.layout 'images' or 'grid'"):
        model.answer([Request(PROMPT, plain((0, 0, 0), 2), True)])


MAKERS = {  # config -> the class of its released model, tiny
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "sharegpt4video": tiny_qwen2_5_vl,
    "llava": tiny_llava_next,
    "llava_next_video": partial(tiny_llava_next, video=True),
    "internvl": tiny_internvl,
}


@pytest.mark.parametrize("name", MAKERS)
def test_configs_run_with_the_class_of_their_model(name: str, tmp_path: Path) -> None:
    """A long clip, and one of three frames, whose number of pictures is another."""
    rows = [{"path": write_video(tmp_path / f"{count}.mp4", count, size=(48, 64))} for count in (40, 3)]
    folder = MAKERS[name](tmp_path / "model", WORDS)
    options = f"from_pretrained={folder} device=cpu dtype=fp32 max_new_tokens=3"
    model, _ = CaptionConfig.read(f"configs/caption/{name}.py", options).build()
    together = model.caption(rows)
    assert all(isinstance(answer, Answer) for answer in together)
    assert together == [model.caption([row])[0] for row in rows]


def test_language_model_answers_words_and_reads_no_pictures(tmp_path: Path) -> None:
    model = captioner(tiny_llama(tmp_path, WORDS), max_new_tokens=4)
    requests = [Request(PROMPT), Request("A red square moves to the left.", system="Describe")]
    together = model.answer(requests)
    assert together == [model.answer([request])[0] for request in requests]
    assert isinstance(together[0], Answer)
    with pytest.raises(ConfigError, match=r"reads no pictures; a vision-language model is needed; .* as `refine`"):
        model.answer([Request(PROMPT, plain((0, 0, 0)))])


def test_half_precision(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have the model's precision, and the times of frames their own."""
    model = captioner(qwen, dtype="bf16", max_new_tokens=12)
    kinds: dict[str, torch.dtype] = {}
    generate = model.model.generate

    def recording(**inputs: Any) -> torch.Tensor:
        kinds.update({name: value.dtype for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return generate(**inputs)

    monkeypatch.setattr(model.model, "generate", recording)
    assert model.answer([Request(PROMPT, plain(COLORS["A red square."]), True, 2.0)]) == [Answer("A red square.")]
    assert model.model.dtype == kinds["pixel_values_videos"] == torch.bfloat16
    assert kinds["second_per_grid_ts"] == torch.float32


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"could not be read, in this folder .*correct the path, or fetch the model"):
        captioner(tmp_path)


def test_weights_that_lack_tensors(qwen: Path, tmp_path: Path) -> None:
    for file in qwen.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ConfigError, match=r"lacks 1 of the model's tensors .*down_proj.* fetch the model again"):
        captioner(tmp_path)


def test_model_without_a_chat_template(qwen: Path, tmp_path: Path) -> None:
    for file in qwen.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"has no chat template; .*write chat_template="):
        captioner(tmp_path)
    template = (qwen / "chat_template.jinja").read_text(encoding="utf-8")
    request = Request(PROMPT, plain(COLORS["A green square."]), True, 2.0)
    assert captioner(tmp_path, chat_template=template).answer([request]) == [Answer("A green square.")]


@pytest.mark.parametrize("arguments", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_arguments_that_are_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: from 1; raise it"):
        captioner(tmp_path, **arguments)
