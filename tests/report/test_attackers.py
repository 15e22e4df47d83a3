"""What the page says of attackers: security curves, masked gradients, surrogates, budgets."""

from __future__ import annotations

from typing import Any

import pytest
from report_pages import Parsed, parse, render
from report_rows import cell, checked, curve, samples_of, summary_of

from raypurify.evaluation.masking import FINDINGS
from raypurify.report.cells import at_one_radius

SHARES = {0.3: (0.01, 0.9, 0.04), 0.1: (0.6, 0.97, 0.5), 0.2: (0.2, 0.95, 0.21), 0.4: (0.0, 0.7, None)}


def table_of(page: Parsed, identifier: str) -> list[list[str]]:
    """The rows of a table below its two header rows."""
    (table,) = [table for table in page.tables if table["attributes"].get("id") == identifier]
    return list(table["rows"][2:])


def charts_of(page: Parsed, kind: str) -> list[str]:
    labels = [str(attributes.get("aria-label")) for attributes in page.all("div") if attributes.get("role") == "img"]
    return [label.replace("\u00a0", " ") for label in labels if label.startswith(kind)]


def text_of(page: Parsed) -> str:
    return " ".join(page.text.split())


def warnings_of(page: Parsed) -> int:
    return sum((attributes.get("class") or "") == "warning" for _, attributes in page.tags)


def test_an_attack_at_several_radii_is_drawn_as_a_curve() -> None:
    page = parse(summary_of(*curve("pgd", SHARES), cell(attack="fgsm")))
    assert charts_of(page, "Curve") == [
        "Curve. L∞ ε = 0: no defense 99.35%, purified 98.76%, adaptive 98.76%. "
        "L∞ ε = 0.1: no defense 60.00%, purified 97.00%, adaptive 50.00%. "
        "L∞ ε = 0.2: no defense 20.00%, purified 95.00%, adaptive 21.00%. "
        "L∞ ε = 0.3: no defense 1.00%, purified 90.00%, adaptive 4.00%. "
        "L∞ ε = 0.4: no defense 0.00%, purified 70.00%, adaptive not run. "
    ]


def test_a_curve_is_of_one_attack_purifier_and_classifier() -> None:
    rows = [
        *curve("pgd", SHARES),
        *curve("pgd", SHARES, params={"steps": 7}),
        *curve("pgd", SHARES, purifier="jpeg"),
        *curve("pgd", SHARES, classifier="b_net"),
        *curve("pgd", SHARES, norm="l2"),
        cell(attack="pgd", params={"steps": 9}),
    ]
    page = parse(summary_of(*rows))
    assert len(charts_of(page, "Curve")) == 4, (
        "a trivial purifier has none beside a learned one, one radius is no curve"
    )
    assert [label.count("ε = 0.1") for label in charts_of(page, "Curve")] == [1, 1, 1, 1]


def test_an_adaptive_curve_needs_no_partner() -> None:
    rows = [cell(setting="adaptive", eps=eps, purified=share) for eps, share in ((0.1, 0.5), (0.2, 0.3))]
    (label,) = charts_of(parse(summary_of(*rows)), "Curve")
    assert "ε = 0.2: no defense not run, purified not run, adaptive 30.00%" in label


def test_lines_of_a_curve_are_drawn_apart() -> None:
    page = render(summary_of(*curve("pgd", SHARES)))
    svg = page[page.index('id="security0-') : page.index("</svg>")]
    assert all(f">{name}</text>" in svg for name in ("no defense", "purified", "adaptive"))
    assert svg.count("stroke-dasharray: 5.6,3.2") == 1, "the adaptive line, and only it, is dashed"
    alone = render(summary_of(*[row for row in curve("pgd", SHARES) if row["setting"] != "adaptive"]))
    assert ">adaptive</text>" not in alone[alone.index('id="security0-') : alone.index("</svg>")]


