"""Cells from scripted scores: bounds made again by other means, ratios that are not clipped, and what does not change them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from letheon.audits.columns import Scores
from letheon.audits.matrix import (
    HALF,
    Answer,
    Sources,
    Table,
    difference_bounds,
    make_cells,
    required_cells,
    utility_rows,
)
from letheon.audits.protocol import read_protocol
from letheon.errors import NotMeasured
from letheon.numerics.intervals import bounds_of_mean_difference
from tests.audits.fakes import COLUMNS, familiar, hits, protocol, rates

ACCURACY = COLUMNS["forget_accuracy"]
SETTINGS: dict[str, Any] = {"seed": 0, "resamples": 4000}


def cell_of(
    subject: Answer,
    control: Answer | None,
    original: Answer | None = None,
    *,
    column: str = "forget_accuracy",
    as_is: Answer | None = None,
    required: bool = True,
    is_paired: bool = True,
    others: int = 0,
) -> dict[str, Any]:
    """One cell, under "int4" where `as_is` is given; `others` more cells are required elsewhere."""
    at = "as_is" if as_is is None else "int4"
    rows = {at: {column: subject}} if as_is is None else {"as_is": {column: as_is}, at: {column: subject}}
    controls = {} if control is None else {at: {column: control}}
    originals = {} if original is None else {"as_is": {column: original}}
    wanted = [(at, column)] if required else [("elsewhere", column)]
    rules = protocol([*wanted, *((f"other {k}", column) for k in range(others))], side="either")
    cells = make_cells(Sources(rows, controls, originals, is_paired), {column: COLUMNS[column]}, rules, {}, **SETTINGS)
    return next(cell for cell in cells if cell["condition"] == at)


# --- values and bounds


def test_none_known_on_either_side_is_bounded_as_on_paper() -> None:
    """0 of n and 0 of n: MOVER of two exact bounds; the level is shared by the required cells."""
    for others in (0, 1, 26):
        level = 0.05 / (1 + others)
        cell = cell_of(hits(0, 40), hits(0, 40), others=others)
        assert cell["d_upper"] == pytest.approx(1 - level ** (1 / 40), rel=1e-12)
        assert cell["d_lower"] == pytest.approx(-(1 - level ** (1 / 40)), rel=1e-12)
        # What is printed is two-sided at 95 %, whatever the protocol asks.
        assert (cell["lower"], cell["upper"]) == pytest.approx((0.0, 1 - 0.025 ** (1 / 40)))


def test_all_known_against_none_known() -> None:
    cell = cell_of(hits(24, 24), hits(0, 24))
    missing = 1 - 0.05 ** (1 / 24)
    assert cell["d"] == 1.0
    assert cell["d_lower"] == pytest.approx(1 - math.hypot(missing, missing), rel=1e-12)
    assert cell["judgement"] == "knowledge found"


@pytest.mark.parametrize("is_paired", [True, False])
def test_bounds_between_the_ends_are_those_of_students_t(is_paired: bool) -> None:
    """For values in the middle of their range the bootstrap by unit is close to the textbook's interval of unit means."""
    rng = np.random.default_rng(1)
    base = rng.uniform(0.2, 0.8, 60)
    a, b = np.clip(base + rng.normal(0.1, 0.05, 60), 0, 1), base
    cell = cell_of(rates(a.tolist(), each=3), rates(b.tolist(), each=3), is_paired=is_paired)
    variance = np.var(a - b, ddof=1) / 60 if is_paired else (np.var(a, ddof=1) + np.var(b, ddof=1)) / 60
    half = student.ppf(0.95, 59) * math.sqrt(variance)
    assert cell["d_lower"] == pytest.approx((a - b).mean() - half, abs=0.08 * half)
    assert cell["d_upper"] == pytest.approx((a - b).mean() + half, abs=0.08 * half)
    own = student.ppf(0.975, 59) * math.sqrt(np.var(a, ddof=1) / 60)
    assert cell["lower"] == pytest.approx(a.mean() - own, abs=0.1 * own)
    assert cell["upper"] == pytest.approx(a.mean() + own, abs=0.1 * own)


