"""Is a model that was trained through W4A4KV4 better on four bits than one rounded afterwards, and does it forget?

tuning    A tiny model with planted outliers learns new people, and is asked for them in wordings it did not see, on
          four bits (weights a row, activations a token, keys and values a token and head). At full precision; the same
          rounded, solved by GPTQ, or rotated everywhere before either; trained through four bits without rotations,
          with all of them, with those that lower the error (RoSTE), and with these chosen anew now and then. Loss on
          the answers, nats a token. Each way has the learning rate of RATES that is best for it on seed 100 (--tune),
          by the loss as it ships.
forgetting  NPO + GDR at full precision and then rounded, against the same through four bits, both stopped by what they
          answer: at most 0.05 of the forgotten facts, 0.95 of the retained ones. What each answers as it ships.

Outliers: four channels of what each block's linears hear are 20 times as large, and the columns that read them 20 times
smaller (norms and q, k, v, gate, up; up and down), which changes nothing at full precision.

    OMP_NUM_THREADS=1 python benchmarks/roste.py --tune
    OMP_NUM_THREADS=1 python benchmarks/roste.py

With --part, the other part stays as it was measured before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch
from exam import FACT_STEPS, FACTS, deployed, exam, interval, one_thread, rounded, unlearned
from measuring import earlier, parts, write

from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.lowbit.architectures import gain, model_layout, set_gain
from letheon.lowbit.low_bit_pass import Basis, pass_named
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.models import load_model, load_tokenizer
from letheon.quantization.pipeline import quantize
from letheon.quantization.reading import load_any
from letheon.recipes.tiny_models import tiny_models
from letheon.runs.progress import Progress
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from letheon.training.straight_through import trained_through
from letheon.training.train import train

PASS = "w4a4kv4"
OUTLIERS, FACTOR = 4, 20.0
OTHER_PEOPLE = 1000
"""The new people are those of a world with another seed."""
TRAINING: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 32,
    "rate": {"name": "cosine", "warmup": 0.06, "floor": 0.05},
}
RATES = (3e-4, 1e-3, 3e-3)
TUNING_SEED = 100
EVERYWHERE = {"name": "hadamard", "keys": True}
CHOSEN = {"name": "adaptive", "keys": True}
REFRESH = 100
"""Steps after which rotations are chosen anew; about four times in a run."""
THROUGH: dict[str, Any] = {"through": PASS}
ANEW = "through, chosen anew"
"""At the rate that is best where they are chosen once."""
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "full precision": ({}, "as it is"),
    "full precision, then rounded": ({}, "rounded"),
    "full precision, then GPTQ": ({}, "solved"),
    "full precision, then rotated and rounded": ({}, "rotated and rounded"),
    "full precision, then rotated and GPTQ": ({}, "rotated and solved"),
    "through, no rotation": (THROUGH, "deployed"),
    "through, all rotations": ({**THROUGH, "rotation": EVERYWHERE}, "deployed"),
    "through, chosen rotations": ({**THROUGH, "rotation": CHOSEN}, "deployed"),
    ANEW: ({**THROUGH, "rotation": {**CHOSEN, "refresh_every": REFRESH}}, "deployed"),
}
"""Way -> how it is trained, and how it is asked."""
WITHIN = 0.01
CLOSED = 0.5
"""Nats that the chosen rotations may be behind the better of none and all; the gap that they have to close."""
FORGETTING: dict[str, Any] = {
    "method": {"name": "npo", "beta": 1.0, "reduction": "mean"},
    "retain_term": "gdr",
    "batch_size": 32,
    "clip": 1.0,
    "rate": "constant",
    "learning_rate": 3e-4,
    "steps": 400,
    "stop": {"every": 10, "items": 150, "forget_accuracy": 0.05, "utility": 0.95},
}


def planted(source: Path, target: Path, seed: int) -> Path:
    """The model with outliers in what its linears hear, and the same function."""
    if (target / "model.safetensors").is_file():
        return target
    model = load_model(source)
    generator = torch.Generator().manual_seed(seed)

    def spread(size: int) -> torch.Tensor:
        factor = torch.ones(size)
        factor[torch.randperm(size, generator=generator)[:OUTLIERS]] = FACTOR
        return factor

    with torch.no_grad():
        for block in model_layout(model).blocks:
            for norm, readers in block.readers.items():
                factor = spread(model.config.hidden_size)
                module = model.get_submodule(norm)
                set_gain(module, block.norm_kind, gain(module, block.norm_kind) * factor)
                for reader in readers:
                    model.get_submodule(reader).weight /= factor
            factor = spread(model.config.intermediate_size)
            model.get_submodule(str(block.up)).weight *= factor[:, None]
            model.get_submodule(str(block.down)).weight /= factor
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(target)
    return target


def held_out(file: Path) -> list[tuple[str, str]]:
    """Questions in wordings that were not trained, and their answers."""
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [(words, line["answer"]) for line in lines for words in line.get("paraphrase", ())]


def loss(model: Any, folder: Path, questions: Path) -> float:
    """Mean loss of the answers, nats a token."""
    encoder = Encoder(load_tokenizer(folder), max_length=model.config.max_position_embeddings)
    examples = encoder.encode_all(read_records(questions, role="questions").records, role="questions")
    scores = score_examples(Body(model), examples, pad=encoder.pad)
    total = sum(float(values.sum()) for values in scores.token_log_probs)
    return -total / sum(len(values) for values in scores.token_log_probs)


@dataclass(frozen=True)
class Task:
    """A model with outliers, and new people for it to learn."""

    seed: int
    base: Path
    data: Path
    questions: Path
    out: Path

    def trained(self, way: Mapping[str, Any], learning_rate: float) -> Path:
        """The folder of a way, trained unless it is there."""
        rotation = way.get("rotation", {"name": "none"}) if way else {"name": "plain"}
        name = rotation["name"] + ("-anew" if "refresh_every" in rotation else "")
        result = train(
            self.base,
            data=self.data,
            seed=self.seed,
            out=self.out / f"{name}-{learning_rate:g}-{self.seed}",
            progress=Progress(quiet=True),
            learning_rate=learning_rate,
            allow_changed_machine=True,
            **TRAINING,
            **way,
        )
        return result.folder

    def loss(self, name: str, learning_rate: float) -> float:
        """On new wordings, as it ships."""
        way, asked = WAYS[name]
        folder = self.trained(way, learning_rate)
        model, wanted = load_model(folder), pass_named(PASS)
        if asked == "as it is":
            return loss(model, folder, self.questions)
        if asked == "deployed":
            with deployed(model, PASS):
                return loss(model, folder, self.questions)
        if asked.endswith("solved"):
            return loss(load_any(self.solved(folder, is_rotated=asked != "solved")), folder, self.questions)
        online = HadamardRotation().rotate(model).online if asked == "rotated and rounded" else OnlineRotations()
        with trained_through(model, wanted, Basis(online=online)):
            return loss(model, folder, self.questions)

    def solved(self, folder: Path, *, is_rotated: bool) -> Path:
        """By GPTQ on what it was trained on, for activations, keys and values on four bits. R3 cannot ship."""
        out = folder.parents[1] / f"{folder.parent.name}-gptq-{'rotated' if is_rotated else 'plain'}"
        rotation = {"name": "hadamard", "down": True} if is_rotated else "none"
        made = quantize(
            folder,
            method={"name": "gptq", "bits": 4},
            act_bits=4,
            kv_bits=4,
            rotation=rotation,
            calibration_data=self.data,
            out=out,
            progress=Progress(quiet=True),
        )
        return made.folder


def task(seed: int, out: Path) -> Task:
    """The task of a seed."""
    base = planted(tiny_models(seed, FACTS, steps=FACT_STEPS).target, out / f"planted-{seed}", seed)
    data = tiny_models(seed + OTHER_PEOPLE, FACTS, steps=1).files["train"]
    questions = out / f"questions-{seed}.jsonl"
    text = "".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in held_out(data))
    questions.write_text(text, encoding="utf-8")
    return Task(seed, base, data, questions, out)


def tune(out: Path) -> None:
    """Way -> rate -> loss, on a seed of its own; and the best rate of each."""
    made = task(TUNING_SEED, out)
    found: dict[str, dict[str, float]] = {}
    for name in (name for name in WAYS if name != ANEW):
        found[name] = {f"{rate:g}": round(made.loss(name, rate), 4) for rate in RATES}
        print(name, found[name], flush=True)
    best = {name: float(min(losses, key=lambda rate: losses[rate])) for name, losses in found.items()}
    best[ANEW] = best["through, chosen rotations"]
    write("roste_tuning", {"seed": TUNING_SEED, "pass": PASS, "settings": TRAINING, "losses": found, "best": best})


def tuning(seed: int, rates: Mapping[str, float], out: Path) -> dict[str, float]:
    """Way -> loss on new wordings, as it ships."""
    keep = out / f"tuning-{seed}.json"
    if keep.is_file():
        return dict(json.loads(keep.read_text(encoding="utf-8")))
    made = task(seed, out)
    found = {name: made.loss(name, rates[name]) for name in WAYS}
    keep.write_text(json.dumps(found), encoding="utf-8")
    print(seed, rounded(found), flush=True)
    return found


def forgetting(seed: int, out: Path) -> dict[str, Any]:
    """Way -> how it ended, and shares of what it answers: as it was trained, and as it ships."""
    models = tiny_models(seed, FACTS, steps=FACT_STEPS)
    inputs = {
        "model": models.target,
        "forget_data": models.files["forget"],
        "retain_data": models.files["retain"],
        "seed": seed,
    }
    ways: dict[str, dict[str, Any]] = {
        "full precision": {},
        "through, no rotation": {"through": PASS},
        "through, chosen rotations": {"through": PASS, "rotation": "adaptive"},
    }
    found = {}
    for name, way in ways.items():
        place = out / f"forget-{name.replace(' ', '-').replace(',', '')}-{seed}"
        folder, ended = unlearned(place, {**FORGETTING, **way}, **inputs)
        found[name] = {**ended, **exam(folder, models.files, through=PASS, keep=place / "exam.json")}
        print(seed, name, rounded(found[name]), flush=True)
    original = exam(models.target, models.files, through=PASS, keep=out / f"original-{seed}.json")
    return {**found, "original": original}


def compared(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Means of each way, and the differences between them, paired by seed."""
    ways = list(next(iter(by_seed.values())))
    chosen, rotated, none = "through, chosen rotations", "through, all rotations", "through, no rotation"
    after, everywhere = "full precision, then rounded", "full precision, then rotated and rounded"
    solved = "full precision, then rotated and GPTQ"

    def difference(one: str, other: str) -> dict[str, float]:
        return interval([found[one] - found[other] for found in by_seed.values()])

    gap = [(found[after] - found[chosen]) / (found[after] - found["full precision"]) for found in by_seed.values()]
    behind = [found[chosen] - min(found[none], found[rotated]) for found in by_seed.values()]
    return {
        "means": {way: interval([found[way] for found in by_seed.values()]) for way in ways},
        "chosen - the better of none and all": interval(behind),
        "chosen - rotated and rounded": difference(chosen, everywhere),
        "chosen - rotated and GPTQ": difference(chosen, solved),
        "chosen anew - chosen": difference(ANEW, chosen),
        "chosen - none": difference(chosen, none),
        "chosen - all": difference(chosen, rotated),
        "share of the gap closed": interval(gap),
        "rules": {
            f"chosen at most {WITHIN} behind the better of none and all, in the mean": mean(behind) <= WITHIN,
            "chosen better than rotated and rounded, in the mean": difference(chosen, everywhere)["mean"] < 0,
            f"chosen closes at least {CLOSED} of the gap, on every seed": min(gap) >= CLOSED,
        },
    }


