"""Charts as inline SVG whose colours are the page's CSS variables, so that they follow its light and dark modes."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from raypurify.plugins import shown
from raypurify.report import templates
from raypurify.report.formats import duration, three_digits
from raypurify.report.throughput import Span

if TYPE_CHECKING:
    # It is imported where a chart is drawn: a worker draws none, and starts sooner without.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1200  # of a long curve, at most about
WIDTH = 4.2  # inches: about a phone's width in CSS pixels, so that letters keep their size there
WIDE = 8.0  # of a chart over time, which a phone scrolls
NAMED_PAUSES = 10  # more have no room for their lengths

# matplotlib draws with these stand-ins; the page's variables replace them in the SVG.
_VARIABLES = {
    "text": "#010101",
    "muted": "#010102",
    "rule": "#010103",
    "attacked": "#010104",
    "purified": "#010105",
    "adaptive": "#010106",
    "adaptive-soft": "#010107",
    "page": "#010108",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raypurify",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "hatch.linewidth": 1.1,
    "text.color": _VARIABLES["text"],
    "axes.edgecolor": _VARIABLES["rule"],
    "axes.labelcolor": _VARIABLES["muted"],
    "axes.facecolor": "none",
    "xtick.color": _VARIABLES["muted"],
    "ytick.color": _VARIABLES["muted"],
    "grid.color": _VARIABLES["rule"],
    "grid.linewidth": 0.6,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    **{f"{axis}tick.{kind}.size": 0 for axis in "xy" for kind in ("major", "minor")},
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a name with two dollar signs is a name
}
_SHARES = [0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"]
"""Ticks of an axis of shares, and their labels."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One attack: shares in [0, 1]. ``purified`` or ``adaptive`` is None where it was not run."""

    attack: str
    detail: str
    clean: float
    adversarial: float | None
    purified: float | None
    adaptive: float | None


def accuracy_bars(bars: Sequence[Bar], *, name: str) -> str:
    """Accuracy under each attack: no defense, purified, adaptive; a line at the clean one (the paper's Figs. 8-11).

    Returns:
        An ``<svg>`` element. ``name`` is a prefix for its ids, which are unique in the page if the name is.
    """
    with _drawing(WIDTH, 0.4 + 0.72 * len(bars)) as axes:
        for position, bar in enumerate(bars):
            _draw_bar(axes, position, bar)
        axes.set_xlim(0, 1.0)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xticks(*_SHARES)
        axes.set_yticks(range(len(bars)), labels=[f"{bar.attack}\n{bar.detail}".rstrip() for bar in bars])
        for label in axes.get_yticklabels():
            label.set_color(_VARIABLES["text"])
        axes.tick_params(pad=6)
        axes.grid(axis="x")
        axes.grid(False, axis="y")
        return _svg(axes, name=name)


