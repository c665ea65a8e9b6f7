"""Measure a model by a published benchmark: TOFU, MUSE, WMDP, or the embedded world's own questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome, quoted
from letheon.cli.table import table
from letheon.cli.verb import verb_app


def measured(result: Any) -> Outcome:
    """The table of all figures."""
    rows = [
        (figure.name, _number(figure.value), _interval(figure), str(figure.n), _note(figure))
        for figure in result.figures
    ]
    lines = [
        *table([("figure", "value", "95 % interval", "n", "better"), *rows]),
        f"log: {quoted(result.log_path)}",
    ]
    return Outcome({"run": result.run, "log_path": result.log_path, "figures": result.figures}, lines)


def _done(result: Any, given: Mapping[str, Any]) -> Outcome:
    return measured(result)


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def _interval(figure: Any) -> str:
    return "" if figure.low is None else f"{_number(figure.low)} .. {_number(figure.high)}"


def _note(figure: Any) -> str:
    return "; ".join(part for part in (figure.better, figure.note) if part)


app = verb_app(
    "benchmark",
    summary="Measure a model by a published benchmark, with that benchmark's own definitions, on your own copy of its "
    "data.",
    main=("seed", "resamples", "device"),
    examples=(
        "letheon benchmark runs/mine/1-forget --benchmark tofu --benchmark.data DIR --reference runs/retain/1-train",
        "letheon benchmark MODEL --benchmark wmdp --benchmark.data questions.jsonl",
    ),
    done=_done,
)
