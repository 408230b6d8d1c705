"""Text and conditioning frames of the copies of a batch, against the recorded model inputs of Open-Sora 1.3."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.sampling.model_inputs import make_model_inputs
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.types import EncodedText, SampleRequest, VideoConditioning
from tests.parity.golden import Golden, directories


def with_images(golden: Golden) -> list[str]:
    return [name for name, case in golden.config["sample"].items() if "mask_index" in case]


class Frames:
    """Recorded latents of one sample; the frames `numbers` are conditions."""

    conditioning = VideoConditioning()

    def __init__(self, latents_CTHW: Tensor, numbers: list[int]) -> None:
        mask_T = torch.ones(latents_CTHW.shape[1])
        mask_T[numbers] = 0
        self.paste = lambda noise_CTHW, loop: (latents_CTHW, mask_T)


@pytest.mark.parametrize(
    "golden",
    directories(
        lambda golden: any("mask_index" in each for each in golden.config.get("sample", {}).values()),
        what="sampling with conditioning frames",
    ),
)
def test_copies_of_the_batch(golden: Golden) -> None:
    for name in with_images(golden):
        settings, case = golden.config["sample"][name], golden.case(f"sample_{name}")
        y, y_null, z, latents = (case.inputs[key] for key in ("y", "y_null", "z", "z_cond"))
        model: Any = SimpleNamespace(
            conditioned=True,
            size_conditions=("height", "width", "num_frames"),
            null_text=lambda n, null=y_null: null.repeat(n // len(null), 1, 1, 1),
        )
        codec = SimpleNamespace(device=z.device, encode_text=lambda prompts, text=y: EncodedText(text, None))
        size = {"num_frames": settings["num_frames"], "height": settings["h"], "width": settings["w"]}
        requests = [SampleRequest("", "", 0, 0, fps=24.0, seed=0, **size) for _ in z]
        frames: Any = [Frames(each, settings["mask_index"]) for each in latents]
        scheduler = RectifiedFlow(image_cfg_scale=settings["image_cfg_scale"], release="1.3")
        inputs = make_model_inputs(requests, model, scheduler, codec, frames, list(z), 0, settings["cfg_scale"])

        assert torch.equal(inputs.initial_BCTHW, z)
        assert inputs.sampler_kwargs == {"image_guidance_scale": settings["image_cfg_scale"]}
        assert torch.equal(inputs.text.text_B1LC, case.outputs["model_y"])
        # The original repeats y_null more often than there are rows, and reads only the first ones.
        assert torch.equal(inputs.model_kwargs["y_null"], case.outputs["model_y_null"][: 3 * len(z)])
        recorded_mask = torch.cat([case.inputs["z_cond_mask"]] * 3)
        assert torch.equal(inputs.model_kwargs["cond_mask"], recorded_mask)
        assert torch.equal(inputs.model_kwargs["cond"], case.outputs["model_cond"])
        assert inputs.model_kwargs["mask_index"] == [settings["mask_index"]] * 3 * len(z)
        assert {key: set(inputs.model_kwargs[key].tolist()) for key in size} == {
            key: {value} for key, value in size.items()
        }
