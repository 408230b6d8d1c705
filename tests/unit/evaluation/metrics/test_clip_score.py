"""The CLIP score is 100 times the cosine that transformers' CLIPModel gives, over all frames."""

from pathlib import Path

import pytest
import torch

from opensora.errors import ConfigError, DataError
from opensora.evaluation.metrics.clip_score import CLIPScore
from tests.support.clip_models import tiny_clip_model
from tests.support.evaluated_videos import evaluated, noise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip_model(tmp_path_factory.mktemp("clip"))


def test_the_score_is_that_of_transformers(model: str, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    prompts, clips = ("a red ball", "sea"), (noise(0, frames=3), noise(1, frames=1))
    network, processor = CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model, use_fast=False)
    expected = []
    for prompt, frames in zip(prompts, clips, strict=True):
        inputs = processor(text=[prompt], images=frames, return_tensors="pt", padding="max_length", max_length=24)
        with torch.no_grad():
            output = network(**inputs)
        expected.append(100 * (output.image_embeds @ output.text_embeds.T).clamp(min=0).mean().item())
    videos = [evaluated(tmp_path / f"{n}", clips[n], prompt=prompts[n]) for n in range(2)]
    [figure] = CLIPScore(model).measure(videos, [], CPU).figures
    assert figure.per_video == pytest.approx(expected, abs=1e-3)
    assert max(expected) > 1
    assert (figure.name, figure.better, figure.note) == ("clip_score", "higher", model)
    assert figure.value == pytest.approx(sum(expected) / 2, abs=1e-3)


@pytest.mark.parametrize("prompt", [None, "", "  "])
def test_a_video_without_prompt_is_a_sentence(prompt: str | None, tmp_path: Path) -> None:
    video = evaluated(tmp_path / "a", noise(0, frames=1), prompt=prompt)
    with pytest.raises(DataError, match=r"a\.mkv: has no prompt for the CLIP score"):
        CLIPScore("none").measure([video], [], CPU)


def test_a_model_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    video = evaluated(tmp_path / "a", noise(0, frames=1), prompt="sea")
    with pytest.raises(ConfigError, match=r"CLIPScore model .*model: cannot be read"):
        CLIPScore(str(tmp_path / "model")).measure([video], [], CPU)