def test_an_item_more_of_a_unit_makes_no_interval_narrower() -> None:
    once, thrice = (cell_of(hits(12, 24, each=each), hits(2, 24, each=each)) for each in (1, 3))
    assert (once["n_items"], thrice["n_items"]) == (24, 72) and once["n_units"] == thrice["n_units"] == 24
    for name in ("value", "lower", "upper", "d_lower", "d_upper"):
        assert once[name] == pytest.approx(thrice[name])


def test_an_auc_against_one_half() -> None:
    cell = cell_of(familiar([2.0] * 30, [1.0] * 20), HALF, column="membership_questions", is_paired=False)
    assert (cell["value"], cell["control"], cell["d"]) == (1.0, 0.5, 0.5)
    assert cell["d_lower"] == pytest.approx(0.05 ** (1 / 20) - 0.5, rel=1e-12)  # as many independent pairs as the fewer
    assert cell["d_upper"] == 0.5
    below = cell_of(familiar([0.0] * 30, [1.0] * 20), HALF, column="membership_questions", is_paired=False)
    assert below["judgement"] == "over-forgotten" and below["value"] == 0.0


def test_a_perplexity_is_the_exponential_of_a_mean() -> None:
    losses = np.random.default_rng(0).normal(1.0, 0.3, 40)
    cell = cell_of(rates(losses.tolist()), None, column="retain_perplexity", required=False)
    assert cell["value"] == pytest.approx(math.exp(losses.mean()))
    half = student.ppf(0.975, 39) * losses.std(ddof=1) / math.sqrt(40)
    assert cell["lower"] == pytest.approx(math.exp(losses.mean() - half), rel=0.02)
    assert cell["upper"] == pytest.approx(math.exp(losses.mean() + half), rel=0.02)


# --- what must not change a bound


def renamed(scores: Scores, names: Mapping[str, str]) -> Scores:
    return replace(scores, units=[names[unit] for unit in scores.units])


def test_names_do_not_matter_only_who_is_who() -> None:
    """Names in audit.json are hashed: their order changes, the cells may not."""
    rng = np.random.default_rng(3)
    subject, control = rates(rng.random(20).tolist(), each=2), rates(rng.random(20).tolist(), each=2)
    names = {unit: f"{rng.integers(10**9):x}" for unit in subject.units}
    hashed = cell_of(renamed(subject, names), renamed(control, names))
    assert hashed == cell_of(subject, control)


def test_pairs_are_made_by_name_not_by_position() -> None:
    rng = np.random.default_rng(4)
    values = rng.random(30).tolist()
    subject, control = rates(values), rates([value / 2 for value in values])
    turned = Scores(*(list(reversed(part)) for part in (control.items, control.units, control.values)))
    straight, crossed = (
        difference_bounds(subject, one, ACCURACY, is_paired=True, level=0.05, **SETTINGS) for one in (control, turned)
    )
    assert crossed == pytest.approx(straight, rel=1e-12)


def test_different_people_are_not_pairs_and_no_accident() -> None:
    """A control that lacks a unit, or asks others, is compared unpaired instead of ending the audit."""
    subject = hits(10, 30)
    for control in (hits(5, 29), hits(5, 30, prefix="other")):
        paired, unpaired = (cell_of(subject, control, is_paired=is_paired) for is_paired in (True, False))
        assert paired == unpaired and paired["status"] == "measured"


def test_members_and_strangers_are_drawn_by_themselves() -> None:
    """The same name on both sides of an AUC (a person and the look-alike) is not one unit."""
    scores = familiar([1.0] * 12, [0.0] * 12)
    same = replace(scores, units=[unit[1:] for unit in scores.units])
    apart, together = (cell_of(one, HALF, column="membership_questions", is_paired=False) for one in (scores, same))
    assert apart["d_lower"] == together["d_lower"]


