"""What a training was asked for: its settings, and its data by class."""

from __future__ import annotations

from raypurify import plugins
from raypurify.report import attempts, formats
from raypurify.report.sections import Page, Section
from raypurify.storage.published import redacted

OF_PAIRS = ("attacks", "clean_share")
"""Settings of adversarial images, which change nothing of a training on clean ones."""

FEW_CLASSES = 40
"""Classes that the page shows without being asked."""


def section(page: Page) -> Section | None:
    """The settings that are given, and a row for each class: folded where they are many."""
    if page.trained is None:
        return None
    identity = redacted(page.run.get("identity") or {})
    on_clean_images = identity.get("classifier") is None and "train_against" not in identity
    left_out = ("dataset", *(OF_PAIRS if on_clean_images else ()))
    given = {
        name: value
        for name, value in identity.items()
        if value is not None and name not in left_out and not name.endswith("_sha256")
    }
    asked = {name: plugins.readable(value) for name, value in attempts.flat(given).items()}
    size = page.trained.metrics.get("parameters")
    return page.section(
        "settings",
        "What was trained",
        asked={"parameters": formats.integer(size), **asked},
        classes=page.trained.classes.to_pylist(),
        folded=len(page.trained.classes) > FEW_CLASSES,
    )
