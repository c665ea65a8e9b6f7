"""What a queue of deletions leaves: 40 people in four requests of ten, one after another, and all 40 at once.

The settings are those of the demo's first row, the same for each request as for all at once, so that four requests take
four times the steps. After each step: how much of each request is answered, as is and at most under any condition, what
is still known of everything else, and the verdict on all requests so far, against the reference that knew none of them.
Steps that are done are kept, so a run that was stopped continues.

    OMP_NUM_THREADS=2 python benchmarks/sequence.py --out runs/sequence --seeds 0
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import write

from letheon.data.records import read_records
from letheon.recipes.demo import COMMON, KEPT, SHORT, SHORT_STEPS, SHORT_WORLD
from letheon.recipes.recipe import Recipe, Step, run
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.runs.folder import write_text
from letheon.runs.progress import Progress

REQUESTS = 4
UTILITIES = ("retain_accuracy", "retain_accuracy_held_out", "general_accuracy")
FACTS = "forget_accuracy"


def split(path: Path, folder: Path, count: int) -> list[Path]:
    """The forget set in `count` files of equally many people, in the order of the file."""
    data = read_records(path, role="forget")
    lines = path.read_text(encoding="utf-8").splitlines()
    each = -(-len(data.units) // count)
    paths: list[Path] = []
    for number in range(count):
        people = set(data.units[number * each : (number + 1) * each])
        kept = [lines[record.line - 1] for record in data.records if record.unit in people]
        paths.append(folder / f"request-{number + 1}.jsonl")
        if not paths[-1].is_file():
            write_text(paths[-1], "\n".join(kept) + "\n")
    return paths


def queue(models: TinyModels, requests: Sequence[Path], out: Path, seed: int, settings: Mapping[str, Any]) -> Recipe:
    """The demo's first row for each request."""
    files = models.files
    forget = {
        "model": models.target,
        "retain_data": files["keep"],
        "holdout_data": files["holdout"],
        "seed": seed,
        **COMMON,
        **settings,
    }
    audit = {"reference": models.reference, "general_data": files["general"]}
    return Recipe((Step("forget", forget), Step("audit", audit)), out, tuple(requests))


def found(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict, facts of each request (as is, at most, of the control), utilities and how far they fell."""
    alone = audit.get("requests") or [
        {"facts": audit["cells"], "word": audit["verdict"]["word"], "data": audit["data"]["forget"]}
    ]
    falls = {row["column"]: row for row in audit["utility"] if row["condition"] == "as_is"}
    return {
        "verdict": audit["verdict"]["word"],
        "reasons": audit["verdict"]["reasons"],
        "requests": [_of_request(request) for request in alone],
        "utility": {
            name: {"value": round(falls[name]["subject"], 4), "fall": round(falls[name]["fall"], 4)}
            for name in UTILITIES
        },
    }


def _of_request(request: Mapping[str, Any]) -> dict[str, Any]:
    facts = [fact for fact in request["facts"] if fact["column"] == FACTS and fact.get("value") is not None]
    as_is = next(fact for fact in facts if fact["condition"] == "as_is")
    return {
        "alone": request["word"],
        "people": request["data"]["units"],
        "as_is": round(as_is["value"], 4),
        "at_most": round(max(fact["value"] for fact in facts), 4),
        "control": round(as_is["control"], 4),
    }


def main() -> None:
    """Seed by seed: the queue, then all at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sequence"))
    parser.add_argument("--short", action="store_true", help="a rehearsal on the smaller world; nothing is kept")
    given = parser.parse_args()
    row = SHORT[0] if given.short else KEPT
    results: dict[int, Any] = {}
    for seed in given.seeds:
        models = tiny_models(seed, SHORT_WORLD, steps=SHORT_STEPS) if given.short else tiny_models(seed)
        place = given.out / f"{'short-' if given.short else ''}{seed}"
        requests = split(models.files["forget"], place, REQUESTS)
        quiet = Progress(quiet=True)
        in_turn = run(queue(models, requests, place / "in-turn", seed, row.settings), progress=quiet)
        steps = [found(one.results["audit"].audit) for one in in_turn.requests]
        for step in steps:
            print(seed, step["verdict"], [one["as_is"] for one in step["requests"]], step["utility"])
        at_once = run(queue(models, [models.files["forget"]], place / "at-once", seed, row.settings), progress=quiet)
        results[seed] = {"in_turn": steps, "at_once": found(at_once.results["audit"].audit)}
        print(seed, "at once", results[seed]["at_once"]["verdict"], results[seed]["at_once"]["utility"])
    if not given.short:
        write("sequence", {"seeds": given.seeds, "requests": REQUESTS, "row": row.name, "results": results})


if __name__ == "__main__":
    main()
