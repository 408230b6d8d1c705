"""`clip`: the text encoder of CLIP, pooled to one vector per caption; for DiT and Latte conditioned on text.

Source: Radford et al. 2021, arXiv:2103.00020.
"""

from typing import Any

from torch import Tensor, nn

from opensora.models.text.transformers_encoder import EncoderOutput, PretrainedEncoder, read_config
from opensora.registry import TEXT_ENCODERS
from opensora.types import EncodedText

# hidden_size of published models, so that a config can be checked before a download.
KNOWN_WIDTHS = {
    "openai/clip-vit-base-patch16": 512,
    "openai/clip-vit-base-patch32": 512,
    "openai/clip-vit-large-patch14": 768,
    "openai/clip-vit-large-patch14-336": 768,
}
LONGEST = 77  # tokens of every published CLIP, begin and end included


@TEXT_ENCODERS.register_module(name="clip")
class ClipEncoder(PretrainedEncoder):
    """One token per caption: the state of its end, after the last norm and before CLIP's projection.

    from_pretrained: a folder or hub id of a whole CLIP or its text encoder.
    max_tokens: longer captions are cut.
    """

    length_key = "max_tokens"

    def __init__(self, from_pretrained: str = "openai/clip-vit-base-patch32", max_tokens: int = LONGEST):
        super().__init__(from_pretrained, max_tokens)

    @property
    def model_max_length(self) -> int:
        return 1

    def own_config(self) -> dict[str, Any] | None:
        config = read_config(self.from_pretrained)
        if config is None and self.from_pretrained in KNOWN_WIDTHS:
            return {"hidden_size": KNOWN_WIDTHS[self.from_pretrained], "max_position_embeddings": LONGEST}
        if (
            config is not None and "text_config" in config
        ):  # of a whole CLIP; omitted keys have the values of the first CLIP
            return {"hidden_size": 512, "max_position_embeddings": LONGEST, **config["text_config"]}
        return config

    def read_model(self, **options: object) -> tuple[nn.Module, dict[str, Any]]:
        from transformers import CLIPTextModel

        return CLIPTextModel.from_pretrained(self.from_pretrained, **options)

    def condition(self, output: EncoderOutput, mask_BL: Tensor) -> EncodedText:
        return EncodedText(output.pooler_output[:, None, None], None)
