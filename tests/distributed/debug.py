"""The debug run on few clips: with many, half of the time of every test goes into captions that are new each time."""

_base_ = ["../../configs/stdit/train/debug.py"]
dataset = dict(clips=12)
