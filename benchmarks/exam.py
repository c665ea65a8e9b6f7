"""What the evidence scripts share: small worlds, runs that are kept, one exam for every model, means with intervals.

An exam asks a saved folder what it knows, with the audit's own probes and conditions but without its verdict: facts
about the forgotten and the retained people, general facts, as the file is, on low-bit grids, and after an attacker has
trained on half of the forgotten people. Everything done is kept under `--out`, so a run that was stopped continues.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from letheon.audits.asked import AskedSets, make_sets
from letheon.audits.attacked import attacked_rows
from letheon.audits.columns import Scores
from letheon.audits.conditions.quantized import QuantizedWeights
from letheon.audits.scorer import Scorer, exact_answers
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.lowbit.low_bit_pass import Basis, kept_online, pass_named, take_basis
from letheon.methods import build
from letheon.models import inspect_model, load_model, load_tokenizer
from letheon.numerics.grids import CodebookGrid, Grid
from letheon.runs.progress import Progress
from letheon.tiny.world import WorldSize
from letheon.training.losses import Body
from letheon.training.straight_through import trained_through
from letheon.unlearning.forget import forget

FACTS = WorldSize(forget=24, retain=72, holdout=8, attributes=4, countries=10, texts=0)
"""Facts alone, without texts: half the time of the default world, two halves of twelve people for an attacker."""
FACT_STEPS = 640
"""Training steps on it."""
ATTACK = (5, 10, 20, 40)
ASKED = {
    "forget": ("forget_questions", "forget_held_out"),
    "retain": ("retain_questions",),
    "retain_held_out": ("retain_held_out",),
    "general": ("general_questions",),
}
"""What an exam reports -> the sets that are asked; all six wordings of a forgotten fact count alike."""


def unlearned(out: Path, settings: Mapping[str, Any], **inputs: Any) -> tuple[Path, dict[str, Any]]:
    """Forget, unless it is done: the folder, and how it ended (steps, reason, seconds)."""
    result = forget(**inputs, **settings, out=out, progress=Progress(quiet=True))
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = sum(json.loads(line)["seconds"] for line in lines)
    return result.folder, {"steps": result.steps, "stopped": result.reason, "seconds": round(seconds, 1)}


def grid_condition(grid: Grid | CodebookGrid) -> QuantizedWeights:
    """The audit's condition for a grid."""
    if isinstance(grid, CodebookGrid):
        return QuantizedWeights(levels=grid.name)
    return QuantizedWeights(bits=grid.bits, group=grid.group)


def exam(
    folder: Path,
    files: Mapping[str, Path],
    *,
    grids: Mapping[str, Grid | CodebookGrid] | None = None,
    attack: Sequence[int] = (),
    rate: float = 3e-4,
    through: str | None = None,
    keep: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Condition -> share of exact answers by what was asked ("forget", "retain", ...).

    Args:
        folder: the model.
        files: forget, retain, general.
        grids: name -> grid: the conditions beside "as_is".
        attack: steps of relearning after which the other half of the forgotten people is asked: "relearn_K".
        rate: of the attacker.
        through: a low-bit pass such as "w4a4kv4", in the basis that the folder says: one more condition, "through".
        keep: a file that holds the answer once it is there.
    """
    if keep is not None and keep.is_file():
        return dict(json.loads(keep.read_text(encoding="utf-8")))
    model_folder = inspect_model(folder)
    sets, encoder = asked_sets(folder, files)
    model = load_model(model_folder.path)
    scorer = Scorer(model, Body(model), encoder, "cpu")
    found = {"as_is": _asked(scorer, sets, tuple(ASKED))}
    for name, grid in (grids or {}).items():
        with grid_condition(grid).applied(model, model_folder):
            scorer.forget_results()
            found[name] = _asked(scorer, sets, ("forget", "retain"))
    if through is not None:
        with deployed(model, through):
            scorer.forget_results()
            found["through"] = _asked(scorer, sets, tuple(ASKED))
    scorer.forget_results()
    if attack:
        settings = {"name": "relearn", "learning_rate": rate}
        walk = {f"relearn_{steps}": build("condition", {**settings, "steps": [steps]}) for steps in attack}
        rows = attacked_rows(walk, scorer, sets, lambda row, now, reader: [{"forget": _scores(scorer, now, "forget")}])
        for name, [row] in rows.items():
            found[name] = {"forget": float(np.mean(row["forget"].values))}  # type: ignore[union-attr]
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_text(json.dumps(found), encoding="utf-8")
    return found


@contextmanager
def deployed(model: Any, through: str) -> Iterator[None]:
    """Inside, the model runs as it would on low bits; its weights are put back to the bit."""
    online = kept_online(model)
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    take_basis(model, online)
    try:
        with trained_through(model, pass_named(through), Basis(online=online)):
            yield
    finally:
        model.load_state_dict(kept)


def asked_sets(folder: Path, files: Mapping[str, Path]) -> tuple[AskedSets, Encoder]:
    """What an exam asks a model of this folder, and how it is encoded."""
    encoder = Encoder(load_tokenizer(folder), max_length=inspect_model(folder).window)
    data = {role: read_records(files[role], role=role) for role in ("forget", "retain", "general")}
    return make_sets(data, encoder=encoder, limits=dict.fromkeys(data, 400), only_units={}), encoder


def _asked(scorer: Scorer, sets: AskedSets, names: Sequence[str]) -> dict[str, float]:
    return {name: float(np.mean(_scores(scorer, sets, name).values)) for name in names}


def _scores(scorer: Scorer, sets: AskedSets, name: str) -> Scores:
    parts = [exact_answers(sets[each], scorer) for each in ASKED[name]]
    return Scores(
        [item for part in parts for item in part.items],
        [unit for part in parts for unit in part.units],
        [value for part in parts for value in part.values],
    )


def recovery(found: Mapping[str, Mapping[str, float]], steps: Sequence[int] = ATTACK) -> float:
    """Mean height of the recovery of the forgotten facts over an attack, by trapezes from step 0 on, in [0, 1]."""
    at = [0, *steps]
    height = [found["as_is"]["forget"], *(found[f"relearn_{step}"]["forget"] for step in steps)]
    return float(np.trapezoid(height, at) / at[-1])


def interval(values: Sequence[float], level: float = 0.95, *, digits: int = 4) -> dict[str, float]:
    """Mean, standard error and the two ends of Student's interval over seeds, to so many places."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": round(mean, digits), "n": len(values)}
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return {
        "mean": round(mean, digits),
        "standard_error": round(error, digits),
        "lower": round(mean - half, digits),
        "upper": round(mean + half, digits),
        "n": len(values),
    }


def rounded(found: Any) -> Any:
    """Figures as a file keeps them: four places."""
    if isinstance(found, Mapping):
        return {name: rounded(value) for name, value in found.items()}
    return round(found, 4) if isinstance(found, float) else found


def one_thread() -> None:
    """Evidence is run with one thread, so that two scripts fill two cores; sums, hence digits, depend on it."""
    torch.set_num_threads(1)
