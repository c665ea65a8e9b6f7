"""Which parts to take? A small search for the least that is left under the worst of five conditions.

Worst of {as is, int8, int4 a row, fp4, relearned for 20 steps}: the largest share of forgotten facts that is answered,
in all six wordings, among rows that keep 0.95 of the retained facts. Every row of ROWS is run on seed 100; the best
ones and the baseline are then run on three fresh seeds, where nothing was chosen.

    OMP_NUM_THREADS=1 python benchmarks/parts.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exam import FACT_STEPS, FACTS, exam, interval, one_thread, rounded, unlearned
from measuring import write

from letheon.numerics.grids import grid_named
from letheon.recipes.tiny_models import TinyModels, tiny_models

GRIDS = {name: grid_named(name) for name in ("int8", "int4", "fp4")}
ATTACK = (20,)
WORST_OF = ("as_is", *GRIDS, "relearn_20")
USEFUL = 0.95
NPO = {"name": "npo", "beta": 1.0, "reduction": "mean"}
SURE = {"name": "sure", "percentile": 90.0}
SAM = {"name": "sam", "rho": 0.1}
KLR = {"retain_term": "klr", "balance": {"name": "weighted", "alpha": 2.0}}
COMMON: dict[str, Any] = {
    "method": NPO,
    "retain_term": "gdr",
    "batch_size": 32,
    "clip": "auto",
    "rate": "constant",
    "learning_rate": 5e-4,
    "steps": 200,
    "stop": {"every": 10, "items": 150, "forget_accuracy": 0.05, "utility": USEFUL},
}
BASELINE = "npo + gdr"
ROWS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "npo + gdr, rate 1.5e-4": {"learning_rate": 1.5e-4, "steps": 400},
    "npo + gdr, rate 1e-3": {"learning_rate": 1e-3},
    "npo + klr": KLR,
    "npo + gdr, ngdiff": {"balance": "ngdiff"},
    "npo + gdr, pcgrad": {"balance": "pcgrad"},
    "npo + gdr, sam": {"smooth": SAM},
    "npo + gdr, through int4": {"through": "int4"},
    "npo + gdr, sure": {"scope": SURE, "learning_rate": 1e-3},
    "npo + klr, sure": {**KLR, "scope": SURE, "learning_rate": 1e-3},
    "npo + gdr, sure, sam": {"scope": SURE, "learning_rate": 1e-3, "smooth": SAM},
    "npo + gdr, sure, rate 2e-3": {"scope": SURE, "learning_rate": 2e-3},
    "npo + gdr, sure, ngdiff": {"scope": SURE, "learning_rate": 1e-3, "balance": "ngdiff"},
    "npo + gdr, sure, through int4": {"scope": SURE, "learning_rate": 1e-3, "through": "int4"},
    "simnpo + gdr": {"method": {"name": "simnpo", "beta": 2.5, "gamma": 0.0}},
    "idk + gdr": {"method": "idk"},
}
SEARCH_SEED = 100
SEEDS = (0, 1, 2)
CONFIRMED = 3
"""Rows that are run on the fresh seeds beside the baseline."""


def run(name: str, models: TinyModels, seed: int, out: Path) -> dict[str, Any]:
    """A row on a seed: what is left under each condition, the worst of it, and what was kept."""
    place = out / f"{list(ROWS).index(name):02d}-{seed}"
    folder, ended = unlearned(
        place,
        {**COMMON, **ROWS[name]},
        model=models.target,
        forget_data=models.files["forget"],
        retain_data=models.files["retain"],
        seed=seed,
    )
    found = exam(folder, models.files, grids=GRIDS, attack=ATTACK, keep=place / "exam.json")
    original = exam(models.target, models.files, keep=out / f"original-{seed}.json")["as_is"]
    left = {condition: found[condition]["forget"] for condition in WORST_OF}
    result = {
        "left": rounded(left),
        "worst": round(max(left.values()), 4),
        "kept": {name: round(found["as_is"][name] / original[name], 4) for name in original if name != "forget"},
        **ended,
    }
    print(f"seed {seed}  {name:32s} {result}", flush=True)
    return result


def is_useful(found: Mapping[str, Any]) -> bool:
    """Whether enough of the retained facts is left, in their trained wordings."""
    return bool(found["kept"]["retain"] >= USEFUL)


def main() -> None:
    """Search, then confirm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/parts"))
    given = parser.parse_args()
    one_thread()
    models = tiny_models(SEARCH_SEED, FACTS, steps=FACT_STEPS)
    searched = {name: run(name, models, SEARCH_SEED, given.out) for name in ROWS}
    useful = [name for name, found in searched.items() if is_useful(found) and name != BASELINE]
    best = sorted(useful, key=lambda name: searched[name]["worst"])[:CONFIRMED]
    confirmed: dict[str, dict[int, Any]] = {name: {} for name in (BASELINE, *best)}
    for seed in SEEDS:
        fresh = tiny_models(seed, FACTS, steps=FACT_STEPS)
        for name, by_seed in confirmed.items():
            by_seed[seed] = run(name, fresh, seed, given.out)
    write(
        "parts",
        {
            "searched": len(ROWS),
            "seed": SEARCH_SEED,
            "settings": {"common": COMMON, "rows": ROWS},
            "search": searched,
            "confirmed_seeds": SEEDS,
            "worst": {name: interval([one["worst"] for one in seeds.values()]) for name, seeds in confirmed.items()},
            "worst_minus_baseline": {
                name: interval([seeds[seed]["worst"] - confirmed[BASELINE][seed]["worst"] for seed in SEEDS])
                for name, seeds in confirmed.items()
                if name != BASELINE
            },
            "confirmed": confirmed,
        },
    )


if __name__ == "__main__":
    main()
