"""Captions by an OpenAI-compatible server, such as vLLM with a vision-language model on another machine.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/server.py \
         --options 'url=http://HOST:8000/v1 model=NAME'

A key is read from the environment variable OPENAI_API_KEY. For the cost, price=(DOLLARS,DOLLARS) names the price of a
million tokens of prompts and of answers.
"""

captioner = dict(
    type="server",
    url="http://127.0.0.1:8000/v1",
    model="Qwen/Qwen2.5-VL-7B-Instruct",
    parallel=8,
    requests_per_minute=None,
    max_tokens=300,
    prompting=dict(layout="images", frames=8, max_side=448),
)
