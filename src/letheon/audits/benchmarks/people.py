"""The embedded world's own questions: what a small model knows of people who never existed, in a minute on a laptop.

    accuracy       every answer token and the end of text are the arg-max (the greedy answer is right)
    probability    exp(mean log p of the answer's tokens and the end of text)
    choice         the right answer among four by the mean log p a token, no letters shown; a tie of t counts 1/t
of forgotten, retained and never seen people and of general knowledge; trained wordings and others apart.
Forgotten people should look like the never seen ones, and everything else as before.

Source: this project (letheon.tiny).  Checked against: the truth of the world, a uniform model (one in four).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from letheon.audits.asked import Asked
from letheon.audits.choices import credits
from letheon.audits.itemized import Better, Figure, Measured, Resampling, Table, Tables, mean_figure
from letheon.audits.published import find
from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder, Example
from letheon.data.records import MAX_SHOWN, Record, read_records
from letheon.data.sampling import sample
from letheon.errors import BadInput, require
from letheon.tiny.world import write_world

_GROUPS = ("forget", "retain", "holdout", "general")
_BETTER: dict[str, Better] = {"forget": "reference", "retain": "high", "holdout": "", "general": "high"}


@dataclass(frozen=True, kw_only=True)
class People:
    """Settings of the benchmark."""

    data: Path | None = None
    """A folder with forget, retain, holdout and general .jsonl, as the embedded world is written; null: it is made."""
    seed: int = 0
    """Of the world that is made, where no folder is given; the one that the model was trained on."""
    limit: int = 400
    """Most questions of a set, of all people."""

    def __post_init__(self) -> None:
        require(self.limit >= 1, f"limit must be 1 or more, got {self.limit}")
        require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")

    def read(self) -> dict[str, _Group]:
        """All files. Raises BadInput with every fault of every file."""
        if self.data is not None:
            return self._read(self.data, is_given=True)
        with tempfile.TemporaryDirectory() as folder:
            write_world(Path(folder), self.seed)
            return self._read(Path(folder), is_given=False)

    def _read(self, folder: Path, *, is_given: bool) -> dict[str, _Group]:
        found: dict[str, _Group] = {}
        problems: list[str] = []
        for name in _GROUPS:
            try:
                path = find(folder, name, what="people data")
                file = read_records(path, role=name)
                if not file.questions:
                    problems.append(f"{path}: holds no questions")
                found[name] = _Group(name, path if is_given else None, tuple(file.questions))
            except BadInput as error:
                problems += error.problems
        if problems:
            raise BadInput(problems)
        return found

    def pose(self, groups: Mapping[str, _Group], encoder: Encoder) -> dict[str, _Posed]:
        """Every set as tokens. Raises BadInput with all that does not fit the window."""
        posed: dict[str, _Posed] = {}
        problems: list[str] = []
        for name, group in groups.items():
            codes = {unit: f"{name}/unit {number}" for number, unit in enumerate(dict.fromkeys(group.units))}
            sets: dict[str, list[tuple[str, Record, str]]] = {
                name: [(f"{name}/{one.line}", one, one.prompt) for one in group.records],
                f"{name}_other_wordings": [
                    (f"{name}/{one.line}/paraphrase {number}", one, prompt)
                    for one in group.records
                    for number, prompt in enumerate(one.paraphrase, start=1)
                ],
                f"{name}_choice": [(f"{name}/{one.line}", one, one.prompt) for one in group.records if one.wrong],
            }
            for kind, asked in sets.items():
                chosen = sample([one.unit for _, one, _ in asked], [item for item, _, _ in asked], self.limit)
                if chosen:
                    made = _posed(kind, [asked[at] for at in chosen], codes, encoder, problems)
                    posed[kind] = made
        if problems:
            hidden = len(problems) - MAX_SHOWN
            raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
        return posed

    def measure(self, posed: _Posed, scorer: Scorer) -> Measured:
        """One set. Raises NotMeasured: a log-probability that is no number."""
        asked = Asked(posed.name, posed.items, posed.units, (), (), posed.examples)
        scores = scorer.scores(asked)
        if posed.name.endswith("_choice"):
            parts = np.split(scores.log_probs("mean"), np.cumsum(posed.counts)[:-1])
            columns = {"choice": tuple(credits(part, 0) for part in parts)}
        else:
            columns = {
                "accuracy": tuple(scores.exact.astype(float).tolist()),
                "probability": tuple(np.exp(scores.log_probs("mean")).tolist()),
            }
        return Measured(Table(posed.items, posed.units, columns))

    def for_reference(self, sets: Sequence[str]) -> list[str]:
        """None: the never seen people are the reference."""
        return []

    def figures(self, tables: Tables, reference: Tables | None, how: Resampling) -> list[Figure]:
        """Every figure, from the tables alone."""
        return [
            mean_figure(
                f"{name}.{column}",
                table,
                table.column(column),
                how,
                better=_BETTER[name.split("_")[0]],
                is_rate=column != "probability",
            )
            for name, table in tables.items()
            for column in table.columns
        ]


@dataclass(frozen=True)
class _Group:
    """The questions about one group."""

    name: str
    path: Path | None
    """None: made, not read."""
    records: tuple[Record, ...]

    @property
    def units(self) -> list[str]:
        """Whom each question is about."""
        return [record.unit for record in self.records]


@dataclass(frozen=True)
class _Posed:
    """One set as tokens."""

    name: str
    items: tuple[str, ...]
    units: tuple[str, ...]
    examples: tuple[Example, ...]
    """For each item one; of a choice the right answer, then the wrong ones."""
    counts: tuple[int, ...]

    def tokens(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """All that is asked, as (tokens, where the labelled ones begin)."""
        return ((example.ids, example.labelled_from) for example in self.examples)


def _posed(
    name: str,
    asked: Sequence[tuple[str, Record, str]],
    codes: Mapping[str, str],
    encoder: Encoder,
    problems: list[str],
) -> _Posed:
    """A set; what cannot be asked is added to `problems`."""
    examples: list[Example] = []
    counts: list[int] = []
    for item, record, prompt in asked:
        answers = (record.answer, *record.wrong) if name.endswith("_choice") else (record.answer,)
        try:
            made = [_whole(partial(encoder.question, prompt), answer) for answer in answers]
        except BadInput as error:
            problems += [f"{item}: {problem}" for problem in error.problems]
            continue
        examples += made
        counts.append(len(made))
    items, units = tuple(item for item, _, _ in asked), tuple(codes[one.unit] for _, one, _ in asked)
    return _Posed(name, items, units, tuple(examples), tuple(counts))


def _whole(ask: Callable[[str], Example], answer: str) -> Example:
    example = ask(answer)
    require(not example.cut, f"is {example.cut} tokens longer than the context window. Use a model with a longer one")
    return example
