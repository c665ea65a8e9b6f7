"""Every preset of letheon under the same audit, on the embedded world.

A preset is run as a user would type it, `letheon forget --preset NAME`, with another rate and another number of steps:
the published rates are for models of billions of weights stored in bfloat16, this one has a million in float32. Nothing
else of a preset changes, so its terms are the paper's. The retain set holds general facts as well (others are asked).

The rate. On a world of its own (seed 100: other people, other weights) every preset forgets at the first two of RATES.
The model is asked its facts as the file is, and so are the original and the retrained reference there. Let
    facts = (forgotten facts - the reference's) / 0.15,      utility = largest (fall from the original's) / 0.10
over the three utilities of quick-1, with quick-1's margins: below 1 means within all of them. The first rate at which
both are below 1 is taken, and no larger one is tried. The third, large one is tried where `facts` is still the greater
of the two at the second. Where none is within, the one at which the greater of the two is lowest is taken, of equals
the smallest. The rule is the same for all presets; membership has no say in it.

Then the preset forgets on each world of --worlds at that rate, and is audited by quick-1 against the reference. Beside
the presets stand models of which the truth is known: the original, a second retrained model, noise on every matrix.

What is done is kept under --out; a run that was stopped continues, and loses at most the one run that it was in. The
result, the page and the picture are written after every complete world. Processor time is this process's, user and
system together; models that were trained before count nothing (a world's two took 88 s).

    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import leaderboard_figure
import leaderboard_page
from exam import exam, one_thread, rounded, unlearned
from known_models import NOISE, lines_of, noisy, retrained, written
from ledger import Ledger, minutes
from measuring import write

from letheon.audits.audit import audit
from letheon.errors import CannotFinish
from letheon.methods import build
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.runs.folder import write_text
from letheon.runs.progress import Progress
from letheon.unlearning.presets import PRESETS

SMALL: dict[str, Any] = {"batch_size": 32, "steps": 100}
"""What every preset is given in place of its own, beside the rate."""
RATES = (5e-4, 1e-3, 2e-3)
SWEEP_WORLD = 100
WORLDS = (0, 1)
PROTOCOL = "quick-1"
FACTS_MARGIN, UTILITY_MARGIN = 0.15, 0.10
UTILITIES = ("retain", "retain_held_out", "general")
KNOWN = ("original", "retrained", "noise-damaged")
NOT_FINISHED = "COULD NOT FINISH"


def settings_of(name: str, rate: float) -> dict[str, Any]:
    """What `letheon forget` is told of a preset."""
    return {"preset": name, "learning_rate": rate, **SMALL}


def takes_questions_alone(name: str) -> bool:
    """Whether the forget term puts a refusal in the place of an answer; a running text asks nothing."""
    term = build("forget_term", PRESETS[name].settings["method"], where="method")
    return "other_answer" in term.needs


def forgotten(name: str, rate: float, models: TinyModels, place: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """The folder of a preset's model, and how the run ended. Raises CannotFinish."""
    data = models.files["forget"]
    if takes_questions_alone(name):
        questions = [one for one in lines_of(data) if "prompt" in one]
        data = written(place.with_name(f"{place.name}-questions.jsonl"), questions)
    folder, ended = unlearned(
        place,
        settings_of(name, rate),
        model=models.target,
        forget_data=data,
        retain_data=models.files["keep"],
        holdout_data=models.files["holdout"],
        seed=seed,
    )
    return folder, {"steps": ended["steps"], "stopped": ended["stopped"], **looks_of(folder)}


def looks_of(folder: Path) -> dict[str, float]:
    """Share of the retained answers at the look in the middle of a run and at the last one, in [0, 1]; empty: none."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    looks = [line["retain_accuracy"] for line in lines if "retain_accuracy" in line]
    if not looks:
        return {}
    return {"retained_at_half": round(looks[(len(looks) - 1) // 2], 4), "retained_at_end": round(looks[-1], 4)}


def distances(
    found: Mapping[str, float], original: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, float]:
    """How far a model is outside quick-1's margins, in margins; 1: at one of them."""
    falls = [(original[name] - found[name]) / UTILITY_MARGIN for name in UTILITIES]
    return {
        "facts": round((found["forget"] - reference["forget"]) / FACTS_MARGIN, 3),
        "utility": round(max(falls), 3),
    }


def is_within(one: Mapping[str, Any]) -> bool:
    """Whether a run of the sweep came to its end inside all margins."""
    return "outside" in one and max(one["outside"].values()) < 1


def is_over(tried: Mapping[float, Mapping[str, Any]]) -> bool:
    """Whether no further rate is tried: the last one is within, or it is the second and more is lost than left."""
    last = list(tried.values())[-1] if tried else {}
    if is_within(last) or len(tried) < 2:
        return is_within(last)
    return "outside" not in last or last["outside"]["facts"] <= last["outside"]["utility"]


def best_rate(tried: Mapping[float, Mapping[str, Any]]) -> float | None:
    """The smallest rate that is within all margins, else the least far outside; None where no run came to its end."""
    if within := [rate for rate, one in tried.items() if is_within(one)]:
        return min(within)
    finished = {rate: max(one["outside"].values()) for rate, one in tried.items() if "outside" in one}
    return min(finished, key=lambda rate: (finished[rate], rate)) if finished else None


