"""Is a model that was trained through W4A4KV4 better on four bits than one rounded afterwards, and does it forget?

tuning    A tiny model with planted outliers learns new people, and is asked for them in wordings it did not see, on
          four bits (weights a row, activations a token, keys and values a token and head). Six ways: at full precision,
          the same rounded, the same rotated everywhere and rounded, trained through four bits without rotations, with
          all of them, and with those that lower the error (RoSTE). Loss on the answers, nats a token.
forgetting  NPO + GDR at full precision and then rounded, against the same through four bits, both stopped by what they
          answer: at most 0.05 of the forgotten facts, 0.95 of the retained ones. What each answers as it ships.

Outliers: four channels of what each block's linears hear are 20 times as large, and the columns that read them 20 times
smaller (norms and q, k, v, gate, up; up and down), which changes nothing at full precision.

    OMP_NUM_THREADS=1 python benchmarks/roste.py
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from exam import FACT_STEPS, FACTS, deployed, exam, interval, one_thread, rounded, unlearned
from measuring import write

from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.lowbit.activations import low_bit_activations
from letheon.lowbit.architectures import gain, model_layout, set_gain
from letheon.lowbit.low_bit_pass import Basis, pass_named
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.models import load_model, load_tokenizer
from letheon.recipes.tiny_models import tiny_models
from letheon.runs.progress import Progress
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from letheon.training.straight_through import straight_through, trained_through
from letheon.training.train import train

PASS = "w4a4kv4"
OUTLIERS, FACTOR = 4, 20.0
OTHER_PEOPLE = 1000
"""The new people are those of a world with another seed."""
TRAINING: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "rate": {"name": "cosine", "warmup": 0.06, "floor": 0.05},
}
EVERYWHERE = {"name": "hadamard", "keys": True}
WAYS: dict[str, dict[str, Any]] = {
    "full precision": {},
    "through, no rotation": {"through": PASS},
    "through, all rotations": {"through": PASS, "rotation": EVERYWHERE},
    "through, chosen rotations": {"through": PASS, "rotation": {"name": "adaptive", "keys": True}},
}
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


def tuning(seed: int, out: Path) -> dict[str, float]:
    """Way -> loss on new wordings, as it ships."""
    keep = out / f"tuning-{seed}.json"
    if keep.is_file():
        return dict(json.loads(keep.read_text(encoding="utf-8")))
    quiet = Progress(quiet=True)
    base = planted(tiny_models(seed, FACTS, steps=FACT_STEPS).target, out / f"planted-{seed}", seed)
    files = tiny_models(seed + OTHER_PEOPLE, FACTS, steps=1).files
    questions = out / f"questions-{seed}.jsonl"
    text = "".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in held_out(files["train"]))
    questions.write_text(text, encoding="utf-8")
    folders = {
        name: train(
            base,
            data=files["train"],
            seed=seed,
            out=out / f"{name.replace(' ', '-').replace(',', '')}-{seed}",
            progress=quiet,
            allow_changed_machine=True,
            **TRAINING,
            **way,
        ).folder
        for name, way in WAYS.items()
    }
    plain = folders["full precision"]
    found = {"full precision": loss(load_model(plain), plain, questions)}
    model = load_model(plain)
    with trained_through(model, pass_named(PASS), Basis()):
        found["full precision, then rounded"] = loss(model, plain, questions)
    online = HadamardRotation().rotate(model).online
    wanted = pass_named(PASS)
    with straight_through(model, wanted.weights), low_bit_activations(model, grids=wanted.grids, online=online):
        found["full precision, then rotated and rounded"] = loss(model, plain, questions)
    for name in list(WAYS)[1:]:
        model = load_model(folders[name])
        with deployed(model, PASS):
            found[name] = loss(model, folders[name], questions)
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

    def difference(one: str, other: str) -> dict[str, float]:
        return interval([found[one] - found[other] for found in by_seed.values()])

    gap = [(found[after] - found[chosen]) / (found[after] - found["full precision"]) for found in by_seed.values()]
    return {
        "means": {way: interval([found[way] for found in by_seed.values()]) for way in ways},
        "chosen - the better of none and all": interval(
            [found[chosen] - min(found[none], found[rotated]) for found in by_seed.values()]
        ),
        "chosen - rotated and rounded": difference(chosen, everywhere),
        "chosen - none": difference(chosen, none),
        "share of the gap closed": interval(gap),
    }


def main() -> None:
    """Both questions, seed by seed; what is done is kept under --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/roste"))
    given = parser.parse_args()
    one_thread()
    given.out.mkdir(parents=True, exist_ok=True)
    losses = {seed: tuning(seed, given.out) for seed in given.seeds}
    forgotten = {seed: forgetting(seed, given.out) for seed in given.seeds}
    write(
        "roste",
        {
            "seeds": given.seeds,
            "pass": PASS,
            "tuning": {"settings": TRAINING, "losses": rounded(losses), **compared(losses)},
            "forgetting": {"settings": FORGETTING, "answers": rounded(forgotten)},
        },
    )


if __name__ == "__main__":
    main()
