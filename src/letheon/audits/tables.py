"""Ask one model everything, under every condition: the table that cells are made of. Asked once for equal inputs.

The tables of an original or of a reference are the same in every audit that uses them, so they are kept in a cache
folder: numbers alone, under a key that changes with the weights, the tokens asked, the conditions, letheon's own code
and the machine.

Source: this project.  Checked against: a table made twice, a changed weight, weights restored to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letheon.audits.asked import AskedSets
from letheon.audits.attacked import Attack, attacked_rows, walks
from letheon.audits.budget import Budget, BudgetExhausted
from letheon.audits.matrix import HALF, Answer
from letheon.audits.near_ties import NearTies
from letheon.audits.plan import Plan
from letheon.audits.readers import Reader, read_column
from letheon.audits.scorer import Scorer, refuse_broken
from letheon.audits.stored import Rows, from_plain, to_plain
from letheon.audits.wordings import Reworded, Wording, reworded
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured
from letheon.methods import describe, name_of
from letheon.models import ModelFolder
from letheon.quantization.reading import load_any
from letheon.runs.folder import sha256_file, sha256_folder, write_json
from letheon.training.losses import Body


@dataclass(frozen=True)
class Asker:
    """How models are opened and asked in this audit."""

    plan: Plan
    encoder: Encoder
    device: str
    environment: Mapping[str, Any]
    advance: Callable[[str], None]
    """Called with a word for each condition done."""
    original: ModelFolder | None = None
    """What an attacker may have besides: the model before it was unlearned."""
    budget: Budget = field(default_factory=Budget)
    """When conditions are no longer begun."""
    ties: NearTies = field(default_factory=NearTies)
    """Answers of the model under audit that hang by a hair; filled as rows are made."""
    left: dict[str, str] = field(default_factory=dict)
    """Row -> a sentence about the questions that it leaves out; filled as rows are made."""

    def table(
        self,
        folder: ModelFolder,
        conditions: Mapping[str, Any],
        *,
        self_control: str = "",
        utility_at: Collection[str] | None = None,
        meanwhile: Callable[[str, Scorer, AskedSets], None] | None = None,
    ) -> tuple[Rows, Rows, Scorer]:
        """The model's own table, the control's, and the model as it is, ready to be asked more.

        Args:
            folder: the model.
            conditions: those under which it is asked.
            self_control: a role ("holdout"): what the same model says about that set is the control's table.
            utility_at: conditions under which utility is asked; all when None.
            meanwhile: called under each condition with what may be asked under it, to ask more; under an attack that
                cuts the forget set once a part, and not where a reader answers in the model's place.
        """
        model = load_any(folder.path, device=self.device)
        scorer = Scorer(model, Body(model), self.encoder, self.device)
        own: Rows = {}
        control: Rows = {}
        for walk in walks(conditions):
            name, condition = next(iter(walk.items()))
            scorer.forget_results()
            try:
                self.budget.check(name)
                refuse_broken(model.state_dict())
                if isinstance(condition, Attack):
                    with_utility = {row for row in walk if utility_at is None or row in utility_at}
                    self._attacked(walk, folder, scorer, self_control, with_utility, own, control, meanwhile)
                    continue
                if isinstance(condition, Wording):
                    self._worded(name, condition, scorer, self_control, own, control)
                    continue
                with condition.applied(model, folder):
                    own[name] = self._row(name, scorer, role="forget", utility=utility_at is None or name in utility_at)
                    if self_control:
                        control[name] = self._row(name, scorer, role=self_control, utility=False)
                    if meanwhile is not None:
                        meanwhile(name, scorer, self.plan.sets)
            except NotMeasured as reason:
                for row in walk:
                    own[row] = dict.fromkeys(self.plan.columns, _kept(reason))
                    control[row] = dict.fromkeys(self.plan.columns, _kept(reason))
            finally:
                for row in walk:
                    self.advance(row)
        scorer.forget_results()
        return own, control, scorer

    def cached_table(
        self, folder: ModelFolder, conditions: Mapping[str, Any], *, utility_at: Collection[str] | None = None
    ) -> Rows:
        """The model's own table, or what an earlier audit found for equal inputs."""
        path = cache_folder() / f"{self._key(folder, conditions, utility_at)}.json"
        names = self._names()
        kept = _read(path, names)
        if kept is not None:
            for name in conditions:
                self.advance(f"{name} (kept from an earlier audit)")
            return kept
        rows, _, _ = replace(self, ties=NearTies()).table(folder, conditions, utility_at=utility_at)
        if any(isinstance(answer, BudgetExhausted) for row in rows.values() for answer in row.values()):
            return rows  # another audit may have the time
        positions = {name: position for position, name in enumerate(names)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_plain({"model": rows}, positions.__getitem__))
        return rows

    def _names(self) -> list[str]:
        """Everything that is asked about; the cache keeps positions in this list, and nobody's name."""
        asked = [self.plan.sets[name] for name in sorted(self.plan.sets.sets)]
        return list(dict.fromkeys(name for some in asked for name in (*some.items, *some.units)))

    def _attacked(
        self,
        walk: Mapping[str, Any],
        folder: ModelFolder,
        scorer: Scorer,
        self_control: str,
        with_utility: Collection[str],
        own: Rows,
        control: Rows,
        meanwhile: Callable[[str, Scorer, AskedSets], None] | None,
    ) -> None:
        """The rows of an attack, into both tables."""
        roles = ["forget", self_control] if self_control else ["forget"]
        is_whole = next(iter(walk.values())).folds == 0

        def ask(row: str, sets: AskedSets, reader: Reader | None) -> list[dict[str, Answer]]:
            if reader is not None:
                return [self._read_row(reader, role, sets) for role in roles]
            answers = asked(row, sets)
            if meanwhile is not None:
                meanwhile(row, scorer, sets)
            return answers

        def asked(row: str, sets: AskedSets) -> list[dict[str, Answer]]:
            if is_whole:  # nobody was learned, so one model is asked everything, as under any other condition
                wanted = {role: role == "forget" and row in with_utility for role in roles}
                return [self._row(row, scorer, role=role, utility=utility) for role, utility in wanted.items()]
            return [self._attacked_row(row, scorer, role, sets) for role in roles]

        tables = attacked_rows(walk, scorer, self.plan.sets, ask, folder=folder, original=self.original)
        for row, found in tables.items():
            for table, answers in zip((own, control), found, strict=False):
                table[row] = answers

    def _attacked_row(self, condition: str, scorer: Scorer, role: str, sets: AskedSets) -> dict[str, Answer]:
        """What was to be forgotten, and no more: membership of two attacked models has no common scale."""
        row: dict[str, Answer] = {}
        for column, kind in self.plan.columns.items():
            if kind.about != "forget":
                row[column] = NotMeasured("a model under attack is asked about forgotten facts and texts only")
            else:
                row[column] = self._answer(column, condition, scorer, role, sets)
        self.ties.note(condition, scorer.near_ties())
        return row

    def _worded(self, name: str, wording: Wording, scorer: Scorer, self_control: str, own: Rows, control: Rows) -> None:
        """The rows of a wording, into both tables."""
        roles = ["forget", self_control] if self_control else ["forget"]
        worded = reworded(wording, self.plan.sets, self.encoder, roles=roles)
        if sentence := worded.sentence(name):
            self.left[name] = sentence
        for role, table in zip(roles, (own, control), strict=False):
            table[name] = self._worded_row(name, scorer, role, worded)

    def _worded_row(self, condition: str, scorer: Scorer, role: str, worded: Reworded) -> dict[str, Answer]:
        """Forgotten facts alone: no weight has changed, so utility and membership are those of the model as it is."""
        row: dict[str, Answer] = {}
        for column, kind in self.plan.columns.items():
            if kind.about != "forget" or kind.asked_of != "questions":
                row[column] = NotMeasured("other words change questions about forgotten facts, and not the model")
                continue
            row[column] = self._answer(column, condition, scorer, role, worded.sets)
            if isinstance(row[column], NotMeasured) and (why := worded.why(role)):
                row[column] = NotMeasured(f"{row[column]}: {why}")
        self.ties.note(condition, scorer.near_ties())
        return row

    def _read_row(self, reader: Reader, role: str, sets: AskedSets) -> dict[str, Answer]:
        """What a reader says in place of the model."""
        row: dict[str, Answer] = {}
        for column in self.plan.columns:
            try:
                row[column] = read_column(column, sets, reader, role=role)
            except NotMeasured as reason:
                row[column] = _kept(reason)
        return row

    def _row(self, condition: str, scorer: Scorer, *, role: str, utility: bool) -> dict[str, Answer]:
        row: dict[str, Answer] = {}
        for column in self.plan.columns:
            if not utility and self.plan.columns[column].about == "utility":
                row[column] = NotMeasured("utility has no control")
            else:
                row[column] = self._answer(column, condition, scorer, role, self.plan.sets)
        self.ties.note(condition, scorer.near_ties())
        return row

    def _answer(self, column: str, condition: str, scorer: Scorer, role: str, sets: AskedSets) -> Answer:
        """The scores, or why there are none."""
        if not self.plan.is_made(column, condition):
            return NotMeasured("needs generation, which this protocol does under other conditions only")
        try:
            return self._score(column, scorer, role, sets)
        except NotMeasured as reason:
            return _kept(reason)

    def _score(self, column: str, scorer: Scorer, role: str, sets: AskedSets) -> Answer:
        probe, kind = self.plan.probe_of[column], self.plan.columns[column]
        if kind.about == "membership":
            if role != "forget":
                return HALF
            found = probe.score(column, sets, scorer)
        else:
            found = probe.score(column, sets, scorer, role=role)
        if not found.values:
            raise NotMeasured(f"there is nothing to ask for {column} ({role} set)")
        return found.rounded()  # type: ignore[no-any-return]

    def _key(self, folder: ModelFolder, conditions: Mapping[str, Any], utility_at: Collection[str] | None) -> str:
        asked = {
            name: [
                [asked.items, asked.units, asked.answers, asked.prompts, asked.names],
                [(example.ids, example.labelled_from) for example in asked.examples],
                # What other words and the matching of answers go by.
                [(one.unit, one.fact, one.wrong, one.choices, one.aliases) for one in asked.records],
            ]
            for name, asked in sorted(self.plan.sets.sets.items())
        }
        parts = {
            "model": sha256_folder(folder.path),
            "asked": asked,
            "columns": list(self.plan.columns),
            "probes": {name: describe(probe) for name, probe in self.plan.probe_of.items()},
            "conditions": {name: describe(condition) for name, condition in conditions.items()},
            "original": self._original_of(conditions),
            "generated": {name: sorted(made) for name, made in self.plan.generated.items()},
            "utility_at": None if utility_at is None else sorted(utility_at),
            "window": self.encoder.max_length,
            "environment": dict(self.environment),
            "own_code": [sha256_file(Path(name)) for name in map(name_of, conditions.values()) if name.endswith(".py")],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _original_of(self, conditions: Mapping[str, Any]) -> str | None:
        """What an attack may have read of the original; rows without an attack do not depend on it."""
        is_read = self.original is not None and any(isinstance(one, Attack) for one in conditions.values())
        return sha256_folder(self.original.path) if is_read and self.original is not None else None


def _kept(reason: NotMeasured) -> NotMeasured:
    """The reason without its traceback, whose frames would hold the model until the audit ends."""
    return type(reason)(str(reason))


def cache_folder() -> Path:
    """$LETHEON_CACHE, or letheon below the user's cache folder."""
    given = os.environ.get("LETHEON_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "letheon"


def _read(path: Path, names: Sequence[str]) -> Rows | None:
    """The table of an earlier audit; None where there is none, or none that can be read."""
    try:
        (rows,) = from_plain(json.loads(path.read_text(encoding="utf-8")), names.__getitem__).values()
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return rows
