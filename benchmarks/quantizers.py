"""Which quantizer? Every one of them on a made-up layer, on whole trained models, and on models that have forgotten.

layer       one layer (48 outputs, 256 correlated inputs), whose inputs in the rounded model are those in the untouched
            one plus noise; relative squared error of its outputs on the tokens it was fitted to, and on fresh ones
whole       the embedded world's model, rounded with 64 sequences of 64 tokens about retained people (several
            draws); KL divergence to full precision and loss, nats a token, on what was neither trained nor calibrated
            on: other wordings of retained facts (answers), and texts about strangers
forgotten   models that have forgotten, rounded by each method as the command line does by default, calibrated on what
            they were to retain: share of forgotten and of retained facts, with bounds over people

Student's intervals over seeds; differences are paired. Everything done is kept under --out, and goes on from there.

    OMP_NUM_THREADS=1 python benchmarks/quantizers.py
    OMP_NUM_THREADS=1 python benchmarks/quantizers.py --only layer --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from exam import asked_sets, one_thread
from judging import Judge
from measuring import write
from quantizer_layer import METHODS, compared, layer_table, made
from torch import Tensor

from letheon.audits.scorer import Scorer, exact_answers
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.lowbit.architectures import model_layout
from letheon.methods import build, describe
from letheon.models import inspect_model, load_model, load_tokenizer
from letheon.numerics.intervals import bounds_of_mean, bounds_of_mean_difference
from letheon.quantization.block_walk import Walk, walk
from letheon.quantization.calibrate import make_calibration
from letheon.recipes.demo import KEPT, SHAM, forget_row
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.runs.progress import Progress
from letheon.training.losses import Body

BITS = (4, 3, 2)
GROUPS: tuple[int | str, ...] = ("row", 32)
"""The second on the first seed only: its search for ranges takes most of the time."""
DRAWS = (0, 1, 2, 3, 4)
SEQUENCES = LENGTH = 64
FORGOTTEN = (KEPT, SHAM)
COLUMNS = {
    "forget_accuracy": "forget_questions",
    "forget_accuracy_held_out": "forget_held_out",
    "retain_accuracy": "retain_questions",
}
"""The audit's column -> the set it asks."""
LEVEL = 0.025
"""Of each bound: together an interval of 95 %."""
QUIET = Progress(quiet=True)


# --- a whole model ---------------------------------------------------------------------------------------------------


def rounded(model: Any, quantizer: Any, ids: Tensor) -> Any:
    """A copy of the model, rounded block by block on some text."""
    found = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as keep:
        walk(Walk(found, model_layout(found), quantizer, ids, Path(keep)))
    return found


def calibration(models: TinyModels, draw: int) -> Tensor:
    """Sequences of what is said about retained people."""
    data = read_records(models.files["retain"], role="calibration")
    tokenizer = load_tokenizer(models.target)
    return make_calibration(data, tokenizer, sequences=SEQUENCES, length=LENGTH, seed=draw).ids


def judge_of(models: TinyModels) -> Judge:
    """Other wordings of retained facts ("facts", their answers), and texts about strangers ("texts")."""
    encoder = Encoder(load_tokenizer(models.target), max_length=inspect_model(models.target).window)
    retained = read_records(models.files["retain"], role="retain").questions
    strangers = read_records(models.files["holdout"], role="holdout").texts
    parts = {
        "facts": [encoder.question(prompt, each.answer) for each in retained for prompt in each.paraphrase],
        "texts": [encoder.encode(each) for each in strangers],
    }
    return Judge(load_model(models.target), parts, pad=encoder.pad)


def whole_runs(
    models: TinyModels, out: Path, groups: Sequence[int | str]
) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Grid -> one run a draw of text: method -> figures. "full precision" has its own loss."""
    judge = judge_of(models)
    full = judge.figures(judge.model)
    runs: dict[str, list[dict[str, dict[str, float]]]] = {}
    for bits, group in itertools.product(BITS, groups):
        grid = f"{bits} bits, {_said(group)}"
        for draw in DRAWS:
            name = f"whole-{bits}-{group}-{draw}.json"
            runs.setdefault(grid, []).append(kept(out / name, partial(_whole_run, judge, models, bits, group, draw)))
            runs[grid][-1]["full precision"] = full
            print(
                f"{out.name}, {grid}, draw {draw}: { {m: round(f['kl'], 4) for m, f in runs[grid][-1].items()} }",
                flush=True,
            )
    return runs


def _whole_run(judge: Judge, models: TinyModels, bits: int, group: int | str, draw: int) -> dict[str, dict[str, float]]:
    ids = calibration(models, draw)
    return {name: judge.figures(rounded(judge.model, made(name, bits=bits, group=group), ids)) for name in METHODS}


def _said(group: int | str) -> str:
    return "a scale a row" if group == "row" else f"groups of {group}"


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """What a file holds, or is to hold."""
    if not path.is_file():
        found = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def whole_table(by_seed: Mapping[int, Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]]) -> dict[str, Any]:
    """Grid -> over the draws of each seed's model, and over the models (each the mean of its draws)."""
    figures, beside = ("kl", "loss"), ("kl_facts", "kl_texts")
    table: dict[str, Any] = {}
    for grid in next(iter(by_seed.values())):
        found = {seed: runs[grid] for seed, runs in by_seed.items() if grid in runs}
        means = [
            {name: {each: _mean(run[name][each] for run in runs) for each in (*figures, *beside)} for name in runs[0]}
            for runs in found.values()
        ]
        over_draws = {seed: compared(runs, figures, beside) for seed, runs in found.items()}
        table[grid] = {"over_draws": over_draws}
        if len(found) > 1:
            table[grid]["over_models"] = compared(means, figures, beside)
    return table


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


