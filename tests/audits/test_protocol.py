"""The shipped protocols hold together, and one that names what is not there is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from letheon.audits import protocol as module
from letheon.audits.protocol import names, read_protocol
from letheon.errors import BadInput, UnknownName
from letheon.methods import build

FOLDER = Path(module.__file__).parent / "protocols"
CONDITIONS = ["as_is", "int8", "int4_row", "int4_group32", "fp4", "nf4", "shipped"]


def test_quick_1_asks_for_what_it_says() -> None:
    found = read_protocol("quick-1")
    assert found.name == "quick-1" and found.level == 0.05
    assert list(found.conditions) == CONDITIONS
    assert len(found.cells) == 7 * 3 + 3 + 3
    for condition in CONDITIONS:
        for column in ("forget_accuracy", "forget_accuracy_held_out", "membership_questions"):
            assert (condition, column) in found.cells
    assert {found.cells["as_is", name].side for name in ("membership_texts", "membership_questions")} == {"either"}
    assert {found.cells["as_is", name].side for name in ("forget_accuracy", "verbatim")} == {"above"}
    assert found.margin_of_utility("retain_accuracy") == 0.10
    assert found.margin_of_utility("forget_accuracy") is None


@pytest.mark.parametrize("name", names())
def test_every_protocol_can_be_run_and_judged(name: str) -> None:
    found = read_protocol(name)
    assert found.name == name == Path(f"{name}.yaml").stem
    assert found.sha256 == hashlib.sha256((FOLDER / f"{name}.yaml").read_bytes()).hexdigest()
    assert found.cells and found.utility, "forgetting alone would pass a collapsed model"
    assert found.resamples * found.level / len(found.cells) >= 5, "too few resamples beyond the level of one cell"
    for at, spec in found.conditions.items():
        if at != "shipped":
            build("condition", spec)
    for rule in found.required:
        assert 0 < rule.margin < 1
    for probe in found.probes:
        assert build("probe", probe).columns
    # What is generated under some conditions only is not required under others.
    for condition, column in found.cells:
        assert column not in found.generated.columns or condition in found.generated.conditions


def test_an_unknown_protocol_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'quick1' is not a protocol\. Did you mean 'quick-1'\?"):
        read_protocol("quick1")
    with pytest.raises(UnknownName):
        read_protocol("../protocols/quick-1")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "conditions: [as_is, int8, int4_row",
            "conditions: [as_is, int7, int4_row",
            "'int7' is none of its conditions",
        ),
        ("columns: [verbatim]", "columns: [verbatin]", "'verbatin' under required is no column of its probes"),
        (
            "utility:\n  - {columns: [retain_accuracy,",
            "utility:\n  - {columns: [retain_acuracy,",
            "'retain_acuracy' under utility",
        ),
        (
            "utility:\n  - {columns: [retain_accuracy,",
            "utility:\n  - {columns: [retain_perplexity,",
            "'retain_perplexity' cannot be",
        ),
        (
            "generated: {columns: [forget_rouge,",
            "generated: {columns: [forget_rogue,",
            "'forget_rogue' under generated",
        ),
        ("probes: [knowledge, verbatim,", "probes: [knowledge,", "'verbatim' under generated is no column"),
        (
            "columns: [verbatim], conditions: [as_is,",
            "columns: [verbatim], conditions: [as_is, as_is,",
            "verbatim under as_is is required twice",
        ),
        ("side: above}", "side: below}", "'below' is not one of"),
        ("resamples: 10000", "resample: 10000", "unknown key 'resample'"),
    ],
)
def test_a_protocol_with_a_slip_is_refused(
    before: str, after: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (FOLDER / "quick-1.yaml").read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "quick-1.yaml").write_text(text.replace(before, after, 1), encoding="utf-8")
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    with pytest.raises(BadInput) as caught:
        read_protocol("quick-1")
    assert said in str(caught.value) and "protocol quick-1" in str(caught.value)


def test_another_number_of_resamples_is_not_the_protocol() -> None:
    found = read_protocol("quick-1")
    assert found.said(found.resamples, 0) == "quick-1"
    assert found.said(1000, 0) == "quick-1 (with 1000 resamples, for trying out)"
    assert found.said(1000, 7) == "quick-1 (with 1000 resamples and seed 7, for trying out)"


@pytest.mark.parametrize(
    "column", ["forget_truth_ratio_geometric", "forget_choice_entropy", "forget_entropy", "forget_repetition"]
)
def test_what_is_no_sign_of_knowledge_cannot_be_required(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a truth ratio the clean model has more: to require it would convict the innocent and acquit the guilty."""
    text = (FOLDER / "quick-1.yaml").read_text(encoding="utf-8")
    text = text.replace("probes: [knowledge,", "probes: [truth_ratio, multiple_choice, fluency, knowledge,")
    (tmp_path / "quick-1.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    assert "truth_ratio" in read_protocol("quick-1").probes
    changed = text.replace("{columns: [verbatim]", f"{{columns: [verbatim, {column}]")
    (tmp_path / "quick-1.yaml").write_text(changed, encoding="utf-8")
    with pytest.raises(BadInput, match=f"'{column}' cannot be required: more of it than the control has is no sign"):
        read_protocol("quick-1")


def test_a_searched_string_cannot_be_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows is heard behind its own string and not behind one that was found for another."""
    text = (FOLDER / "standard-1.yaml").read_text(encoding="utf-8")
    before = "prefilled_sure, insisted]"
    assert before in text
    (tmp_path / "standard-1.yaml").write_text(
        text.replace(before, "prefilled_sure, insisted, gcg]", 1), encoding="utf-8"
    )
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    with pytest.raises(BadInput, match="'gcg' cannot be required, and can only convict"):
        read_protocol("standard-1")
