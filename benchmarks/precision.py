"""When does low precision undo unlearning? Storage x learning rate x grid x width, at matched forgetting.

A Llama of three layers is trained on the facts of a small world and stored in bfloat16; NPO + GDR then forgets with
embeddings, norms and head frozen (rounding leaves those alone, so what they forget cannot come back), until at most
half of the facts are left or the step limit is reached. Storage is that of the weights during the run:

    bf16          weights and moments rounded to bfloat16 after every step, as published runs do
    float32       float32 masters and a float32 file
    float32-bf16  the float32 model rounded once, when it is saved

Every model is asked as it is and on every grid. To see what carries the forgetting, two hybrids are asked as well: the
original with only those changes that cross an edge of the grid, and with only those that stay inside their bins.

    OMP_NUM_THREADS=1 python benchmarks/precision.py
    OMP_NUM_THREADS=1 python benchmarks/precision.py --widths 128 --seeds 0
    OMP_NUM_THREADS=1 python benchmarks/precision.py --only adapter
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from exam import exam, grid_condition, interval, one_thread, rounded, unlearned
from measuring import by_seed, earlier, parts, write
from transformers import LlamaForCausalLM

from letheon.errors import CannotFinish
from letheon.models import decoder_linears, load_model
from letheon.numerics.grids import grid_named, quantize
from letheon.runs.ledger import load_record
from letheon.runs.progress import Progress
from letheon.tiny.model import tiny_config
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.tiny.world import WorldSize, write_world
from letheon.training.train import train

WORLD = WorldSize(forget=12, retain=36, holdout=8, attributes=3, countries=6, texts=0)
LAYERS = 3
GRIDS = {name: grid_named(name) for name in ("int8", "int4", "int4/128", "fp4", "nf4", "int3", "int3/64", "int2/64")}
HYBRIDS = ("int4", "int3")
"""Grids whose edges part the changes."""
RATES = (1e-5, 2e-5, 5e-5)
TARGET = 0.5
"""Share of the forgotten facts that is left when a run stops."""


@dataclass(frozen=True)
class Width:
    """How a width is trained, and how long it may forget."""

    training_rate: float
    training_steps: int
    limit: int

    @staticmethod
    def initializer(width: int) -> float:
        """0.02 at 768, as 7 B models have it; narrower models by the root of the width."""
        return float(0.02 * (768 / width) ** 0.5)


WIDTHS = {
    128: Width(training_rate=2e-3, training_steps=450, limit=1500),
    384: Width(training_rate=1e-3, training_steps=350, limit=500),
    768: Width(training_rate=5e-4, training_steps=300, limit=250),
}
DECODER = {"name": "layers", "patterns": ["*_proj.weight"]}
COMMON: dict[str, Any] = {
    "method": {"name": "npo", "beta": 1.0, "reduction": "mean"},
    "retain_term": "gdr",
    "batch_size": 16,
    "clip": 1.0,
    "rate": "constant",
    "scope": DECODER,
    "stop": {"every": 10, "items": 72, "forget_accuracy": TARGET, "utility": 0.0},
}
STORED = {"master_dtype": "param"}
MASTERS = {"save_dtype": "float32"}
OUTSIDE = ["*embed_tokens*", "*norm*", "lm_head*"]
REMEDIES: dict[str, dict[str, Any]] = {
    "sure": {**STORED, "learning_rate": 1e-4, "scope": {"name": "sure", "percentile": 90.0, "exclude": OUTSIDE}},
    "through int3": {**STORED, "learning_rate": 5e-5, "through": "int3"},
    "sam": {**STORED, "learning_rate": 2e-5, "smooth": {"name": "sam", "rho": 0.1}},
    "adapter": {"learning_rate": 5e-4, "scope": {"name": "adapter", "rank": 8}},
}
"""Beside float32 masters. All but the adapter have weights stored in bfloat16; its factors are float32, and the file in
which they are added to the weights is bfloat16."""
ONLY_AT = {"sam": (128,)}
"""SAM takes two passes a step, and where its perturbation is lost to bfloat16 it forgets nothing: shown once."""
CORNERS = (("bf16", 2e-5), ("float32", 2e-5))
CONFIRMED = ("sure", "adapter")
MAPPED = 0
"""The seed on which every rate and remedy is run; the others have the corners and what is to be confirmed."""


@dataclass(frozen=True)
class World:
    """A world and the model that knows it."""

    files: Mapping[str, Path]
    original: Path


def trained(width: int, seed: int, out: Path) -> World:
    """The model of a width, stored in bfloat16; trained unless it is there."""
    place = out / f"world-{seed}"
    if not (place / "train.jsonl").is_file():
        write_world(place, seed, WORLD)
    files = {path.stem: path for path in place.glob("*.jsonl")}
    base = out / f"base-{width}-{seed}"
    if not (base / "tokenizer.json").is_file():
        heads = max(2, width // 64)
        config = tiny_config(layers=LAYERS, width=width, heads=heads, initializer_range=Width.initializer(width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(base)
        tiny_tokenizer(seed).save_pretrained(base)
    how = WIDTHS[width]
    records = files["train"].read_bytes().count(b"\n")
    done = train(
        base,
        data=files["train"],
        out=out / f"original-{width}-{seed}",
        epochs=how.training_steps / -(-records // 32),
        batch_size=32,
        learning_rate=how.training_rate,
        betas=[0.9, 0.98],
        rate={"name": "cosine", "warmup": 0.06, "floor": 0.05},
        save_dtype="bfloat16",
        seed=seed,
        progress=Progress(quiet=True),
    )
    return World(files, done.folder)


def row(
    name: str, settings: Mapping[str, Any], width: int, seed: int, world: World, out: Path, *, is_running: bool
) -> dict[str, Any]:
    """Forget, and ask on every grid; without `is_running` only what has been forgotten before."""
    place = out / f"{name.replace(' ', '-')}-{width}-{seed}"
    if not is_running and not has_ended(place):
        return {"not_measured": "not run yet"}
    began = time.process_time()
    try:
        folder, ended = unlearned(
            place,
            {**COMMON, "steps": WIDTHS[width].limit, **settings},
            model=world.original,
            forget_data=world.files["forget"],
            retain_data=world.files["retain"],
            seed=seed,
        )
    except CannotFinish as error:
        return {"not_measured": str(error)}
    found = asked(folder, world, place / "asked.json") | ended
    found["cpu_seconds"] = round(time.process_time() - began, 1)
    print(f"width {width}, seed {seed}, {name}: {short(found)}", flush=True)
    return found


def has_ended(place: Path) -> bool:
    """Whether a run folder holds a finished run."""
    return any(entry.status == "done" for entry in load_record(place).stages)


def asked(folder: Path, world: World, keep: Path) -> dict[str, Any]:
    """What a folder knows, how far its weights moved, and what its hybrids know. `keep`: a file with the answer."""
    if keep.is_file():
        return dict(json.loads(keep.read_text(encoding="utf-8")))
    found = exam(folder, world.files, grids=GRIDS)
    answer = {
        "forget": {name: round(one["forget"], 4) for name, one in found.items()},
        "retain": {name: round(one["retain"], 4) for name, one in found.items()},
        **moved(world.original, folder, world.files),
    }
    keep.write_text(json.dumps(answer), encoding="utf-8")
    return answer


@torch.no_grad()
def moved(original: Path, folder: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """Share of the decoder's weights that moved, share of equal codes by grid, and the hybrids' forgotten facts."""
    before, after = (decoder_linears(load_model(path)) for path in (original, folder))
    if not any(bool((after[name].weight != before[name].weight).any()) for name in before):
        return {}
    total = sum(layer.weight.numel() for layer in before.values())
    share = sum(int((after[name].weight != before[name].weight).sum()) for name in before) / total
    equal: dict[str, float] = {}
    hybrids: dict[str, dict[str, float]] = {}
    for grid_name, grid in GRIDS.items():
        masks = {
            name: quantize(layer.weight, grid).codes != quantize(after[name].weight, grid).codes
            for name, layer in before.items()
        }
        equal[grid_name] = round(1 - sum(int(mask.sum()) for mask in masks.values()) / total, 4)
        if grid_name in HYBRIDS:
            hybrids[grid_name] = {
                "crossing": _hybrid(original, after, masks, files),
                "staying": _hybrid(original, after, {name: ~mask for name, mask in masks.items()}, files),
            }
    return {"moved": round(share, 4), "equal_codes": equal, "hybrids": hybrids}


def _hybrid(
    original: Path, after: Mapping[str, Any], masks: Mapping[str, torch.Tensor], files: Mapping[str, Path]
) -> float:
    """Share of the forgotten facts that is answered by the original with some of the changes."""
    folder = original.with_name(original.name + "-hybrid")
    model = load_model(original)
    for name, layer in decoder_linears(model).items():
        layer.weight.copy_(torch.where(masks[name], after[name].weight, layer.weight))
    shutil.copytree(original, folder, dirs_exist_ok=True)
    model.save_pretrained(folder)
    found = exam(folder, files)["as_is"]["forget"]
    shutil.rmtree(folder)
    return round(found, 4)


def once_rounded(source: Path, width: int, seed: int, world: World, out: Path, name: str) -> dict[str, Any]:
    """A float32 model as a bfloat16 file holds it."""
    folder = out / f"{name.replace(' ', '-')}-{width}-{seed}"
    if not (folder / "asked.json").is_file():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        load_model(source).to(torch.bfloat16).save_pretrained(folder)
    found = asked(folder, world, folder / "asked.json")
    print(f"width {width}, seed {seed}, {name}: {short(found)}", flush=True)
    return found


def short(found: Mapping[str, Any]) -> dict[str, Any]:
    """What fits into a line."""
    kept = ("steps", "moved", "hybrids", "cpu_seconds")
    return {"forget": found.get("forget"), "retain": found.get("retain", {}).get("as_is")} | {
        name: found[name] for name in kept if name in found
    }


def storage_rows(
    storage: str, rate: float, width: int, seed: int, world: World, out: Path, *, is_running: bool
) -> dict[str, dict[str, Any]]:
    """One storage at one rate; float32 is asked once more as a bfloat16 file."""
    name = f"{storage} {rate:g}"
    settings = {**(STORED if storage == "bf16" else MASTERS), "learning_rate": rate}
    found = {name: row(name, settings, width, seed, world, out, is_running=is_running)}
    if storage == "float32" and "not_measured" not in found[name]:
        source = out / f"{name.replace(' ', '-')}-{width}-{seed}" / "1-forget"
        found[f"float32-bf16 {rate:g}"] = once_rounded(source, width, seed, world, out, f"float32-bf16 {rate:g}")
    return found


def main() -> None:
    """The whole map on one seed, its corners on all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/precision"))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--finished", action="store_true", help="forget nothing; ask what is finished")
    parser.add_argument("--only", nargs="+", choices=list(REMEDIES), help="these remedies, in a file of their own")
    parser.add_argument("--add", action="store_true", help="add these seeds and widths to those in the result file")
    given = parser.parse_args()
    one_thread()
    running = not given.finished
    result = "_".join(["precision", *(given.only or [])])
    before = earlier(result) if given.add else {}
    found: dict[int, dict[int, dict[str, Any]]] = {width: {} for width in given.widths}
    found |= {int(width): by_seed(seeds) for width, seeds in before.get("rows", {}).items()}
    for seed in given.seeds:
        for width in given.widths:
            if not running and not has_ended(given.out / f"original-{width}-{seed}"):
                continue
            world = trained(width, seed, given.out)
            knows = exam(world.original, world.files, grids=GRIDS, keep=given.out / f"knows-{width}-{seed}.json")
            rows: dict[str, Any] = {"original": rounded({name: one["forget"] for name, one in knows.items()})}
            print(f"width {width}, seed {seed}, original: {rows['original']}", flush=True)
            pairs = [(kind, rate) for rate in RATES for kind in ("bf16", "float32")]
            for storage, rate in [] if given.only else pairs if seed == MAPPED else CORNERS:
                rows |= storage_rows(storage, rate, width, seed, world, given.out, is_running=running)
            for name in given.only or (REMEDIES if seed == MAPPED else CONFIRMED):
                if width not in ONLY_AT.get(name, WIDTHS):
                    continue
                rows[name] = row(name, REMEDIES[name], width, seed, world, given.out, is_running=running)
            found.setdefault(width, {})[seed] = rows
            sources = {"parts": parts(before)} if before else {}
            write(result, {**sources, "settings": SETTINGS, "regained": regained(found), "rows": found})


def regained(found: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Width and row -> grid -> how much more of the forgotten facts is answered than by the file as it is."""
    result: dict[str, Any] = {}
    for width, seeds in found.items():
        for name in dict.fromkeys(name for rows in seeds.values() for name in rows if name != "original"):
            measured = [rows[name]["forget"] for rows in seeds.values() if "forget" in rows.get(name, {})]
            if measured:
                result[f"width {width}, {name}"] = {
                    grid: interval([one[grid] - one["as_is"] for one in measured]) for grid in GRIDS
                }
    return result


SETTINGS = {
    "world": vars(WORLD),
    "layers": LAYERS,
    "widths": {width: vars(how) for width, how in WIDTHS.items()},
    "common": COMMON,
    "remedies": REMEDIES,
    "grids": {name: grid_condition(grid).provenance for name, grid in GRIDS.items()},
}


if __name__ == "__main__":
    main()
