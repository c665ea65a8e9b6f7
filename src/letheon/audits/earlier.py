"""Several requests in one audit: the newest and those before it, asked together, judged together and each alone.

A later deletion may bring an earlier one back, and a mean over all would hide it. So

    together   the protocol's cells, over the people of all requests
    alone      the same cells over each request's share of the very same answers, at level / number of requests

and a deletion needs both: no request alone with a cell that convicts, and none of which nothing could have been seen
(original - control within the margin, by the means: a request may be one person, of whom there are no bounds). Without
the second, a control that knows one of the requests, or an original that did not, would be hidden by the others.

Source: this project.  Checked against: an audit of one request by itself, bit for bit; one request of three that comes
back, that the control knows, that the original never knew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from letheon.audits.asked import kinds_of
from letheon.audits.columns import Column, Scores
from letheon.audits.matrix import HALF, Answer, Sources, Table, make_cells, required_cells
from letheon.audits.protocol import Protocol
from letheon.audits.verdict import INCONCLUSIVE, NOT_DELETED, NOT_USABLE, Verdict, decide
from letheon.data.records import DataFile, Record
from letheon.errors import NotMeasured

Judged = dict[str, Any]
"""What is found of one request: word, reasons, unseen (reasons too), facts and cells; plain values."""


BEYOND = 5
"""Resamples that lie beyond each bound, at least."""

# --- what is asked


@dataclass(frozen=True)
class Part:
    """One request among several."""

    items: tuple[str, ...]
    """What was asked about it, in any column."""
    absent: Mapping[str, str]
    """Column -> why this request has none."""

    def as_plain(self, named: Callable[[str], str]) -> dict[str, Any]:
        """With the names that a file has for items."""
        return {"items": [named(item) for item in self.items], "absent": dict(self.absent)}


@dataclass(frozen=True)
class Joined:
    """The forget sets of several requests as one."""

    file: DataFile
    """Lines are counted through all files, as if they were one."""
    files: tuple[DataFile, ...]
    """As they were read."""
    lines: tuple[range, ...]
    """The lines of each."""

    def parts(self, tables: Iterable[Table], columns: Mapping[str, Column]) -> list[Part]:
        """Each request's part of what was asked."""
        asked: dict[str, None] = {}
        for answer in (answer for table in tables for row in table.values() for answer in row.values()):
            if isinstance(answer, Scores):
                asked.update(dict.fromkeys(answer.items))
        line_of = {item: _line(item) for item in asked}
        return [
            Part(tuple(item for item, line in line_of.items() if line in lines), _absent(file, columns))
            for file, lines in zip(self.files, self.lines, strict=True)
        ]


def joined(files: Sequence[DataFile]) -> Joined:
    """One forget set of several. Units that are only line numbers stay apart; those with names are one by name.

    Args:
        files: of each request, first things first; the newest is last.
    """
    records: list[Record] = []
    lines: list[range] = []
    before = 0
    for file in files:
        records += [_moved(record, before) for record in file.records]
        last = before + file.records[-1].line
        lines.append(range(before + 1, last + 1))
        before = last
    whole = replace(
        files[-1],
        path=Path(" + ".join(str(file.path) for file in files)),
        records=tuple(records),
        unit_is_line=any(file.unit_is_line for file in files),
    )
    return Joined(whole, tuple(files), tuple(lines))


def _moved(record: Record, by: int) -> Record:
    """The same record `by` lines further down."""
    line = record.line + by
    unit = f"line {line}" if record.unit == f"line {record.line}" else record.unit
    fact = f"{unit}/line {line}" if record.fact == f"{record.unit}/line {record.line}" else record.fact
    return replace(record, line=line, unit=unit, fact=fact)


def _line(item: str) -> int:
    """The line of a forget item, or of the look-alike question that stands for it; 0 of any other.

    >>> _line("forget/12/paraphrase 1"), _line("lookalike/forget/12"), _line("holdout/12")
    (12, 12, 0)
    """
    role, _, rest = item.removeprefix("lookalike/").partition("/")
    return int(rest.split("/")[0]) if role == "forget" else 0


def _absent(file: DataFile, columns: Mapping[str, Column]) -> dict[str, str]:
    """The columns that a request has nothing for, and why."""
    kinds = kinds_of(file)
    found: dict[str, str] = {}
    for name, column in columns.items():
        if column.about != "utility" and not kinds[column.asked_of]:
            found[name] = f"the request holds no {column.asked_of}"
        elif name == "forget_accuracy_held_out" and not any(record.paraphrase for record in file.questions):
            found[name] = "the request has no paraphrases"
    return found


def caveat(count: int) -> str:
    """What the scope says of an audit of several requests."""
    return f"{count} requests asked about together, and each alone at 1/{count} of the level"


# --- what is found


