"""The names of ImageNet's 1,000 classes, in the order in which published classifiers number them.

``imagenet.txt`` has a line for each class: the words of its synset in WordNet 3.0, and the synset's id, which is the
name of its folder in ILSVRC 2012 (Russakovsky et al. 2015).
"""

from __future__ import annotations

import re
from importlib import resources

CLASSES = 1000
SYNSET = re.compile(r"n\d{8}")
"""The id of a class."""


def with_synsets(names: list[str]) -> list[str]:
    """Names of classes; where they are ImageNet's, in its order, all that :func:`class_names` knows of each."""
    known = class_names()
    are_same = len(names) == CLASSES and all(
        name.partition(",")[0].lower() in own.lower().split(", ") for name, own in zip(names, known, strict=True)
    )
    return known if are_same else names


def class_names() -> list[str]:
    """Of each class its names, with commas between: ``tench, Tinca tinca, n01440764``."""
    text = resources.files(__package__).joinpath("imagenet.txt").read_text(encoding="utf-8")
    return text.splitlines()
