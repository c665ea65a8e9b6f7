"""Any task of lm-evaluation-harness, to see what else a model can still do: its metrics, and what they have lost.

    TASK.METRIC                    as lm_eval has it, with an interval over the items
    TASK.METRIC.minus_reference    the same less the reference's, item by item: utility that was kept or lost
The reference is the original (`--reference ORIGINAL`). A mean is made of one number an item; a perplexity is
    perplexity exp(-mean l),   weighted_perplexity exp(-sum l / sum w),   bits_per_byte -sum l / sum w / ln 2
with l the log-likelihood of an item in nats and w its words or bytes. A metric that lm_eval makes of all items together
(F1, BLEU, ...) is not measured. Nothing is downloaded: a task's data are local files, or in the cache of datasets.
Needs lm-evaluation-harness: pip install 'letheon[eval]'.

Source: lm-evaluation-harness, and its tasks.
Checked against: lm_eval's own means on the same model, a slow second implementation of every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from letheon.audits.harness.run import Asking, Request, Said, ask, find_tasks, path_of, requests, texts_of
from letheon.audits.itemized import (
    LEVEL,
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
from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder
from letheon.data.records import MAX_SHOWN
from letheon.errors import BadInput, NotMeasured, require
from letheon.numerics.intervals import bounds_of_mean_difference

Numbers = NDArray[np.float64]
_MADE_OF_ALL = "made_of_all"
_LOG_LIKELIHOOD, _WEIGHT = "log_likelihood", "weight"


@dataclass(frozen=True, kw_only=True)
class LmEval:
    """Settings of the benchmark."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, groups or tags, as `lm_eval --tasks` takes them: hellaswag,arc_easy."""
    include_path: Path | None = None
    """A folder of tasks of your own (YAML), as `lm_eval --include_path` takes it. Such a YAML may name Python."""
    limit: int | None = None
    """Most items of a task, the first ones; null: all."""
    num_fewshot: int | None = None
    """Answered questions before each; null: as many as the task says. A task that says 0 stays at 0."""
    batch_size: int = 16
    """Requests of a forward pass. It changes no figure but by rounding."""
    apply_chat_template: bool = False
    """Whether a question is shown as the tokenizer's chat template does; lm_eval's default is that it is not."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, f"limit must be 1 or more, got {self.limit}")
        require(
            self.num_fewshot is None or self.num_fewshot >= 0, f"num_fewshot must be 0 or more, got {self.num_fewshot}"
        )
        require(self.batch_size >= 1, f"batch_size must be 1 or more, got {self.batch_size}")

    def read(self) -> dict[str, _Task]:
        """All tasks with their data. Raises BadInput with every one that cannot be asked here, MissingExtra."""
        if not self.tasks:
            raise BadInput("lm_eval needs tasks: --benchmark.tasks hellaswag,arc_easy")
        found = find_tasks(self.tasks, self.include_path, self._asking())
        return {name: _Task(name, path_of(task), task) for name, task in found.items()}

    def _asking(self) -> Asking:
        return Asking(
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            batch_size=self.batch_size,
            apply_chat_template=self.apply_chat_template,
        )

    def pose(self, rows: Mapping[str, _Task], encoder: Encoder) -> dict[str, _Posed]:
        """Every task as tokens. Raises BadInput with all that does not fit the window."""
        posed: dict[str, _Posed] = {}
        problems: list[str] = []
        for name, one in rows.items():
            asked, faults = requests(one.task, encoder, self._asking())
            problems += faults
            items = tuple(f"{name}/{number}" for number in dict.fromkeys(request.item for request in asked))
            posed[name] = _Posed(name, items, one.task, tuple(asked), texts_of(one.task) if asked else "")
        if problems:
            problems = list(dict.fromkeys(problems))
            hidden = len(problems) - MAX_SHOWN
            raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
        return posed

    def measure(self, posed: _Posed, scorer: Scorer) -> Measured:
        """One task. Raises NotMeasured: a logit or a number of an item that is none."""
        said = ask(posed.task, scorer, self._asking())
        if said.asked != posed.texts:
            raise NotMeasured("the task asks other texts each time, so that no two models can be compared")
        columns = columns_of(said)
        for name, values in columns.items():
            if not np.isfinite(list(values.values())).all():
                raise NotMeasured(f"{posed.name}: {name.split('|')[0]} of some item is NaN or infinite")
        numbers = [int(item.rsplit("/", 1)[1]) for item in posed.items]
        table = {name: tuple(values[number] for number in numbers) for name, values in columns.items()}
        return Measured(Table(posed.items, posed.items, table), _spoken(posed, said))

    def for_reference(self, sets: Sequence[str]) -> list[str]:
        """All: the original is asked the same."""
        return list(sets)

    def figures(self, tables: Tables, reference: Tables | None, how: Resampling) -> list[Figure]:
        """Every figure, from the tables alone."""
        found: list[Figure] = []
        for name, table in tables.items():
            other = None if reference is None else reference[name]
            for metric, aggregation, better in dict.fromkeys(_parts(column)[:3] for column in table.columns):
                found += _figures(_Metric(f"{name}.{metric}", metric, aggregation, better), table, other, how)
        return found


@dataclass(frozen=True)
class _Task:
    """A task of lm_eval with its data."""

    name: str
    path: Path | None
    task: Any


@dataclass(frozen=True)
class _Posed:
    """One task as tokens."""

    name: str
    items: tuple[str, ...]
    task: Any
    requests: tuple[Request, ...]
    texts: str
    """Hash of their texts."""

    def tokens(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """All that is asked, as (tokens, where what is scored begins)."""
        return ((request.ids, request.border) for request in self.requests)


# --- from lm_eval's log to a table


def columns_of(said: Said) -> dict[str, dict[int, float]]:
    """Column -> item -> number. A column is called METRIC|AGGREGATION|BETTER, and |PART where it takes two.

    A metric of a filter other than the first-taken is called METRIC.FILTER. Where there is no number an item, the
    column says so and holds zeros.
    """
    columns: dict[str, dict[int, float]] = {}
    for sample in said.samples:
        number = int(sample["doc_id"])
        for metric in sample["metrics"]:
            value = sample[metric]
            aggregation = _aggregation(said.aggregations.get(metric, "mean"), value)
            better = {True: "high", False: "low"}.get(cast(bool, said.higher_is_better.get(metric)), "")
            named = metric if sample.get("filter", "none") == "none" else f"{metric}.{sample['filter']}"
            column = f"{named}|{aggregation}|{better}"
            if aggregation in ("weighted_perplexity", "bits_per_byte"):
                columns.setdefault(f"{column}|{_LOG_LIKELIHOOD}", {})[number] = float(value[0])
                columns.setdefault(f"{column}|{_WEIGHT}", {})[number] = float(value[1])
            else:
                columns.setdefault(column, {})[number] = 0.0 if aggregation == _MADE_OF_ALL else float(value)
    return columns


def _aggregation(name: str, value: Any) -> str:
    is_number = isinstance(value, int | float | np.number)
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    fits = {"mean": is_number, "perplexity": is_number, "weighted_perplexity": is_pair, "bits_per_byte": is_pair}
    return name if fits.get(name, False) else _MADE_OF_ALL


def _spoken(posed: _Posed, said: Said) -> tuple[dict[str, str], ...]:
    """What was answered in words, once an item; nothing of a task that only scores."""
    if posed.task.OUTPUT_TYPE != "generate_until":
        return ()
    by_number = {int(sample["doc_id"]): sample for sample in reversed(said.samples)}
    spoken = []
    for item in posed.items:
        sample = by_number[int(item.rsplit("/", 1)[1])]
        prompt, answer = str(sample["arguments"][0][0]), str(sample["target"])
        spoken.append({"item": item, "prompt": prompt, "answer": answer, "said": str(sample["resps"][0][0])})
    return tuple(spoken)


# --- from a table to figures


@dataclass(frozen=True)
class _Metric:
    """One metric of one task."""

    figure: str
    name: str
    aggregation: str
    better: Better

    def columns(self, table: Table) -> Numbers:
        """(items, 1 or 2) its numbers."""
        column = f"{self.name}|{self.aggregation}|{self.better}"
        parts = [f"{column}|{part}" for part in (_LOG_LIKELIHOOD, _WEIGHT)]
        return np.stack([table.column(one) for one in (parts if parts[0] in table.columns else [column])], axis=1)

    def of_means(self, means: Numbers) -> Any:
        """(..., 1 or 2) means over items -> (...) the metric."""
        ratio = np.asarray(means[..., 0] if means.shape[-1] == 1 else means[..., 0] / means[..., 1])
        return _FROM_RATIO[self.aggregation](ratio)


_FROM_RATIO: dict[str, Callable[[Numbers], Any]] = {
    "mean": lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "weighted_perplexity": lambda ratio: np.exp(-ratio),
    "bits_per_byte": lambda ratio: -ratio / np.log(2),
}


def _parts(column: str) -> tuple[str, str, Better]:
    metric, aggregation, better = column.split("|")[:3]
    return metric, aggregation, cast(Better, better)


def _figures(metric: _Metric, table: Table, other: Table | None, how: Resampling) -> list[Figure]:
    if metric.aggregation == _MADE_OF_ALL:
        reason = "lm_eval makes it of all items together, and there is no number an item to give it an interval"
        return [not_measured(metric.figure, reason, n=len(table.items))]
    if metric.aggregation == "mean":
        return _mean_figures(metric, table, other, how)
    values = metric.columns(table)
    width, joined = (
        values.shape[1],
        values if other is None else np.concatenate([values, metric.columns(other)], axis=1),
    )
    own = float(metric.of_means(values.mean(0)))
    try:
        drawn = resampled_means(joined, table.units, how, stream=0)
        low, high = percentiles(metric.of_means(drawn[:, :width]))
    except NotMeasured:  # fewer than three items
        drawn, low, high = None, None, None
    found = [Figure(metric.figure, own, low, high, len(table.items), metric.better)]
    if other is not None:
        lost = own - float(metric.of_means(joined[:, width:].mean(0)))
        if drawn is not None:
            low, high = percentiles(metric.of_means(drawn[:, :width]) - metric.of_means(drawn[:, width:]))
        found.append(_kept(metric, lost, low, high, len(table.items)))
    return found


def _mean_figures(metric: _Metric, table: Table, other: Table | None, how: Resampling) -> list[Figure]:
    values = metric.columns(table)[:, 0]
    is_rate = bool(np.isin(values, (0.0, 1.0)).all())
    found = [mean_figure(metric.figure, table, values, how, better=metric.better, is_rate=is_rate)]
    if other is not None:
        theirs = metric.columns(other)[:, 0]
        is_rate = is_rate and bool(np.isin(theirs, (0.0, 1.0)).all())
        low: float | None = None
        high: float | None = None
        try:
            low, high = bounds_of_mean_difference(
                values, table.units, theirs, other.units,
                paired=True, level=LEVEL, seed=how.seed, resamples=how.resamples, is_rate=is_rate,
            )  # fmt: skip
        except NotMeasured:  # fewer than three items
            low = high = None
        found.append(_kept(metric, float(values.mean() - theirs.mean()), low, high, len(values)))
    return found


def _kept(metric: _Metric, value: float, low: float | None, high: float | None, n: int) -> Figure:
    note = "paired by item; below 0 is lost" if metric.better == "high" else "paired by item"
    return Figure(f"{metric.figure}.minus_reference", value, low, high, n, metric.better, note)
