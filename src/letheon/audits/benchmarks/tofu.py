"""TOFU: what a model still knows of invented authors, what else it has lost, and whether it is like a retrained one.

    probability    exp(mean log p of the answer's tokens and the end of text); for real authors and world facts divided
                   by the sum over the right and the wrong answers
    ROUGE-L        recall of the greedy answer, with stemmer
    truth ratio    wrong over right answers, geometric (R_g: leaderboard, open-unlearning) and arithmetic (R_a: paper)
    prob_mean      1 / (1 + R_g): open-unlearning's other aggregate of the truth ratio
    model utility  harmonic mean of the three over retain, real authors, world facts; 0 if any of the nine is 0
    forget quality Kolmogorov-Smirnov p of the forget set's truth ratios against a retrained model's (--reference)
The first `limit` items of a set are asked, as the published code does. An author is 20 questions in a row; intervals
are over authors, and over items for real authors and world facts.

Source: TOFU, arXiv:2401.06121, and its code.
Checked against: a slow second implementation of every aggregate, a uniform model, a model against itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from letheon.audits.asked import Asked
from letheon.audits.itemized import (
    FEWEST,
    Better,
    Figure,
    Measured,
    Resampling,
    Table,
    Tables,
    mean_figure,
    not_measured,
    percentiles,
    resampled_means,
)
from letheon.audits.published import Rows, find, read_rows
from letheon.audits.question_forms import Form, question, resolved
from letheon.audits.scorer import Scorer
from letheon.audits.truth_ratio import (
    forget_quality,
    forget_truth_ratio,
    harmonic_mean,
    log_ratios,
    normalised_probability,
    right_share,
    utility_truth_ratio,
)
from letheon.data.encode import Encoder, Example
from letheon.data.records import MAX_SHOWN
from letheon.errors import BadInput, NotMeasured, require
from letheon.numerics.scores import rouge_l

AUTHOR = 20
"""Questions of an author, in a row."""
_GENERAL = ("real_authors", "world_facts")


@dataclass(frozen=True, kw_only=True)
class Tofu:
    """Settings of the benchmark."""

    data: Path | None = None
    """The folder of the published files: SPLIT_perturbed, retain_perturbed, real_authors_perturbed and
    world_facts_perturbed, each .json or .jsonl."""
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """What was to be forgotten: 40, 200 or 400 questions."""
    limit: int = 300
    """Most items of a set, the first ones. TOFU: 300; open-unlearning asks all (400)."""
    form: Form = "auto"
    """How a question is shown: chat (the tokenizer's template), llama2, base, phi (TOFU's own for base models), plain
    (how letheon trains a base model); auto: chat where there is a template, else base."""
    longest: int = 200
    """Most tokens of a greedy answer; what they count is `counted`."""
    counted: Literal["total", "new"] = "total"
    """total: `longest` tokens with the prompt (TOFU); new: of the answer alone (open-unlearning)."""

    def __post_init__(self) -> None:
        require(self.limit >= 1, f"limit must be 1 or more, got {self.limit}")
        require(self.longest >= 1, f"longest must be 1 or more, got {self.longest}")

    def read(self) -> dict[str, Rows]:
        """All files. Raises BadInput with every fault of every file."""
        if self.data is None:
            raise BadInput("tofu needs the folder of its published files: --benchmark.data DIR")
        found: dict[str, Rows] = {}
        problems: list[str] = []
        for name in ("forget", "retain", *_GENERAL):
            stem = self.split if name == "forget" else name
            try:
                path = find(self.data, f"{stem}_perturbed", what="TOFU data")
                fields: dict[str, Any] = {"question": "text", "answer": "text", "perturbed_answer": "texts"}
                if name not in _GENERAL:
                    fields["paraphrased_answer"] = "text"
                rows = read_rows(path, fields)
                found[name] = replace(rows, rows=rows.rows[: self.limit])
            except BadInput as error:
                problems += error.problems
        if problems:
            raise BadInput(problems)
        return found

    def pose(self, rows: dict[str, Rows], encoder: Encoder) -> dict[str, _Posed]:
        """Every set as tokens. Raises BadInput with all that cannot be asked."""
        form = resolved(self.form, encoder)
        problems: list[str] = []
        posed: dict[str, _Posed] = {}
        for name, file in rows.items():
            made: list[tuple[Example, Example, list[Example]]] = []
            for position, row in enumerate(file.rows):
                try:
                    made.append(self._item(encoder, form, row))
                except (BadInput, NotMeasured) as error:
                    problems += [f"{file.path}, {file.item(position)}: {said}" for said in _said(error)]
            posed[name] = _posed(name, file, made, is_of_authors=name not in _GENERAL)
        if problems:
            hidden = len(problems) - MAX_SHOWN
            raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
        return posed

    def _item(self, encoder: Encoder, form: str, row: dict[str, Any]) -> tuple[Example, Example, list[Example]]:
        ask = partial(question, encoder, form, row["question"])
        rouge_l(row["answer"], "")  # an answer without a word that ROUGE reads is found now, not after hours
        answer = ask(row["answer"])
        room = self._room(answer)
        if room < 1:
            raise BadInput(
                f"its prompt of {len(answer.prompt_ids)} tokens leaves no room for an answer in {self.longest} tokens. "
                "Use a larger longest, or counted: new"
            )
        right = ask(row["paraphrased_answer"]) if "paraphrased_answer" in row else answer
        return answer, right, [ask(wrong) for wrong in row["perturbed_answer"]]

    def _room(self, example: Example) -> int:
        return self.longest - (len(example.prompt_ids) if self.counted == "total" else 0)

    def measure(self, posed: _Posed, scorer: Scorer) -> Measured:
        """One set: a number an item in each column, and what was answered.

        Raises:
            NotMeasured: a log-probability that is no number.
        """
        answer = scorer.scores(posed.answer).log_probs("mean")
        right = scorer.scores(posed.right).log_probs("mean")
        flat = scorer.scores(posed.wrong).log_probs("mean")
        wrong = np.split(flat, np.cumsum(posed.wrong_counts)[:-1])
        geometric, arithmetic = log_ratios(right, wrong)
        examples = posed.answer.examples
        said = scorer.continuations(
            [example.prompt_ids for example in examples],
            [self._room(example) for example in examples],
            stops={example.ids[-1] for example in examples},
        )
        recall = [
            rouge_l(true, given, use_stemmer=True).recall
            for true, given in zip(posed.answer.answers, said, strict=True)
        ]
        columns = {
            "probability": np.exp(answer).tolist(),
            "probability_normalised": normalised_probability(answer, wrong).tolist(),
            "rougeL_recall.stem": recall,
            "log_truth_ratio.geometric": geometric.tolist(),
            "log_truth_ratio.arithmetic": arithmetic.tolist(),
        }
        table = Table(posed.answer.items, posed.answer.units, {name: tuple(each) for name, each in columns.items()})
        spoken = zip(posed.answer.items, posed.answer.prompts, posed.answer.answers, said, strict=True)
        return Measured(table, tuple({"item": i, "prompt": q, "answer": a, "said": s} for i, q, a, s in spoken))

    def for_reference(self, sets: Sequence[str]) -> list[str]:
        """The sets that a retrained model is asked as well."""
        return [name for name in sets if name == "forget"]

    def figures(self, tables: Tables, reference: Tables | None, how: Resampling) -> list[Figure]:
        """Every figure, from the tables alone."""
        found: list[Figure] = []
        for name, table in tables.items():
            better: Better = "low" if name == "forget" else "high"
            for column in (_probability(name), "rougeL_recall.stem"):
                is_rate = column.startswith("rouge")
                figure = mean_figure(
                    f"{name}.{column}", table, table.column(column), how, better=better, is_rate=is_rate
                )
                found.append(figure)
            for variant in ("geometric", "arithmetic"):
                found.append(_truth_figure(name, variant, table, how))
            found.append(_prob_mean(name, table, how))
        found += [_utility(tables, variant, how) for variant in ("geometric", "arithmetic")]
        for variant in ("geometric", "arithmetic"):
            found += self._forget_quality(variant, tables["forget"], reference)
        return found

    def _forget_quality(self, variant: str, table: Table, reference: Tables | None) -> list[Figure]:
        name, n = f"forget_quality.ks.truth_ratio_{variant}", len(table.items)
        if reference is None:
            retain = f"retain{100 - int(self.split[-2:])}"
            return [
                not_measured(
                    f"{name}.p",
                    f"needs a model trained without {self.split}. Make one: letheon train BASE --data {retain}.jsonl, "
                    "then give --reference its folder, or the benchmark.json of a run on it",
                    n=n,
                )
            ]
        column = f"log_truth_ratio.{variant}"
        try:
            found = forget_quality(table.column(column), reference["forget"].column(column), fewest=FEWEST)
        except NotMeasured as reason:
            return [not_measured(f"{name}.p", str(reason), n=n)]
        floor = f"never below 10^{found.floor_log10:.2f}, where the samples do not overlap"
        return [
            Figure(f"{name}.p", found.p, n=n, better="high", note=f"n {found.n[0]} and {found.n[1]}; {floor}"),
            Figure(f"{name}.log10_p", found.log10_p, n=n, better="high"),
            Figure(f"{name}.D", found.statistic, n=n, better="low"),
        ]


@dataclass(frozen=True)
class _Posed:
    """One set as tokens."""

    answer: Asked
    right: Asked
    """The paraphrased answers; the plain ones where a set has none."""
    wrong: Asked
    """The wrong answers of all items, one item after the other."""
    wrong_counts: tuple[int, ...]

    @property
    def items(self) -> tuple[str, ...]:
        """Their names."""
        return self.answer.items

    def tokens(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """All that is asked, as (tokens, where the labelled ones begin)."""
        for part in (self.answer, self.right, self.wrong):
            yield from ((example.ids, example.labelled_from) for example in part.examples)


def _posed(
    name: str, file: Rows, made: Sequence[tuple[Example, Example, list[Example]]], *, is_of_authors: bool
) -> _Posed:
    items = [file.item(position) for position in range(len(file.rows))]
    units = [f"{file.name}/author {at // AUTHOR}" if is_of_authors else item for at, item in enumerate(items)]
    texts = [row["question"] for row in file.rows], [row["answer"] for row in file.rows]

    def asked(part: str, examples: Sequence[Example]) -> Asked:
        return Asked(f"{name}/{part}", tuple(items), tuple(units), tuple(texts[0]), tuple(texts[1]), tuple(examples))

    counts = tuple(len(wrong) for _, _, wrong in made)
    return _Posed(
        asked("answer", [answer for answer, _, _ in made]),
        asked("right", [right for _, right, _ in made]),
        asked("wrong", [one for _, _, wrong in made for one in wrong]),
        counts,
    )


def _said(error: BadInput | NotMeasured) -> list[str]:
    return error.problems if isinstance(error, BadInput) else [str(error)]


def _truth_figure(name: str, variant: str, table: Table, how: Resampling) -> Figure:
    log_ratio = table.column(f"log_truth_ratio.{variant}")
    figure = f"{name}.truth_ratio_{variant}"
    if name == "forget":
        values = forget_truth_ratio(log_ratio)
        return mean_figure(figure, table, values, how, better="reference", note="mean min(R, 1/R)", is_rate=False)
    values = utility_truth_ratio(log_ratio)
    return mean_figure(figure, table, values, how, better="high", note="mean max(0, 1 - R)", is_rate=False)


def _prob_mean(name: str, table: Table, how: Resampling) -> Figure:
    values = right_share(table.column("log_truth_ratio.geometric"))
    better: Better = "reference" if name == "forget" else "high"
    return mean_figure(
        f"{name}.prob_mean.truth_ratio_geometric",
        table,
        values,
        how,
        better=better,
        note="mean 1 / (1 + R)",
        is_rate=False,
    )


def _probability(name: str) -> str:
    """The column that a set's probability is read from."""
    return "probability_normalised" if name in _GENERAL else "probability"


def _nine(table: Table, name: str, variant: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(items, 3) what a set gives to model utility."""
    truth = utility_truth_ratio(table.column(f"log_truth_ratio.{variant}"))
    return np.stack([table.column(_probability(name)), table.column("rougeL_recall.stem"), truth], axis=1)


def _utility(tables: Tables, variant: str, how: Resampling) -> Figure:
    parts = {name: _nine(tables[name], name, variant) for name in ("retain", *_GENERAL)}
    value = harmonic_mean([float(mean) for part in parts.values() for mean in part.mean(0)])
    low: float | None = None
    high: float | None = None
    note = ""
    try:
        drawn = np.concatenate(
            [
                resampled_means(part, tables[name].units, how, stream=stream)
                for stream, (name, part) in enumerate(parts.items())
            ],
            axis=1,
        )
        low, high = percentiles(np.array([harmonic_mean(row) for row in drawn.tolist()]))
    except NotMeasured as reason:  # the number stands without an interval, and says why
        note = f"no interval: {reason}"
    n = sum(len(part) for part in parts.values())
    return Figure(f"model_utility.truth_ratio_{variant}", value, low, high, n, "high", note)
