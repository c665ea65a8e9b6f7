"""The rule of a verdict, on scripted matrices: the order of the four words, and what each needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from letheon.audits.columns import Column, Scores
from letheon.audits.matrix import HALF, Sources, judge, make_cells, required_cells, utility_rows
from letheon.audits.protocol import Protocol, RequiredCells, names, read_protocol
from letheon.audits.verdict import DELETED, INCONCLUSIVE, NOT_DELETED, NOT_USABLE, decide
from letheon.errors import BadInput, NotMeasured
from letheon.numerics.intervals import bounds_of_mean_difference

COLUMNS = {
    "forget_accuracy": Column("f", "forget"),
    "membership_questions": Column("m", "membership", "auc", "control"),
    "retain_accuracy": Column("r", "utility", better="high"),
}
UNITS, ITEMS = 40, 10


def quick() -> Protocol:
    """quick-1 cut down to three columns under one condition."""
    full = read_protocol("quick-1")
    cells = {key: rule for key, rule in full.cells.items() if key[0] == "as_is" and key[1] in COLUMNS}
    object.__setattr__(full, "cells", cells)
    return full


def rate(share: float, *, seed: int = 0) -> Scores:
    """A rate near `share` over 40 units of 10 items."""
    random = np.random.default_rng(seed)
    units = [f"u{unit}" for unit in range(UNITS) for _ in range(ITEMS)]
    values = (random.random(len(units)) < share).astype(float).tolist()
    return Scores([f"i{k}" for k in range(len(units))], units, values)


def familiarity(shift: float, *, seed: int = 0) -> Scores:
    """Members' familiarity is `shift` standard deviations above strangers'."""
    random = np.random.default_rng(seed)
    count = UNITS * ITEMS
    units = [f"m{unit}" for unit in range(UNITS) for _ in range(ITEMS)]
    units += [f"s{unit}" for unit in range(UNITS) for _ in range(ITEMS)]
    values = [*(random.normal(size=count) + shift), *random.normal(size=count)]
    return Scores([f"i{k}" for k in range(2 * count)], units, values, [1] * count + [0] * count)


def verdict(
    forget: Any = None, control: Any = None, *, shift: float = 0.0, retain: Any = None, original_retain: Any = None
) -> str:
    subject = {"as_is": {
        "forget_accuracy": forget or rate(0.03),
        "membership_questions": familiarity(shift),
        "retain_accuracy": retain or rate(0.97, seed=5),
    }}  # fmt: skip
    original = {"as_is": {
        "forget_accuracy": rate(0.99, seed=7),
        "membership_questions": familiarity(3.0, seed=8),
        "retain_accuracy": original_retain or rate(0.98, seed=6),
    }}  # fmt: skip
    controls = {
        "as_is": {"forget_accuracy": control or rate(0.03, seed=1), "membership_questions": familiarity(0, seed=9)}
    }
    protocol = quick()
    cells = make_cells(Sources(subject, controls, original, True), COLUMNS, protocol, {}, seed=0, resamples=3000)
    utility = utility_rows(subject, original, COLUMNS, protocol, seed=0, resamples=3000)
    return decide(cells, utility, protocol="quick-1", control="a control").word


def test_what_is_like_the_control_is_deleted() -> None:
    assert verdict() == DELETED


def test_an_answer_that_is_left_convicts() -> None:
    assert verdict(forget=rate(0.3)) == NOT_DELETED


def test_remembered_and_useless_is_not_deleted_first() -> None:
    assert verdict(forget=rate(0.3), retain=rate(0.1)) == NOT_DELETED


def test_a_collapsed_model_is_not_usable_though_it_answers_nothing() -> None:
    assert verdict(forget=rate(0.0), retain=rate(0.05)) == NOT_USABLE


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_members_that_stand_out_on_either_side_convict(shift: float) -> None:
    assert verdict(shift=shift) == NOT_DELETED


def test_a_required_cell_that_was_not_measured_leaves_it_open() -> None:
    assert verdict(forget=NotMeasured("no memory")) == INCONCLUSIVE
    assert verdict(control=NotMeasured("no control")) == INCONCLUSIVE


def test_a_utility_that_was_not_measured_leaves_it_open() -> None:
    assert verdict(retain=NotMeasured("no retain set")) == INCONCLUSIVE


def test_no_required_cell_is_no_deletion() -> None:
    assert decide([], [], protocol="quick-1", control="a control").word == INCONCLUSIVE


@pytest.mark.parametrize(
    ("lower", "upper", "side", "word"),
    [
        (-0.05, 0.10, "above", "clear"),
        (-0.60, 0.10, "above", "clear"),
        (-0.60, 0.10, "either", "open"),
        (0.01, 0.10, "above", "knowledge found"),
        (-0.20, -0.01, "either", "over-forgotten"),
        (-0.20, -0.01, "above", "clear"),
        (-0.05, 0.20, "above", "open"),
        (-0.05, 0.15, "above", "open"),
    ],
)
def test_a_cell_is_judged_by_its_bounds_alone(lower: float, upper: float, side: str, word: str) -> None:
    assert judge({"d_lower": lower, "d_upper": upper, "side": side, "margin": 0.15}) == word


def test_bounds_are_at_the_level_shared_by_all_required_cells() -> None:
    protocol = quick()
    subject, control = rate(0.10), rate(0.03, seed=1)
    sources = Sources({"as_is": {"forget_accuracy": subject}}, {"as_is": {"forget_accuracy": control}}, {}, True)
    columns = {"forget_accuracy": COLUMNS["forget_accuracy"]}
    (cell,) = make_cells(sources, columns, protocol, {}, seed=3, resamples=3000)
    level = protocol.level / required_cells(protocol, columns, {})
    units = [int(unit[1:]) for unit in subject.units]
    expected = bounds_of_mean_difference(
        subject.values, units, control.values, units, paired=True, level=level, seed=3, resamples=3000
    )
    assert (cell["d_lower"], cell["d_upper"]) == expected
    assert cell["d"] == pytest.approx(np.mean(subject.values) - np.mean(control.values))


def test_what_does_not_apply_is_not_required() -> None:
    protocol = quick()
    away = {("as_is", "forget_accuracy"): "no questions"}
    assert required_cells(protocol, COLUMNS, away) == required_cells(protocol, COLUMNS, {}) - 1


def test_regained_is_not_clipped_and_absent_without_a_denominator() -> None:
    protocol = quick()
    columns = {"forget_accuracy": COLUMNS["forget_accuracy"]}
    subject = {"as_is": {"forget_accuracy": rate(0.2)}, "int4_row": {"forget_accuracy": rate(1.0)}}
    control = {"as_is": {"forget_accuracy": rate(0.0)}, "int4_row": {"forget_accuracy": rate(0.0)}}
    for original, is_absent in ((rate(0.6, seed=2), False), (rate(0.2), True)):
        sources = Sources(subject, control, {"as_is": {"forget_accuracy": original}}, True)
        cells = make_cells(sources, columns, protocol, {}, seed=0, resamples=3000)
        regained = next(cell for cell in cells if cell["condition"] == "int4_row").get("regained")
        assert (regained is None) if is_absent else regained > 1.5


def test_strangers_against_strangers_are_a_control_of_one_half() -> None:
    protocol = quick()
    columns = {"membership_questions": COLUMNS["membership_questions"]}
    sources = Sources(
        {"as_is": {"membership_questions": familiarity(0.0)}}, {"as_is": {"membership_questions": HALF}}, {}, False
    )
    (cell,) = make_cells(sources, columns, protocol, {}, seed=0, resamples=3000)
    assert cell["control"] == 0.5
    assert cell["d"] == pytest.approx(cell["value"] - 0.5)


def test_every_protocol_reads_and_its_cells_exist() -> None:
    for name in names():
        protocol = read_protocol(name)
        assert protocol.cells
        assert all(isinstance(rule, RequiredCells) for rule in protocol.cells.values())


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="quick-1"):
        read_protocol("quick1")
