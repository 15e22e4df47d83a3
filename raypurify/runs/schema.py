"""The tables that a run writes: column names, units and pyarrow schemas.

Every writer casts to these schemas and every reader relies on them, so that a column is named and typed in one place.
Similarities are always measured against the clean image. Lengths are in pixels' units, on pixels in [0, 1]. The columns
of metrics follow from :data:`raypurify.metrics.METRICS`; those of a user's metrics stand behind the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

from raypurify.metrics import METRICS, Metric

SETTINGS = ("white-box", "black-box", "transfer", "adaptive")
"""Who attacks. ``white-box``: the attacker knows the classifier, not the purifier. ``black-box``: the same, but the
purifier was trained for another classifier (the paper's "X/Y"). ``transfer``: the attacker knows a surrogate classifier
only. ``adaptive``: the attacker knows classifier and purifier."""

MASKING_ATTACKS = ("multi_step", "single_step", "random_search", "unbounded", "straight_through")
"""The attacks of the check for masked gradients, see masking.py."""

NO_ATTACK = "none"


@dataclass(frozen=True, kw_only=True)
class ColumnStyle:
    """How the report shows a column of the summary: kept with the column, in the file."""

    group: Literal["similarity", "perturbation"]
    heading: str
    note: str
    """What stands under the heading."""
    digits: int
    """How many decimals a value is shown with."""
    minor: bool = False
    """Set small: to be compared with the paper's column, and no other."""


def shown(schema: pa.Schema) -> dict[str, ColumnStyle]:
    """The columns of a summary that hold a metric, as the report shows them."""
    texts = {field.name: (field.metadata or {}).get(b"shown") for field in schema}
    return {name: ColumnStyle(**json.loads(text)) for name, text in texts.items() if text}


def _field(name: str, kind: pa.DataType, metric: Metric, shown: ColumnStyle | None = None) -> pa.Field:
    metadata = {"unit": metric.unit, **({"shown": json.dumps(asdict(shown))} if shown else {})}
    return pa.field(name, kind, nullable=metric.nullable, metadata=metadata)


def _scores_of(metrics: Iterable[Metric]) -> Iterator[pa.Field]:
    for metric in metrics:
        for column in metric.comparisons:
            yield _field(column, pa.float32(), metric)


def _totals_of(metrics: Sequence[Metric]) -> Iterator[pa.Field]:
    """Means of similarities, then Eq. 16's, then totals of perturbations."""
    similarities = [metric for metric in metrics if metric.total == "mean"]
    for metric in similarities:
        purified = ColumnStyle(group="similarity", heading=metric.title, note=metric.unit, digits=metric.digits)
        for column, kind in metric.comparisons.items():
            yield _field(column, pa.float64(), metric, purified if kind == "purified" else None)
    for metric in similarities:
        if metric.eq16_offset is not None:
            eq16 = ColumnStyle(
                group="similarity", heading=metric.title, note="Eq. 16", digits=metric.digits, minor=True
            )
            yield _field(f"{metric.name}_purified_eq16", pa.float64(), metric, eq16)
    for metric in metrics:
        if metric.total != "mean":
            note = {"max": "largest", "median": "median"}[metric.total]
            total = ColumnStyle(group="perturbation", heading=metric.title, note=note, digits=metric.digits)
            yield _field(f"{metric.name}_{metric.total}", pa.float64(), metric, total)


CELL = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),  # hash of the fields below and of the models
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("attack", pa.string(), nullable=False),
        pa.field("norm", pa.string()),  # "linf", "l2", or null: the attack minimises instead
        pa.field("eps", pa.float64()),  # radius of the ball, null without one
        pa.field("params", pa.string(), nullable=False),  # JSON: every parameter of the attack
        pa.field("victim", pa.string(), nullable=False),  # what the attack saw: the classifier, or purifier+classifier
        pa.field("classifier", pa.string(), nullable=False),
        pa.field("purifier", pa.string(), nullable=False),
        pa.field("radius", pa.string()),  # what ``params`` calls the radius; null without a ball
        pa.field("trivial", pa.bool_()),  # the purifier learned nothing
    ]
)
"""``cells.parquet``: one row for each cell of the grid."""

CELL_DESCRIPTION = ("dataset", "setting", "attack", "norm", "eps", "params", "victim", "classifier", "purifier")
"""The columns of a cell that tell it from the others of a run, for people; its hash follows from them too."""

