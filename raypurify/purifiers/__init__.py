"""Purifiers map images (N, C, H, W) float32 in [0, 1] to images of the same shape and range: one file a purifier.

A plugin file names a callable ``build(**params) -> nn.Module``, and holds the whole network. Where it learns, the
module has ``training_loss(x_adv, x) -> scalar``, and the file ``params_for(image_shape, classes) -> dict``, by which a
training shapes the network to its data. A purifier whose gradient is zero or absent says so with
``differentiable = False``; an adaptive attack then goes around it.
"""
