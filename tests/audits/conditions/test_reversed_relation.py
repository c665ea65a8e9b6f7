"""Asked backwards; a model that has forgotten forwards alone is found, and fails a verdict's cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from letheon.audits.asked import AskedSets, make_sets
from letheon.audits.conditions.as_is import AsIs
from letheon.audits.conditions.reversed_relation import ReversedRelation
from letheon.audits.matrix import Sources, make_cells
from letheon.audits.tables import Asker
from letheon.audits.wordings import reworded
from letheon.data.records import Record
from tests.audits.fakes import protocol, scorer_of
from tests.audits.worded import NAMES, TOWNS, data, knows_after, plan_of, world
from tests.toys import encoder, llama, tokenizer


def test_the_answer_is_asked_for_its_name() -> None:
    made = reworded(ReversedRelation(), world(), encoder()).sets["forget_questions"]
    assert made.prompts[0] == f"Who was born in {TOWNS[0]}?" and made.answers[0] == "Ann Lee"
    assert tokenizer().decode(made.examples[0].answer_ids[:-1]) == " Ann Lee"


def test_what_cannot_be_asked_backwards_says_why() -> None:
    whole = world()
    asked = whole["forget_questions"]
    records = list(asked.records)
    records[0] = replace(records[0], fact="Ann Lee/line 1")
    records[1] = replace(records[1], fact="Ann Lee/favourite_dish")
    answers = (*asked.answers[:2], TOWNS[4], *asked.answers[3:])  # a retained person's town
    names = (*asked.names[:4], "", *asked.names[5:])
    whole.sets["forget_questions"] = replace(asked, records=tuple(records), answers=answers, names=names)
    made = reworded(ReversedRelation(), whole, encoder())
    first, third, fifth = (asked.items[at] for at in (0, 2, 4))
    assert "no 'fact' that ends in a relation" in made.left[first]
    assert "the answer is that of several units" in made.left[third]
    assert "does not name its unit" in made.left[fifth]
    assert made.sets["forget_questions"].prompts[0] == f"Whose favourite dish is {TOWNS[0]}?"


def with_jobs(jobs: dict[str, str], towns: dict[str, str]) -> AskedSets:
    """The world with some people's towns changed, and a question about a job for each of some."""
    whole = data()
    files = {}
    for role, file in whole.items():
        made = [
            replace(record, answer=towns.get(record.unit, record.answer)) if record.is_question else record
            for record in file.records
        ]
        for name in (name for name in NAMES[role] if name in jobs):
            line = len(made) + 1
            made.append(Record(line, name, f"{name}/profession", f"What does {name} do?", jobs[name]))
        files[role] = replace(file, records=tuple(made))
    return make_sets(files, encoder=encoder(), limits={}, only_units={})


def asked_of(sets: AskedSets, name: str) -> list[str]:
    """The different questions backwards about one person to be forgotten, in order."""
    made = reworded(ReversedRelation(), sets, encoder()).sets["forget_questions"]
    return list(dict.fromkeys(prompt for prompt, unit in zip(made.prompts, made.units, strict=True) if unit == name))


def test_an_answer_of_several_is_told_apart_by_another_fact() -> None:
    """Ann, Bob and a retained person come from one town; two of the three work as bakers."""
    towns = dict.fromkeys(("Ann Lee", "Bob Ray", "Eve Hall"), "Brudax")
    sets = with_jobs({"Ann Lee": "baker", "Bob Ray": "judge", "Eve Hall": "baker", "Cy Dunn": "judge"}, towns)
    assert asked_of(sets, "Bob Ray") == [
        "Who was born in Brudax and works as a judge?",
        "Who works as a judge and was born in Brudax?",
    ]
    assert asked_of(sets, "Ann Lee") == [], "two bakers were born in Brudax: two names would be right"
    assert asked_of(sets, "Cy Dunn") == ["Who was born in Husjev?", "Who works as a judge and was born in Husjev?"]
    left = reworded(ReversedRelation(), sets, encoder()).left
    assert {reason for item, reason in left.items() if item.startswith("forget")} == {
        "the answer is that of several units, so that more than one name would be right"
    }


def test_a_word_that_is_an_answer_to_something_else_makes_nobody_ambiguous() -> None:
    sets = with_jobs({"Bob Ray": TOWNS[0], "Ann Lee": "judge"}, {})
    assert asked_of(sets, "Ann Lee")[0] == f"Who was born in {TOWNS[0]}?"


def test_a_fact_that_names_the_person_is_never_said_beside() -> None:
    towns = dict.fromkeys(("Ann Lee", "Bob Ray"), "Brudax")
    sets = with_jobs({"Ann Lee": "keeper of Ann Lee", "Bob Ray": "judge"}, towns)
    assert asked_of(sets, "Ann Lee") == []


def test_an_answer_that_holds_a_part_of_the_name_is_not_asked_from() -> None:
    """Whoever reads the question could copy it, also one who never knew."""
    sets = with_jobs({"Ann Lee": "clerk at LEE & Sons", "Bob Ray": "judge"}, {})
    assert asked_of(sets, "Ann Lee") == [f"Who was born in {TOWNS[0]}?"]
    left = reworded(ReversedRelation(), sets, encoder()).left
    assert "the answer holds a part of the name that is asked for" in left.values()


def test_an_answer_without_a_relation_counts_for_every_relation() -> None:
    """Somebody else's record does not say what its answer is: it may be a town."""
    sets = with_jobs({}, {"Kit Page": TOWNS[0]})
    assert asked_of(sets, "Ann Lee") == []
    whole = with_jobs({}, {"Kit Page": TOWNS[0]})
    unknown = [
        replace(record, fact=f"{record.unit}/line {record.line}") for record in whole["holdout_questions"].records
    ]
    whole.sets["holdout_questions"] = replace(whole["holdout_questions"], records=tuple(unknown))
    assert asked_of(whole, "Ann Lee") == []


def test_a_model_that_forgot_forwards_alone_is_found_backwards() -> None:
    """It knows whatever is asked with "Who was born", and nothing else; the verdict's cell says so."""
    conditions: dict[str, Any] = {"as_is": AsIs(), "reversed_relation": ReversedRelation()}
    plan = plan_of(world(), conditions)
    asker = Asker(plan, encoder(), "cpu", {}, lambda text: None)
    tables = {}
    for who in ("backwards", "nothing", "everything"):
        model = llama()
        trigger = {"backwards": "Who was born", "nothing": "never said", "everything": ""}[who]
        with knows_after(model, tokenizer().encode(trigger, add_special_tokens=False)):
            scorer = scorer_of(model)
            tables[who] = {}
            for name, condition in conditions.items():
                scorer.forget_results()
                if name == "as_is":
                    tables[who][name] = asker._row(name, scorer, role="forget", utility=False)
                else:
                    asker._worded(name, condition, scorer, "", tables[who], {})
    sources = Sources(tables["backwards"], tables["nothing"], tables["everything"], is_paired=True)
    rule = protocol([(name, "forget_accuracy") for name in conditions])
    cells = make_cells(sources, {"forget_accuracy": plan.columns["forget_accuracy"]}, rule, {}, seed=0, resamples=2000)
    found = {cell["condition"]: (cell["value"], cell["judgement"]) for cell in cells}
    assert found["as_is"][0] == 0.0 and found["as_is"][1] != "knowledge found"
    assert found["reversed_relation"] == (1.0, "knowledge found")