WORST_OF = ("dataset", "setting", "norm", "eps", "victim", "classifier", "purifier")
"""What the cells have in common whose worst case, image by image, is one figure."""

SCORES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("pred_clean", pa.int64(), nullable=False),
        pa.field("pred_adversarial", pa.int64(), nullable=False),  # without the purifier
        pa.field("pred_purified", pa.int64(), nullable=False),
        pa.field("pred_clean_purified", pa.int64(), nullable=False),
        pa.field("detected", pa.bool_()),  # the attacked image, by the purifier's detector; null without one
        *_scores_of(metric for metric in METRICS if metric.total != "mean"),
        pa.field("steps", pa.int64(), nullable=False),
        pa.field("queries", pa.int64(), nullable=False),
        *_scores_of(metric for metric in METRICS if metric.total == "mean"),
        # The attack's first gradient was zero, in adaptive cells that of the check (masking.py); null: not known.
        pa.field("zero_gradient", pa.bool_()),
        # The check's predictions: null but for some images of adaptive cells.
        *(pa.field(f"pred_{attack}", pa.int64()) for attack in MASKING_ATTACKS),
        pa.field("detected_clean", pa.bool_()),  # the clean image: a false alarm
        # Of a random purifier that is drawn more than once on each attacked image; null else.
        pa.field("draws", pa.int64()),
        pa.field("right_draws", pa.int64()),  # how many of them are classified right
        pa.field("pred_majority", pa.int64()),  # the class of most; of several, the first
    ]
)
"""``scores/cell=<hash>/``: one row for each image."""

SUMMARY = pa.schema(
    [
        *CELL,
        pa.field("n", pa.int64(), nullable=False),
        pa.field("accuracy_clean", pa.float64(), nullable=False),
        pa.field("accuracy_adversarial", pa.float64(), nullable=False),  # the paper's "no defense"
        pa.field("accuracy_purified", pa.float64(), nullable=False),  # Eq. 13
        pa.field("accuracy_purified_low", pa.float64(), nullable=False),  # 95% Wilson bounds
        pa.field("accuracy_purified_high", pa.float64(), nullable=False),
        pa.field("accuracy_clean_purified", pa.float64(), nullable=False),
        pa.field("success_rate_eq14", pa.float64()),  # accuracy_purified / accuracy_clean; null where the latter is 0
        *_totals_of(METRICS),
        pa.field("steps_mean", pa.float64(), nullable=False),
        pa.field("steps_max", pa.int64(), nullable=False),
        pa.field("queries_mean", pa.float64(), nullable=False),
        pa.field("queries_max", pa.int64(), nullable=False),
        pa.field("masking_n", pa.int64(), nullable=False),  # images checked for masked gradients; 0 but in adaptive
        pa.field("zero_gradient_share", pa.float64()),  # of the images where it is known
        *(pa.field(f"accuracy_{attack}", pa.float64()) for attack in MASKING_ATTACKS),  # of those checked; null: none
        pa.field("masking", pa.list_(pa.string())),  # what the check found (masking.FINDINGS); null: not checked
        pa.field("detection_rate", pa.float64()),  # of attacked images; null, like the next two, without a detector
        pa.field("false_alarm_rate", pa.float64()),  # of clean images
        pa.field("accuracy_with_detection", pa.float64()),  # purified: right or detected; without an attack: and not
        # Purified: right under every attack of the output that agrees in WORST_OF; null for an attack without a ball.
        pa.field("accuracy_worst", pa.float64()),
        # Purified, of a random purifier that is drawn more than once on each image; null else.
        pa.field("draws", pa.int64()),
        pa.field("accuracy_draws", pa.float64()),  # the share of all draws that are right
        pa.field("accuracy_all_draws", pa.float64()),  # images that are right in each draw: the worst of them counts
        pa.field("accuracy_majority", pa.float64()),  # images that most draws tell right
    ]
)
"""``summary.parquet``: ``cells.parquet``'s columns and the results."""


def scores(more: Sequence[Metric] = ()) -> pa.Schema:
    """``SCORES`` with the columns of a user's metrics."""
    return pa.schema([*SCORES, *_scores_of(more)])


def summary(more: Sequence[Metric] = ()) -> pa.Schema:
    """``SUMMARY`` with the columns of a user's metrics."""
    return pa.schema([*SUMMARY, *_totals_of(more)])


