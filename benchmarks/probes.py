"""All probes that go by log-probabilities from one pass a set, against one pass a metric, written the plain way.

The plain way is what published suites do: each metric loads its set and runs the whole model on it, in batches of the
same size, with logits for every token; a text's lower case, its Min-K at each K and each role's share of an AUC are
metrics as well. Same model (random weights: no time depends on them), same texts and questions, the two arms in turn;
both arms' numbers are compared before any time is taken.

    OMP_NUM_THREADS=1 python benchmarks/probes.py
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import spread, write

from letheon.audits.asked import Asked, AskedSets, make_sets
from letheon.audits.offered import by_question
from letheon.audits.scorer import Scorer
from letheon.data.batches import Batch, by_length
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.methods import build
from letheon.tiny.model import new_tiny_model
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.tiny.world import write_world
from letheon.training.losses import Body

PROBES = (
    "knowledge", "memorisation", "membership", "membership_scores", "multiple_choice", "sequence_probability",
    "truth_ratio",
)  # fmt: skip
LEAST = 1e-3
"""By how much two arms' numbers may differ, relative: float32 sums in another order."""
Rows = list[tuple[torch.Tensor, torch.Tensor]]
"""For each item: (T, vocabulary) log-probabilities and (T,) labels."""


def passed(model: Any, asked: Asked, pad: int) -> Rows:
    """One pass of the whole model over a set."""
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        for batch in by_length(asked.examples, pad=pad):
            log_p = model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False).logits.log_softmax(
                -1
            )
            for row, item in enumerate(batch.items.tolist()):
                found[item] = (log_p[row, _places(batch, row)], batch.label_ids[batch.label_row == row])
    return [found[item] for item in range(len(asked))]


def _places(batch: Batch, row: int) -> torch.Tensor:
    return batch.label_column[batch.label_row == row]


def _own(rows: Rows) -> list[torch.Tensor]:
    return [log_p.gather(1, labels[:, None])[:, 0] for log_p, labels in rows]


def _lowest(values: torch.Tensor, share: float) -> float:
    return float(values.sort().values[: max(1, int(share * len(values) + 1e-9))].mean())


def _plus(rows: Rows, share: float) -> list[float]:
    found = []
    for (log_p, _), own in zip(rows, _own(rows), strict=True):
        mean = (log_p.exp() * log_p).sum(1)
        deviation = ((log_p.exp() * log_p**2).sum(1) - mean**2).clamp(min=1e-6).sqrt()
        found.append(_lowest((own - mean) / deviation, share))
    return found


def _right(rows: Rows, asked: Asked, is_text: bool) -> list[torch.Tensor]:
    """Without the end of text, which a text that was cut does not have."""
    whole = [log_p.argmax(1) == labels for log_p, labels in rows]
    return [
        right[:-1] if not is_text or not one.cut else right for right, one in zip(whole, asked.examples, strict=True)
    ]


def _strength(right: torch.Tensor) -> float:
    wrong = (~right).nonzero()
    return 1 - (int(wrong[-1]) + 1) / len(right) if len(wrong) else 1.0


def plain_metrics(model: Any, sets: AskedSets, pad: int) -> dict[str, Callable[[], list[float]]]:
    """Column -> its metric, each with passes of its own."""

    def both(kind: str, metric: Callable[[Rows, Asked], Sequence[float]]) -> Callable[[], list[float]]:
        def made() -> list[float]:
            asked = [sets[f"{role}_{kind}"] for role in ("forget", "holdout")]
            return [float(value) for one in asked for value in metric(passed(model, one, pad), one)]

        return made

    def forget(kind: str, metric: Callable[[Rows, Asked], Sequence[float]]) -> Callable[[], list[float]]:
        return lambda: [float(v) for v in metric(passed(model, sets[f"forget_{kind}"], pad), sets[f"forget_{kind}"])]

    def means(rows: Rows, _: Asked) -> list[float]:
        return [float(own.mean()) for own in _own(rows)]

    def lower_case() -> list[float]:
        found = []
        for role in ("forget", "holdout"):
            own = means(passed(model, sets[f"{role}_texts"], pad), sets[f"{role}_texts"])
            lower = means(passed(model, sets[f"{role}_lower_case"], pad), sets[f"{role}_lower_case"])
            found += [-one / other for one, other in zip(own, lower, strict=True)]
        return found

    def compressed(rows: Rows, asked: Asked) -> list[float]:
        return [
            mean / len(zlib.compress(text.encode()))
            for mean, text in zip(means(rows, asked), asked.answers, strict=True)
        ]

    def lowest(share: float) -> Callable[[Rows, Asked], list[float]]:
        return lambda rows, _: [_lowest(own, share) for own in _own(rows)]

    metrics = {
        "membership_texts": both("texts", lowest(0.4)),
        "membership_questions": both("questions", means),
        "membership_loss": both("texts", means),
        "membership_zlib": both("texts", compressed),
        "membership_lower_case": lower_case,
        "membership_min_k_20": both("texts", lowest(0.2)),
        "membership_min_k_40": both("texts", lowest(0.4)),
        "membership_min_k_plus_20": both("texts", lambda rows, _: _plus(rows, 0.2)),
        "membership_min_k_plus_40": both("texts", lambda rows, _: _plus(rows, 0.4)),
        "forget_leak_at_1": forget("questions", lambda rows, _: [math.exp(float(own.sum())) for own in _own(rows)]),
    }

    def all_right(rows: Rows, _: Asked) -> list[float]:
        return [float((log_p.argmax(1) == labels).all()) for log_p, labels in rows]

    def of_answers(metric: Callable[[float, list[float]], float]) -> Callable[[], list[float]]:
        def made() -> list[float]:
            asked = sets["forget_answers"]
            found = means(passed(model, asked, pad), asked)
            groups = by_question(asked.items, asked.units)
            return [metric(found[one.positions[0]], [found[at] for at in one.positions[1:]]) for one in groups]

        return made

    def ratio(log_r: float) -> float:
        return math.exp(-abs(log_r))

    metrics |= {
        "forget_accuracy": forget("questions", all_right),
        "forget_accuracy_held_out": forget("held_out", all_right),
        "forget_probability": forget("questions", lambda rows, one: [math.exp(mean) for mean in means(rows, one)]),
        "forget_choice_text": of_answers(lambda right, wrong: float(right > max(wrong))),
        "forget_truth_ratio_geometric": of_answers(lambda right, wrong: ratio(statistics.fmean(wrong) - right)),
        "forget_truth_ratio_arithmetic": of_answers(
            lambda right, wrong: ratio(math.log(statistics.fmean(map(math.exp, wrong))) - right)
        ),
    }
    for kind in ("texts", "questions"):
        is_text = kind == "texts"
        metrics[f"exact_memorisation_{kind}"] = forget(
            kind, lambda rows, one, is_text=is_text: [float(r.double().mean()) for r in _right(rows, one, is_text)]
        )
        metrics[f"extraction_strength_{kind}"] = forget(
            kind, lambda rows, one, is_text=is_text: [_strength(right) for right in _right(rows, one, is_text)]
        )
    return metrics


