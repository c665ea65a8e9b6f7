"""How far does a learning rate matter? NGDiff with GeN against gradient difference, from starts over five decades.

Both forget with plain gradient ascent and hold on with gradient descent, once with the retain loss as it is and once
multiplied by 100. A start succeeds where the stop rule's aim is met at the end: forgotten facts at most chance + 0.05,
retained ones at least 0.95 of the original's. Gradient difference keeps the rate that it is given; GeN starts there.

    OMP_NUM_THREADS=1 python benchmarks/rates.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from exam import exam, interval, one_thread, rounded, unlearned
from measuring import by_seed, earlier, parts, write

from letheon.errors import CannotFinish
from letheon.recipes.tiny_models import tiny_models
from letheon.tiny.world import WorldSize

WORLD = WorldSize(forget=12, retain=36, holdout=8, attributes=3, countries=6, texts=0)
TRAIN_STEPS = 500
CHANCE = 1 / 32
STARTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SCALES = (1.0, 100.0)
LIMIT = 150
COMMON: dict[str, Any] = {
    "method": {"name": "gradient_ascent"},
    "batch_size": 16,
    "steps": LIMIT,
    "stop": {"every": 5, "items": 144, "forget_accuracy": CHANCE + 0.05, "utility": 0.95},
}
GEN = {"name": "gen", "points": 3, "every": 1, "smoothing": 0.9, "clamp": 2.0}
WAYS: dict[str, dict[str, Any]] = {
    "gdiff": {"balance": "weighted", "rate": "constant"},
    "gdiff 0.9": {"balance": {"name": "weighted", "alpha": 9.0}, "rate": "constant"},
    "ngdiff+gen": {"balance": "ngdiff", "rate": GEN},
}
OPTIMIZERS = ("sgd", "adamw")
SEEDS = (0, 1, 2)


def run(way: str, optimizer: str, start: float, scale: float, seed: int, out: Path) -> dict[str, Any]:
    """One start: what is left of the facts, and whether it succeeded."""
    models = tiny_models(seed, WORLD, steps=TRAIN_STEPS)
    place = out / f"{way.replace(' ', '-')}-{optimizer}-{start:g}-{scale:g}-{seed}"
    settings = {
        **COMMON,
        **WAYS[way],
        "optimizer": optimizer,
        "learning_rate": start,
        "retain_term": {"name": str(Path(__file__).with_name("scaled_gdr.py")), "scale": scale},
    }
    try:
        folder, ended = unlearned(
            place,
            settings,
            model=models.target,
            forget_data=models.files["forget"],
            retain_data=models.files["retain"],
            seed=seed,
        )
    except CannotFinish as error:
        return {"is_met": False, "stopped": str(error)}
    found = exam(folder, models.files, keep=place / "exam.json")["as_is"]
    original = exam(models.target, models.files, keep=out / f"original-{seed}.json")["as_is"]
    is_met = found["forget"] <= CHANCE + 0.05 and found["retain"] >= 0.95 * original["retain"]
    return {**rounded(found), **ended, "is_met": is_met}


def main() -> None:
    """All starts of a way, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/rates"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--add", action="store_true", help="add these seeds to those in the result file")
    given = parser.parse_args()
    one_thread()
    before = earlier("rates") if given.add else {}
    found: dict[str, dict[int, dict[str, Any]]] = {
        row: by_seed(seeds) for row, seeds in before.get("curves", {}).items()
    }
    for seed in given.seeds:
        for optimizer in OPTIMIZERS:
            for way in WAYS:
                for scale in SCALES:
                    row = f"{way}, {optimizer}, retain loss x {scale:g}"
                    curve = {f"{start:g}": run(way, optimizer, start, scale, seed, given.out) for start in STARTS}
                    found.setdefault(row, {})[seed] = curve
                    shown = {
                        start: (one.get("forget"), one.get("retain"), one["is_met"]) for start, one in curve.items()
                    }
                    print(f"seed {seed}  {row}: {shown}", flush=True)
    met = {
        row: {seed: sum(one["is_met"] for one in curve.values()) for seed, curve in seeds.items()}
        for row, seeds in found.items()
    }
    write(
        "rates",
        {
            **({"parts": parts(before)} if before else {}),
            "seeds": sorted({seed for seeds in found.values() for seed in seeds}),
            "starts": STARTS,
            "settings": {"common": COMMON, "ways": WAYS},
            "starts_that_succeed": {
                row: interval(list(counts.values())) | {"by_seed": counts} for row, counts in met.items()
            },
            "curves": found,
        },
    )


if __name__ == "__main__":
    main()
