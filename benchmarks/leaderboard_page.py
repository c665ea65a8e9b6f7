"""The page of leaderboard.json: docs/leaderboard.md.

Every figure on the page comes from the result file; a test makes the page again and compares.

    python benchmarks/leaderboard_page.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaderboard_rows import (
    COLUMNS,
    CONDITIONS,
    FACTS,
    UTILITIES,
    Row,
    cells,
    falls,
    presets_of,
    spread,
    values,
    worst,
)
from measuring import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "leaderboard.md"
WORDS = ("DELETED", "NOT DELETED", "NOT USABLE", "INCONCLUSIVE", "COULD NOT FINISH")


def verdicts(row: Row) -> str:
    """World by world, once where all are alike."""
    words = [one["verdict"] for one in row.values()]
    return words[0] + (", all" if len(words) > 1 else "") if len(set(words)) == 1 else ", ".join(words)


def line(name: str, row: Row, rate: float | None) -> str:
    """A row of the table."""
    steps = [one["steps"] for one in row.values() if "steps" in one]
    most = worst(row)
    shown = "not measured"
    if most is not None:
        cell = most[1]
        shown = (
            f"{COLUMNS[cell['column']]}, {CONDITIONS[cell['condition']]}: {cell['d']:+.2f} "
            f"({cell['lower']:+.2f} to {cell['upper']:+.2f})"
        )
    said = [
        f"`{name}`" if rate is not None else name,
        "" if rate is None else f"{rate:g}",
        ", ".join(map(str, steps)),
        verdicts(row),
        *(f"{spread(values(row, column, 'value'))}; {spread(values(row, column, 'd'), sign='+')}" for column in FACTS),
        shown,
        *(spread(falls(row, column)) for column in UTILITIES),
        *(spread(values(row, column, "value")) for column in ("membership_questions", "membership_texts")),
    ]
    return "| " + " | ".join(said) + " |"


def table(found: Mapping[str, Any]) -> list[str]:
    """All rows: models of which the truth is known, then the presets."""
    rates = found["sweep"]["chosen"]
    heads = [
        "model",
        "rate",
        "steps",
        "verdict by world",
        *(f"{COLUMNS[column]}: left; minus control" for column in FACTS),
        "farthest from the control",
        *(f"fall of {name}" for name in UTILITIES.values()),
        "AUC, questions",
        "AUC, texts",
    ]
    return [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *(line(name, found["rows"][name], rates.get(name)) for name in found["rows"]),
    ]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What was measured, in words."""
    rows = presets_of(found)
    pairs = [(name, world, one) for name, row in rows.items() for world, one in row.items()]
    words = Counter(one["verdict"] for _, _, one in pairs)
    said = [
        f"Of {len(pairs)} pairs of a preset and a world "
        + ", ".join(f"{words[word]} ended {word}" for word in WORDS if words[word])
        + "."
    ]
    always = [name for name, row in rows.items() if all(one["verdict"] == "DELETED" for one in row.values())]
    some = [
        name
        for name, row in rows.items()
        if name not in always and any(one["verdict"] == "DELETED" for one in row.values())
    ]
    said.append(f"DELETED on every world: {_names(always)}. On some of them only: {_names(some)}.")
    seen = {
        "the facts in trained or other wordings": FACTS,
        "texts, continued word by word": ("verbatim",),
        "membership by questions": ("membership_questions",),
        "membership by texts": ("membership_texts",),
    }
    for what, columns in seen.items():
        known = sum(any(cell["judgement"] == "knowledge found" for cell in cells(one, columns)) for *_, one in pairs)
        over = sum(any(cell["judgement"] == "over-forgotten" for cell in cells(one, columns)) for *_, one in pairs)
        more = f"; {over} forgotten past the control, so that it shows" if columns[0].startswith("membership") else ""
        said.append(f"Certainly more than the control under some condition: {what}, {known} of {len(pairs)}{more}.")
    for column, name in UTILITIES.items():
        lost = sum(
            any(row["column"] == column and row["judgement"] == "lost" for row in one.get("utility", []))
            for *_, one in pairs
        )
        said.append(f"Fell by more than 0.10: {name}, {lost} of {len(pairs)}.")
    known = [one for *_, one in pairs if one["verdict"] == "NOT DELETED"]
    both = sum(any(row["judgement"] == "lost" for row in one["utility"]) for one in known)
    said.append(f"NOT DELETED stands before NOT USABLE: of {len(known)} NOT DELETED, {both} lost a utility as well.")
    said += [_ends(pairs), _rounding(pairs)]
    said.append(_chosen(found["sweep"]))
    return said


