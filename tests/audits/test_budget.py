"""An audit that runs out of time says so: nothing it did not ask has passed, and nothing cut short is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from letheon.audits import tables
from letheon.audits.audit import audit
from letheon.audits.budget import Budget, BudgetExhausted
from letheon.audits.columns import Scores
from letheon.audits.plan import Plan
from letheon.errors import BadInput
from letheon.models import inspect_model
from letheon.runs.progress import Progress
from tests.audits.mini import Mini
from tests.audits.test_tables import SOME, asker_of, plan  # noqa: F401


class Clock:
    """Ten seconds pass whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def test_what_is_not_begun_in_time_is_not_measured_and_as_it_is_every_model_is_asked(
    plan: Plan,  # noqa: F811
    mini: Mini,
) -> None:
    asker = replace(asker_of(plan, mini), budget=Budget(5.0, Clock()))
    for _ in range(2):
        own, _, _ = asker.table(inspect_model(mini.target), plan.conditions)
        first, late = (own[name]["forget_accuracy"] for name in SOME)
        assert isinstance(first, Scores) and isinstance(late, BudgetExhausted)
        assert str(late) == "budget exhausted: the audit was given 5 s"
        assert all(isinstance(answer, BudgetExhausted) for answer in own[SOME[1]].values())
    assert all(
        isinstance(answer, Scores)
        for row in replace(asker, budget=Budget(1e9, Clock()))
        .table(inspect_model(mini.target), plan.conditions)[0]
        .values()
        for answer in row.values()
    )


def test_a_table_that_was_cut_short_is_not_kept(
    plan: Plan,  # noqa: F811
    mini: Mini,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "cache"))
    folder = inspect_model(mini.target)
    short = replace(asker_of(plan, mini), budget=Budget(5.0, Clock())).cached_table(folder, plan.conditions)
    assert isinstance(short[SOME[1]]["forget_accuracy"], BudgetExhausted)
    whole = asker_of(plan, mini).cached_table(folder, plan.conditions)
    assert isinstance(whole[SOME[1]]["forget_accuracy"], Scores)
    assert len(list(tables.cache_folder().glob("*.json"))) == 1


def test_an_audit_without_time_decides_nothing(mini: Mini, tmp_path: Path) -> None:
    """Of a model that is clean: what was not asked in time is no reason to let it pass."""
    found = audit(
        mini.reference,
        **mini.inputs,
        budget_s=1e-9,
        out=tmp_path / "run",
        progress=Progress(quiet=True),
    )
    assert found.verdict.word == "INCONCLUSIVE"
    late = [cell for cell in found.audit["cells"] if cell["condition"] == "int4_row" and cell["required"]]
    assert late and all(cell["status"] == "not measured" for cell in late)
    assert all(cell["reason"].startswith("budget exhausted: ") for cell in late)
    assert found.audit["settings"]["budget_s"] == 1e-9
    with pytest.raises(BadInput, match="budget_s must be > 0 seconds, got 0"):
        audit(mini.reference, original=mini.target, forget_data=mini.files["forget"], budget_s=0)
