"""What a cleaning computes: its identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raypurify import images
from raypurify.runs import fields
from raypurify.training import Precision

Format = Literal["png", "jpeg", "webp", "bmp", "tiff"]


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What is cleaned, by what, and what is written."""

    input: str
    """Folder, file, glob or list of images; Parquet or WebDataset tars of them: a path or a URL."""
    purifier: str
    """Checkpoint, or NAME[,KEY=VALUE...], or my_package.module:callable."""
    classifier: str | None = None
    """Labels each image before and after, where it takes images of that shape."""
    shards: Literal["mirror", "parquet", "webdataset"] = "mirror"
    """mirror: an image for each image, a Parquet file or tar for each run of one, under their own names. parquet,
    webdataset: a shard for each unit, images only."""
    format: Format = "png"
    quality: int = 90
    """Of JPEG and WebP: 1 to 100."""
    keep_exif: bool = False
    """Keep EXIF, which may hold places and names. The ICC profile is always kept."""
    max_pixels: int = images.MAX_PIXELS
    """Images of more pixels (height times width) are rejected."""
    limit: int | None = None
    """The first files (or runs of rows) only."""
    precision: Precision = "float32"
    """Of the networks' arithmetic; float32 without TF32."""
    seed: int = 0
    """Of purifiers that draw at random."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in [1, 100]; got {self.quality!r}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1; got {self.max_pixels!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1; got {self.limit!r}")