def _draw_bar(axes: Axes, position: int, bar: Bar) -> None:
    kinds = (("attacked", bar.adversarial), ("purified", bar.purified), ("adaptive", bar.adaptive))
    for offset, (kind, share) in zip((-0.26, 0.0, 0.26), kinds, strict=True):
        colour = _VARIABLES[kind]
        hatched = kind == "adaptive"
        if share is not None:
            axes.barh(
                position + offset,
                share,
                height=0.22,
                facecolor=_VARIABLES["adaptive-soft"] if hatched else colour,
                edgecolor=colour,
                linewidth=0.8 if hatched else 0,
                hatch="/////" if hatched else None,
            )
        # Figures stand in a column of their own, where no bar or line crosses them.
        text = "not run" if share is None else f"{100 * share:.1f}%"
        place = axes.get_yaxis_transform()
        colour = _VARIABLES["muted" if share is None else "text"]
        axes.text(1.17, position + offset, text, transform=place, ha="right", va="center", fontsize=8.0, color=colour)
    axes.vlines(bar.clean, position - 0.42, position + 0.42, colors=_VARIABLES["text"], linestyles=(0, (3, 2)), lw=1.1)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Shares in [0, 1] at one radius; None where a cell was not run."""

    eps: float
    adversarial: float | None
    purified: float | None
    adaptive: float | None


# Kind of line: the word at its end, its dashes, its marker.
_LINES: dict[str, tuple[str, Any, str]] = {
    "adversarial": ("no defense", "solid", "o"),
    "purified": ("purified", "solid", "s"),
    "adaptive": ("adaptive", (0, (3.5, 2)), "^"),
}


def security_curve(points: Sequence[Point], *, norm: str, name: str) -> str:
    """Accuracy against the radius of an attack: no defense, purified, and purified under an adaptive attacker.

    Args:
        points: in the order of their radii. At radius 0 stand the clean figures, drawn hollow.
        norm: in letters.
    """
    with _drawing(WIDTH, 2.6) as axes:
        ends: dict[str, float] = {}
        for kind in _LINES:
            known = [(point.eps, share) for point in points if (share := getattr(point, kind)) is not None]
            if any(eps > 0 for eps, _ in known):
                _draw_line(axes, known, kind)
                ends[kind] = known[-1][1]
        _name_lines(axes, ends)
        largest = points[-1].eps
        axes.set_xlim(-0.02 * largest, 1.02 * largest)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(*_radius_ticks([point.eps for point in points]))
        axes.set_yticks(*_SHARES)
        axes.set_xlabel(f"{norm} ε".strip())
        axes.set_ylabel("accuracy")
        return _svg(axes, name=name)


def _draw_line(axes: Axes, known: Sequence[tuple[float, float]], kind: str) -> None:
    colour = _VARIABLES["attacked" if kind == "adversarial" else kind]
    _, dashes, marker = _LINES[kind]
    axes.plot(*zip(*known, strict=True), color=colour, linestyle=dashes, lw=1.6, clip_on=False)
    for eps, share in known:
        fill = colour if eps > 0 else _VARIABLES["page"]
        axes.plot(
            eps, share, marker, markersize=4.5, markerfacecolor=fill, markeredgecolor=colour, clip_on=False, zorder=3
        )


def _name_lines(axes: Axes, ends: dict[str, float]) -> None:
    """Each line's name where it ends, moved apart where lines end together."""
    height = 0.085
    order = sorted(ends, key=ends.__getitem__)
    for rank, kind in enumerate(order):
        # Room for the names above it, below the top of the axes; then above those already written.
        ends[kind] = min(ends[kind], 1.0 - height * (len(order) - 1 - rank))
        if rank:
            ends[kind] = max(ends[kind], ends[order[rank - 1]] + height)
        text, _, _ = _LINES[kind]
        axes.text(1.04, ends[kind], text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.0)


def _radius_ticks(radii: Sequence[float]) -> tuple[list[float], list[str]]:
    """The radii that have room for their labels, the largest among them."""
    kept: list[float] = []
    for radius in sorted(radii, reverse=True):
        if not kept or kept[-1] - radius >= 0.11 * max(radii):
            kept.append(radius)
    return kept, [shown(radius) for radius in kept]


_STEPS = (1, 2, 5, 10, 20, 30, *(60 * n for n in (1, 2, 5, 10, 20, 30)), *(3600 * n for n in (1, 2, 4, 8, 12, 24, 72)))
"""Seconds between ticks of an axis of time."""


def throughput(spans: Sequence[Span], *, mean: float | None, name: str) -> str:
    """Images a second over the clock's time; pauses between attempts are shaded, and shortened where they are long.

    Args:
        spans: in the order of time.
        mean: a line across, where it is known.
    """
    with _drawing(WIDE, 2.5) as axes:
        total = sum(span.seconds for span in spans if span.rates)
        pauses = sum(not span.rates for span in spans)
        longest = min(0.05, 0.3 / max(pauses, 1)) * total
        place, places = 0.0, []
        for span in spans:
            width = span.seconds if span.rates else min(max(span.seconds, 0.016 * total), longest)
            places.append((place, width))
            _draw_span(axes, span, place, width, named=pauses <= NAMED_PAUSES)
            place += width
        if mean is not None:
            for start, end in ((at, at + width) for span, (at, width) in zip(spans, places, strict=True) if span.rates):
                axes.hlines(mean, start, end, colors=_VARIABLES["text"], linestyles=(0, (3, 2)), lw=1.0)
            axes.text(
                1.012,
                mean,
                f"mean\n{three_digits(mean)}",
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=8.0,
            )
        axes.set_xlim(0, place)
        axes.set_ylim(0, 1.08 * max(mean or 0.0, *(rate for span in spans for rate in span.rates)))
        ticks = _clock_ticks(spans, places, total)
        axes.set_xticks(list(ticks), labels=list(ticks.values()), linespacing=1.4)
        axes.yaxis.set_major_locator(_ticker().MaxNLocator(5))
        axes.set_xlabel("time, UTC")
        axes.set_ylabel("images/s")
        axes.tick_params(pad=6)
        return _svg(axes, name=name)


