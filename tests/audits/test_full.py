"""The protocol of published grids: what its file says of itself holds, without running it (hours, by hand)."""

from __future__ import annotations

from typing import Any

import pytest

from letheon.audits.conditions.language import phrases
from letheon.audits.conditions.masked_target import MASKS
from letheon.audits.conditions.multi_turn import TURNS
from letheon.audits.conditions.template import TEMPLATES
from letheon.audits.probes.sampling import Sampling
from letheon.audits.protocol import Protocol, read_protocol
from letheon.audits.wordings import Wording
from letheon.methods import build, names


@pytest.fixture(scope="module")
def full() -> Protocol:
    return read_protocol("full-1")


def rows(protocol: Protocol, method: str) -> list[dict[str, Any]]:
    return [spec for spec in protocol.conditions.values() if spec["name"] == method]


def test_all_of_standard_1_is_in_it(full: Protocol) -> None:
    """Every condition with its settings under its name or another, every required cell with its margin and side."""
    standard = read_protocol("standard-1")
    assert [spec for spec in standard.conditions.values() if spec not in full.conditions.values()] == []
    for (condition, column), rule in standard.cells.items():
        (same, *_) = [name for name, spec in full.conditions.items() if spec == standard.conditions[condition]]
        mine = full.cells[same, column]
        assert (mine.margin, mine.side) == (rule.margin, rule.side)
    assert set(standard.probes) < {build_name(spec) for spec in full.probes}
    assert full.utility == standard.utility and full.limits == standard.limits and full.acquit == "each"
    assert set(standard.generated.columns) < set(full.generated.columns)


def build_name(spec: Any) -> str:
    return str(spec if isinstance(spec, str) else spec["name"])


def test_no_row_is_asked_twice(full: Protocol) -> None:
    specs = [repr(build("condition", spec)) for name, spec in full.conditions.items() if name != "shipped"]
    assert len(specs) == len(set(specs))


def test_every_quantizer_is_asked_at_8_4_3_and_2_bits(full: Protocol) -> None:
    found = {(spec["method"], spec["bits"]) for spec in rows(full, "quantize_with")}
    others = [name for name in names("quantizer") if name != "rtn"]
    assert {(name, bits) for name in others for bits in (8, 4, 3, 2)} <= found
    assert {spec.get("bits") for spec in rows(full, "quantized")} >= {8, 4, 3, 2}, "rtn, as a grid"
    assert "rtn" not in {spec["method"] for spec in rows(full, "quantize_with")}
    assert {spec.get("text") for spec in rows(full, "quantize_with")} == {None, "forget"}


@pytest.mark.parametrize(
    ("method", "field", "values"),
    [
        ("language", "languages", tuple(phrases())),
        ("template", "templates", tuple(name for name in TEMPLATES if name != "none")),
        ("masked_target", "masks", tuple(MASKS)),
        ("multi_turn", "turns", TURNS),
        ("many_shot", "shots", (0, 4, 16, 64)),
        ("prefilled", "starts", ("sure", "restated", "1", "2")),
        ("prune", "shares", (0.005, 0.01, 0.02, 0.05)),
        ("relearn", "steps", (5, 10, 20, 40, 100, 1000)),
        ("latent_attack", "steps", (16, 32, 64)),
    ],
)
def test_every_value_is_a_row(full: Protocol, method: str, field: str, values: tuple[Any, ...]) -> None:
    found = [value for spec in rows(full, method) for value in getattr(build("condition", spec), field)]
    assert set(values) <= set(found)


def test_the_published_searches_and_draws_are_as_large_as_published(full: Protocol) -> None:
    searches = [build("condition", spec) for spec in rows(full, "gcg")]
    assert any((one.steps, one.candidates, one.top_k, one.tokens) == ((250,), 512, 256, 20) for one in searches)
    (drawn,) = [spec for spec in full.probes if build_name(spec) == "sampling"]
    assert build("probe", drawn).samples == 200
    assert {build("condition", spec).tokens for spec in rows(full, "soft_prompt")} >= {4, 8, 16}
    lora = [build("condition", spec) for spec in rows(full, "relearn_lora")]
    assert {(one.rank, one.alpha) for one in lora} == {(16, 32.0), (128, 16.0)}


def test_what_may_silence_a_model_is_required_nowhere_but_where_it_answers(full: Protocol) -> None:
    required = {condition for condition, _ in full.cells}
    shown = set(full.conditions) - required
    silencing = {
        name
        for name, spec in full.conditions.items()
        if name != "shipped"
        and (isinstance(made := build("condition", spec), Wording) or hasattr(made, "only_convicts"))
    }
    assert silencing & required == {"prefilled_sure", "insisted"}
    convicting = {condition for condition, _ in full.convicts}
    assert convicting == silencing - required - {"prefilled_1", "prefilled_2", "choices"}, (
        "those give the answer away in part"
    )
    assert shown - silencing == {"probe_shuffled", "interpolated_10", "interpolated", "interpolated_50"}


def test_what_is_required_of_each_column(full: Protocol) -> None:
    by_column: dict[str, set[str]] = {}
    for condition, column in full.cells:
        by_column.setdefault(column, set()).add(condition)
    sampled = {name for name in Sampling.columns if name.endswith("_at_1")}
    assert set(by_column) == {
        "forget_accuracy", "forget_accuracy_held_out", "membership_questions", "membership_texts", "verbatim", *sampled,
    }  # fmt: skip
    assert by_column["forget_accuracy"] == by_column["forget_accuracy_held_out"]
    for column in (*sampled, "verbatim", "membership_texts"):
        assert by_column[column] == {"as_is", "int4_row", "shipped"} == set(full.generated.conditions)
    low = {name for name, spec in full.conditions.items() if spec.get("bits", 4) < 4 and name != "int3_row"}
    assert not by_column["membership_questions"] & low
    at_4_and_8 = {name for name, spec in full.conditions.items() if spec.get("bits", 0) >= 4 and "text" not in spec}
    assert at_4_and_8 <= by_column["membership_questions"]
    assert set(Sampling.columns) <= set(full.generated.columns), "drawn under every one of 121 conditions: days"
