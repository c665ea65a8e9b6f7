"""On a GPU: TOFU from its published files to a verdict by standard-1, and to TOFU's own figures. 124 M weights.

Two Llamas of 124 M weights are trained from nothing, one on all of TOFU, one on all but forget10; 20 of the retained
authors are left out of both, and are the holdout units that membership is told from. The first model forgets forget10
by NPO + GDR. All are asked TOFU's figures (model utility, forget quality against the second), and the one that forgot
is audited by standard-1 with the second as the reference. One JSON at the end; under nine minutes on an H100, or the
audit says "budget exhausted" of what it did not begin.

    python benchmarks/gpu_tofu.py --tofu DIR --out DIR
    python benchmarks/gpu_tofu.py --tofu DIR --out DIR --small         a rehearsal on a CPU
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_precision import LARGE, NPO, QUESTIONS_AN_AUTHOR, SMALL, Size, learned, untrained

from letheon.audits.audit import audit
from letheon.audits.benchmark import benchmark
from letheon.errors import CannotFinish
from letheon.runs.progress import Progress
from letheon.unlearning.forget import forget

HOLDOUT_AUTHORS = 20
ASKED = 100
"""Questions of each of TOFU's sets, the first ones: the published 300 would take a third of the time."""
SPLITS = ("forget10", "retain", "real_authors", "world_facts")


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The records of a published file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def ours(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """TOFU's lines as ours, with other wordings and wrong answers where they have them; an author is a unit."""
    return [
        {
            "prompt": line["question"],
            "answer": line["answer"],
            "unit": f"{name}-{at // QUESTIONS_AN_AUTHOR}",
            **({"paraphrase": [line["paraphrased_question"]]} if "paraphrased_question" in line else {}),
            **({"wrong": line["perturbed_answer"]} if "perturbed_answer" in line else {}),
        }
        for at, line in enumerate(lines)
    ]


def files_of(tofu: Path, folder: Path, authors: int | None) -> dict[str, Path]:
    """What is trained on, what is forgotten, what is kept, who was never seen."""
    most = None if authors is None else authors * QUESTIONS_AN_AUTHOR
    held = (HOLDOUT_AUTHORS if authors is None else authors) * QUESTIONS_AN_AUTHOR
    forgotten = ours(lines_of(tofu / "forget10_perturbed.json")[:most], "forget")
    kept = ours(lines_of(tofu / "retain90.json"), "retain")
    holdout, retained = kept[:held], kept[held:][:most]
    sets = {
        "forget10": forgotten,
        "retain90": retained,
        "holdout": holdout,
        "full": [*retained, *forgotten],
        "general": ours(lines_of(tofu / "world_facts_perturbed.json"), "world"),
    }
    for name, records in sets.items():
        for number, record in enumerate(records):
            if name == "general":
                record["unit"] = f"fact-{number}"
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    trained = [*sets["retain90"], *sets["general"]]
    for name, records in (("train-full", [*trained, *forgotten]), ("train-retain", trained)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in (*sets, "train-full", "train-retain")}


def cells_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells, without what makes a file large."""
    names = ("condition", "column", "status", "reason", "value", "control", "d", "d_lower", "d_upper", "judgement")
    names += ("n_items", "n_units")
    return [{name: cell[name] for name in names if name in cell} for cell in found["cells"] if cell.get("required")]


def main() -> None:
    """Train, forget, audit, compare; each part is written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=500, help="what has not begun by then is left out")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    size: Size = SMALL if given.small else LARGE
    began = time.monotonic()
    work = given.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "settings": {"size": vars(size), "seed": given.seed, "holdout_authors": HOLDOUT_AUTHORS, **NPO},
        "seconds": {},
    }

    def timed(name: str, make: Callable[[], Any]) -> Any:
        start = time.monotonic()
        made = make()
        found["seconds"][name] = round(time.monotonic() - start, 1)
        print(name, found["seconds"][name], "s", flush=True)
        return made

    def keep(name: str, value: Any) -> None:
        found[name] = value
        (given.out / "gpu_tofu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    files = files_of(given.tofu, work, 4 if given.small else None)
    base = untrained(files, work / "base", size, given.seed)
    target = timed("target", lambda: learned(base, files["train-full"], work / "target", size, given.seed))
    reference = timed("reference", lambda: learned(base, files["train-retain"], work / "reference", size, given.seed))
    try:
        result = timed(
            "forget",
            lambda: forget(
                target,
                forget_data=files["forget10"],
                retain_data=files["retain90"],
                holdout_data=files["holdout"],
                out=work / "forgotten",
                retain_term="gdr",
                batch_size=32,
                rate="constant",
                learning_rate=2e-5,
                save_dtype="float32",
                epochs=size.forget_passes,
                seed=given.seed,
                progress=Progress(quiet=True),
                **NPO,
            ),
        )
    except CannotFinish as error:
        keep("forget", str(error))
        return
    keep("forget", {"steps": result.steps, "notes": result.notes})
    published = work / "published"
    published.mkdir(exist_ok=True)
    for name in SPLITS:
        shutil.copy(given.tofu / f"{name}_perturbed.json", published)
    log = work / "reference-tofu"
    for name, folder in (("reference", reference), ("target", target), ("forgotten", result.folder)):
        run = log if name == "reference" else work / f"{name}-tofu"
        made = timed(
            f"tofu {name}",
            lambda folder=folder, run=run, name=name: benchmark(
                folder,
                benchmark={
                    "name": "tofu",
                    "data": published,
                    "split": "forget10",
                    "form": "plain",
                    "limit": 8 if given.small else ASKED,
                },
                **({} if name == "reference" else {"reference": log}),
                out=run,
                progress=Progress(quiet=True),
            ),
        )
        keep(f"tofu {name}", [vars(figure) for figure in made.figures])
    left = max(given.seconds - (time.monotonic() - began), 1.0)
    judged = timed(
        "audit",
        lambda: audit(
            result.folder,
            original=target,
            reference=reference,
            forget_data=files["forget10"],
            retain_data=files["retain90"],
            holdout_data=files["holdout"],
            general_data=files["general"],
            protocol="standard-1",
            budget_s=left,
            seed=given.seed,
            out=work / "audit",
            progress=Progress(quiet=True),
        ),
    )
    word = judged.verdict
    keep("verdict", {"word": word.word, "reasons": list(word.reasons)[:20], "scope": word.scope})
    keep("cells", cells_of(judged.audit))
    keep("utility", judged.audit["utility"])


if __name__ == "__main__":
    main()
