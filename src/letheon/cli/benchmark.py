"""Measure a model by a published benchmark: TOFU, MUSE, WMDP, or the embedded world's own questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome, quoted
from letheon.cli.table import table
from letheon.cli.verb import verb_app


def measured(result: Any) -> Outcome:
    """The table of all figures."""
    from letheon.reports.benchmarks import HEADS, rows

    lines = [
        *table([HEADS, *rows(map(vars, result.figures))]),
        f"log: {quoted(result.log_path)}",
    ]
    return Outcome({"run": result.run, "log_path": result.log_path, "figures": result.figures}, lines)


def _done(result: Any, given: Mapping[str, Any]) -> Outcome:
    return measured(result)


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
