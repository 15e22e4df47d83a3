"""Purifiers map images (N, C, H, W) float32 in [0, 1] to images of the same shape and range: one file a purifier.

A plugin file names a callable ``build(**params) -> nn.Module``, and holds the whole network and, where it learns, its
training loss: ``module.training_loss(x_adv, x) -> scalar``, beside ``params_for(image_shape, classes) -> dict``, by which
a training shapes it to its data. A purifier whose gradient is zero or absent says so with
``differentiable = False``; an adaptive attack then goes around it.
"""