def test_tables_show_one_radius_and_fold_the_others() -> None:
    page = parse(summary_of(*curve("pgd", SHARES), cell(attack="fgsm", eps=0.1), cell(attack="cw", eps=None)))
    shown, folded = page.figures("white-box"), page.figures("white-box, other radii")
    assert [row[0] for row in shown if len(row) == 1] == [
        "a_net under pgd L∞ ε = 0.3 steps = 40 1,797 images",
        "a_net under fgsm L∞ ε = 0.1 steps = 40 1,797 images",
        "a_net under cw minimal distance steps = 40 1,797 images",
    ]
    assert [row[3][:5] for row in folded if len(row) > 1] == ["97.00", "95.00", "70.00"]
    (bars,) = charts_of(page, "Bars")
    assert [f"pgd L∞ ε = {eps}" in bars for eps in (0.1, 0.2, 0.3, 0.4)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("shares", "radius"),
    [
        (SHARES, 0.3),
        ({0.1: (0.6, 0.9, None), 0.2: (0.5, 0.8, None)}, 0.2),
        ({0.1: (0.6, 0.9, 0.5), 0.2: (0.5, 0.8, None)}, 0.1),
    ],
    ids=["largest with both", "largest", "the only one with both"],
)
def test_key_figures_stay_in_one_ball(shares: dict[float, tuple[float, float, float | None]], radius: float) -> None:
    page = parse(summary_of(*curve("pgd", shares)))
    expected = [None if share is None else f"{100 * share:.2f}%" for share in shares[radius]]
    assert page.key_figures == ["99.35%", *(text or "not run" for text in expected)]
    text = text_of(page)
    assert f"the strongest attack in L∞ ε = {radius}: pgd" in text
    assert f"The attacked figures are those in L∞ ε = {radius}: of {len(shares)} radii the largest" in text


def test_key_figures_of_two_norms_are_not_compared() -> None:
    """The L2 attack is the stronger; the adaptive figure is in the L-infinity ball."""
    rows = [cell(norm="l2", eps=9.0, adversarial=0.0, purified=0.1), *curve("pgd", {0.3: (0.05, 0.9, 0.4)})]
    assert parse(summary_of(*rows)).key_figures == ["99.35%", "5.00%", "90.00%", "40.00%"]


def test_at_one_radius_keeps_what_is_no_curve() -> None:
    rows = [cell(eps=0.1), cell(attack="fgsm", eps=0.2), cell(eps=0.3, params={"steps": 9}), cell(eps=None)]
    assert at_one_radius(rows) == rows
    assert at_one_radius([cell(eps=0.1), cell(eps=0.2)]) == [cell(eps=0.2)]


def test_weak_attacks_are_warned_of() -> None:
    page = parse(summary_of(cell(zero_gradient_share=0.25), cell(attack="bim", linf_max=0.078)))
    text = text_of(page)
    assert "pgd (ε = 0.3) on a_net: the gradient vanishes on many images (25.0%)" in text
    assert "bim (ε = 0.3) on a_net: no pixel moved by more than 0.078" in text
    assert warnings_of(page) == 1
    assert warnings_of(parse(summary_of(cell()))) == 0


def test_masked_gradients_are_warned_of_with_their_numbers() -> None:
    found = checked(*FINDINGS, zero_gradient_share=0.0812, accuracy_single_step=0.3001, accuracy_random_search=0.2002)
    found |= {"accuracy_unbounded": 0.1503, "accuracy_straight_through": 0.0204}
    page = parse(summary_of(cell(), cell(setting="adaptive", purified=0.7, **found)))
    text = text_of(page)
    assert "cru_net before a_net: the adaptive figures may overstate the robustness." in text
    for line in (
        "The gradient vanishes on many images: 8.12% of them (L∞ ε = 0.3).",
        "One step of the gradient is stronger than many: accuracy 30.01% after one step, 41.03% after many (L∞",
        "Random search is stronger than the gradient: accuracy 20.02% after the search, 41.03% after many steps",
        "Images survive an attack that may change every pixel at will: accuracy 15.03% at ε = 1",
        "last clip: accuracy 2.04% with it, 41.03% without",
    ):
        assert line in text
    marked = ["8.12 found", "41.03", "30.01 found", "20.02 found", "15.03 found", "2.04 found"]
    assert table_of(page, "checks") == [["cru_net", "a_net", "L∞ ε = 0.3", "203", *marked]]
    assert warnings_of(page) == 2, "one beside the key figures"
    assert page.figures("white-box")[1][4].endswith("may be too high")


def test_a_check_without_findings_warns_of_nothing() -> None:
    page = parse(summary_of(cell(), cell(setting="adaptive", purified=0.7, **checked())))
    assert table_of(page, "checks") == [
        ["cru_net", "a_net", "L∞ ε = 0.3", "203", "0.49", "41.03", "52.04", "63.05", "1.06", "–"]
    ]
    assert "Nothing of the kind was found." in page.text
    assert warnings_of(page) == 0
    assert "too high" not in page.text
    assert "Not checked" not in page.text


def test_cells_that_share_a_check_show_it_once() -> None:
    rows = [
        cell(setting="adaptive", attack=attack, norm=norm, eps=eps, **found)
        for found in [checked("zero_gradient", zero_gradient_share=0.4321)]
        for attack, norm, eps in [("pgd", "linf", 0.3), ("fgsm", "linf", 0.3), ("cw", None, None), ("pgd", "linf", 0.1)]
    ]
    rows.append(cell(setting="adaptive", purifier="jpeg", **checked()))
    page = parse(summary_of(*rows))
    assert [row[:3] for row in table_of(page, "checks")] == [
        ["cru_net", "a_net", "L∞ ε = 0.3"],
        ["cru_net", "a_net", "L∞ ε = 0.1"],
        ["jpeg", "a_net", "L∞ ε = 0.3"],
    ]
    assert text_of(page).count("43.21% of them (L∞ ε = 0.3, 0.1).") == 1
    assert "jpeg before" not in page.text


