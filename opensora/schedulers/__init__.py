"""The mathematics of noise: what a model is trained on and how a sample is drawn from it.

Every scheduler registered in SCHEDULERS has `training_loss`, `sample`, `text_order` and `cfg_scale`, and knows a model
only as a callable, `denoise(x_BCTHW, t_B, x_mask=None)`; the text is bound to it outside, in the order `text_order`
says. `masked_sampling` says whether `sample` takes frame masks.
"""
