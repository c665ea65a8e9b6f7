"""Every attack on three models of the small world: one that knows, one that hides what it knows, one that never knew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.attacked import rows_of
from letheon.audits.audit import audit
from letheon.audits.columns import Scores
from letheon.audits.plan import Plan, make_plan
from letheon.audits.protocol import read_protocol
from letheon.audits.stored import Rows
from letheon.audits.tables import Asker
from letheon.audits.verify import verify
from letheon.methods import build, load, names
from letheon.models import inspect_model
from tests.audits.conftest import QUICKLY
from tests.audits.mini import Mini

Asking = Callable[[str, str], tuple[Rows, Rows]]
ATTACKS = [name for name in names("condition") if hasattr(load("condition", name), "walk")]
BRIEFLY: dict[str, dict[str, Any]] = {
    "gcg": {"steps": [4], "tokens": 2, "candidates": 24, "questions": 8, "buffer": 4},
    "gcg_enhanced": {"steps": [4], "tokens": 3, "spare": 1, "candidates": 8, "questions": 4, "buffer": 4},
    "interpolate": {"shares": [0.1, 0.25]},
    "relearn": {"steps": [10]},
    "relearn_lora": {"steps": [10]},
    "relearn_out": {"steps": [40]},
    "retrain_folds": {"folds": 3, "steps": [20]},
}
NOT_HEARD = ("gcg", "gcg_enhanced", "interpolate", "linear_probe")
"""Behind a strange string a model that knows may be silent; the other two are asked about below."""
BRINGS_BACK = ("interpolate", "latent_attack", "logit_lens", "relearn", "relearn_lora", "relearn_out", "retrain_folds", "soft_prompt")  # fmt: skip


@pytest.fixture(scope="module")
def plan(mini: Mini) -> Plan:
    data = {role: mini.data(role) for role in ("forget", "retain", "holdout", "general")}
    made = make_plan(
        read_protocol("quick-1"),
        data,
        encoder=mini.encoder,
        has_reference=True,
        shipped=None,
        gate_units=frozenset(),
        seed=0,
    )
    columns = ("forget_accuracy", "forget_probability", "membership_questions", "retain_accuracy")
    return replace(made, columns={name: made.columns[name] for name in columns})


@pytest.fixture(scope="module")
def asking(mini: Mini, hidden: Path, plan: Plan) -> Asking:
    """(attack or as_is, which model) -> its own rows, and what the same model says of strangers."""
    folders = {"target": mini.target, "hidden": hidden, "reference": mini.reference}

    @cache
    def ask(name: str, which: str) -> tuple[Rows, Rows]:
        conditions = rows_of(name, build("condition", {"name": name, **BRIEFLY.get(name, {})}))
        asker = Asker(
            replace(plan, conditions=conditions),
            mini.encoder,
            "cpu",
            {},
            lambda text: None,
            original=inspect_model(mini.target),
        )
        own, control, _ = asker.table(inspect_model(folders[which]), conditions, self_control="holdout")
        return own, control

    return ask


def values(rows: Rows, column: str) -> list[float]:
    found = []
    for row in rows.values():
        scores = row[column]
        assert isinstance(scores, Scores), str(scores)
        found.append(scores.aggregate("mean"))
    return found


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in NOT_HEARD])
def test_who_knows_is_seen_to_know(name: str, asking: Asking) -> None:
    own, control = asking(name, "target")
    assert min(values(own, "forget_accuracy")) > 0.7
    assert max(values(control, "forget_accuracy")) < 0.12


def test_there_is_no_way_between_a_model_and_itself(asking: Asking) -> None:
    own, _ = asking("interpolate", "target")
    for row in own.values():
        assert "the model has the original's weights" in str(row["forget_accuracy"])


def test_a_probe_reads_more_than_shuffled_labels_do_and_says_no_probabilities(asking: Asking) -> None:
    """Three in eight answers of this world are nobody else's, and so no choice of the probe's."""
    own, control = asking("linear_probe", "target")
    true, shuffled = values(own, "forget_accuracy")
    assert list(own) == ["linear_probe_answers", "linear_probe_shuffled"]
    assert true > shuffled + 0.1 and max(values(control, "forget_accuracy")) < 0.12
    assert "no text or probability" in str(own["linear_probe_answers"]["forget_probability"])


@pytest.mark.parametrize("name", ATTACKS)
def test_who_never_knew_is_taught_nothing(name: str, asking: Asking) -> None:
    own, _ = asking(name, "reference")
    assert max(values(own, "forget_accuracy")) < 0.12
    if name != "linear_probe":
        assert max(values(own, "forget_probability")) < 0.15


@pytest.mark.parametrize("name", BRINGS_BACK)
def test_what_was_hidden_comes_back(name: str, asking: Asking) -> None:
    (as_is,) = values(asking("as_is", "hidden")[0], "forget_probability")
    own, control = asking(name, "hidden")
    assert max(values(own, "forget_probability")) > as_is + 0.03
    assert max(values(own, "forget_probability")) > max(values(control, "forget_probability")) + 0.08


@pytest.mark.parametrize("name", ATTACKS)
def test_every_item_is_asked_once_and_strangers_too(name: str, asking: Asking, plan: Plan) -> None:
    own, control = asking(name, "hidden")
    for rows, role in ((own, "forget"), (control, "holdout")):
        for row in rows.values():
            scores = row["forget_accuracy"]
            assert isinstance(scores, Scores) and sorted(scores.items) == sorted(plan.sets[f"{role}_questions"].items)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_that_learns_nothing_of_the_forgotten_is_asked_everything(name: str, asking: Asking) -> None:
    own, control = asking(name, "hidden")
    is_whole = build("condition", name).folds == 0
    for row in own.values():
        assert isinstance(row["membership_questions"], Scores) == isinstance(row["retain_accuracy"], Scores) == is_whole
    for row in control.values():
        assert not isinstance(row["retain_accuracy"], Scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_audit_with_the_attack_can_be_checked_and_its_verdict_is_that_without(
    name: str, mini: Mini, hidden: Path, tmp_path: Path
) -> None:
    given = {"reference": mini.reference, "general_data": mini.files["general"], **QUICKLY}
    plain = audit(hidden, out=tmp_path / "plain", **given)
    found = audit(hidden, also={"name": name, **BRIEFLY.get(name, {})}, out=tmp_path / "run", **given)
    assert not verify(found.run).problems and found.verdict == plain.verdict
    rows = [row for row in found.audit["conditions"] if row.startswith(name)]
    assert rows and [cell for cell in found.audit["cells"] if cell["condition"] not in rows] == plain.audit["cells"]
    for row in rows:
        assert found.audit["conditions"][row]["label"]
        (cell,) = [one for one in found.audit["cells"] if (one["condition"], one["column"]) == (row, "forget_accuracy")]
        assert cell["status"] == "measured" and not cell["required"] and cell["control"] < 0.25
