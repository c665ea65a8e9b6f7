"""Every wording on two models of the small world, one that knows and one that never knew; and an audit with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from letheon.audits.attacked import rows_of
from letheon.audits.columns import Scores
from letheon.audits.plan import make_plan
from letheon.audits.protocol import read_protocol
from letheon.audits.tables import Asker
from letheon.audits.verify import verify
from letheon.cli.main import run as letheon
from letheon.methods import build, load, names
from letheon.models import inspect_model
from tests.audits.mini import Mini

WORDINGS = [name for name in names("condition") if hasattr(load("condition", name), "asked")]


@pytest.mark.parametrize("name", WORDINGS)
def test_who_never_knew_says_nothing_in_other_words(name: str, mini: Mini) -> None:
    """Where the answer is among what is shown a guess is right more often: for the strangers as well."""
    data = {role: mini.data(role) for role in ("forget", "retain", "holdout", "general")}
    plan = make_plan(
        read_protocol("quick-1"),
        data,
        encoder=mini.encoder,
        has_reference=True,
        shipped=None,
        gate_units=frozenset(),
        seed=0,
    )
    conditions = rows_of(name, build("condition", name))
    asker = Asker(plan, mini.encoder, "cpu", {}, lambda text: None)
    own, control, _ = asker.table(inspect_model(mini.reference), conditions, self_control="holdout")
    for row in own:
        mine, theirs = own[row]["forget_accuracy"], control[row]["forget_accuracy"]
        if not isinstance(mine, Scores) or not isinstance(theirs, Scores):
            assert row in asker.left
            continue
        is_shown = row in ("template_choices", "prefilled_1", "prefilled_2")
        most = theirs.aggregate("mean") + 0.25 if is_shown else 0.12
        assert mine.aggregate("mean") < most, row


def test_an_audit_from_the_command_line_has_their_rows_and_stands_when_it_is_made_again(
    mini: Mini, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    inputs = [f"--{role}={mini.files[role]}" for role in ("forget", "retain", "holdout", "general")]
    given = [f"--original={mini.target}", f"--reference={mini.reference}", *inputs, f"--out={run}", "--resamples=1000"]
    code = letheon(["audit", str(mini.target), "--also", "template", *given, "--quiet"])
    assert code in (0, 1, 3)
    cells = json.loads((run / "audit.json").read_text())["cells"]
    rows = {cell["condition"]: cell for cell in cells if cell["column"] == "forget_accuracy"}
    assert {"template_role_play", "template_choices", "template_synonyms"} <= set(rows)
    assert all(not rows[row]["required"] for row in rows if row.startswith("template"))
    assert rows["template_role_play"]["status"] == "measured" and "control" in rows["template_role_play"]
    verify(run)
