"""Several requests in one audit: one that comes back, or that nobody could have seen, is not hidden by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.columns import Scores
from letheon.audits.earlier import Part, each_alone, joined, with_each
from letheon.audits.matrix import HALF, Answer, Sources, make_cells, utility_rows
from letheon.audits.verdict import Verdict, decide
from letheon.data.records import DataFile, read_records
from letheon.errors import NotMeasured
from tests.audits.fakes import COLUMNS, protocol
from tests.toys import write_lines

EACH = 40
"""People of a request, one question each."""
CELLS = (("as_is", "forget_accuracy"), ("as_is", "membership_questions"))


def items(request: int, count: int = EACH) -> list[str]:
    return [f"forget/{100 * request + k}" for k in range(1, count + 1)]


def rates(known: Sequence[int], counts: Sequence[int]) -> Scores:
    """Of each request the number of people of whom the answer is known: the first ones, or (below 0) the last."""
    names = [item for request, count in enumerate(counts) for item in items(request, count)]
    values = [
        float(k < hits if hits >= 0 else k >= count + hits)
        for hits, count in zip(known, counts, strict=True)
        for k in range(count)
    ]
    return Scores(names, [f"unit {name}" for name in names], values)


def familiarity(level: Sequence[float], counts: Sequence[int]) -> Scores:
    """Of each request how far its members stand above strangers, whose scores are 0 to 1."""
    mine = rates([0] * len(counts), counts)
    values = [add + k / count for add, count in zip(level, counts, strict=True) for k in range(count)]
    strangers = [f"holdout/{k}" for k in range(EACH)]
    return Scores(
        [*mine.items, *strangers],
        [*mine.units, *strangers],
        [*values, *(k / EACH for k in range(EACH))],
        [1] * len(values) + [0] * EACH,
    )


def sources(
    known: Sequence[int],
    *,
    control: Sequence[int] = (),
    original: Sequence[int] = (),
    counts: Sequence[int] = (),
    familiar: Sequence[float] = (),
) -> Sources:
    """A model, its control that knows nothing, and an original that knows everything, unless told otherwise."""
    counts = counts or [EACH] * len(known)
    none = [0] * len(counts)
    kept = Scores([f"retain/{k}" for k in range(40)], [f"r{k}" for k in range(40)], [1.0] * 40)

    def table(hits: Sequence[int], level: Sequence[float]) -> dict[str, dict[str, Answer]]:
        row = {"forget_accuracy": rates(hits, counts), "membership_questions": familiarity(level, counts)}
        return {"as_is": {**row, "retain_accuracy": kept}}

    return Sources(
        table(known, familiar or none),
        table(control or none, none),
        table(original or counts, [2.0] * len(counts)),
        is_paired=True,
    )


def parts_of(counts: Sequence[int], **absent: str) -> list[Part]:
    return [Part(tuple(items(request, count)), absent) for request, count in enumerate(counts)]


def judged(found: Sources, counts: Sequence[int], **changes: Any) -> tuple[Verdict, list[dict[str, Any]], Verdict]:
    """The verdict on all together, what each alone shows, and the verdict with that."""
    rule = replace(protocol(CELLS), **changes)
    given: dict[str, Any] = {"seed": 0, "resamples": 2000}
    cells = make_cells(found, COLUMNS, rule, {}, **given)
    utility = utility_rows(found.subject, found.original, COLUMNS, rule, **given)
    together = decide(cells, utility, protocol="scripted", control="a control")
    alone = each_alone(found, COLUMNS, rule, {}, utility, parts_of(counts), **given)
    return together, alone, with_each(together, alone)


def test_what_is_forgotten_together_and_alone_is_deleted() -> None:
    together, alone, verdict = judged(sources([0, 0, 0]), [EACH] * 3)
    assert [found["word"] for found in alone] == ["DELETED"] * 3
    assert verdict == together and verdict.word == "DELETED"


def test_one_request_that_comes_back_is_not_hidden_by_the_others() -> None:
    """A third of one request in 15; everywhere else the model guesses as often as its control, of other people."""
    counts = [EACH] * 15
    rule = protocol()
    together, alone, verdict = judged(sources([14] + [2] * 14, control=[-2] * 15), counts, cells=rule.cells)
    assert together.word == "DELETED", "the mean over all sees nothing"
    assert [at for at, found in enumerate(alone) if found["word"] == "NOT DELETED"] == [0]
    assert verdict.word == "NOT DELETED" and verdict.scope == together.scope
    (reason,) = verdict.reasons
    assert reason.startswith("request 1 alone: forget_accuracy under as_is: 0.35 against 0.05 of the control")


def test_a_control_that_knows_one_request_acquits_nobody() -> None:
    """Retrained without the first two alone: the model knows the third as well as its control does."""
    together, alone, verdict = judged(sources([0, 0, EACH], control=[0, 0, EACH]), [EACH] * 3)
    assert together.word == "DELETED", "the mean over all sees nothing"
    assert verdict.word == "INCONCLUSIVE"
    assert [bool(found["unseen"]) for found in alone] == [False, False, True]
    (reason,) = verdict.reasons
    assert reason.startswith("request 3 alone: forget_accuracy under as_is: nothing could have been seen")
    assert "the control has 1.00 of it and the original 1.00" in reason


def test_a_request_that_the_original_never_knew_acquits_nobody() -> None:
    _, alone, verdict = judged(sources([0, 0], original=[EACH, 0]), [EACH] * 2)
    assert (alone[0]["word"], alone[1]["word"], verdict.word) == ("DELETED", "INCONCLUSIVE", "INCONCLUSIVE")


def test_words_in_which_the_original_is_silent_about_one_request_acquit_it_not() -> None:
    """Asked in other words the original knows the first request alone, whatever it knows as it is."""
    found = sources([0, 0])
    asked = {"insisted": {"forget_accuracy": rates([0, 0], [EACH] * 2)}}
    silent = {"insisted": {"forget_accuracy": rates([EACH, 0], [EACH] * 2)}}
    found = replace(
        found,
        subject={**found.subject, **asked},
        control={**found.control, **asked},
        original={**found.original, **silent},
    )
    rule = next(iter(protocol(CELLS).cells.values()))
    cells = {**protocol(CELLS).cells, ("insisted", "forget_accuracy"): rule}
    _, alone, verdict = judged(found, [EACH] * 2, cells=cells)
    assert [one["word"] for one in alone] == ["DELETED", "INCONCLUSIVE"] and verdict.word == "INCONCLUSIVE"
    (unseen,) = alone[1]["unseen"]
    assert unseen.startswith("forget_accuracy under insisted: nothing could have been seen")


def test_one_person_alone_is_never_deleted_and_holds_nobody_up() -> None:
    """A request of one person has no intervals; its answers are counted all the same."""
    counts = [EACH, EACH, 1]
    _, alone, verdict = judged(sources([0, 0, 0], counts=counts), counts)
    assert (alone[2]["word"], verdict.word) == ("INCONCLUSIVE", "DELETED")
    (fact,) = alone[2]["facts"]
    assert (fact["value"], fact["control"], fact["original"]) == (0.0, 0.0, 1.0)
    _, _, verdict = judged(sources([0, 0, 0], counts=counts, control=[0, 0, 1]), counts)
    assert verdict.word == "INCONCLUSIVE"


def test_a_request_of_which_nothing_was_asked_is_told() -> None:
    found = sources([0, 0])
    only = {
        column: answer if column == "retain_accuracy" else keep_first(answer)
        for column, answer in found.subject["as_is"].items()
    }
    _, alone, verdict = judged(replace(found, subject={"as_is": only}), [EACH] * 2)
    assert alone[1]["unseen"] == ["forget_accuracy under as_is: not measured of this request"]
    assert verdict.word == "INCONCLUSIVE"


def keep_first(answer: Answer) -> Scores:
    """Without the second request."""
    assert isinstance(answer, Scores)
    kept = [at for at, item in enumerate(answer.items) if item not in items(1)]
    return Scores(
        [answer.items[at] for at in kept],
        [answer.units[at] for at in kept],
        [answer.values[at] for at in kept],
        None if answer.member is None else [answer.member[at] for at in kept],
    )


def test_a_request_alone_is_judged_as_an_audit_of_it_alone_would() -> None:
    """Bit for bit, at the level that it shares with the others."""
    found = sources([3, 9], familiar=[0.02, 0.1])
    _, alone, _ = judged(found, [EACH] * 2)
    first = {
        name: {"as_is": {column: keep_first(answer) for column, answer in table["as_is"].items()}}
        for name, table in (("subject", found.subject), ("control", found.control), ("original", found.original))
    }
    rule = replace(protocol(CELLS), level=0.05 / 2)
    whole = Sources(**first, is_paired=True)
    cells = make_cells(whole, COLUMNS, rule, {}, seed=0, resamples=2000)
    required = [cell for cell in cells if cell["required"]]
    assert alone[0]["cells"] == required and len(required) == 2
    assert alone[1]["cells"] != required


def test_the_level_is_shared_so_that_many_requests_convict_nobody_by_chance() -> None:
    _, two, _ = judged(sources([3, 0]), [EACH] * 2)
    _, many, _ = judged(sources([3, *[0] * 9]), [EACH] * 10)
    assert many[0]["cells"][0]["d_lower"] < two[0]["cells"][0]["d_lower"]


def test_however_many_requests_there_are_resamples_suffice_for_their_level() -> None:
    """Forty requests at a level of 0.05 / 40 / 2: with the 1000 resamples asked for none would lie beyond."""
    counts = [4] * 40
    found = sources([0] * 40, counts=counts)
    alone = each_alone(found, COLUMNS, protocol(CELLS), {}, [], parts_of(counts), seed=0, resamples=1000)
    assert len(alone) == 40 and all(cell["status"] == "measured" for one in alone for cell in one["cells"])


def test_a_lost_use_stays_lost() -> None:
    """A share of a useless model is not deleted either, and the word of the whole stands."""
    found = sources([0, 0])
    nothing = Scores([f"retain/{k}" for k in range(40)], [f"r{k}" for k in range(40)], [0.0] * 40)
    useless = {"as_is": {**found.subject["as_is"], "retain_accuracy": nothing}}
    together, alone, verdict = judged(replace(found, subject=useless), [EACH] * 2)
    assert together.word == verdict.word == "NOT USABLE"
    assert {one["word"] for one in alone} == {"NOT USABLE"}


def test_a_control_by_construction_and_one_on_strangers_are_everybodys() -> None:
    found = sources([0, 0])
    strangers = Scores([f"holdout/{k}" for k in range(EACH)], [f"s{k}" for k in range(EACH)], [0.0] * EACH)
    control: dict[str, dict[str, Answer]] = {
        "as_is": {
            "forget_accuracy": strangers,
            "membership_questions": HALF,
            "retain_accuracy": NotMeasured("utility has no control"),
        }
    }
    _, alone, verdict = judged(Sources(found.subject, control, found.original, is_paired=False), [EACH] * 2)
    assert verdict.word == "DELETED" and [one["unseen"] for one in alone] == [[], []]
    assert all(cell["control"] in (0.0, 0.5) for one in alone for cell in one["cells"])


# --- one set of several


def file_of(path: Path, lines: list[dict[str, Any]]) -> DataFile:
    return read_records(write_lines(path, lines), role="forget")


def test_lines_go_on_counting_and_people_stay_people(tmp_path: Path) -> None:
    first = file_of(
        tmp_path / "1.jsonl", [{"prompt": "Who?", "answer": "A", "unit": "Ada"}, {"text": "t", "unit": "Bo"}]
    )
    second = file_of(tmp_path / "2.jsonl", [{"prompt": "Where?", "answer": "B", "unit": "Ada", "fact": "Ada/home"}])
    found = joined([first, second])
    assert [record.line for record in found.file.records] == [1, 2, 3] and found.lines == (range(1, 3), range(3, 4))
    assert found.file.units == ["Ada", "Bo"]
    assert [record.fact for record in found.file.records] == ["Ada/line 1", "Bo/line 2", "Ada/home"]
    assert str(found.file.path) == f"{first.path} + {second.path}" and found.file.role == "forget"


def test_empty_lines_count_and_units_that_are_lines_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_text('\n{"prompt": "a", "answer": "b"}\n\n', encoding="utf-8")
    first, second = read_records(path, role="forget"), read_records(path, role="forget")
    found = joined([first, second])
    assert [record.line for record in found.file.records] == [2, 4]
    assert found.file.units == ["line 2", "line 4"] and found.file.unit_is_line
    assert [record.fact for record in found.file.records] == ["line 2/line 2", "line 4/line 4"]


def test_each_item_is_one_requests_and_a_request_says_what_it_has_not(tmp_path: Path) -> None:
    first = file_of(tmp_path / "1.jsonl", [{"prompt": "Who?", "answer": "A", "unit": "Ada", "paraphrase": ["Whom?"]}])
    second = file_of(tmp_path / "2.jsonl", [{"text": "t", "unit": "Bo"}])
    names = ["forget/1", "lookalike/forget/1/paraphrase 1", "forget/2", "holdout/1"]
    table = {"as_is": {"forget_accuracy": Scores(names, names, [0.0] * 4), "verbatim": NotMeasured("no")}}
    one, two = joined([first, second]).parts([table], COLUMNS)
    assert (one.items, two.items) == (("forget/1", "lookalike/forget/1/paraphrase 1"), ("forget/2",))
    assert one.absent == {}
    assert two.absent == dict.fromkeys(["forget_accuracy", "membership_questions"], "the request holds no questions")


@pytest.mark.parametrize("column", ["forget_accuracy", "membership_questions"])
def test_what_a_request_has_not_is_no_fault_of_it(column: str) -> None:
    found = sources([0, 0])
    row = {name: keep_first(answer) if name == column else answer for name, answer in found.subject["as_is"].items()}
    changed = replace(found, subject={"as_is": row})
    parts = parts_of([EACH] * 2)
    parts[1] = replace(parts[1], absent={column: "the request holds no questions"})
    alone = each_alone(changed, COLUMNS, protocol(CELLS, utility=()), {}, [], parts, seed=0, resamples=2000)
    assert [one["word"] for one in alone] == ["DELETED", "DELETED"]
    assert [cell["column"] for cell in alone[1]["cells"]] == [name for _, name in CELLS if name != column]