def each_alone(
    sources: Sources,
    columns: Mapping[str, Column],
    protocol: Protocol,
    not_applicable: Mapping[tuple[str, str], str],
    utility: Sequence[Mapping[str, Any]],
    parts: Sequence[Part],
    *,
    seed: int,
    resamples: int,
) -> list[Judged]:
    """What each request alone shows: its required cells at the protocol's level / number of requests, and a word.

    Args:
        sources: the tables of all requests together.
        columns: of the audit.
        protocol: whose cells are required.
        not_applicable: (condition, column) -> why the audit has no such cell.
        utility: rows of the whole audit: a model that has lost its use has deleted nothing.
        parts: of each request.
        seed: of the resampling.
        resamples: of an interval; more are taken where so few would leave less than `BEYOND` beyond a bound.
    """
    judging = [*protocol.cells, *protocol.convicts]
    needed = {name: column for name, column in columns.items() if any(name == cell[1] for cell in judging)}
    conditions = [at for at in sources.subject if any(at == cell[0] for cell in judging)]
    shared = replace(protocol, level=protocol.level / len(parts))
    everybody = frozenset(item for part in parts for item in part.items)

    def judged(part: Part) -> Judged:
        others = everybody - frozenset(part.items)
        own = Sources(
            _without(others, sources.subject, conditions),
            _without(others, sources.control, conditions),
            _without(others, sources.original, list(sources.original)),
            sources.is_paired,
        )
        absent = {**not_applicable, **{(at, name): why for at in conditions for name, why in part.absent.items()}}
        # The smaller the level, the more resamples it takes until some are beyond it.
        least = math.ceil(BEYOND * required_cells(shared, needed, absent) / shared.level)
        cells = make_cells(own, needed, shared, absent, seed=seed, resamples=max(resamples, least))
        facts = _facts(own, needed, protocol, absent)
        unseen = [_unseen(fact) for fact in facts if _is_unseen(fact)]
        alone = with_unseen(decide(cells, utility, protocol="", control=""), unseen)
        return {
            "word": alone.word,
            "reasons": list(alone.reasons),
            "unseen": unseen,
            "facts": facts,
            "cells": [cell for cell in cells if cell["required"] or cell.get("convicts")],
        }

    return [judged(part) for part in parts]


def with_unseen(verdict: Verdict, unseen: Sequence[str]) -> Verdict:
    """No DELETED where nothing could have been seen."""
    if not unseen or verdict.word in (NOT_DELETED, NOT_USABLE):
        return verdict
    before = verdict.reasons if verdict.word == INCONCLUSIVE else ()
    return replace(verdict, word=INCONCLUSIVE, reasons=(*before, *unseen))


def with_each(verdict: Verdict, requests: Sequence[Judged]) -> Verdict:
    """The verdict on all requests together, given what each alone shows; the first of the four words that holds."""

    def said(reasons: str, word: str = "") -> list[str]:
        return [
            f"request {number} alone: {reason}"
            for number, found in enumerate(requests, start=1)
            if word in ("", found["word"])
            for reason in found[reasons]
        ]

    if convicted := said("reasons", NOT_DELETED):
        before = verdict.reasons if verdict.word == NOT_DELETED else ()
        return replace(verdict, word=NOT_DELETED, reasons=(*before, *convicted))
    return with_unseen(verdict, said("unseen"))


def _without(others: frozenset[str], table: Table, conditions: Sequence[str]) -> dict[str, dict[str, Answer]]:
    """A table without the items of the other requests; what is no request's stays."""
    return {
        condition: {column: _only(answer, others) for column, answer in table[condition].items()}
        for condition in conditions
        if condition in table
    }


def _only(answer: Answer, others: frozenset[str]) -> Answer:
    if not isinstance(answer, Scores) or answer is HALF:
        return answer
    kept = [position for position, item in enumerate(answer.items) if item not in others]
    if not kept or (answer.member is not None and not any(answer.member[position] for position in kept)):
        return NotMeasured("nothing about this request was asked")

    def at(values: Sequence[Any]) -> list[Any]:
        return [values[position] for position in kept]

    members = None if answer.member is None else at(answer.member)
    return Scores(at(answer.items), at(answer.units), at(answer.values), members)


def _facts(
    own: Sources, columns: Mapping[str, Column], protocol: Protocol, absent: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """What is answered of a request by the model, its control and its original: means, which need no three units."""
    found = []
    for (condition, column), rule in protocol.cells.items():
        if column not in columns or columns[column].about != "forget" or (condition, column) in absent:
            continue
        tables = {"value": own.subject, "control": own.control, "original": own.original}
        answers = {
            name: table.get(own.original_at(condition) if name == "original" else condition, {}).get(column)
            for name, table in tables.items()
        }
        means = {name: one.aggregate("mean") if isinstance(one, Scores) else None for name, one in answers.items()}
        found.append({"condition": condition, "column": column, **means, "margin": rule.margin})
    return found


def _is_unseen(fact: Mapping[str, Any]) -> bool:
    if None in (fact["value"], fact["control"], fact["original"]):
        return True
    return bool(fact["original"] - fact["control"] <= fact["margin"])


def _unseen(fact: Mapping[str, Any]) -> str:
    where = f"{fact['column']} under {fact['condition']}"
    if None in (fact["value"], fact["control"], fact["original"]):
        return f"{where}: not measured of this request"
    return (
        f"{where}: nothing could have been seen, since the control has {fact['control']:.2f} of it and the original "
        f"{fact['original']:.2f}. Check that the control never saw this request, and that the original did"
    )
