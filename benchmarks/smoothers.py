"""Does smoothing keep forgotten facts away from an attacker who relearns? NPO and gradient difference, five smoothers.

Every arm forgets the same people of the same model until at most 0.05 of the facts are left and 0.95 of the retained
ones are (looks every 10 steps), so all are compared at equal forgetting; an arm that does not get there is reported as
unmatched and compared with nothing. Weight averaging goes on for a quarter of the plain arm's steps and returns their
mean. "longer" is the distance control: the plain term for as many steps as it took with SAM. Then an attacker trains on
half of the forgotten people and the other half is asked, in all six wordings, both ways round; the retrained model
under the same attack is the floor. Settings were tuned on seed 100 (other people), and are in ARMS.

    OMP_NUM_THREADS=1 python benchmarks/smoothers.py --tune
    OMP_NUM_THREADS=1 python benchmarks/smoothers.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from exam import ATTACK, FACT_STEPS, FACTS, exam, interval, one_thread, recovery, rounded, unlearned
from measuring import by_seed, earlier, parts, write

from letheon.data.batches import by_length
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.models import inspect_model, load_model, load_tokenizer
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.training.losses import Body, Outputs
from letheon.training.scoring import score_examples
from letheon.unlearning.forget_terms.npo import NPO as NPOTerm

NPO = {"name": "npo", "beta": 1.0, "reduction": "mean"}
GRADDIFF = {"name": "gradient_ascent"}
RATE = 1.5e-4
"""The small rate at which an attack brings much back."""
LIMIT = 400
MATCHED = 0.05
USEFUL = 0.95
COMMON: dict[str, Any] = {
    "retain_term": "gdr",
    "batch_size": 32,
    "clip": 1.0,
    "rate": "constant",
    "learning_rate": RATE,
    "steps": LIMIT,
    "stop": {"every": 10, "items": 150, "forget_accuracy": 0.05, "utility": USEFUL},
}
TERMS: dict[str, dict[str, Any]] = {
    "npo": {"method": NPO},
    "graddiff": {
        "method": GRADDIFF,
        "balance": {"name": "weighted", "alpha": 3.0},
        "stop": {"every": 10, "items": 300, "forget_accuracy": 0.05, "utility": USEFUL + 0.01},
    },
}
"""Gradient difference stands just at the line when it stops, so its looks ask more and want a little more."""
SMOOTHERS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.1},
    "randomized": {"sigma": 0.006},
    "gradient_penalty": {"mu": 0.01},
    "curvature": {"mu": 0.03, "h": 0.1},
    "weight_average": {},
}
TRIED: dict[str, list[dict[str, Any]]] = {
    "sam": [{"rho": 0.03}, {"rho": 0.1}, {"rho": 0.2}],
    "randomized": [{"sigma": 0.002}, {"sigma": 0.006}],
    "gradient_penalty": [{"mu": 0.01}, {"mu": 0.03}, {"mu": 0.3}],
    "curvature": [{"mu": 0.03, "h": 0.1}, {"mu": 0.1, "h": 0.1}],
}
TUNING_SEED = 100
SEEDS = (0, 1, 2)
HEADLINE_SEEDS = (0, 1, 2, 3, 4)
HEADLINE = ("npo", "npo+sam", "npo longer")


def run_arm(name: str, settings: Mapping[str, Any], models: TinyModels, out: Path, seed: int) -> dict[str, Any]:
    """Forget, ask, attack."""
    place = place_of(name, out, seed)
    inputs = {
        "model": models.target,
        "forget_data": models.files["forget"],
        "retain_data": models.files["retain"],
        "seed": seed,
    }
    folder, ended = unlearned(place, {**COMMON, **settings}, **inputs)
    found = exam(folder, models.files, attack=ATTACK, keep=place / "exam.json")
    original = exam(models.target, models.files, keep=out / f"original-{seed}.json")
    rise = sharpness(folder, models, keep=place / "sharpness.json")
    return described(found, original) | ended | {"sharpness": round(rise, 4)}


def sharpness(folder: Path, models: TinyModels, *, rho: float = 0.1, steps: int = 10, keep: Path) -> float:
    """How much the NPO loss over the forget set rises in the worst place within `rho` of the weights, in nats.

    Projected gradient ascent in float32: steps of length rho / 4, back onto the ball, the highest place counts.
    """
    if keep.is_file():
        return float(json.loads(keep.read_text(encoding="utf-8")))
    encoder = Encoder(load_tokenizer(folder), max_length=inspect_model(folder).window)
    examples = encoder.encode_all(read_records(models.files["forget"], role="forget").records)
    original = score_examples(Body(load_model(models.target)), examples, pad=encoder.pad).log_probs("mean")
    reference, term = torch.tensor(original, dtype=torch.float32), NPOTerm(beta=NPO["beta"], reduction="mean")
    model: Any = load_model(folder)
    body, weights = Body(model), list(model.requires_grad_(True).parameters())
    start = [weight.detach().clone() for weight in weights]
    batches = by_length(examples, pad=encoder.pad)

    def loss_and_slopes() -> float:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss, _ = term.loss(Outputs(batch, body.logits(batch)).log_probs("mean"), reference[batch.items])
            (loss / len(examples)).backward()
            total += float(loss.detach()) / len(examples)
        return total

    losses = [loss_and_slopes()]
    for _ in range(steps):
        with torch.no_grad():
            moved = [weight + rho / 4 * slope for weight, slope in zip(weights, _unit(weights), strict=True)]
            away = [one - home for one, home in zip(moved, start, strict=True)]
            shrink = min(1.0, rho / float(_length(away)))
            for weight, home, one in zip(weights, start, away, strict=True):
                weight.copy_(home + shrink * one)
        losses.append(loss_and_slopes())
    rise = max(losses) - losses[0]
    keep.write_text(json.dumps(rise), encoding="utf-8")
    return rise


def _unit(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    slopes = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return [slope / _length(slopes) for slope in slopes]


def _length(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def place_of(name: str, out: Path, seed: int) -> Path:
    """The run folder of an arm."""
    return out / f"{name.replace(' ', '-')}-{seed}"


def described(found: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an exam."""
    before = found["as_is"]
    return {
        **rounded(before),
        "after_attack": {step: round(found[f"relearn_{step}"]["forget"], 4) for step in ATTACK},
        "recovery": round(recovery(found), 4),
        "useful": round(before["retain"] / original["as_is"]["retain"], 4),
    }