CONFUSION = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # of the images: "clean", "adversarial", or "purified"
        pa.field("label", pa.int64(), nullable=False),
        pa.field("predicted", pa.int64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),  # images; pairs without one are left out
    ]
)
"""``confusion.parquet``: how many images of each label are taken for each class."""

_TOP = pa.list_(pa.struct([pa.field("class", pa.int64()), pa.field("probability", pa.float32())]))

SAMPLES = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field(
            "kind", pa.string(), nullable=False
        ),  # "random", or "worst": wrong after purification, or the least similar
        pa.field("label", pa.int64(), nullable=False),
        pa.field("pred_clean", pa.int64(), nullable=False),
        pa.field("pred_adversarial", pa.int64(), nullable=False),
        pa.field("pred_purified", pa.int64(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),  # [H, W, C]
        pa.field("clean", pa.list_(pa.float32()), nullable=False),  # H*W*C pixels in [0, 1], row-major HWC
        pa.field("adversarial", pa.list_(pa.float32()), nullable=False),
        pa.field("purified", pa.list_(pa.float32()), nullable=False),
        # The classifier's answers: the likeliest classes, five at most, and their probabilities in [0, 1].
        *(pa.field(f"top_{kind}", _TOP) for kind in ("clean", "adversarial", "purified")),
    ]
)
"""``samples/``: a few images with their pixels, for the report."""

REJECTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),  # "read" or "decode"
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""``rejects/``: one row for each image that could not be used."""

IMAGES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # PNG of the attacked image, rounded to 8 bits
        pa.field("clean", pa.binary(), nullable=False),  # PNG of the image it was made from
        pa.field("pred_clean", pa.int64(), nullable=False),
        pa.field("pred_adversarial", pa.int64(), nullable=False),  # of the float32 pixels that the attack made
        pa.field("pred_rounded", pa.int64(), nullable=False),  # of the pixels in ``image``
        pa.field("linf", pa.float32(), nullable=False),  # of adversarial - clean, before the rounding
        pa.field("l2", pa.float32(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),
        pa.field("queries", pa.int64(), nullable=False),
    ]
)
"""``images/`` of an attacked dataset: one row for each image."""

VOTES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("votes", pa.list_(pa.int64()), nullable=False),  # how often each class was answered
    ]
)
"""``votes/cell=<hash>/draws=<part>/``: one row for each image, of some of its draws."""

CERTIFICATES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("guess", pa.int64(), nullable=False),  # the class that is certified
        pa.field("draws", pa.int64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # draws that answered it
        pa.field("bound", pa.float64(), nullable=False),  # lower bound of its probability
        pa.field("radius", pa.float64(), nullable=False),  # L2; 0 where the vote abstained
        pa.field("right", pa.bool_(), nullable=False),  # the guess is the label, and the vote did not abstain
        pa.field("abstained", pa.bool_(), nullable=False),
    ]
)
"""``certificates/cell=<hash>/``: one row for each image."""

ATTACKED_CERTIFICATES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("guess", pa.int64(), nullable=False),  # the class that is certified
        pa.field("radius", pa.float64(), nullable=False),  # of the certificate
        pa.field("at", pa.float64(), nullable=False),  # radius of the L2 ball that it was attacked in
        pa.field("l2", pa.float64(), nullable=False),  # of the attacked image's change
        pa.field("answer", pa.int64(), nullable=False),  # the vote's on the attacked image
        pa.field("votes", pa.list_(pa.int64()), nullable=False),
    ]
)
"""``attacked/<hash>.parquet``: some of a cell's images under attack, within their radii and beyond; a row for each."""

NOISY_SAMPLES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("guess", pa.int64(), nullable=False),  # the class that is certified
        pa.field("radius", pa.float64(), nullable=False),  # L2
        *(pa.field(f"pred_{kind}", pa.int64(), nullable=False) for kind in ("clean", "noisy", "purified")),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),  # [H, W, C]
        # H*W*C pixels, row-major HWC; those of the noisy image are not bound to [0, 1].
        *(pa.field(kind, pa.list_(pa.float32()), nullable=False) for kind in ("clean", "noisy", "purified")),
    ]
)
"""``samples/<hash>.parquet`` of certificates: a few images of a cell with their pixels, for the report."""