def rebound(answers: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Facts that come back by rounding, and whether four bits leave at most 0.02 more than full precision."""
    plain, chosen = "full precision", "through, chosen rotations"
    back = [found[plain]["through"]["forget"] - found[plain]["as_is"]["forget"] for found in answers.values()]
    more = [found[chosen]["through"]["forget"] - found[plain]["as_is"]["forget"] for found in answers.values()]
    return {
        "regained by rounding a full-precision run": interval(back),
        "left after four bits, minus what full precision leaves": interval(more),
        "rules": {"at most 0.02 more, in the mean": mean(more) <= 0.02, "a rebound to prevent": mean(back) > 0.02},
    }


def main() -> None:
    """Both questions, seed by seed; what is done is kept under --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/roste"))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--part", choices=["tuning", "forgetting"], help="measure this part alone")
    given = parser.parse_args()
    one_thread()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.tune:
        tune(given.out)
        return
    before = {} if given.part is None else earlier("roste")
    found: dict[str, Any] = {key: before[key] for key in ("tuning", "forgetting") if key in before}
    found |= {"pass": PASS, **({"parts": parts(before)} if before else {})}
    if given.part != "forgetting":
        rates = earlier("roste_tuning")["best"]
        losses = {seed: tuning(seed, rates, given.out) for seed in given.seeds}
        settings = {**TRAINING, "learning_rates": rates}
        found["tuning"] = {"seeds": given.seeds, "settings": settings, "losses": rounded(losses), **compared(losses)}
    if given.part != "tuning":
        answers = {seed: forgetting(seed, given.out) for seed in given.seeds}
        found["forgetting"] = {
            "seeds": given.seeds, "settings": FORGETTING, "answers": rounded(answers), **rebound(answers),
        }  # fmt: skip
    write("roste", found)


if __name__ == "__main__":
    main()