def _ends(pairs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Which runs were stopped by the rule, and whether the others were still on their way."""
    ran = [(name, one) for name, _, one in pairs if "stopped" in one]
    met = dict.fromkeys(name for name, one in ran if one["stopped"].startswith("forgotten"))
    limited = [one for _, one in ran if not one["stopped"].startswith("forgotten")]
    rising = sum(one.get("retained_at_end", 0.0) > one.get("retained_at_half", 0.0) + 0.02 for one in limited)
    return (
        f"Met the stop rule within the steps on some world: {_names(list(met))}. The other {len(limited)} runs went to "
        f"the limit; in {rising} of them the retained share was still rising over the second half (by more than 0.02), "
        "so that more steps may keep more."
    )


def _chosen(sweep: Mapping[str, Any]) -> str:
    """How the rates fell out."""
    counts = Counter(sweep["chosen"].values())
    rates = ", ".join(f"{rate:g} for {counts[rate]}" for rate in sweep["rates"])
    within = [
        name
        for name, tried in sweep["tried"].items()
        if any(max(one.get("outside", {"": 1.0}).values()) < 1 for one in tried.values())
    ]
    return (
        f"On the sweep's world the rate chosen is {rates} of {len(sweep['chosen'])} presets; no others were tried. "
        f"Within all margins there, as the file is: {_names(within)}."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _rounding(pairs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """The most that a grid gave back."""
    rises = []
    for name, world, one in pairs:
        plain = {cell["column"]: cell["value"] for cell in cells(one, FACTS) if cell["condition"] == "as_is"}
        rises += [
            (cell["value"] - plain[cell["column"]], name, world, cell["condition"])
            for cell in cells(one, FACTS)
            if cell["condition"] != "as_is"
        ]
    if not rises:
        return "What rounding gives back was not measured."
    rise, name, world, condition = max(rises)
    return (
        f"The most that rounding gave back of the forgotten facts is {rise:+.3f} "
        f"(`{name}`, world {world}, {CONDITIONS[condition]})."
    )


PAGE_TEXT = """\
# Leaderboard

<!-- Written by benchmarks/leaderboard.py from benchmarks/results/leaderboard.json: change those, and not this page. -->

Every preset of `letheon methods --presets` under the same audit on the embedded world: {presets} presets, {worlds},
protocol `{protocol}`, against a model retrained without the forgotten people.

`make evidence leaderboard` (`benchmarks/results/leaderboard.json`, {date}, threads: {threads}, torch {torch}) took
{minutes} processor minutes in all, models that were trained before not counted: {parts}.

## What is compared

- **The terms are the papers', the rates are not.** Published rates are for models of billions of weights stored in
  bfloat16; this one has a million, in float32. Each preset has its own rate out of {rates}, by one rule on a world of
  its own (seed {sweep_world}): the first that keeps the facts left and the three utilities within the protocol's
  margins, and where there is none, the one that is least far outside. The largest was tried only where at the one
  before it more of the facts was left than of a utility lost, in margins. Membership has no say in it.
- Batches of {batch_size} and at most {steps} steps for all. The stop rule is that of `letheon forget`: at most 0.05 of
  the facts left and at least 0.95 of the retained ones kept, a look every 10 steps.
- Every preset is given the same records, with general facts in the retain set (other general facts are asked).
  {questions_alone} put a refusal in the place of an answer, so they are given the questions without the running texts;
  all are audited on both.
- Three models show the scale: the *original*; a second *retrained* model, of other weights and another order; and
  *noise* of {noise} standard deviations on every matrix of the original.

## What came out

{sentences}

Facts: the share that is left; its difference to the control. *Farthest from the control* is the required cell with the
largest difference in margins on any world, with the interval that the verdict rests on. The AUC of the control is
{auc}. {several}

{table}

## The matrix

![{alternative}](images/leaderboard.svg)

Difference to the control in each required cell, and the fall of each utility as the file is{means}. Colour is the
difference in margins: red is more than the control, or lost; blue is less than the control; white is none.

## What this is not

- {worlds_first} of a million weights, and rates swept on one other world over {count} values. It shows what the terms
  do here, and not which paper is best on a large model.
- No ranking finer than the intervals: rows stand in the order of `letheon methods --presets`. A verdict near a margin
  can change with the seed, the processor or the rate.
- `{protocol}` asks as the file is and after rounding, and not after relearning ({{doc}}`findings` has what came back
  there).
"""


def page(found: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    sweep, cpu = found["sweep"], dict(found["processor_minutes"])
    worlds = [str(world) for world in found["worlds"]]
    is_one = len(worlds) == 1
    count = f"{len(worlds)} made-up world{'' if is_one else 's'}"
    seeds = f"{count} (seed{'' if is_one else 's'} {', '.join(worlds)})"
    in_all = cpu.pop("in all")
    control = [
        value
        for column in ("membership_questions", "membership_texts")
        for value in values(found["rows"]["original"], column, "control")
    ]
    return PAGE_TEXT.format(
        presets=len(presets_of(found)),
        worlds=seeds,
        worlds_first=count[0].upper() + count[1:],
        protocol=found["protocol"],
        date=found["date"],
        threads=found["machine"]["threads"],
        torch=found["machine"]["torch"],
        minutes=f"{in_all:g}",
        parts=", ".join(f"{value:g} {kind}" for kind, value in cpu.items()),
        rates=", ".join(f"{rate:g}" for rate in sweep["rates"]),
        sweep_world=sweep["world"],
        batch_size=found["settings"]["batch_size"],
        steps=found["settings"]["steps"],
        questions_alone=" and ".join(f"`{name}`" for name in found["questions_alone"]),
        noise=f"{found['noise']:g}",
        sentences="\n".join(f"- {sentence}" for sentence in sentences(found)),
        auc=spread(control),
        several=(
            "There is one world, so no spread over worlds: the intervals are over people."
            if is_one
            else "Figures are means over worlds, with the smallest and the largest."
        ),
        table="\n".join(table(found)),
        alternative=alternative(found),
        means="" if is_one else ", means over worlds",
        count=len(sweep["rates"]),
    )


def alternative(found: Mapping[str, Any]) -> str:
    """What the picture shows, for who does not see it."""
    rows = presets_of(found)
    reds = {
        name: sum(
            cell["judgement"] in ("knowledge found", "over-forgotten") for one in row.values() for cell in cells(one)
        )
        for name, row in rows.items()
    }
    count = sum(len(cells(one)) for one in next(iter(rows.values())).values())
    most, least = max(reds, key=lambda name: reds[name]), min(reds, key=lambda name: reds[name])
    return (
        "Heat map, a row a model and a column a required cell. Cells certainly away from the control: "
        f"{least} {reds[least]} of {count} at the least, {most} {reds[most]} at the most; the figures are in the table "
        "above and in leaderboard.json"
    )


def publish() -> None:
    """The page from the result file."""
    found = json.loads((RESULTS / "leaderboard.json").read_text(encoding="utf-8"))
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    publish()
