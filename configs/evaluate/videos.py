"""Videos of any model next to clips that it was trained on: motion, flicker, and another folder on the side where there is one.

Run:    opensora evaluate configs/evaluate/videos.py videos=FOLDER references=train.csv
        opensora evaluate configs/evaluate/videos.py videos=FOLDER references=train.csv compare=FOLDER2
Expect: a flow_ratio near 1 where videos move as the clips do; outputs/evaluation/report.html
"""

videos = "outputs/samples"
references = "train.csv"  # a manifest, or a folder of videos
metrics = dict(motion=dict(type="Motion"), flicker=dict(type="Flicker"))
# With weights on disk:
# clip=dict(type="CLIPScore", model="openai/clip-vit-large-patch14")
# fvd=dict(type="FrechetDistance", extractor=dict(type="I3D", path="i3d_torchscript.pt"))
# trunk=dict(type="FrechetDistance", extractor=dict(type="TrunkFeatures", weights="alex_shift_tolerant.pth"))
report_dir = "outputs/evaluation"
