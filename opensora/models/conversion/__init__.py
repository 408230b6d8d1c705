"""Weights of other programs, and of other sizes, for the models here: rules as data, one function that applies them.

`families` lists what each family's names become in each target, `fill` applies such a rule to a freshly built model,
`origin` reads sizes from tensors and from the config beside them, `recipes` knows what a model was trained with.
"""
