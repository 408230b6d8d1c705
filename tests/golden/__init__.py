"""Recorded numbers of this project's own runs; they stay equal while the code is rearranged.

*_debug.txt       losses and gradient norms of ten steps of the debug configs
runs/NAME.py      tiny configs; NAME.tar.xz is a run folder that an earlier version wrote, NAME.txt the steps after it
"""