# --- m


def test_m_counts_what_applies() -> None:
    rules = protocol([("as_is", "forget_accuracy"), ("int4", "forget_accuracy"), ("int4", "membership_questions")])
    assert required_cells(rules, COLUMNS, {}) == 3
    assert required_cells(rules, COLUMNS, {("int4", "membership_questions"): "no texts"}) == 2
    assert required_cells(rules, COLUMNS, {("int8", "forget_accuracy"): "was never required"}) == 3


def test_a_cell_that_does_not_apply_sharpens_the_others_and_is_asked_nothing() -> None:
    rows = {at: {"forget_accuracy": hits(0, 40)} for at in ("as_is", "int4")}
    rules = protocol([("as_is", "forget_accuracy"), ("int4", "forget_accuracy")])
    sources, columns = Sources(rows, rows, rows, True), {"forget_accuracy": ACCURACY}
    both = make_cells(sources, columns, rules, {}, **SETTINGS)
    first, second = make_cells(sources, columns, rules, {("int4", "forget_accuracy"): "for a reason"}, **SETTINGS)
    assert both[0]["d_upper"] == pytest.approx(1 - 0.025 ** (1 / 40))
    assert first["d_upper"] == pytest.approx(1 - 0.05 ** (1 / 40))
    assert second == {
        "condition": "int4",
        "column": "forget_accuracy",
        "status": "not applicable",
        "reason": "for a reason",
        "required": False,
    }


def test_every_cell_is_bounded_at_the_level_shared_by_all_that_apply() -> None:
    """quick-1 itself: 27 cells with a folder that ships, and fewer the fewer apply; the library's bounds at level / m."""
    rules = read_protocol("quick-1")
    subject, control = hits(4, 60), hits(1, 60)
    sources = Sources({"as_is": {"forget_accuracy": subject}}, {"as_is": {"forget_accuracy": control}}, {}, True)
    units = list(range(60))
    for absent, m in (({}, 7), ({("nf4", "forget_accuracy"): "for a reason"}, 6)):
        columns = {"forget_accuracy": ACCURACY}
        assert required_cells(rules, columns, absent) == m
        (cell,) = make_cells(sources, columns, rules, absent, seed=3, resamples=2000)
        expected = bounds_of_mean_difference(
            subject.values, units, control.values, units, paired=True, level=0.05 / m, seed=3, resamples=2000
        )
        assert (cell["d_lower"], cell["d_upper"]) == expected


# --- acquitted each by itself


def among(count: int, subject: Answer, control: Answer, acquit: str, *, side: str = "above") -> dict[str, Any]:
    """One cell of `count` that are required, of a protocol that acquits so."""
    wanted = [("as_is", "forget_accuracy"), *((f"other {k}", "forget_accuracy") for k in range(count - 1))]
    rules = replace(protocol(wanted, side=side), acquit=acquit)
    original = hits(40, 40)
    rows = ({"as_is": {"forget_accuracy": answer}} for answer in (subject, control, original))
    (cell,) = make_cells(Sources(*rows, is_paired=True), {"forget_accuracy": ACCURACY}, rules, {}, **SETTINGS)
    return cell


@pytest.mark.parametrize("count", [1, 27, 100])
def test_the_bound_that_acquits_does_not_grow_with_the_number_of_cells(count: int) -> None:
    """A protocol of a hundred cells that shares its level can acquit nobody of forty people: 0 of 40 is up to 0.17."""
    each, shared = (among(count, hits(0, 40), hits(0, 40), acquit) for acquit in ("each", "shared"))
    assert each["within"][1] == pytest.approx(1 - 0.05 ** (1 / 40)) and each["judgement"] == "clear"
    assert shared["judgement"] == ("open" if count == 100 else "clear") and "within" not in shared
    # What convicts is the same, and what is printed of it.
    assert (each["d_lower"], each["d_upper"]) == (shared["d_lower"], shared["d_upper"])


