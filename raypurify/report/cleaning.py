"""The page at the end of a cleaning: what became of the images, how fast, and which changed most."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raypurify import storage
from raypurify.report import attempts, figures, formats, templates, throughput
from raypurify.storage.published import redacted

if TYPE_CHECKING:
    from raypurify.cleaning.accounts import Totals

REASONS_SHOWN = 25
SHOWN_SIDE = 200  # CSS pixels that an image is at most shown with, about
ENDS = ("started", "ended")
COUNTED = {
    "in": "Images in",
    "out": "Out",
    "rejected": "Rejected",
    "images_per_second": "Images/s",
    "requests": "Requests",
    "retries": "Retries",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One of the most changed images."""

    id: str
    width: int
    height: int
    psnr: float
    ssim: float | None
    levels: int
    """The largest change of a pixel, of 255."""
    notes: tuple[str, ...]
    labels: tuple[int, int] | None
    """The classifier's labels before and after."""
    before: str | None
    """Data URI; None, like ``after``, where no picture was kept."""
    after: str | None

    @property
    def fine(self) -> bool:
        """Whether it has more pixels than it is shown with, so that a browser had better blend them."""
        return max(self.width, self.height) > SHOWN_SIDE


def write_cleaning_report(output: str, totals: Totals, pictures: Sequence[Mapping[str, Any]]) -> None:
    """Write ``report.html`` into a cleaning's output folder.

    Args:
        output: URL of the folder; ``run.json`` is read from it.
        totals: what became of the images.
        pictures: rows of ``schema.CHANGES``, those of ``totals.most_changed`` among them.

    Raises:
        FileNotFoundError: there is no ``run.json``.
    """
    run = storage.read_json(storage.join(output, "run.json"))
    page = cleaning_page(run, totals, pictures)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())


def cleaning_page(run: Mapping[str, Any], totals: Totals, pictures: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML: it asks nothing of the network, and runs no script.

    Args:
        run: ``run.json``.
        totals: what became of the images.
        pictures: rows of ``schema.CHANGES``. Of others than ``totals.most_changed`` nothing is shown.
    """
    run = formats.visible(run)
    identity = redacted(run["identity"])
    speed = throughput.read(run)
    rate = None if speed.rate is None else formats.three_digits(speed.rate)
    return templates.render(
        "cleaning.html.j2",
        "cleaning.css",
        title=_headline(totals, speed, rate),
        totals=totals,
        left_alone=formats.visible(totals.left_alone),
        input=identity.get("input"),
        purifier=identity.get("purifier"),
        classifier=identity.get("classifier"),
        times=_times(run),
        limit=identity.get("limit"),
        shards=identity.get("shards"),
        sums={name: _sum(run, name) for name in ("bytes_in", "bytes_out", "requests", "retries")},
        speed=speed,
        rate=rate,
        chart=figures.throughput(speed.spans, mean=speed.rate, name="throughput") if speed.drawn else None,
        warnings=attempts.warnings(run),
        reasons=_reasons(totals),
        changes=changes(totals, pictures),
        asked=attempts.flat({k: v for k, v in identity.items() if v is not None and not k.endswith("_sha256")}),
        run=attempts.shown(run, COUNTED),
    )


def _headline(totals: Totals, speed: throughput.Throughput, rate: str | None) -> str:
    if totals.n == 0:
        return "There were no images to clean"
    parts = [
        f"{formats.integer(totals.cleaned)}~{'image' if totals.cleaned == 1 else 'images'} cleaned",
        f"{formats.integer(totals.rejected) if totals.rejected else 'none'}~rejected",
    ]
    if speed.seconds > 0 and not speed.cut_off:  # of an attempt that was cut off, nobody knows how long it worked
        parts.append(f"in {formats.duration(speed.seconds)}".replace(" ", "~"))
    if rate:
        parts.append(f"at~{rate}~images/s")
    return ", ".join(parts).replace("~", formats.NO_BREAK)


def _times(run: Mapping[str, Any]) -> str:
    """The first start and the last end that are known."""
    known = [time for attempt in run["attempts"] for name in ENDS if (time := attempts.time_of(attempt.get(name)))]
    if not known:
        return ""
    first, last = min(known), max(known)
    day = "" if first.date() == last.date() else "%Y-%m-%d "
    return f"{first:%Y-%m-%d %H:%M} to {last:{day}%H:%M} UTC"


def _reasons(totals: Totals) -> list[tuple[str, int]]:
    """Reasons and how often, the most frequent first; rare ones are added up where there are many."""
    known = sorted(totals.reasons.items(), key=lambda item: (-item[1], item[0]))
    shown, others = known[:REASONS_SHOWN], known[REASONS_SHOWN:]
    reasons = [(str(redacted(formats.visible(reason))), count) for reason, count in shown]
    if others:
        reasons.append((f"{formats.integer(len(others))} other reasons", sum(count for _, count in others)))
    return reasons


def changes(totals: Totals, pictures: Sequence[Mapping[str, Any]]) -> list[Change]:
    """The most changed images that did change."""
    kept = {picture["id"]: picture for picture in pictures}
    return [_change(row, kept.get(row["id"])) for row in totals.most_changed if row["linf"] > 0]


def _change(row: Mapping[str, Any], picture: Mapping[str, Any] | None) -> Change:
    labels = row["pred_input"], row["pred_cleaned"]
    return Change(
        id=redacted(formats.visible(row["id"])),
        width=row["width"],
        height=row["height"],
        psnr=row["psnr"],
        ssim=row["ssim"],
        levels=round(255 * row["linf"]),
        notes=tuple(formats.visible(row["notes"])),
        labels=None if None in labels else labels,
        before=_data_uri(picture["input"]) if picture else None,
        after=_data_uri(picture["cleaned"]) if picture else None,
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _sum(run: Mapping[str, Any], name: str) -> float | None:
    """A count over all attempts; None where none has it."""
    known = [attempt["counts"][name] for attempt in run["attempts"] if name in attempt["counts"]]
    return sum(known) if known else None