def test_cells_that_were_not_checked_are_said_to_be() -> None:
    rows = [cell(), cell(setting="adaptive"), cell(setting="adaptive", attack="fgsm")]
    page = parse(summary_of(*rows))
    assert "Not checked: cru_net before a_net (2 cells)." in text_of(page)
    assert "not checked for masked gradients" in text_of(page)
    assert "Nothing of the kind was found." not in page.text, "nothing was looked for"
    assert 'id="masking"' not in render(summary_of(cell())), "there is no adaptive cell to doubt"


def test_curves_and_bars_warn_too() -> None:
    found = checked("unbounded", accuracy_unbounded=0.4)
    page = parse(summary_of(*(row | (found if row["setting"] == "adaptive" else {}) for row in curve("pgd", SHARES))))
    assert page.text.count("Adaptive figures may be too high") == 2


def test_transfer_names_the_surrogate_and_mixes_none() -> None:
    rows = [
        cell(setting="transfer", victim=victim, purifier=purifier, adversarial=adversarial, cell=f"{victim}{purifier}")
        for victim, adversarial in (("b_net", 0.31), ("c_net", 0.42))
        for purifier in ("cru_net", "jpeg")
    ]
    page = parse(summary_of(*rows, cell()))
    transfer = page.figures("transfer")
    assert [row[0] if len(row) == 1 else row[2] for row in transfer] == [
        "pgd made on b_net , sent to a_net L∞ ε = 0.3 steps = 40 1,797 images",
        *("31.00", "31.00"),
        "pgd made on c_net , sent to a_net L∞ ε = 0.3 steps = 40 1,797 images",
        *("42.00", "42.00"),
    ]
    assert "Transfer: made on a surrogate, sent to another classifier" in page.text
    assert len(page.figures("white-box")) == 2
    bars = charts_of(page, "Bars")
    assert [label.count("no defense") for label in bars] == [1, 1, 1]
    assert "transfer, made on c_net" in page.text


def test_curves_of_two_surrogates_are_apart() -> None:
    rows: list[dict[str, Any]] = []
    for victim in ("b_net", "c_net"):
        rows += [
            cell(setting="transfer", victim=victim, eps=eps, cell=f"{victim}{eps}", adversarial=0.5 - eps)
            for eps in (0.1, 0.2)
        ]
    page = parse(summary_of(*rows))
    assert len(charts_of(page, "Curve")) == 2
    assert "a_net under pgd, made on b_net, purified by cru_net" in text_of(page)
    assert "the strongest attack in L∞ ε = 0.2: pgd, made on b_net" in text_of(page)


def test_images_are_of_one_radius_and_one_surrogate() -> None:
    rows = [row for row in curve("pgd", SHARES) if row["eps"] != 0.1]
    rows += [cell(setting="transfer", victim=victim, cell=victim) for victim in ("b_net", "c_net")]
    summary = summary_of(*rows)
    page = parse(summary, samples=samples_of(summary))
    galleries = [table["rows"][0] for table in page.tables if table["attributes"].get("class") == "gallery"]
    assert galleries == [["", "pgd L∞ ε = 0.3"]] * 8, "random and worst: white-box, adaptive, and each surrogate"
    for victim in ("b_net", "c_net"):
        assert f"a_net under a transfer attacker, made on {victim}, restored by cru_net" in text_of(page)


def test_budgets_are_given_once_for_all_that_spent_the_same() -> None:
    single = {"steps_mean": 1.0, "steps_max": 1, "queries_mean": 2.0, "queries_max": 2}
    rows = [
        *curve("pgd", {0.1: (0.6, 0.9, 0.5), 0.3: (0.5, 0.8, 0.4)}),
        cell(eps=0.3, purifier="jpeg"),
        cell(attack="fgsm", **single),
        cell(attack="fgsm", eps=0.1, **single | {"queries_max": 3}),
        cell(attack="none", eps=None),
    ]
    assert table_of(parse(summary_of(*rows)), "budget") == [
        ["pgd steps = 40", "L∞ ε = 0.1, 0.3", "a_net, cru_net+a_net", "38.2", "40", "1,076.5", "1,080"],
        ["fgsm steps = 40", "L∞ ε = 0.3", "a_net", "1", "1", "2", "2"],
        ["fgsm steps = 40", "L∞ ε = 0.1", "a_net", "1", "1", "2", "3"],
    ]