CERTIFIED = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),  # hash of networks and noise
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("classifier", pa.string(), nullable=False),
        pa.field("purifier", pa.string(), nullable=False),
        pa.field("trivial", pa.bool_(), nullable=False),  # the purifier learned nothing
        pa.field("sigma", pa.float64(), nullable=False),
        pa.field("radius", pa.float64(), nullable=False),  # L2
        pa.field("n", pa.int64(), nullable=False),
        pa.field("certified", pa.float64(), nullable=False),  # share of the images that are right, and safe there
        pa.field("certified_low", pa.float64(), nullable=False),  # 95% Wilson bounds
        pa.field("certified_high", pa.float64(), nullable=False),
        pa.field("abstained", pa.float64(), nullable=False),  # share of the images, the same at each radius
        pa.field("draws_mean", pa.float64(), nullable=False),  # likewise
        pa.field("radius_mean", pa.float64(), nullable=False),  # likewise, wrong images as 0: it rewards easy images
        pa.field("drawn", pa.int64()),  # images that were drawn to be attacked; null in summaries of earlier versions
        pa.field("empirical", pa.float64()),  # of these, right and unchanged by the best attack found within the radius
        pa.field("attacked", pa.int64(), nullable=False),  # certified images that were attacked within their radii
        pa.field("attacked_changed", pa.int64(), nullable=False),  # of these, those whose vote the attack changed
        pa.field("attacked_wrong", pa.int64(), nullable=False),  # of these, those whose certificate it proved wrong
    ]
)
"""``summary.parquet`` of certificates: one row for each cell and radius."""

STEPS = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # mean over the global batch
        pa.field("rate", pa.float64(), nullable=False),  # learning rate of this step
        pa.field("images_per_second", pa.float64(), nullable=False),  # of all workers together
    ]
)
"""``metrics.parquet`` of a training: one row for each step."""

CLASSES = pa.schema(
    [
        pa.field("label", pa.int64(), nullable=False),
        pa.field("name", pa.string()),  # null where the data do not name their classes
        pa.field("trained", pa.int64(), nullable=False),  # images that are trained on, those that are rejected too
        pa.field("held_out", pa.int64(), nullable=False),  # likewise
    ]
)
"""``classes.parquet`` of a training: one row for each class."""

PLAN = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),  # relative to the input's root
        pa.field("url", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # "image", "parquet" or "tar"
        pa.field("size", pa.int64(), nullable=False),  # bytes of the file
        pa.field("version", pa.string(), nullable=False),  # entity tag or time of change, as it was listed
        pa.field("first", pa.int64(), nullable=False),  # first row of a Parquet file's run
        pa.field("rows", pa.int64()),  # images; null for a tar
        pa.field("output", pa.string(), nullable=False),  # relative to the output's images/
    ]
)
"""``plan/`` of a cleaning: the listing of its input, frozen; the rows of a unit follow one another."""

REPLACED = PLAN.append(pa.field("is_stale", pa.bool_(), nullable=False))
"""``replaced-NNNNN.parquet``: former entries, of no unit, and whether nothing writes their outputs any more."""

SHARD = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
    ]
)
"""``images/`` of a cleaning into Parquet shards: the images of a unit."""

MANIFEST = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # URL of the file it was read from
        pa.field("output", pa.string(), nullable=False),  # URL of the image, or of the shard that holds it
        pa.field("row", pa.int64()),  # in that Parquet file, or of that tar's members; null for an image of its own
        pa.field("width", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("channels", pa.int64(), nullable=False),  # that were purified: 1 or 3
        pa.field("notes", pa.list_(pa.string()), nullable=False),  # conversions: "16-bit scaled to 8", ...
        pa.field("linf", pa.float32(), nullable=False),  # of cleaned - input, as written in 8 bits
        pa.field("l2", pa.float32(), nullable=False),
        pa.field("psnr", pa.float32(), nullable=False),  # dB, capped at 100
        pa.field("ssim", pa.float32()),  # null where a side is under 11 pixels
        pa.field("pred_input", pa.int64()),  # null without a classifier
        pa.field("pred_cleaned", pa.int64()),
        pa.field("detected", pa.bool_()),  # the input: the vote of --certify-draws abstains; null without one
        pa.field("purifier_sha256", pa.string(), nullable=False),
    ]
)
"""``manifest/`` of a cleaning: one row for each cleaned image."""

CHANGES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("psnr", pa.float32(), nullable=False),  # dB, of cleaned to input
        pa.field("input", pa.binary(), nullable=False),  # PNG, at most THUMBNAIL pixels a side
        pa.field("cleaned", pa.binary(), nullable=False),
    ]
)
"""``samples/`` of a cleaning: the most changed images of each unit, small, for the report."""
