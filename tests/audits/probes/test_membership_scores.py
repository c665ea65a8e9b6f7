"""Each familiarity against a slow float64 loop, uniform models at one half, and one pass for all of them."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.audits import scorer as module
from letheon.audits.asked import AskedSets, make_sets
from letheon.audits.probes.membership_scores import MembershipScores
from letheon.errors import NotMeasured
from letheon.training.scoring import score_batches
from tests.audits.fakes import scorer_of, sets, uniform_model
from tests.audits.test_asked import data
from tests.toys import encoder, llama, text

PROBE = MembershipScores()
LINES = ("Ann ran HOME over the hill.", "So it WAS all the day, and Bo sold bread by the mill.", "Cem slept.")


def asked(window: int = 128, **changes: Any) -> AskedSets:
    files = {
        role: data(role, *(text(f"{role.title()} {line}", line=k, unit=f"{role} {k}") for k, line in enumerate(LINES)))
        for role in ("forget", "holdout")
    }
    settings: dict[str, Any] = {"also": ("lower_case", "moments"), **changes}
    return make_sets(files, encoder=encoder(window), limits={}, only_units={}, **settings)


@torch.no_grad()
def slowly(model: Any, column: str, words: str) -> float:
    """By the formulas, one token after another, in float64."""

    def tokens(of: str) -> list[tuple[float, float, float]]:
        ids = encoder().encode(text(of)).ids
        rows = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).tolist()
        found = []
        for row, label in zip(rows, ids[1:], strict=False):
            mean = sum(math.exp(value) * value for value in row)
            square = sum(math.exp(value) * (value - mean) ** 2 for value in row)
            found.append((row[label], mean, math.sqrt(max(square, 1e-6))))
        return found

    own = tokens(words)
    loss = -sum(value for value, _, _ in own) / len(own)
    if column.startswith("membership_min_k"):
        values = sorted((v - m) / d if "plus" in column else v for v, m, d in own)
        lowest = values[: max(1, int(int(column[-2:]) / 100 * len(values) + 1e-9))]
        return sum(lowest) / len(lowest)
    if column == "membership_zlib":
        return -loss / len(zlib.compress(words.encode()))
    if column == "membership_lower_case":
        lower = tokens(words.lower())
        return -loss / (-sum(value for value, _, _ in lower) / len(lower))
    return -loss


@pytest.mark.parametrize("column", PROBE.columns)
def test_each_familiarity_is_the_slow_loops(column: str) -> None:
    model = llama(7, initializer_range=0.4)
    found = PROBE.score(column, asked(), scorer_of(model))
    wanted = [slowly(model, column, f"{role} {line}") for role in ("Forget", "Holdout") for line in LINES]
    assert found.values == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert found.member == [1, 1, 1, 0, 0, 0] and found.items[3].startswith("holdout/")
    assert len(set(found.values)) == 6, "a score that is the same for all shows nothing"


@pytest.mark.parametrize("column", [name for name in PROBE.columns if name != "membership_zlib"])
def test_a_uniform_model_knows_nobody(column: str) -> None:
    """All texts tie, to the last digit that is kept. Over zlib they do not: a short text has few bytes."""
    found = PROBE.score(column, asked(), scorer_of(uniform_model())).rounded()
    assert found.aggregate("auc") == 0.5
    expected = {"membership_lower_case": -1.0}.get(column, 0.0 if "plus" in column else -math.log(768))
    assert found.values == pytest.approx([expected] * 6, rel=1e-6)


def test_turned_around_the_aucs_add_up_to_one() -> None:
    model, straight = llama(7, initializer_range=0.4), asked()
    names = {"forget": "holdout", "holdout": "forget"}
    turned = AskedSets({
        (new := f"{names[role]}_{kind}"): replace(one, name=new)
        for name, one in straight.sets.items()
        for role, kind in [name.split("_", 1)]
    })  # fmt: skip
    for column in PROBE.columns:
        one, other = (PROBE.score(column, some, scorer_of(model)).aggregate("auc") for some in (straight, turned))
        assert one + other == pytest.approx(1.0)


def test_all_scores_come_from_one_pass_a_text_and_one_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def counted(body: Any, batches: Any, **settings: Any) -> Any:
        passes.append(sum(batch.size for batch in batches))
        return score_batches(body, batches, **settings)

    monkeypatch.setattr(module, "score_batches", counted)
    scorer, some = scorer_of(llama()), asked()
    for column in PROBE.columns:
        PROBE.score(column, some, scorer)
    assert passes == [3, 3, 3, 3]


def test_sets_that_no_plan_made_ready_are_passed_twice_or_say_what_is_missing() -> None:
    bare, model = asked(also=()), llama(7)
    assert not bare["forget_texts"].with_moments and asked()["forget_texts"].with_moments
    column = "membership_min_k_plus_20"
    scorer = scorer_of(model)
    PROBE.score("membership_loss", bare, scorer)
    assert PROBE.score(column, bare, scorer).values == pytest.approx(
        PROBE.score(column, asked(), scorer_of(model)).values
    )
    with pytest.raises(NotMeasured, match="3 of 3 texts were not asked in lower case"):
        PROBE.score("membership_lower_case", bare, scorer)


def test_of_a_text_that_was_cut_the_part_that_was_asked_is_compressed() -> None:
    some = asked(window=8)
    example = some["forget_texts"].examples[1]
    assert example.cut
    shown = str(encoder().tokenizer.decode(example.ids[1:]))
    scorer = scorer_of(llama(), 8)
    found = PROBE.score("membership_zlib", some, scorer).values[1]
    mean = scorer.scores(some["forget_texts"]).log_probs("mean")[1]
    assert found == pytest.approx(mean / len(zlib.compress(shown.encode())))


@pytest.mark.parametrize("missing", ["forget", "holdout"])
def test_one_side_alone_is_not_measured(missing: str) -> None:
    some = sets(*(one for name, one in asked().sets.items() if not name.startswith(missing)))
    for column in PROBE.columns:
        with pytest.raises(NotMeasured, match="--holdout"):
            PROBE.score(column, some, scorer_of(llama()))
