"""Weights of other programs and sizes for the models here.

`families` holds the renaming rules, `convert_weights` applies one to a freshly built model, `infer_arguments` reads sizes
from tensors and the config.json next to them, `released_configs` holds the settings released models were trained with.
"""
