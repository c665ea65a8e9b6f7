"""On a GPU: does 4-bit rounding bring back what a model stored in bfloat16 has forgotten? TOFU forget10, 124 M weights.

Two Llamas of 124 M weights are trained on TOFU, one on all of it and one on retain90, and stored in bfloat16. The first
forgets forget10 by NPO + GDR and by gradient difference, once with weights and moments rounded to bfloat16 after every
step (learning rate 1e-5, as published runs do) and once with float32 masters. Each result is asked as it is and at
int8, int4, fp4 and nf4: exact answers, probability and ROUGE-L recall of the answers, on forget10 and on retained
authors. One JSON at the end; under nine minutes on an H200.

    python benchmarks/gpu_precision.py --tofu DIR --out DIR
    python benchmarks/gpu_precision.py --tofu DIR --out DIR --small         a rehearsal on a CPU
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exam import grid_condition
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from letheon.audits.asked import AskedSets, make_sets
from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.errors import CannotFinish
from letheon.models import inspect_model, load_model, load_tokenizer
from letheon.numerics.grids import grid_named
from letheon.numerics.scores import rouge_l
from letheon.runs.progress import Progress
from letheon.training.losses import Body
from letheon.training.train import train
from letheon.unlearning.forget import forget

GRIDS = {name: grid_named(name) for name in ("int8", "int4", "fp4", "nf4")}
QUESTIONS_AN_AUTHOR = 20
NPO = {"method": {"name": "npo", "beta": 0.1, "reduction": "sum"}}
GRADDIFF = {"method": {"name": "gradient_ascent"}}
ROWS: dict[str, dict[str, Any]] = {
    f"{term}, {storage}": {**method, **how}
    for term, method in (("npo + gdr", NPO), ("graddiff", GRADDIFF))
    for storage, how in (("bf16", {"master_dtype": "param"}), ("float32", {"save_dtype": "float32"}))
}
COMMON: dict[str, Any] = {
    "retain_term": "gdr",
    "batch_size": 32,
    "rate": "constant",
    "learning_rate": 1e-5,
    "stop": {"every": 0},
}


@dataclass(frozen=True)
class Size:
    """The model, and how long it learns."""

    width: int
    layers: int
    entries: int
    passes: float
    batch: int
    forget_passes: float
    asked: int


LARGE = Size(width=768, layers=14, entries=16384, passes=30, batch=64, forget_passes=10, asked=200)
SMALL = Size(width=64, layers=2, entries=1024, passes=1, batch=32, forget_passes=1, asked=8)


def records(tofu: Path, name: str, folder: Path, most: int | None) -> Path:
    """TOFU's lines as ours: an author is a unit."""
    lines = [json.loads(line) for line in (tofu / f"{name}.json").read_text(encoding="utf-8").splitlines()][:most]
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": line["question"],
                    "answer": line["answer"],
                    "unit": f"{name}-{at // QUESTIONS_AN_AUTHOR}",
                }
            )
            + "\n"
            for at, line in enumerate(lines)
        ),
        encoding="utf-8",
    )
    return path


def untrained(files: Mapping[str, Path], folder: Path, size: Size, seed: int) -> Path:
    """A Llama and a byte-level BPE of the retained authors' words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.entries,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(files["retain90"].read_text(encoding="utf-8").splitlines(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def learned(base: Path, data: Path, out: Path, size: Size, seed: int) -> Path:
    """Trained from nothing, stored in bfloat16."""
    return train(
        base,
        data=data,
        out=out,
        epochs=size.passes,
        batch_size=size.batch,
        learning_rate=5e-4,
        betas=[0.9, 0.98],
        rate={"name": "cosine", "warmup": 0.05, "floor": 0.05},
        save_dtype="bfloat16",
        seed=seed,
        checkpoint_every_s=1e9,
        progress=Progress(quiet=True),
    ).folder


def asked(folder: Path, sets: AskedSets, encoder: Encoder, device: str) -> dict[str, dict[str, float]]:
    """Condition -> figures."""
    stored = inspect_model(folder)
    model = load_model(folder, device=device)
    scorer = Scorer(model, Body(model), encoder, device)
    found = {"as_is": _figures(scorer, sets)}
    for name, grid in GRIDS.items():
        with grid_condition(grid).applied(model, stored):
            scorer.forget_results()
            found[name] = _figures(scorer, sets)
    return found


def _figures(scorer: Scorer, sets: AskedSets) -> dict[str, float]:
    found: dict[str, float] = {}
    for role in ("forget", "retain"):
        questions = sets[f"{role}_questions"]
        scores = scorer.scores(questions)
        answers = scorer.answers(questions)
        recalls = [rouge_l(true, given).recall for true, given in zip(questions.answers, answers, strict=True)]
        found |= {
            f"{role}_exact": float(scores.exact.mean()),
            f"{role}_probability": float(np.exp(scores.log_probs("mean")).mean()),
            f"{role}_rouge": float(np.mean(recalls)),
        }
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Train, forget, ask; what is done when the time is up is written all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    size = SMALL if given.small else LARGE
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    work = given.out / "work"
    work.mkdir(exist_ok=True)
    most = 64 if given.small else None
    files = {name: records(given.tofu, name, work, most) for name in ("full", "retain90", "forget10")}
    if given.small:  # the first lines of `full` are not forget10's
        files["full"].write_bytes(files["retain90"].read_bytes() + files["forget10"].read_bytes())
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "settings": {"size": vars(size), "common": COMMON, "rows": ROWS, "seed": given.seed},
        "rows": {},
    }

    def keep(name: str, figures: Any) -> None:
        found["rows"][name] = figures
        found["seconds"] = round(time.monotonic() - began, 1)
        (given.out / "gpu_precision.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(found["seconds"], name, figures, flush=True)

    base = untrained(files, work / "base", size, given.seed)
    target = learned(base, files["full"], work / "target", size, given.seed)
    reference = learned(base, files["retain90"], work / "reference", size, given.seed)
    encoder = Encoder(load_tokenizer(base), max_length=512)
    data = {
        role: read_records(files[name], role=role) for role, name in (("forget", "forget10"), ("retain", "retain90"))
    }
    sets = make_sets(data, encoder=encoder, limits=dict.fromkeys(data, size.asked), only_units={})
    keep("target", asked(target, sets, encoder, device))
    keep("reference", asked(reference, sets, encoder, device))
    for name, settings in ROWS.items():
        if time.monotonic() - began > given.seconds:
            keep(name, "no time was left")
            continue
        try:
            result = forget(
                target,
                forget_data=files["forget10"],
                retain_data=files["retain90"],
                out=work / name.replace(" ", "").replace(",", "-"),
                epochs=size.forget_passes,
                seed=given.seed,
                progress=Progress(quiet=True),
                **{**COMMON, **settings},
            )
        except CannotFinish as error:
            keep(name, str(error))
            continue
        keep(name, asked(result.folder, sets, encoder, device) | {"steps": result.steps, "notes": result.notes})


if __name__ == "__main__":
    main()