def ours(scorer: Scorer, sets: AskedSets, columns: dict[str, Any]) -> dict[str, list[float]]:
    """Every column, from passes that are made once."""
    scorer.forget_results()
    return {column: list(probe.score(column, sets, scorer).values) for column, probe in columns.items()}


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest, relative to the larger of a number and 1e-6."""
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in zip(one, other, strict=True))


def main() -> None:
    """Compare the numbers, then the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_world(Path(folder) / "world", 0)
        encoder = Encoder(tiny_tokenizer(0), max_length=128)
        data = {role: read_records(files[role], role=role) for role in ("forget", "holdout")}
    model: Any = new_tiny_model(0).eval()
    probes = [build("probe", name) for name in PROBES]
    all_columns = {column: probe for probe in probes for column in probe.columns}
    asks = {kind for probe in probes for kind in getattr(probe, "asks", ())}
    sets = make_sets(data, encoder=encoder, limits={"forget": 800, "holdout": 800}, only_units={}, also=asks)
    scorer = Scorer(model, Body(model), encoder, "cpu")
    plain = plain_metrics(model, sets, encoder.pad)
    # All leak@k are functions of one number, so they are one metric of the plain way.
    columns = {name: probe for name, probe in all_columns.items() if name in plain or name.startswith("forget_leak")}

    made = ours(scorer, sets, columns)
    differences = {name: difference(metric(), made[name]) for name, metric in plain.items()}
    if max(differences.values()) > LEAST:
        raise SystemExit(f"the two arms do not measure the same: {differences}")

    of_texts = {name for name, probe in columns.items() if probe.columns[name].asked_of == "texts"}
    groups = {"texts": of_texts, "questions": set(columns) - of_texts}
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for group, chosen in groups.items():
            arms: dict[str, Callable[[], object]] = {
                "one_pass": partial(ours, scorer, sets, {n: probe for n, probe in columns.items() if n in chosen}),
                "pass_a_metric": partial(_all, [metric for name, metric in plain.items() if name in chosen]),
            }
            for name in sorted(arms, reverse=bool(number % 2)):
                start = time.perf_counter()
                arms[name]()
                times.setdefault((group, name), []).append(time.perf_counter() - start)
    for name in ("one_pass", "pass_a_metric"):
        times["all", name] = [sum(pair) for pair in zip(times["texts", name], times["questions", name], strict=True)]
    write(
        "probes",
        {
            "sets": {name: len(one) for name, one in sets.sets.items() if len(one)},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "columns": len(columns),
            "metrics_of_the_plain_way": {group: len(set(plain) & chosen) for group, chosen in groups.items()},
            "rounds": rounds,
            "largest_relative_difference": max(differences.values()),
            "seconds": {f"{group}, {name}": spread(values) for (group, name), values in times.items()},
            "times_as_fast": {
                group: _quartiles(times[group, "pass_a_metric"], times[group, "one_pass"]) for group in (*groups, "all")
            },
        },
    )


def _all(metrics: Sequence[Callable[[], list[float]]]) -> None:
    for metric in metrics:
        metric()


def _quartiles(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Of the paired ratios."""
    low, middle, high = statistics.quantiles([one / other for one, other in zip(slow, fast, strict=True)], n=4)
    return {"median": round(middle, 2), "lower_quartile": round(low, 2), "upper_quartile": round(high, 2)}


if __name__ == "__main__":
    main()
