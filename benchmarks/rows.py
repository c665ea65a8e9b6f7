"""What every row of the demo and every published baseline gives on several seeds, and what rounding does to each.

Each row is the demo's own, on the embedded world: forget, then the audit by quick-1 against a retrained reference. Rows
that are done are kept, so a run that was stopped continues.

    OMP_NUM_THREADS=2 python benchmarks/rows.py --out runs/rows --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from measuring import write

from letheon.audits.audit import AuditResult
from letheon.recipes.demo import BASELINES, DEMO, Row, run_row
from letheon.recipes.tiny_models import tiny_models
from letheon.runs.progress import Progress

ROWS: tuple[Row, ...] = tuple({row.name: row for row in (*DEMO, *BASELINES)}.values())
ROUNDED = ("int8", "int4_row", "int4_group32", "fp4", "nf4")
SHOWN = (
    "forget_accuracy",
    "forget_accuracy_held_out",
    "verbatim",
    "membership_questions",
    "membership_texts",
    "retain_accuracy",
    "retain_accuracy_held_out",
    "general_accuracy",
)


def figures(result: AuditResult) -> dict[str, Any]:
    """A row's verdict and its values: as it is, and what it knows of the forgotten facts when rounded."""
    values = {(cell["condition"], cell["column"]): cell for cell in result.audit["cells"]}

    def value(condition: str, column: str, of: str = "value") -> float | None:
        found = values[condition, column].get(of)
        return None if found is None else round(float(found), 4)

    return {
        "verdict": result.verdict.word,
        "reasons": list(result.verdict.reasons),
        "as_is": {column: value("as_is", column) for column in SHOWN},
        "control": {column: value("as_is", column, "control") for column in SHOWN},
        "rounded": {
            condition: {
                "forget_accuracy": value(condition, "forget_accuracy"),
                "membership_questions": value(condition, "membership_questions"),
                "code_match": result.audit["conditions"][condition]["code_match"],
            }
            for condition in ROUNDED
        },
    }


def regained(found: dict[str, Any]) -> dict[str, float]:
    """Condition -> how much of the forgotten facts is answered more than by the file as it is."""
    return {
        condition: round(cells["forget_accuracy"] - found["as_is"]["forget_accuracy"], 4)
        for condition, cells in found["rounded"].items()
    }


def main() -> None:
    """Row by row, so that the first rows of all seeds come before the last of any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/rows"))
    parser.add_argument("--rows", nargs="+", default=[row.name for row in ROWS])
    given = parser.parse_args()
    models = {seed: tiny_models(seed) for seed in given.seeds}
    found: dict[str, dict[int, Any]] = {}
    for row in (row for row in ROWS if row.name in given.rows):
        for seed in given.seeds:
            print(f"{row.name}, seed {seed}", flush=True)
            result = run_row(
                row, models[seed], given.out / f"{row.name}-{seed}", seed=seed, progress=Progress(quiet=True)
            )
            found.setdefault(row.name, {})[seed] = figures(result)
            print(f"  {found[row.name][seed]['verdict']}  {found[row.name][seed]['as_is']}", flush=True)
    write(
        "rows",
        {
            "seeds": given.seeds,
            "mean_regained_by_rounding": {
                name: {
                    condition: round(statistics.fmean(regained(one)[condition] for one in seeds.values()), 4)
                    for condition in ROUNDED
                }
                for name, seeds in found.items()
            },
            "rows": found,
        },
    )


if __name__ == "__main__":
    main()
