"""Training in plain torch, by one process or by data-parallel ones.

``config`` says what is trained, ``batches`` holds images on a device and in a precision (the names of both can be
imported from here); ``objectives`` has what is done with a batch, ``pairs`` where a purifier's adversarial images come
from, ``order`` which images are a batch, ``worker`` the epochs and checkpoints of one process.
"""

from raypurify.training.batches import Augmentation, Batch, augment, batch_of
from raypurify.training.config import (
    ATTACKS,
    CLEAN_SHARE,
    DIGIT_ATTACKS,
    PHOTOGRAPH_ATTACKS,
    TrainingConfig,
    precision_of,
)
