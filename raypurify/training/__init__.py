"""Training in plain torch, by one process or by data-parallel ones.

``config`` says what is trained, ``batches`` holds images on a device and in a precision; ``objectives`` has what is
done with a batch, ``pairs`` where a purifier's adversarial images come from, ``order`` which images are a batch,
``worker`` the epochs and checkpoints of one process. Nothing is imported here: who reads images by ``order`` loads no
torch.
"""