def sweep(name: str, out: Path, ledger: Ledger) -> dict[float, dict[str, Any]]:
    """Rate -> what the preset left and kept on the sweep's world."""
    models = world(SWEEP_WORLD, ledger)

    def asked(folder: Path, keep: Path) -> dict[str, float]:
        return exam(folder, models.files, keep=keep)["as_is"]

    def once(rate: float) -> dict[str, Any]:
        place = out / f"sweep-{name}-{rate:g}"
        try:
            folder, ended = forgotten(name, rate, models, place, SWEEP_WORLD)
        except CannotFinish as error:
            return {"stopped": type(error).__name__}
        found = asked(folder, place / "exam.json")
        return {**rounded(found), **ended, "outside": distances(found, original, reference)}

    def counted(rate: float) -> dict[str, Any]:
        found = ledger.counted(f"sweep {name} {rate:g}", lambda: once(rate))
        print(f"sweep  {name}  {rate:g}  {found}", flush=True)
        return found

    original = ledger.counted("sweep original", lambda: asked(models.target, out / "sweep-original.json"))
    reference = ledger.counted("sweep reference", lambda: asked(models.reference, out / "sweep-reference.json"))
    found: dict[float, dict[str, Any]] = {}
    for rate in RATES:
        if not is_over(found):
            found[rate] = counted(rate)
    return found


def world(seed: int, ledger: Ledger) -> TinyModels:
    """A world and its two models, trained on first use."""
    return ledger.counted(f"models {seed}", lambda: tiny_models(seed, progress=Progress(quiet=True)))


def known(name: str, models: TinyModels, seed: int, place: Path) -> Path:
    """The folder of a model of which the truth is known."""
    if name == "original":
        return models.target
    place.mkdir(parents=True, exist_ok=True)
    return retrained(models, seed, 1, place) if name == "retrained" else noisy(models, place, seed)


def judged(folder: Path, models: TinyModels, out: Path) -> dict[str, Any]:
    """What is published of an audit by quick-1 against the retrained reference."""
    files = models.files
    found = audit(
        folder,
        original=models.target,
        reference=models.reference,
        forget_data=files["forget"],
        retain_data=files["retain"],
        holdout_data=files["holdout"],
        general_data=files["general"],
        protocol=PROTOCOL,
        out=out,
        progress=Progress(quiet=True),
    ).audit
    return figures(found)


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict, reasons, every required cell and every utility of an audit.json."""
    required = [cell for cell in found["cells"] if cell["required"]]
    unmeasured = [f"{cell['column']} under {cell['condition']}" for cell in required if cell["status"] != "measured"]
    numbers = {"value": "value", "control": "control", "d": "d", "lower": "d_lower", "upper": "d_upper"}
    return {
        "verdict": found["verdict"]["word"],
        "reasons": list(found["verdict"]["reasons"])[:3],
        "not_measured": unmeasured,
        "cells": [
            {
                "column": cell["column"],
                "condition": cell["condition"],
                "margin": cell["margin"],
                "side": cell["side"],
                "judgement": cell["judgement"],
                **{ours: round(float(cell[theirs]), 4) for ours, theirs in numbers.items()},
            }
            for cell in required
            if cell["status"] == "measured"
        ],
        "utility": [
            {
                "column": row["column"],
                "margin": row["margin"],
                "judgement": row["judgement"],
                **({"subject": round(row["subject"], 4), "fall": round(row["fall"], 4)} if "fall" in row else {}),
            }
            for row in found["utility"]
            if row["condition"] == "as_is"
        ],
    }


def row_on(name: str, rate: float | None, seed: int, out: Path, ledger: Ledger) -> dict[str, Any]:
    """One row on one world."""
    place = out / f"{name}-{seed}"
    kept = place / "row.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    models = world(seed, ledger)

    def once() -> dict[str, Any]:
        if name in KNOWN:
            return judged(known(name, models, seed, place), models, place / "audit")
        if rate is None:
            return {"verdict": NOT_FINISHED, "reasons": ["no rate of the sweep came to its end"]}
        try:
            folder, ended = forgotten(name, rate, models, place, seed)
        except CannotFinish as error:
            return {"verdict": NOT_FINISHED, "reasons": [type(error).__name__]}
        return {**ended, **judged(folder, models, place / "audit")}

    found = ledger.counted(f"row {name} {seed}", once)
    place.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps(found, indent=1))
    return found


def main() -> None:
    """The sweep, then world by world; a result after each complete one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=list(WORLDS))
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/leaderboard"))
    given = parser.parse_args()
    one_thread()
    ledger = Ledger(given.out / "cpu.json")
    tried = {name: sweep(name, given.out, ledger) for name in PRESETS}
    rates = {name: best_rate(one) for name, one in tried.items()}
    rows: dict[str, dict[int, Any]] = {name: {} for name in (*KNOWN, *PRESETS)}
    for number, seed in enumerate(given.worlds, start=1):
        for name in rows:
            rows[name][seed] = row_on(name, rates.get(name), seed, given.out, ledger)
            print(f"world {seed}  {name}  {rows[name][seed]['verdict']}", flush=True)
        write(
            "leaderboard",
            {
                "worlds": given.worlds[:number],
                "protocol": PROTOCOL,
                "processor_minutes": minutes(ledger.spent()),
                "settings": SMALL,
                "noise": NOISE,
                "questions_alone": [name for name in PRESETS if takes_questions_alone(name)],
                "sweep": {"world": SWEEP_WORLD, "rates": RATES, "chosen": rates, "tried": tried},
                "rows": rows,
            },
        )
        leaderboard_page.publish()
        leaderboard_figure.publish()


if __name__ == "__main__":
    main()
