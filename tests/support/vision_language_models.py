"""Tiny vision-language models with real processors, written to a folder the way a downloaded model lies there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

QWEN_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_MARKS = [
    f"<|{name}|>"
    for name in (
        "endoftext",
        "im_start",
        "im_end",
        "vision_start",
        "vision_end",
        "vision_pad",
        "image_pad",
        "video_pad",
    )
]
LLAVA_TEMPLATE = (
    "{% for turn in messages %}{{ turn.role.upper() }}: {% for part in turn.content %}"
    "{% if part.type == 'image' %}IMAGE\n{% elif part.type == 'video' %}<video>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_MOST_STEPS, _LEARNED = 150, 0.02  # updates of a tiny model, and the loss at which it knows its captions
_SQUARE: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
_TILES = [[32, 64], [64, 32], [64, 64]]
LLAVA_MARKS = ["<pad>", "<s>", "</s>", "<image>"]


def word_tokenizer(folder: Path, kind: Any, texts: Sequence[str], marks: Sequence[str], **names: Any) -> Any:
    """A tokenizer with a token for each word of `texts`, each sign, and each of the marks.

    kind: its class in transformers. names: eos_token and so on.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d|\s|[^\sA-Za-z0-9]"), "isolated")
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate([*marks, "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(marks))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return kind(tokenizer_file=str(folder / "tokenizer.json"), unk_token="<unk>", **names)


def tiny_qwen2_5_vl(folder: Path, texts: Sequence[str]) -> Path:
    """A Qwen2.5-VL of two layers whose tokenizer knows the words of `texts`; pictures and videos go in."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessorFast,
        Qwen2VLVideoProcessor,
    )

    tokenizer = word_tokenizer(
        folder, Qwen2TokenizerFast, texts, QWEN_MARKS, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    number = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in QWEN_MARKS}
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorFast(**sizes, **limits),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes, **limits),
        chat_template=QWEN_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False,
            "bos_token_id": None, "eos_token_id": number["<|im_end|>"], "pad_token_id": number["<|endoftext|>"],
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0],
            "window_size": 32, "tokens_per_second": 2,
        },
        image_token_id=number["<|image_pad|>"],
        video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
        vision_token_id=number["<|vision_pad|>"],
    )  # fmt: skip
    return _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor, number["<|im_end|>"])


def _llava_tokenizer(folder: Path, texts: Sequence[str], *marks: str, kind: str = "", **names: Any) -> Any:
    import transformers

    chosen = getattr(transformers, kind or "PreTrainedTokenizerFast")
    marks_of_all = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"}
    return word_tokenizer(folder, chosen, texts, [*LLAVA_MARKS, *marks], **marks_of_all, **names)


def _clip(**more: Any) -> dict[str, Any]:
    """The vision half: pictures of 32 pixels in 16 patches."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | {"image_size": 32, "patch_size": 8} | more


def _language(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "bos_token_id": 1,
    }  # fmt: skip


def tiny_llava(folder: Path, texts: Sequence[str]) -> Path:
    """A LLaVA of two layers with the vision half of a CLIP; pictures go in."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _llava_tokenizer(folder, texts)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(**_SQUARE),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE.replace("IMAGE", "<image>"),
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_clip()),
        text_config=LlamaConfig(**_language(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return _save(folder, LlavaForConditionalGeneration, config, processor, tokenizer.eos_token_id)


def tiny_llava_next(folder: Path, texts: Sequence[str], video: bool = False) -> Path:
    """A LLaVA 1.6, which cuts a picture into tiles; video: a LLaVA-NeXT-Video."""
    import transformers
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextImageProcessor

    name = "LlavaNextVideo" if video else "LlavaNext"
    tokenizer = _llava_tokenizer(folder, texts, *["<video>"] * video, kind="LlamaTokenizerFast" if video else "")
    reads_videos = {"video_processor": transformers.LlavaNextVideoVideoProcessor(**_SQUARE)} if video else {}
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=_TILES, **_SQUARE),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE.replace("IMAGE", "<image>"),
        num_additional_image_tokens=1,
        **reads_videos,
    )
    config = getattr(transformers, f"{name}Config")(
        vision_config=CLIPVisionConfig(**_clip()),
        text_config=LlamaConfig(**_language(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_TILES,
        vision_feature_layer=-1,
        **({"video_token_index": tokenizer.convert_tokens_to_ids("<video>")} if video else {}),
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")
    return _save(folder, model, config, processor, tokenizer.eos_token_id)


def tiny_internvl(folder: Path, texts: Sequence[str]) -> Path:
    """An InternVL of two layers; pictures and videos go in, a video as one picture per frame."""
    from transformers import (
        GotOcr2ImageProcessorFast,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    marks |= {"video_token": "<video>"}
    tokenizer = _llava_tokenizer(folder, texts, *marks.values(), extra_special_tokens=marks)
    square = {"size": {"height": 32, "width": 32}}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessorFast(crop_to_patches=True, min_patches=1, max_patches=4, **square),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**square),
        image_seq_length=4,
        chat_template=LLAVA_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**_clip(image_size=(32, 32), patch_size=(8, 8))),
        text_config=Qwen2Config(**_language(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return _save(folder, InternVLForConditionalGeneration, config, processor, tokenizer.eos_token_id)


def tiny_llama(folder: Path, texts: Sequence[str]) -> Path:
    """A language model of two layers, which reads no pictures."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _llava_tokenizer(folder, texts)
    tokenizer.chat_template = (
        "{% for turn in messages %}{{ turn.role.upper() }}: {{ turn.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    config = LlamaConfig(**_language(tokenizer))
    return _save(folder, LlamaForCausalLM, config, tokenizer, tokenizer.eos_token_id)


def _save(folder: Path, model_class: Any, config: Any, processor: Any, end: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def teach(captioner: Any, examples: Mapping[str, NDArray[np.uint8]], prompt: str, as_video: bool) -> None:
    """Train the captioner's model until it says each caption of [T, H, W, 3] pictures behind the prompt."""
    from tools.caption.chat_captioner import Request

    captions = list(examples)
    requests = [Request(prompt, pictures, as_video, fps=2.0) for pictures in examples.values()]
    inputs = captioner._inputs(requests)
    tokenizer, model = captioner._tokenizer, captioner.model
    tokenizer.padding_side = "right"
    answers = tokenizer([caption + tokenizer.eos_token for caption in captions], padding=True, return_tensors="pt")
    tokenizer.padding_side = "left"
    begin = inputs["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.cat([inputs[name], answers[name]], dim=1)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :begin] = -100
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(_MOST_STEPS):
        loss = model(**inputs, labels=labels).loss
        if loss.item() < _LEARNED:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval().requires_grad_(False)
    assert loss.item() < _LEARNED, f"the tiny model did not learn its captions: loss {loss.item():.3f}"