def test_what_convicts_is_shared_by_all_cells_all_the_same() -> None:
    """Enough to convict alone, and not among a hundred: whoever asks often finds something by chance."""
    alone = among(1, hits(7, 40), hits(0, 40), "each")
    many = among(100, hits(7, 40), hits(0, 40), "each")
    assert alone["judgement"] == "knowledge found" and many["judgement"] == "open"
    assert many["within"] == [alone["d_lower"], alone["d_upper"]] and many["d_lower"] < 0 < many["within"][0]


def test_either_side_is_acquitted_by_the_same_bounds() -> None:
    below = among(100, hits(0, 40), hits(0, 40), "each", side="either")
    assert below["judgement"] == "clear" and below["within"][0] > -0.15 > below["d_lower"]


# --- not measured


def test_what_was_not_measured_is_a_reason_never_a_number() -> None:
    known = hits(3, 20)
    cell = cell_of(NotMeasured("no texts"), known, known)
    assert (cell["status"], cell["reason"]) == ("not measured", "no texts")
    assert not {"value", "d", "judgement"} & set(cell)
    cell = cell_of(known, NotMeasured("the reference is gone"), known)
    assert (cell["status"], cell["reason"]) == ("not measured", "control: the reference is gone")
    assert "judgement" not in cell and cell["value"] == pytest.approx(0.15)
    assert cell_of(known, None, known)["reason"] == "control: was not asked"


def test_two_units_are_too_few_for_a_cell() -> None:
    cell = cell_of(hits(1, 2), hits(0, 2))
    assert cell["status"] == "not measured" and "at least 3 units" in cell["reason"]


def test_a_cell_that_nobody_needs_stays_a_number_without_its_control() -> None:
    cell = cell_of(hits(3, 20), NotMeasured("no"), required=False)
    assert cell["status"] == "measured" and cell["reason"] == "control: no" and "judgement" not in cell


# --- retained and regained


@pytest.mark.parametrize(
    ("subject", "control", "original", "expected"),
    [(24, 2, 46, 0.5), (2, 2, 46, 0.0), (46, 2, 46, 1.0), (0, 2, 46, -2 / 44), (48, 2, 46, 46 / 44)],
)
def test_retained_has_its_ends_and_is_not_clipped(subject: int, control: int, original: int, expected: float) -> None:
    cell = cell_of(hits(subject, 48), hits(control, 48), hits(original, 48))
    assert cell["retained"] == pytest.approx(expected)


@pytest.mark.parametrize(("now", "expected"), [(24, 0.5), (2, 0.0), (46, 1.0), (0, -2 / 44), (48, 46 / 44)])
def test_regained_is_measured_from_the_file_as_it_is(now: int, expected: float) -> None:
    cell = cell_of(hits(now, 48), hits(0, 48), hits(46, 48), as_is=hits(2, 48))
    assert cell["regained"] == pytest.approx(expected)
    assert "regained" not in cell_of(hits(now, 48), hits(0, 48), hits(46, 48))


def test_a_ratio_over_nothing_is_none() -> None:
    """The original knew no more than the control: within two standard errors of 0 there is nothing to have kept."""
    assert cell_of(hits(3, 48), hits(3, 48), hits(3, 48))["retained"] is None
    assert cell_of(hits(20, 48), hits(3, 48), hits(5, 48))["retained"] is None
    assert cell_of(hits(20, 48), hits(3, 48), hits(20, 48))["retained"] is not None
    assert cell_of(hits(20, 48), hits(3, 48), None)["retained"] is None
    noise = familiar([0.0, 1.0] * 12, [0.0, 1.0, 1.0, 0.0] * 6)
    column = "membership_questions"
    barely = familiar([0.0, 1.0, 1.0] * 8, [0.0, 1.0] * 12)  # AUC 0.58 from 24 units a side is nothing
    assert cell_of(noise, HALF, barely, column=column, is_paired=False)["retained"] is None
    known = familiar([1.0] * 24, [0.0] * 24)
    assert cell_of(noise, HALF, known, column=column, is_paired=False)["retained"] == pytest.approx(0.0)
    assert cell_of(known, noise, known, column=column)["retained"] == pytest.approx(1.0)


