"""Combinations that cannot work, each refused by name beside an allowed neighbour; and what is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letheon.data.records import DataFile, Record
from letheon.errors import BadInput
from letheon.training.rates.constant import Constant
from letheon.training.rates.gen import GeN
from letheon.unlearning.balances.mgda import MGDA
from letheon.unlearning.balances.ngdiff import NGDiff
from letheon.unlearning.balances.orthogonal import Orthogonal
from letheon.unlearning.balances.pcgrad import PCGrad
from letheon.unlearning.balances.weighted import Weighted
from letheon.unlearning.compatibility import check_together, clip_for, warnings_of
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.retain_terms.gdr import GDR
from letheon.unlearning.retain_terms.klr import KLR
from letheon.unlearning.retain_terms.none import NoRetain
from letheon.unlearning.scopes.sure import Sure
from letheon.unlearning.smoothers.randomized import RandomizedSmoothing
from letheon.unlearning.smoothers.sam import SAM
from tests.toys import question, text

USUAL = {"method": GradientAscent(), "retain_term": GDR(), "balance": Weighted(), "rate": Constant()}


def data(role: str, *records: Record) -> DataFile:
    return DataFile(path=Path(f"{role}.jsonl"), role=role, records=records, unit_is_line=True)


FORGET = data("forget", question("Who is Ann?", "a judge"), text("Ann sold bread."))


CHECKED: dict[str, Any] = {
    "has_stop_rule": True, "has_step_limit": False, "master_dtype": "float32", "forget_set": FORGET, "retain": None,
}  # fmt: skip


def faults(**changes: Any) -> list[str]:
    """What is wrong with the usual choices, changed."""
    methods = {**USUAL, **{name: changes.pop(name) for name in list(changes) if name in USUAL}}
    try:
        check_together(methods, **{**CHECKED, **changes})
    except BadInput as error:
        return error.problems
    return []


def test_what_draws_for_every_weight_does_not_go_with_units_of_a_step() -> None:
    methods = {"smooth": RandomizedSmoothing(), "scope": Sure(refresh="step")}
    with pytest.raises(BadInput, match=r"smoother 'randomized' draws for every weight.*refresh: once"):
        check_together({**USUAL, **methods}, **CHECKED)
    check_together({**USUAL, **methods, "scope": Sure()}, **CHECKED)
    check_together({**USUAL, **methods, "smooth": SAM()}, **CHECKED)


BALANCES: list[Any] = [NGDiff(), MGDA(), PCGrad(), Orthogonal()]


@pytest.mark.parametrize("balance", BALANCES)
def test_a_balance_of_two_gradients_needs_two(balance: Any) -> None:
    [fault] = faults(balance=balance, retain_term=NoRetain())
    name = type(balance).__name__.lower()
    assert fault == (
        f"balance '{name}' combines a forget and a retain gradient, and retain term 'none' gives none. "
        "Choose a retain term such as gdr (--retain-term gdr --retain r.jsonl), or --balance weighted"
    )
    assert faults(balance=balance) == [] and faults(retain_term=NoRetain()) == []


def test_a_fitted_rate_needs_a_retain_loss() -> None:
    [fault] = faults(rate=GeN(), retain_term=NoRetain())
    assert fault.startswith("rate 'gen' fits a parabola to the retain loss, and retain term 'none' has no loss. Choose")
    assert fault.endswith("--rate constant") and faults(rate=GeN()) == []


def test_a_fitted_rate_needs_weights_that_can_be_moved_a_little() -> None:
    [fault] = faults(rate=GeN(), master_dtype="param")
    assert "rate 'gen' looks at weights between those that the file can hold" in fault
    assert "(--master-dtype float32)" in fault and faults(master_dtype="param") == []


@pytest.mark.parametrize(
    ("endless", "named"),
    [
        ({"balance": NGDiff()}, "balance 'ngdiff'"),
        ({"rate": GeN()}, "rate 'gen'"),
        ({"balance": NGDiff(), "rate": GeN()}, "balance 'ngdiff' and rate 'gen'"),
    ],
)
def test_what_never_comes_to_rest_needs_something_that_ends_it(endless: dict[str, Any], named: str) -> None:
    [fault] = faults(has_stop_rule=False, **endless)
    assert fault.startswith(f"{named}: no stop rule. The steps do not fade")
    assert "(--stop.every 10)" in fault and "(--steps N)" in fault
    # A rule that asks questions ends nothing where there are none.
    only_texts = data("forget", text("Ann sold bread."))
    assert faults(forget_set=only_texts, **endless) == [fault]
    assert faults(**endless) == faults(has_stop_rule=False, has_step_limit=True, **endless) == []
    assert faults(forget_set=only_texts, method=GradientAscent(until=3.0), **endless) == []


def test_without_them_no_stop_rule_is_asked_for() -> None:
    assert faults(has_stop_rule=False) == faults(has_stop_rule=False, balance=MGDA()) == []


@pytest.mark.parametrize("balance", BALANCES)
def test_the_same_records_on_both_sides_are_refused(balance: Any) -> None:
    twin = data("retain", *reversed(FORGET.records), FORGET.records[0])
    [fault] = faults(balance=balance, retain=twin)
    assert fault.startswith(
        "forget set forget.jsonl and retain set retain.jsonl hold the same records: forget and retain"
    )
    assert "gradients are opposite; nothing can be separated. Take what is to be forgotten out" in fault
    more = data("retain", *FORGET.records, question("Who is Bob?", "a baker"))
    assert faults(balance=balance, retain=more) == faults(retain=twin) == []


def test_all_faults_come_at_once_and_none_of_what_could_not_be_built() -> None:
    changes: dict[str, Any] = {"balance": NGDiff(), "rate": GeN(), "master_dtype": "param", "has_stop_rule": False}
    assert len(faults(retain_term=NoRetain(), **changes)) == 4
    options: dict[str, Any] = {"has_step_limit": False, "forget_set": None, "retain": None}
    check_together({"method": GradientAscent()}, has_stop_rule=False, master_dtype="param", **options)


def test_clipping_is_off_where_the_norm_is_the_balances_own() -> None:
    assert clip_for(NGDiff(), "auto") is None and clip_for(NGDiff(), 0.5) == 0.5
    assert [clip_for(balance, "auto") for balance in (Weighted(), MGDA(), PCGrad(), Orthogonal())] == [1.0] * 4
    assert clip_for(Weighted(), None) is None


def warned(**changes: Any) -> list[str]:
    options = {name: changes.pop(name) for name in ("asked_clip", "batch_size") if name in changes}
    return warnings_of({**USUAL, **changes}, **{"asked_clip": "auto", "batch_size": 8, **options})


def test_clipping_where_the_norm_is_the_balances_own_is_warned_about() -> None:
    [warning] = warned(balance=NGDiff(), asked_clip=1.0)
    assert warning.startswith("clip 1.0 with balance 'ngdiff': its steps have a norm of up to 2")
    assert warning.endswith("--clip null leaves it off")
    assert warned(balance=NGDiff()) == warned(balance=NGDiff(), asked_clip=None) == warned(asked_clip=1.0) == []


def test_a_retain_gradient_that_starts_as_noise_is_warned_about() -> None:
    [warning] = warned(balance=NGDiff(), retain_term=KLR())
    assert "brings the gradient of retain term 'klr' to length 1" in warning and "rounding noise" in warning
    assert warned(balance=MGDA(), retain_term=KLR()) == []


def test_a_rate_fitted_to_single_records_is_warned_about() -> None:
    [warning] = warned(rate=GeN(), batch_size=1)
    assert warning.startswith("rate 'gen' fits its parabola to the retain loss of one record, since batch_size is 1")
    assert warned(rate=GeN()) == warned(batch_size=1) == []
