"""What searched words bring back on the embedded world: gcg and gcg_enhanced in the same processor time.

The demo's NPO + GDR row and the retrained reference are attacked on one half of the forgotten people and asked about
the other, one way round. gcg takes its steps of 64 strings, gcg_enhanced as many as fit into the same processor time.
"of_original" is what the original answers about the other half behind the words that were found for the model: whether
somebody who knows would have answered there.

    OMP_NUM_THREADS=1 python benchmarks/searched_words.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import write

from letheon.audits.attacker import Attacker, Solved, Target
from letheon.audits.conditions.gcg import Gcg
from letheon.audits.conditions.gcg_enhanced import GcgEnhanced
from letheon.audits.rewording import Beside
from letheon.audits.string_losses import StringLosses
from letheon.audits.string_search import Search
from letheon.audits.strings import Strings
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.models import inspect_model, load_model, load_tokenizer
from letheon.recipes.demo import NPO_GDR, forget_row
from letheon.recipes.tiny_models import tiny_models
from letheon.runs.progress import Progress
from letheon.training.losses import Body
from letheon.training.scoring import score_examples

Pairs = Sequence[tuple[str, str]]


def seconds() -> float:
    """Of the processor, of this process: others on the machine count less than by the clock."""
    return time.process_time()


def known(model: Any, encoder: Encoder, pairs: Pairs, said: Callable[[str], str]) -> float:
    """Share of the questions that are answered exactly."""
    examples = [encoder.question(said(prompt), answer) for prompt, answer in pairs]
    return round(float(score_examples(Body(model), examples, pad=encoder.pad).exact.mean()), 4)


def gcg(settings: Gcg, target: Target, attacker: Attacker) -> tuple[Search, float]:
    """Its steps, and what they took."""
    began = seconds()
    strings = Strings(
        target.encoder, settings.chosen(attacker, target.encoder), settings.place, settings.tokens, seed=settings.seed
    )
    search = Search(settings, strings, StringLosses(target, strings.slots))
    for _ in range(settings.steps[0]):
        search.step()
    return search, seconds() - began


def enhanced(
    settings: GcgEnhanced, target: Target, original: Any, asked: Pairs, lasting: float
) -> tuple[Search, int, float]:
    """As many steps as fit into a time."""
    began, steps = seconds(), 0
    search = settings.search(target, original, asked)
    while seconds() - began < lasting:
        search.step()
        steps += 1
    return search, steps, seconds() - began


def measured(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both attacks on both models, and on the original."""
    models = tiny_models(seed)
    progress = Progress()
    npo = forget_row(NPO_GDR, models, given.out / f"npo-{seed}", seed=seed, progress=progress)
    folder = inspect_model(models.target)
    encoder = Encoder(load_tokenizer(models.target), max_length=folder.window)
    records = read_records(models.files["forget"], role="forget").questions
    units = list(dict.fromkeys(record.unit for record in records))
    learned = tuple(Solved(one.prompt, one.answer, one.unit) for one in records if one.unit in units[::2])
    rest = [(one.prompt, one.answer) for one in records if one.unit not in units[::2]]
    attacker = Attacker(original=folder, solved={"learned": learned})
    original = load_model(models.target)
    shared: dict[str, Any] = {"steps": (given.steps,), "questions": given.questions, "seed": seed}
    first = Gcg(**shared)
    second = [GcgEnhanced(tokens=20, spare=10, aim=aim, **shared) for aim in given.aims]
    found: dict[str, Any] = {}
    for name, path in {"npo_gdr": npo, "retrained": models.reference, "original": models.target}.items():
        if name not in given.models:
            continue
        model = load_model(path)
        target = Target(model, Body(model), encoder, "cpu", inspect_model(path))
        search, took = gcg(first, target, attacker)
        rows = {"gcg": said(search, model, original, encoder, rest, first.place, first.steps[0], took)}
        for settings in second:
            asked = first.chosen(attacker, encoder)
            words, steps, spent = enhanced(settings, target, original, asked, took)
            rows[f"gcg_enhanced, {settings.aim}"] = said(words, model, original, encoder, rest, "prefix", steps, spent)
        found[name] = {"plain": known(model, encoder, rest, lambda prompt: prompt), **rows}
        print(seed, name, found[name], flush=True)
    return found


def said(
    search: Search, model: Any, original: Any, encoder: Encoder, rest: Pairs, place: Any, steps: int, took: float
) -> dict[str, Any]:
    """What is known of the half that was not learned, behind the best words."""
    words = Beside(search.strings.text(search.best), place)
    return {
        "known": known(model, encoder, rest, words),
        "of_original": known(original, encoder, rest, words),
        "steps": steps,
        "tokens": len(search.best),
        "loss": round(search.best_loss, 4),
        "processor_seconds": round(took, 1),
    }


def main() -> None:
    """Every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--aims", nargs="*", default=["states"])
    parser.add_argument("--models", nargs="+", default=["npo_gdr", "retrained"])
    parser.add_argument("--name", default="searched_words", help="of the file under results")
    parser.add_argument("--out", type=Path, default=Path("runs/searched-words"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(given).items() if key not in ("out", "seeds", "name")}
    found: dict[int, Any] = {}
    for seed in given.seeds:
        found[seed] = measured(seed, given)
        write(given.name, {"settings": settings, "seeds": found})


if __name__ == "__main__":
    main()
