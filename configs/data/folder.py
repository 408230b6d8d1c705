"""A folder of videos -> a training manifest: clips of single shots, scored, without duplicates, with captions.

Run: python -m tools.pipeline configs/data/folder.py videos=FOLDER out=outputs/data
"""

videos = "videos"
out = "outputs/data"
steps = [
    dict(tool="datasets.probe", inputs="{videos}", output="videos.csv"),
    dict(tool="scene_cut.detect", output="scenes.csv"),
    dict(tool="scene_cut.cut", output="clips.csv", folder="{out}/clips", min_seconds=1.0, max_seconds=16.0),
    dict(tool="score.motion", output="motion.csv"),
    dict(tool="score.camera", output="camera.csv"),
    dict(tool="score.technical", output="technical.csv"),
    dict(tool="dedupe.fingerprint", output="fingerprints.csv"),
    dict(tool="dedupe.find", output="unique.csv", drop=True),
    # The measures in words. A model knows what is in the picture: captioner="configs/caption/qwen2_5_vl.py"
    dict(tool="caption.caption", output="captions.csv", captioner="template"),
    dict(tool="datasets.filter", output="train.csv", keep=["black_frames < 0.5"]),
    dict(tool="datasets.validate", output="problems.jsonl", decode=True),
]
