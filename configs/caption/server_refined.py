"""Captions by a server, rewritten as one clean paragraph in a second pass by the same model.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/server_refined.py \
         --options 'url=http://HOST:8000/v1 refine.url=http://HOST:8000/v1'

Another `refine` is another model: dict(type="transformers", from_pretrained=...) is loaded on this machine.
"""

_base_ = ["server.py"]
refine = dict(
    type="server",
    url="http://127.0.0.1:8000/v1",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    max_tokens=300,
)
refine_prompt = (
    "Rewrite this description of a video as one paragraph of plain English of at most 120 words. Keep the subjects, the order "
    "of the actions, the place, the light and the movement of the camera; add nothing. Remove guesses, moods and remarks "
    "about the video as such. Answer with the paragraph alone.\n{text}"
)