# --- utility


def utility_of(before: Answer, after: Answer) -> dict[str, Any]:
    name = "retain_accuracy"
    rows = utility_rows({"as_is": {name: after}}, {"as_is": {name: before}}, COLUMNS, protocol(), **SETTINGS)
    assert [row["column"] for row in rows] == [name]
    return rows[0]


@pytest.mark.parametrize(("after", "judgement"), [(48, "kept"), (44, "kept"), (43, "lost"), (0, "lost")])
def test_utility_may_fall_by_its_margin(after: int, judgement: str) -> None:
    row = utility_of(hits(48, 48), hits(after, 48))
    assert row["judgement"] == judgement and row["fall"] == pytest.approx(1 - after / 48)
    assert row["lower"] <= row["fall"] <= row["upper"]


def test_utility_that_was_not_measured_is_told() -> None:
    row = utility_of(hits(48, 48), NotMeasured("no retain questions were given"))
    assert (row["judgement"], row["reason"]) == ("not measured", "no retain questions were given")
    assert utility_of(NotMeasured("gone"), hits(1, 48))["reason"] == "gone"


# --- what cannot see must not acquit


def judgement(subject: Answer, control: Answer, original: Answer | None) -> str:
    rows = (
        {"as_is": {"forget_accuracy": answer}} if answer is not None else {} for answer in (subject, control, original)
    )
    sources = Sources(*rows, is_paired=True)
    (cell,) = make_cells(sources, {"forget_accuracy": ACCURACY}, protocol(), {}, **SETTINGS)
    return str(cell["judgement"])


def test_a_control_that_knows_as_much_as_the_original_acquits_nobody() -> None:
    known, nothing = hits(40, 40), hits(0, 40)
    assert judgement(nothing, nothing, known) == "clear"
    assert judgement(known, known, known) == "blind"  # somebody gave the original for the reference
    assert judgement(nothing, nothing, nothing) == "blind"  # no answer of anybody fits
    assert judgement(nothing, nothing, None) == "blind"  # nobody asked the original
    assert judgement(nothing, nothing, hits(6, 40)) == "blind"  # it never knew more than the margin
    assert judgement(known, nothing, nothing) == "knowledge found"  # what was seen stays seen


def judged(subject: Table, control: Table, original: Table, names: Iterable[str]) -> dict[tuple[str, str], str]:
    """(condition, column) -> judgement, all cells required."""
    columns = dict.fromkeys(names, ACCURACY)
    rules = protocol([(condition, name) for condition in subject for name in columns])
    cells = make_cells(Sources(subject, control, original, is_paired=True), columns, rules, {}, **SETTINGS)
    return {(cell["condition"], cell["column"]): str(cell["judgement"]) for cell in cells}


def test_no_column_vouches_for_another() -> None:
    """Texts, or other wordings, that the original never knew: what was seen in trained wordings shows nothing there."""
    names = ("forget_accuracy", "other")
    nothing, known = hits(0, 40), hits(40, 40)
    rows = {"as_is": dict.fromkeys(names, nothing)}
    found = judged(rows, rows, {"as_is": {"forget_accuracy": known, "other": nothing}}, names)
    assert found == {("as_is", "forget_accuracy"): "clear", ("as_is", "other"): "blind"}


def test_no_condition_vouches_for_another() -> None:
    """A sham that comes back at 4 bits, given as its own reference: as it is all is forgotten, and it answers at int4."""
    nothing, known = hits(0, 200), hits(200, 200)
    sham = {"as_is": {"forget_accuracy": nothing}, "int4": {"forget_accuracy": known}}
    found = judged(sham, sham, {"as_is": {"forget_accuracy": known}}, ["forget_accuracy"])
    assert found == {("as_is", "forget_accuracy"): "clear", ("int4", "forget_accuracy"): "blind"}


