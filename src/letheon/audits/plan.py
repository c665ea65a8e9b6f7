"""What an audit asks, of whom and under which conditions: made from a protocol and the data before a model is opened.

Source: this project.  Checked against: the parts of a plan by hand for each kind of control.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from letheon.audits.asked import AskedSets, kinds_of, make_sets, questions_about
from letheon.audits.attacked import rows_of
from letheon.audits.columns import Column
from letheon.audits.control import MIN_HOLDOUT, Control, choose_control, lookalike_items, lookalike_names
from letheon.audits.protocol import Protocol
from letheon.audits.scope import length_warning
from letheon.data.encode import Encoder, cut_sentence
from letheon.data.records import DataFile
from letheon.methods import build, load

SHIPPED = "shipped"
"""The condition that is there only when another folder ships."""


@dataclass(frozen=True)
class Plan:
    """What is asked: the same for the audited model, its control and its original."""

    sets: AskedSets
    columns: Mapping[str, Column]
    probe_of: Mapping[str, Any]
    """Column -> the probe that fills it."""
    conditions: Mapping[str, Any]
    """Name -> condition."""
    generated: Mapping[str, set[str]]
    """Column -> the conditions under which it is made, for columns that need generation."""
    control: Control

    def is_made(self, column: str, condition: str) -> bool:
        """Whether a column is made under a condition."""
        return column not in self.generated or condition in self.generated[column]

    @property
    def warnings(self) -> list[str]:
        """What did not fit into the context window, and texts that are not alike in length."""
        names = [name for name, asked in self.sets.sets.items() if len(asked)]
        notes = [cut_sentence(self.sets[name].examples, name.replace("_", " ")) for name in names]
        return [note for note in (*notes, length_warning(self.sets)) if note]


def make_plan(
    protocol: Protocol,
    data: Mapping[str, DataFile],
    *,
    encoder: Encoder,
    has_reference: bool,
    shipped: Path | None,
    gate_units: frozenset[str],
    seed: int,
    also: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of an audit.

    Args:
        protocol: which probes and conditions, and how many items of each set.
        data: role ("forget", "retain", "holdout", "general") -> file.
        encoder: of the audited model.
        has_reference: whether a retrained model is there to be the control.
        shipped: the folder that ships, where it is another one than the audited.
        gate_units: holdout units that the unlearning has seen; they are not asked about.
        seed: of invented names.
        also: row -> condition, beside the protocol's.
    Raises:
        BadInput: a record that cannot be encoded, with all faults of all sets.
    """
    allowed: dict[str, set[str]] = {}
    if "holdout" in data:
        allowed["holdout"] = {unit for unit in data["holdout"].units if unit not in gate_units}
    probes = [build("probe", spec) for spec in protocol.probes]
    asks = {kind for probe in probes for kind in getattr(probe, "asks", ())}
    sets = make_sets(data, encoder=encoder, limits=protocol.limits, only_units=allowed, also=asks)
    holdout_units = len(allowed.get("holdout", ()))
    lookalikes = 0
    if not has_reference and holdout_units < MIN_HOLDOUT:
        lookalikes = _add_lookalikes(sets, data, asks, encoder=encoder, seed=seed)
    control = choose_control(
        has_reference=has_reference,
        has_shipped=shipped is not None,
        holdout_units=holdout_units,
        lookalikes=lookalikes,
    )
    probe_of = {column: probe for probe in probes for column in probe.columns}
    return Plan(
        sets=sets,
        columns={column: probe.columns[column] for column, probe in probe_of.items()},
        probe_of=probe_of,
        conditions={**_conditions(protocol, shipped), **(also or {})},
        generated={column: set(protocol.generated.conditions) for column in protocol.generated.columns},
        control=control,
    )


def _add_lookalikes(
    sets: AskedSets, data: Mapping[str, DataFile], asks: Collection[str], *, encoder: Encoder, seed: int
) -> int:
    """The forget questions about invented names, as sets of their own; how many there are in trained wordings."""
    forget = data["forget"]
    names = lookalike_names(forget, [file for role, file in data.items() if role != "forget"], seed=seed)
    by_line = {record.line: record for record in forget.questions}
    for kind in ("questions", "held_out", *sorted({"answers", "letters"} & set(asks))):
        asked = sets[f"forget_{kind}"]
        items = [
            (item, replace(by_line[int(item.split("/")[1])], answer=answer), prompt)
            for item, prompt, answer in zip(asked.items, asked.prompts, asked.answers, strict=True)
        ]
        made = questions_about(f"lookalike_{kind}", lookalike_items(items, names), encoder)
        sets.sets[made.name] = replace(
            made,
            records=tuple(by_line[int(item.split("/")[2])] for item in made.items),
            names=tuple(names.of_unit[unit] for unit in made.units),
        )
    return len(sets["lookalike_questions"])


def _conditions(protocol: Protocol, shipped: Path | None) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    for name, spec in protocol.conditions.items():
        if name != SHIPPED:
            conditions |= rows_of(name, build("condition", spec))
        elif shipped is not None:
            conditions[name] = load("condition", SHIPPED)(path=shipped)
    return conditions


def not_applicable(plan: Plan, forget: DataFile) -> dict[tuple[str, str], str]:
    """(condition, column) -> why these data, or this protocol, have no such cell."""
    found: dict[tuple[str, str], str] = {}
    kinds = kinds_of(forget)
    for name, column in plan.columns.items():
        for condition in dict.fromkeys([*plan.conditions, SHIPPED]):
            if condition not in plan.conditions:
                found[condition, name] = "no other folder was named as the one that ships"
            elif column.about != "utility" and not kinds[column.asked_of]:
                found[condition, name] = f"the forget set holds no {column.asked_of}"
            elif name == "forget_accuracy_held_out" and not len(plan.sets["forget_held_out"]):
                found[condition, name] = "the forget set has no paraphrases"
            elif not plan.is_made(name, condition):
                found[condition, name] = "needs generation, which this protocol does under other conditions only"
    return found
