"""Purifiers map images (N, C, H, W) float32 in [0, 1] to images of the same shape and range: one file a purifier.

Certificates, and trainings against noise that is not clipped, send pixels beyond [0, 1] through them too.

A plugin file names a callable ``build(**params) -> nn.Module``, and holds the whole network. Where it learns, the
module has ``training_loss(x_adv, x) -> scalar``, or the file an ``objective`` (see
:mod:`raypurify.training.objectives`); and the file ``params_for(image_shape, classes) -> dict``, by which a training
shapes the network to its data. What an attacker or a reader has to know, the module says:

- ``differentiable = False``: its gradient is zero or absent; the attack goes around it.
- ``random = True``: it draws at random; ``forward(x, seeds)`` takes one seed for each image.
- ``cuda_graphs = False``: its output follows from more than its input, weights and buffers; trainings on a GPU call it
  in each pass.
- ``trivial = True``: it learned nothing; what a learned one must beat.
- ``universal = True``: its training asks no classifier, so that it is any classifier's own.
- ``detect(x) -> (N,) bool``: which images it takes for attacked; ``detect(x, seeds)`` where it draws at random.
- ``suspicion(x) -> (N,)``: with a gradient, above 0 where it takes an image for attacked; an attacker who knows the
  purifier keeps it below.
- ``asks_classifier = True``: ``detect`` and ``suspicion`` take ``classifier``, the network behind it, by that name too.
- ``restored_and_loss(x_adv, x) -> (restored, loss)``: its output and its ``training_loss`` by one pass, for a training
  that weighs the labels behind it too; absent: two passes.
- ``unclipped(x)``: its output before a last clip to [0, 1], which lets no gradient pass outside.

The file may also name ``INFERENCE``: parameters that change no weight, and may be given beside a checkpoint.

And, for images that are purified in tiles:

- ``multiple``: the sides of what it takes are multiples of it; absent: 1.
- ``grid``: a tile may begin at multiples of it; absent: of ``multiple``.
- ``reach``: pixels. Nothing further away changes a pixel of its output; absent: unknown.

:func:`raypurify.attacks.purify` calls them.
"""
