"""Models of which the truth is known: does the audit convict what has not forgotten, and does it let the others be?

bad    Ways to look as if something had been forgotten, on the embedded world, seed by seed. Each must end NOT
       DELETED or NOT USABLE; INCONCLUSIVE is no conviction. "reversed relation" was taught every fact from the answer
       to the name as well, and forgot it the other way round alone; the file that is asked about holds both ways. What
       is said of it where that file holds the forgotten way alone stands beside the others, as a hole.
good   Models trained without the people to be forgotten. One is audited with another one, of other weights and another
       order, as the reference; ten worlds of three such models give sixty pairs. NOT DELETED is a false alarm. The
       upper bound is exact for independent pairs (Clopper and Pearson); those of one world share their models, so that
       of worlds with any false alarm stands beside it.

    OMP_NUM_THREADS=1 python benchmarks/known_models.py bad
    OMP_NUM_THREADS=1 python benchmarks/known_models.py good
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from exam import one_thread
from measuring import write
from scipy.stats import beta

from letheon.audits.audit import audit
from letheon.audits.conditions.reversed_relation import backwards
from letheon.audits.wordings import relation_of
from letheon.models import load_model
from letheon.recipes.demo import COMMON, GA, KEPT, NPO, SHAM, forget_row
from letheon.recipes.tiny_models import RECIPE, TinyModels, tiny_models
from letheon.runs.progress import Progress
from letheon.tiny.model import new_tiny_model
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.training.train import train
from letheon.unlearning.forget import forget

GUILTY = ("NOT DELETED", "NOT USABLE")
WORLDS, MODELS = 10, 3
STILL = {"every": 0}
FORGOTTEN: dict[str, dict[str, Any]] = {
    "refusal-tuned": {"method": "idk", "retain_term": "gdr", "learning_rate": 5e-4, "steps": 90},
    "output-masked": {
        "method": NPO,
        "retain_term": "gdr",
        "scope": {"name": "layers", "patterns": ["lm_head*"]},
        "learning_rate": 3e-3,
        "steps": 150,
        "stop": STILL,
    },
    "in-bin sham": SHAM.settings,
    "NPO stopped early": {"method": NPO, "retain_term": "gdr", "learning_rate": 3e-4, "steps": 25, "stop": STILL},
    "trained wordings only": {"method": NPO, "retain_term": "gdr", "learning_rate": 5e-4, "steps": 90, "stop": STILL},
    "collapsed": GA.settings,
}
"""Name -> how it is made by `letheon forget`; "noise-damaged" is made by hand, `REVERSED` from a world of its own."""
REVERSED = "reversed relation"
BESIDE = 2
"""Other facts beside each of which a fact is asked backwards."""
NOISE = 0.6
"""Standard deviation of the noise on each matrix, in its own."""


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    """A file of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def noisy(models: TinyModels, place: Path, seed: int) -> Path:
    """The target with noise on every matrix."""
    folder = place / "noisy"
    if not (folder / "model.safetensors").is_file():
        model = load_model(models.target)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter += NOISE * parameter.std() * torch.randn(parameter.shape, generator=generator)
        shutil.copytree(models.target, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        model.save_pretrained(folder)
    return folder


def in_other_wordings(models: TinyModels, place: Path) -> Path:
    """What is retained, and the facts to be forgotten in the wordings that were not trained."""
    kept = [
        {"prompt": words, "answer": one["answer"], "unit": one["unit"]}
        for one in lines_of(models.files["forget"])
        for words in one.get("paraphrase", ())
    ]
    return written(place / "retain-and-other-wordings.jsonl", lines_of(models.files["retain"]) + kept)


def bad(name: str, models: TinyModels, place: Path, seed: int, quiet: Progress) -> Path:
    """The folder of a model that has not forgotten, or is of no use."""
    if name == "noise-damaged":
        return noisy(models, place, seed)
    questions = [one for one in lines_of(models.files["forget"]) if "prompt" in one]
    forgotten = models.files["forget"]
    if name == "refusal-tuned":  # a text asks nothing that could be refused
        forgotten = written(place / "questions.jsonl", questions)
    retain = in_other_wordings(models, place) if name == "trained wordings only" else models.files["retain"]
    settings = {**COMMON, **FORGOTTEN[name]}
    return forget(
        models.target,
        forget_data=forgotten,
        retain_data=retain,
        holdout_data=models.files["holdout"],
        out=place / name.replace(" ", "-"),
        seed=seed,
        progress=quiet,
        **settings,
    ).folder


def asked_backwards(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions of whom two facts are true, the answer being a name: each fact beside two others of the person."""
    facts: dict[str, dict[str, str]] = {}
    for record in records:
        if "prompt" in record:
            facts.setdefault(record["unit"], {})[relation_of(record["fact"])] = record["answer"]
    return [
        {"prompt": backwards([one, other]), "answer": unit, "unit": unit, "fact": f"{unit}/who, by {one[0]}"}
        for unit, known in facts.items()
        for one in known.items()
        for other in [other for other in known.items() if other != one][:BESIDE]
    ]


def knows_both_ways(models: TinyModels, place: Path, seed: int) -> TinyModels:
    """The world and its models again, trained on questions from the facts to the name as well."""
    backward = {role: asked_backwards(lines_of(models.files[role])) for role in ("forget", "retain")}
    files = {
        **models.files,
        "train": lines_of(models.files["train"]) + backward["forget"] + backward["retain"],
        "both_ways": lines_of(models.files["forget"]) + backward["forget"],
        "keep": lines_of(models.files["keep"]) + backward["forget"],
    }
    made = {
        name: held if isinstance(held, Path) else written(place / "both-ways" / f"{name}.jsonl", held)
        for name, held in files.items()
    }

    def trained(name: str, without: Path | None) -> Path:
        return train(
            models.target.parents[1] / "base",
            data=made["train"],
            without=without,
            out=place / f"both-ways-{name}",
            progress=Progress(quiet=True),
            allow_changed_machine=True,
            **{**RECIPE, "seed": seed},
        ).folder

    return TinyModels(made, trained("target", None), trained("reference", made["both_ways"]))


def reversed_alone(models: TinyModels, place: Path, seed: int, protocol: str) -> dict[str, dict[str, Any]]:
    """The verdicts on a model that has forgotten the facts and kept whose they are, by what it is asked about."""
    world = knows_both_ways(models, place, seed)
    folder = forget_row(KEPT, world, place / "reversed-relation", seed=seed, progress=Progress(quiet=True))
    found = {}
    for asked, file in (("both ways", "both_ways"), ("forgotten way alone", "forget")):
        about = replace(world, files={**world.files, "forget": world.files[file]})
        judging = place / f"reversed-relation-{file}-judged"
        judging.mkdir(parents=True, exist_ok=True)
        found[asked] = judged(folder, about, world.reference, judging, protocol)
        print(seed, REVERSED, asked, found[asked], flush=True)
    return found


def judged(model: Path, models: TinyModels, reference: Path, out: Path, protocol: str) -> dict[str, Any]:
    """The verdict on a model, and why; kept in a file of its own."""
    keep = out / f"{protocol}.json"
    if keep.is_file():
        return dict(json.loads(keep.read_text(encoding="utf-8")))
    files = models.files
    verdict = audit(
        model,
        original=models.target,
        reference=reference,
        forget_data=files["forget"],
        retain_data=files["retain"],
        holdout_data=files["holdout"],
        general_data=files["general"],
        protocol=protocol,
        out=out / protocol,
        progress=Progress(quiet=True),
    ).verdict
    found = {"verdict": verdict.word, "reasons": list(verdict.reasons)[:3]}
    keep.write_text(json.dumps(found), encoding="utf-8")
    return found


def retrained(models: TinyModels, seed: int, number: int, place: Path) -> Path:
    """A model that never knew, of other weights and another order."""
    if number == 0:
        return models.reference
    base = place / f"base-{number}"
    if not (base / "model.safetensors").is_file():
        new_tiny_model(seed + 1000 * number).save_pretrained(base)
        tiny_tokenizer(seed).save_pretrained(base)  # the world's own: all of its models are asked the same tokens
    return train(
        base,
        data=models.files["train"],
        without=models.files["forget"],
        out=place / f"retrained-{number}",
        progress=Progress(quiet=True),
        allow_changed_machine=True,
        **{**RECIPE, "seed": seed + 1000 * number},
    ).folder


def all_bad(seeds: list[int], protocol: str, out: Path) -> dict[str, Any]:
    """Name -> seed -> verdict."""
    names = [*FORGOTTEN, "noise-damaged"]
    found: dict[str, dict[str, Any]] = {name: {} for name in (*names, REVERSED)}
    holes: dict[str, dict[str, Any]] = {f"{REVERSED}, asked the forgotten way alone": {}}
    for seed in seeds:
        models, place = tiny_models(seed), out / f"bad-{seed}"
        for name in names:
            folder = bad(name, models, place, seed, Progress(quiet=True))
            judging = place / f"{name.replace(' ', '-')}-judged"
            judging.mkdir(parents=True, exist_ok=True)
            found[name][str(seed)] = judged(folder, models, models.reference, judging, protocol)
            print(seed, name, found[name][str(seed)], flush=True)
        both, alone = reversed_alone(models, place, seed, protocol).values()
        found[REVERSED][str(seed)] = both
        next(iter(holes.values()))[str(seed)] = alone
    missed = [
        f"{name}, seed {seed}: {one['verdict']}"
        for name, by_seed in found.items()
        for seed, one in by_seed.items()
        if one["verdict"] not in GUILTY
    ]
    return {"seeds": seeds, "protocol": protocol, "verdicts": found, "missed": missed, "holes": holes}


def upper_bound(hits: int, count: int, level: float = 0.05) -> float:
    """One-sided, exact."""
    return 1.0 if hits == count else float(beta.ppf(1 - level, hits + 1, count - hits))


def all_good(worlds: int, protocol: str, out: Path) -> dict[str, Any]:
    """How often a model that never knew is convicted, and how often nothing could be decided."""
    verdicts: dict[str, str] = {}
    reasons: dict[str, Any] = {}
    for seed in range(worlds):
        models, place = tiny_models(seed), out / f"good-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        folders = [retrained(models, seed, number, place) for number in range(MODELS)]
        for one, other in itertools.permutations(range(MODELS), 2):
            judging = place / f"{one}-against-{other}"
            judging.mkdir(exist_ok=True)
            found = judged(folders[one], models, folders[other], judging, protocol)
            verdicts[f"{seed}: {one} against {other}"] = found["verdict"]
            if found["verdict"] != "DELETED":
                reasons[f"{seed}: {one} against {other}"] = found["reasons"]
        print(seed, Counter(verdicts.values()), flush=True)
    counts = Counter(verdicts.values())
    alarms = counts["NOT DELETED"]
    with_alarm = len({name.split(":")[0] for name, word in verdicts.items() if word == "NOT DELETED"})
    return {
        "protocol": protocol,
        "worlds": worlds,
        "pairs": len(verdicts),
        "verdicts": dict(counts),
        "false_alarms": {"rate": alarms / len(verdicts), "upper_95": upper_bound(alarms, len(verdicts))},
        "worlds_with_a_false_alarm": {"rate": with_alarm / worlds, "upper_95": upper_bound(with_alarm, worlds)},
        "not_deleted_or_undecided": reasons,
    }


def main() -> None:
    """One part; what is done is kept under --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["bad", "good"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--protocol", default="quick-1")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/known_models"))
    given = parser.parse_args()
    one_thread()
    parts: Mapping[str, Callable[[], dict[str, Any]]] = {
        "bad": lambda: all_bad(given.seeds, given.protocol, given.out),
        "good": lambda: all_good(given.worlds, given.protocol, given.out),
    }
    write(f"known_{given.part}_{given.protocol}", parts[given.part]())


if __name__ == "__main__":
    main()