def is_matched(arm: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    """As much forgotten as by the plain arm, and useful."""
    return abs(arm["forget"] - plain["forget"]) <= MATCHED and arm["useful"] >= USEFUL


def smoothed(term: str, smoother: str, settings: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an arm."""
    if smoother == "weight_average":
        start, end = plain["steps"], plain["steps"] + max(10, plain["steps"] // 4)
        averaged = {"name": smoother, "start": start, "every": 5}
        return {**TERMS[term], "smooth": averaged, "steps": end, "stop": {"every": 0}}
    return {**TERMS[term], "smooth": {"name": smoother, **settings}}


def floor(seed: int, out: Path) -> dict[str, Any]:
    """What the attack teaches a model that never knew."""
    models = tiny_models(seed, FACTS, steps=FACT_STEPS)
    control = exam(models.reference, models.files, attack=ATTACK, keep=out / f"reference-{seed}.json")
    return described(control, exam(models.target, models.files, keep=out / f"original-{seed}.json"))


def run_term(
    term: str, seed: int, out: Path, only: Sequence[str] = (), *, is_running: bool = True
) -> dict[str, dict[str, Any]]:
    """All arms of a forget term on a seed.

    Args:
        only: these, beside the plain one; empty: all.
        is_running: whether arms are run that are not finished; otherwise they are left out.
    """
    models = tiny_models(seed, FACTS, steps=FACT_STEPS)
    arms: dict[str, dict[str, Any]] = {}

    def run(name: str, settings: Mapping[str, Any]) -> None:
        if is_running or (place_of(name, out, seed) / "exam.json").is_file():
            arms[name] = run_arm(name, settings, models, out, seed)
            print(f"seed {seed}  {name:24s} {arms[name]}", flush=True)

    run(term, TERMS[term])
    for smoother, settings in SMOOTHERS.items():
        name = f"{term}+{smoother}"
        if term in arms and (not only or name in only):
            run(name, smoothed(term, smoother, settings, arms[term]))
    if f"{term}+sam" in arms:
        run(f"{term} longer", {**TERMS[term], "steps": arms[f"{term}+sam"]["steps"], "stop": {"every": 0}})
    return arms


def compared(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Arm -> its recovery minus the plain arm's, over the seeds where both are matched; and which were not."""
    names = dict.fromkeys(name for arms in found.values() for name in arms if "+" in name or name.endswith(" longer"))
    result: dict[str, Any] = {}
    for name in names:
        plain = name.split("+")[0].split(" ")[0]
        pairs = {seed: (arms[name], arms[plain]) for seed, arms in found.items() if name in arms}
        fit = {
            seed: pair
            for seed, pair in pairs.items()
            if is_matched(*pair) and pair[1]["forget"] <= 2 * MATCHED and pair[1]["useful"] >= USEFUL
        }
        differences = {
            figure: [arm[figure] - base[figure] for arm, base in fit.values()] for figure in ("recovery", "sharpness")
        }
        result[name] = {
            **{f"{figure}_minus_plain": interval(each) if each else None for figure, each in differences.items()},
            "unmatched_seeds": [seed for seed in pairs if seed not in fit],
        }
    return result


def tune(out: Path) -> None:
    """Smoother settings on other people: the least recovery among those that are matched is taken by hand."""
    models = tiny_models(TUNING_SEED, FACTS, steps=FACT_STEPS)
    found: dict[str, Any] = {}
    for term, plainly in TERMS.items():
        plain = found[term] = run_arm(f"tune {term}", plainly, models, out, TUNING_SEED)
        for smoother, choices in TRIED.items():
            for settings in choices:
                said = ",".join(f"{key}={value:g}" for key, value in settings.items())
                name = f"{term}+{smoother}({said})"
                arm = run_arm(f"tune {name}", smoothed(term, smoother, settings, plain), models, out, TUNING_SEED)
                found[name] = {**arm, "is_matched": is_matched(arm, plain)}
                print(name, found[name], flush=True)
    write("smoothers_tuning", {"seed": TUNING_SEED, "limit": LIMIT, "arms": found})


def main() -> None:
    """Tune, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/smoothers"))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--finished", action="store_true", help="run nothing; write down what is finished")
    parser.add_argument("--only", nargs="*", default=[], help="arms such as graddiff+sam; plain ones are always run")
    parser.add_argument("--terms", nargs="+", default=list(TERMS), choices=list(TERMS))
    parser.add_argument("--add", action="store_true", help="put these terms into the result file, beside what it has")
    given = parser.parse_args()
    one_thread()
    if given.tune:
        tune(given.out)
        return
    before = earlier("smoothers") if given.add else {}
    found: dict[int, dict[str, Any]] = by_seed(before.get("arms", {}))
    for seed in HEADLINE_SEEDS if "npo" in given.terms else SEEDS:
        found.setdefault(seed, {"reference": floor(seed, given.out)})
    for term in given.terms:
        for seed in HEADLINE_SEEDS if term == "npo" else SEEDS:
            only = given.only if seed in SEEDS else HEADLINE
            found[seed] |= run_term(term, seed, given.out, only, is_running=not given.finished)
            keep(found, before)


def keep(found: Mapping[int, Mapping[str, Any]], before: dict[str, Any]) -> None:
    """The result so far, added to an earlier one."""
    write(
        "smoothers",
        {
            **({"parts": parts(before)} if before else {}),
            "seeds": {"headline": HEADLINE_SEEDS, "others": SEEDS},
            "settings": {"common": COMMON, "terms": TERMS, "smoothers": SMOOTHERS},
            "floor": {"recovery": interval([arms["reference"]["recovery"] for arms in found.values()])},
            "compared_with_plain": compared(found),
            "arms": found,
        },
    )


if __name__ == "__main__":
    main()