# --- a model that has forgotten --------------------------------------------------------------------------------------


def forgotten_scores(models: TinyModels, folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Method and bits -> what was asked -> units and values, one an item; "as is" too."""
    sets, encoder = asked_sets(folder, models.files)
    model, ids = load_model(folder), calibration(models, 0)
    found = {"as is": _asked(model, encoder, sets)}
    for name, bits in itertools.product(METHODS, (4, 3)):
        quantizer = build("quantizer", {**METHODS[name], "bits": bits})
        found[f"{name}, {bits} bits"] = _asked(rounded(model, quantizer, ids), encoder, sets)
    return found


def _asked(model: Any, encoder: Encoder, sets: Any) -> dict[str, list[Any]]:
    scorer = Scorer(model, Body(model), encoder, "cpu")
    scores = {column: exact_answers(sets[name], scorer) for column, name in COLUMNS.items()}
    return {column: [list(each.units), list(each.values)] for column, each in scores.items()}


def forgotten_table(by_seed: Mapping[int, Mapping[str, Mapping[str, Sequence[Any]]]]) -> dict[str, Any]:
    """Method and bits -> rates over the people of all seeds, with bounds, and what was regained over the file as is."""

    def pooled(name: str, column: str) -> tuple[list[float], list[str]]:
        values, units = [], []
        for seed, rows in by_seed.items():
            of, numbers = rows[name][column]
            values += numbers
            units += [f"{seed}/{unit}" for unit in of]
        return values, units

    table: dict[str, Any] = {}
    for name in next(iter(by_seed.values())):
        table[name] = {}
        for column in COLUMNS:
            asked, before = pooled(name, column), pooled("as is", column)
            figures: dict[str, Any] = {
                "rate": round(_mean(asked[0]), 4),
                "bounds": [round(bound, 4) for bound in bounds_of_mean(*asked, level=LEVEL, seed=0)],
                "people": len(set(asked[1])),
                "by_seed": {seed: round(_mean(rows[name][column][1]), 4) for seed, rows in by_seed.items()},
            }
            if name != "as is":
                change = bounds_of_mean_difference(*asked, *before, paired=True, level=LEVEL, seed=0)
                figures["minus_as_is"] = round(_mean(asked[0]) - _mean(before[0]), 4)
                figures["minus_as_is_bounds"] = [round(bound, 4) for bound in change]
            table[name][column] = figures
    return table


def main() -> None:
    """The three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/quantizers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="worlds, each with its model")
    parser.add_argument("--only", nargs="+", choices=("layer", "whole", "forgotten"))
    given = parser.parse_args()
    one_thread()
    parts = given.only or ["layer", "whole", "forgotten"]
    tables: dict[str, Any] = {}
    if "layer" in parts:
        tables["layer"] = layer_table()
    worlds = {seed: tiny_models(seed) for seed in given.seeds} if set(parts) - {"layer"} else {}
    if "whole" in parts:
        runs = {
            seed: whole_runs(models, given.out / f"seed-{seed}", GROUPS if seed == given.seeds[0] else GROUPS[:1])
            for seed, models in worlds.items()
        }
        tables["whole"] = whole_table(runs)
    for row in FORGOTTEN if "forgotten" in parts else ():
        found = {}
        for seed, models in worlds.items():
            place = given.out / f"seed-{seed}"
            folder = forget_row(row, models, place / row.name, seed=seed, progress=QUIET)
            found[seed] = kept(place / f"{row.name}.json", partial(forgotten_scores, models, folder))
            print(f"{place.name}, {row.title}: asked", flush=True)
        tables.setdefault("forgotten", {})[row.title] = forgotten_table(found)
    settings = {
        "layer, whole (bits and group vary)": {name: describe(made(name, bits=3, group="row")) for name in METHODS},
        "forgotten (bits vary)": {name: describe(build("quantizer", method)) for name, method in METHODS.items()},
    }
    write(
        "quantizers",
        {"seeds": given.seeds, "settings": settings} | tables,
    )


if __name__ == "__main__":
    main()