def _draw_span(axes: Axes, span: Span, place: float, width: float, *, named: bool) -> None:
    if span.rates:
        edges = np.linspace(place, place + width, len(span.rates) + 1)
        axes.stairs(span.rates, edges, fill=True, color=_VARIABLES["purified"], alpha=0.22, lw=0)
        axes.stairs(span.rates, edges, baseline=None, color=_VARIABLES["purified"], lw=1.4)
        return
    axes.axvspan(place, place + width, facecolor=_VARIABLES["rule"], alpha=0.55, lw=0)
    if named:
        text = duration(span.seconds) + (f", {span.cut_off} cut off" if span.cut_off else "")
        transform = axes.get_xaxis_transform()
        axes.text(
            place + width / 2, 0.5, text, transform=transform, rotation=90, ha="center", va="center", fontsize=7.5
        )


def _clock_ticks(spans: Sequence[Span], places: Sequence[tuple[float, float]], total: float) -> dict[float, str]:
    """Round times of the clock, and the starts of attempts that have none and room for it; each new day is named."""
    step = next((step for step in _STEPS if total / step <= 8), _STEPS[-1])
    room = 0.07 * sum(width for _, width in places)
    times: dict[float, datetime] = {}
    for only_starts in (False, True):
        for span, (place, _) in zip(spans, places, strict=True):
            offsets = [0.0] if only_starts else np.arange(-span.started.timestamp() % step, span.seconds, step)
            for offset in offsets if span.rates else ():
                if all(abs(place + offset - tick) >= room for tick in times):
                    times[float(place + offset)] = span.started + timedelta(seconds=float(offset))
    labels: dict[float, str] = {}
    day: date | None = None
    for place, time in sorted(times.items()):
        labels[place] = f"{time:%H:%M:%S}" if step < 60 else f"{time:%H:%M}"
        if time.date() != day:
            labels[place] += f"\n{time:%Y-%m-%d}" if day is None else f"\n{time:%m-%d}"
        day = time.date()
    return labels


def loss_curve(step: NDArray[np.int64], loss: NDArray[np.float64], *, name: str) -> str:
    """A training's loss, raw (faint) and smoothed, on a log axis.

    Args:
        step, loss: (N,). Losses that are not finite are left out.
    """
    finite = np.isfinite(loss)
    step, loss = step[finite], loss[finite]
    with _drawing(WIDTH, 2.4) as axes:
        axes.plot(*_thinned(step, loss), color=_VARIABLES["purified"], alpha=0.3, lw=0.8)
        # One step alone is a point.
        axes.plot(step, smooth(loss), "o" if len(step) == 1 else "-", color=_VARIABLES["purified"], lw=1.8)
        if (loss > 0).any():
            _log_axis(axes, loss[loss > 0])
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        _whole_numbers(axes)
        axes.margins(x=0.01)
        return _svg(axes, name=name)


def certified_curves(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    marks: Mapping[str, Sequence[tuple[float, float]]],
    *,
    name: str,
) -> str:
    """Certified accuracy over the L2 radius, a line for each size of the noise, and accuracy under attack.

    Args:
        curves: radii (N,), ascending from 0, and shares in [0, 1] that hold from each to the next, by their names.
        marks: radii and shares in [0, 1] under the best attack that was found, by the names of their curves.
    """
    with _drawing(WIDTH, 2.8 + 0.2 * len(curves)) as axes:
        for (label, (radii, shares)), (dashes, colour) in zip(curves.items(), _styles(), strict=False):
            style: dict[str, Any] = {"linestyle": dashes, "color": _VARIABLES[colour], "label": label}
            axes.step(radii, shares, where="post", lw=1.6, **style)
            if label in marks:
                style |= {"label": f"{label}, attacked", "lw": 0.8, "marker": "o", "markersize": 4, "clip_on": False}
                axes.plot(*zip(*marks[label], strict=True), markerfacecolor="none", **style)
        axes.set_xlim(0, None)
        axes.set_ylim(0, 1.02)
        axes.set_yticks(*_SHARES)
        axes.set_xlabel("L2 radius, on pixels in [0, 1]")
        axes.set_ylabel("accuracy")
        axes.figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.0)
        return _svg(axes, name=name)


