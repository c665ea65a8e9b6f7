"""The relearning attack: AdamW on V by hand, T asked, people who come back and people who were never there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.audit import audit
from letheon.audits.conditions.relearn import Relearn
from letheon.audits.verify import verify
from letheon.data.batches import EpochOrder, collate
from letheon.data.encode import Example
from letheon.errors import BadInput, NotMeasured
from tests.audits.conftest import QUICKLY
from tests.audits.fakes import target_of
from tests.audits.mini import Mini
from tests.toys import llama

LEARNED = [Example((*range(start, start + 6), 1), 4) for start in range(2, 12)]


def by_hand(model: Any, settings: Relearn, steps: int) -> None:
    """Plain PyTorch on the same batches: mean over the labelled tokens, clip, AdamW without decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    order = EpochOrder(tuple(len(example.ids) for example in LEARNED), settings.batch_size, settings.seed)
    model.requires_grad_(True)
    for step in range(steps):
        items = order.items(step)
        batch = collate([LEARNED[item] for item in items], items, pad=0)
        labels = torch.full_like(batch.ids, -100)
        labels[batch.label_row, batch.label_column + 1] = batch.label_ids
        optimizer.zero_grad()
        model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
    model.requires_grad_(False)


def test_it_is_adamw_on_what_the_attacker_learns() -> None:
    """In float64 (but for the logits): AdamW steps as far along a gradient of 1e-9, which is rounding in float32."""
    settings = Relearn(steps=(1, 4), batch_size=4, learning_rate=1e-3)
    attacked, found = llama(seed=1).double(), {}

    def then(step: int) -> None:
        found[step] = {name: tensor.clone() for name, tensor in attacked.state_dict().items()}

    settings.walk(target_of(attacked), Attacker(tuple(LEARNED)), then)
    for step in (1, 4):
        plain = llama(seed=1).double()
        by_hand(plain, settings, step)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(found[step][name], tensor, rtol=1e-4, atol=1e-6)


def test_an_attack_that_breaks_the_model_is_not_measured() -> None:
    model = llama(seed=1)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NotMeasured, match="the attack could not go on: step 1"):
        Relearn(steps=(2,)).walk(target_of(model), Attacker(tuple(LEARNED)), lambda step: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ()}, r"relearn needs different steps > 0, got \[\]"),
        ({"steps": (5, 0)}, r"got \[5, 0\]"),
        ({"steps": (5, 5)}, r"got \[5, 5\]"),
        ({"batch_size": 0}, "batch_size > 0, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0, got 0"),
        ({"clip": -1.0}, "clip must be > 0 or null, got -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Relearn(**settings)


STEPS = (2, 20)
ALSO = {"name": "relearn", "steps": list(STEPS), "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def attacked(mini: Mini, hidden: Path) -> dict[str, Any]:
    result = audit(hidden, reference=mini.reference, general_data=mini.files["general"], also=ALSO, **QUICKLY)
    return {"run": result.run, **result.audit}


def cell(found: dict[str, Any], condition: str, column: str) -> dict[str, Any]:
    (one,) = [cell for cell in found["cells"] if (cell["condition"], cell["column"]) == (condition, column)]
    return dict(one)


def test_what_was_hidden_comes_back_and_what_was_never_there_does_not(attacked: dict[str, Any]) -> None:
    early, late = (cell(attacked, f"relearn_{steps}", "forget_accuracy") for steps in STEPS)
    assert early["n_units"] == late["n_units"] == 8, "both halves were asked"
    assert late["value"] > cell(attacked, "as_is", "forget_accuracy")["value"] + 0.15
    assert late["control"] < 0.12 < late["d"]
    assert not late["required"] and "judgement" not in late


@pytest.mark.slow
def test_an_attacked_model_is_asked_about_nothing_else(attacked: dict[str, Any]) -> None:
    for column in ("membership_questions", "retain_accuracy"):
        one = cell(attacked, "relearn_2", column)
        assert one["status"] == "not measured" and "under attack" in one["reason"]


@pytest.mark.slow
def test_the_verdict_does_not_rest_on_it_and_can_be_checked(
    attacked: dict[str, Any], mini: Mini, hidden: Path, tmp_path: Path
) -> None:
    assert not verify(attacked["run"]).problems
    plain = audit(
        hidden, reference=mini.reference, general_data=mini.files["general"], out=tmp_path / "plain", **QUICKLY
    )
    assert attacked["verdict"] == {"word": plain.verdict.word, "reasons": list(plain.verdict.reasons), "scope": plain.verdict.scope}  # fmt: skip
    same = [one for one in attacked["cells"] if not one["condition"].startswith("relearn")]
    assert same == plain.audit["cells"], "nothing of the attack is left in the model"


@pytest.mark.slow
def test_one_trajectory_gives_what_two_would(
    attacked: dict[str, Any], mini: Mini, hidden: Path, tmp_path: Path
) -> None:
    alone = audit(
        hidden,
        reference=mini.reference,
        general_data=mini.files["general"],
        also={**ALSO, "steps": [STEPS[1]]},
        out=tmp_path / "alone",
        **QUICKLY,
    )
    one, other = cell(alone.audit, "relearn", "forget_probability"), cell(attacked, "relearn_20", "forget_probability")
    assert {**one, "condition": ""} == {**other, "condition": ""}


@pytest.mark.slow
def test_without_a_reference_strangers_are_asked_of_the_attacked_models(
    mini: Mini, hidden: Path, tmp_path: Path
) -> None:
    found = audit(
        hidden, holdout_data=mini.files["holdout"], also={**ALSO, "steps": [20]}, out=tmp_path / "run", **QUICKLY
    )
    one = cell(found.audit, "relearn", "forget_accuracy")
    assert one["value"] > 0.15 > one["control"]
    with open(found.run / "audit.json", encoding="utf-8") as file:
        held = json.load(file)["scores"]["control"]["relearn"]["forget_accuracy"]
    assert len(held["values"]) == len(mini.data("holdout").questions)


def test_a_row_that_every_audit_has_cannot_be_added(mini: Mini) -> None:
    for name, remedy in (("as_is", "leave it out"), ("shipped", "--shipped DIR")):
        spec = {"name": name, "path": str(mini.target)} if name == "shipped" else name
        with pytest.raises(BadInput, match=f"also: {name} is a row of every audit.*{remedy}"):
            audit(mini.target, also=spec, **mini.inputs, **QUICKLY)


@pytest.mark.slow
def test_one_person_alone_cannot_be_attacked_with(mini: Mini, tmp_path: Path) -> None:
    lines = mini.files["forget"].read_text(encoding="utf-8").splitlines()
    unit = json.loads(lines[0])["unit"]
    one = tmp_path / "one.jsonl"
    one.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["unit"] == unit), encoding="utf-8")
    given = {**mini.inputs, "forget_data": one}
    found = audit(mini.target, also="relearn", reference=mini.reference, out=tmp_path / "run", **given, **QUICKLY)
    reason = cell(found.audit, "relearn_5", "forget_accuracy")["reason"]
    assert "the forget set has 1" in reason
