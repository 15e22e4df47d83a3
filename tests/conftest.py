"""Fixtures of several folders. That this file is here puts the folder on the path, with its helpers."""

from servers import s3 as s3
from small_networks import small_classifier as small_classifier
from small_networks import small_purifier as small_purifier