def costs(points: Mapping[str, tuple[float, float]], lines: Mapping[str, float], *, name: str) -> str:
    """Accuracy, a share in [0, 1], against images a second: points by name, and lines of what has no purifier."""
    with _drawing(WIDTH, 2.8) as axes:
        axes.set_xscale("log")
        for label, (speed, share) in points.items():
            axes.plot(speed, share, "o", color=_VARIABLES["purified"], markersize=5, clip_on=False)
            axes.annotate(label, (speed, share), xytext=(5, 4), textcoords="offset points", fontsize=8.0)
        for label, share in lines.items():
            axes.axhline(share, color=_VARIABLES["text"], linestyle=(0, (3, 2)), lw=1.0)
            axes.annotate(label, (0.01, share), xycoords=("axes fraction", "data"), va="bottom", fontsize=8.0)
        axes.set_ylim(-0.02, 1.02)
        axes.margins(x=0.25)
        axes.set_yticks(*_SHARES)
        axes.xaxis.set_major_formatter(_ticker().StrMethodFormatter("{x:g}"))
        axes.set_xlabel("images a second")
        axes.set_ylabel("adaptive accuracy")
        return _svg(axes, name=name)


def score_curves(epochs: Sequence[int], scores: Mapping[str, Sequence[float]], *, best: int | None, name: str) -> str:
    """Scores by epoch, a line for each.

    Args:
        epochs: their numbers, from 1.
        scores: of each epoch, by name.
        best: the epoch that a line across is drawn at.
    """
    with _drawing(WIDTH, 2.4 + 0.2 * len(scores)) as axes:
        for (label, values), (dashes, colour) in zip(scores.items(), _styles(), strict=False):
            axes.plot(
                epochs, values, "o", linestyle=dashes, color=_VARIABLES[colour], lw=1.6, markersize=3, label=label
            )
        if best is not None:
            axes.axvline(best, color=_VARIABLES["text"], linestyle=(0, (3, 2)), lw=1.0, label="best epoch")
        axes.set_xlabel("epoch")
        _whole_numbers(axes)
        axes.margins(x=0.03)
        axes.figure.legend(loc="outside upper left", frameon=False, fontsize=8.0)
        return _svg(axes, name=name)


def _styles() -> Iterator[tuple[Any, str]]:
    """Dashes and colours of line after line."""
    return itertools.cycle(itertools.product(("solid", (0, (3.5, 2))), ("purified", "attacked", "adaptive")))


def _whole_numbers(axes: Axes) -> None:
    """Ticks at a few whole numbers of x, or at the only one."""
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _log_axis(axes: Axes, positive: NDArray[np.float64]) -> None:
    axes.set_yscale("log")
    if positive.max() < 200 * positive.min():  # few powers of ten: name some values between them
        axes.yaxis.set_major_locator(_ticker().LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(_ticker().StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(_ticker().NullFormatter())


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a centred window of a twenty-fifth of the values, cut off at the ends."""
    half = len(values) // 50
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half, len(values) - 1)
    mean: NDArray[np.float64] = (total[last + 1] - total[first]) / (last + 1 - first)
    return mean


def _thinned(step: NDArray[np.int64], loss: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most about ``POINTS`` of a long curve: the lowest and the highest of each piece, so that no peak is lost."""
    if len(loss) <= POINTS:
        return step, loss
    pieces = np.array_split(np.arange(len(loss)), POINTS // 2)
    kept = np.unique([index[pick(loss[index])] for index in pieces for pick in (np.argmin, np.argmax)])
    return step[kept], loss[kept]


def alone(svg: str) -> str:
    """A chart as a file of its own: in the colours of the light mode, on no ground.

    Args:
        svg: what a function of this module drew.
    """
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", templates.packaged("style.css").partition("}")[0]))
    svg = re.sub(r"var\(--([\w-]+)\)", lambda match: colours[match[1]], svg)
    return svg.replace("<svg ", '<svg font-family="system-ui, DejaVu Sans, sans-serif" ', 1)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Axes]:
    """The axes of a new figure of so many inches, in the page's style."""
    import matplotlib as mpl
    from matplotlib import figure

    with mpl.rc_context(_STYLE):
        yield figure.Figure(figsize=(width, height), layout="constrained").add_subplot()


def _ticker() -> ModuleType:
    from matplotlib import ticker

    return ticker


def _svg(axes: Axes, *, name: str) -> str:
    """The axes' figure as an SVG element for inline use: the page's font and colours, ids of its own."""
    buffer = io.StringIO()
    figure = cast("Figure", axes.figure)
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # matplotlib's rule for all elements would be one for all of the page, or of the notebook: here it is inherited.
    text = re.sub(
        r'<svg(.*?)<style type="text/css">\*\{([^}]*)\}</style>', r'<svg style="\2"\1', text, count=1, flags=re.S
    )
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'url\(#|href="#', lambda match: f"{match[0]}{name}-", text)
    for variable, stand_in in _VARIABLES.items():
        text = re.sub(f'(fill|stroke)="{stand_in}"', rf'style="\1: var(--{variable})"', text)
        text = text.replace(stand_in, f"var(--{variable})")
    return text