def test_a_membership_that_no_original_shows_is_blind_on_either_side() -> None:
    """Strangers who are more familiar than the forget set even to the original: their texts differ in something else."""
    even, below = familiar([0.0, 1.0] * 100, [0.0, 1.0] * 100), familiar([0.0] * 200, [1.0] * 200)
    known = familiar([1.0] * 200, [0.0] * 200)
    column, name = COLUMNS["membership_questions"], "membership_questions"
    rules = protocol([("as_is", name)], side="either")
    for original, expected in ((known, "clear"), (below, "blind"), (even, "blind")):
        sources = Sources(*({"as_is": {name: answer}} for answer in (even, HALF, original)), is_paired=False)
        (cell,) = make_cells(sources, {name: column}, rules, {}, **SETTINGS)
        assert cell["judgement"] == expected


@pytest.mark.parametrize(("knows", "expected"), [(12, "clear"), (11, "blind")])
def test_what_a_cell_can_see_is_certain_at_the_protocols_level_however_many_cells_there_are(
    knows: int, expected: str
) -> None:
    """Each cell must see by itself, so the level is not shared: 12 of 40 are certainly more than 0.15, 11 are not."""
    nothing = hits(0, 40)
    conditions = ("as_is", *(f"c{k}" for k in range(20)))
    rows = {condition: {"forget_accuracy": nothing} for condition in conditions}
    original = hits(knows, 40)
    lower, _ = difference_bounds(original, nothing, ACCURACY, is_paired=True, level=0.05, **SETTINGS)
    assert (lower > 0.15) == (expected == "clear")
    shared, _ = difference_bounds(original, nothing, ACCURACY, is_paired=True, level=0.05 / 21, **SETTINGS)
    assert shared < 0.15
    found = judged(rows, rows, {"as_is": {"forget_accuracy": original}}, ["forget_accuracy"])
    assert set(found.values()) == {expected}


def test_a_utility_that_was_hardly_there_is_not_kept() -> None:
    def row(before: Answer, after: Answer) -> dict[str, Any]:
        return utility_rows(
            {"as_is": {"retain_accuracy": after}}, {"as_is": {"retain_accuracy": before}}, COLUMNS, protocol(), **SETTINGS
        )[0]  # fmt: skip

    assert row(hits(36, 40), hits(36, 40))["judgement"] == "kept"
    weak = row(hits(4, 40), hits(0, 40))
    assert weak["judgement"] == "not measured"
    assert (
        "original's own 0.10 is not certainly above the margin of 0.10, so a loss could not be seen" in weak["reason"]
    )
    assert row(hits(10, 40), hits(1, 40))["judgement"] == "lost"


def test_what_ships_must_be_useful_as_well() -> None:
    known = {"retain_accuracy": hits(40, 40)}
    rows = utility_rows(
        {"as_is": known, "int8": known, "shipped": {"retain_accuracy": hits(0, 40)}}, {"as_is": known},
        COLUMNS, protocol(), **SETTINGS,
    )  # fmt: skip
    assert [(row["condition"], row["judgement"]) for row in rows] == [("as_is", "kept"), ("shipped", "lost")]


def test_words_in_which_the_original_is_silent_acquit_nobody() -> None:
    """As it is the original knows everything; asked like this it says nothing, and so would a model that knows."""
    nothing, known = hits(0, 40), hits(40, 40)
    rows = {"german": {"forget_accuracy": nothing}}
    asked = {"as_is": {"forget_accuracy": known}}
    for there, expected in (({}, "clear"), ({"german": {"forget_accuracy": known}}, "clear"), (rows, "blind")):
        found = judged(rows, rows, {**asked, **there}, ["forget_accuracy"])
        assert found == {("german", "forget_accuracy"): expected}
