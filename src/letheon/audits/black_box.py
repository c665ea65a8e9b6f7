"""Ask a model that can only be asked: no weights, no probabilities, and so numbers and no verdict.

    greedy     temperature 0, one answer: the answer stands in it (accuracy); ROUGE-L recall
    sampled    n answers at each temperature, c of them give the answer away: leak@k = 1 - C(n - c, k) / C(n, k)
Each number has bounds over units, and beside those about the forgotten stands the control: units that were never
trained on, or invented look-alike names. No protocol covers a model without its weights: what is hidden and would come
back under rounding or a few steps of training cannot be seen from here, and the result says so, line by line.

Source: leak@k, arXiv:2511.04934; TOFU arXiv:2401.06121 (ROUGE-L recall).
Checked against: a scripted server and a scripted callable whose every number is known, a run that was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.audits.answers import Answers, answers_of
from letheon.audits.asked_in_words import Item, Plan, items_sampled, questions
from letheon.audits.control import Control
from letheon.audits.endpoint import Asked, Endpoint
from letheon.audits.word_cells import Cell, greedy_cells, sampled_cells
from letheon.data.overlap import shared_units
from letheon.data.records import DataFile, read_records
from letheon.errors import BadInput, UnknownName, gathering, require
from letheon.methods import cards
from letheon.runs.folder import sha256_file, write_json
from letheon.runs.progress import Progress

NOTE = (
    "Numbers and no verdict: no protocol covers a model that can only be asked. What is hidden and comes back when the "
    "weights are rounded or trained on cannot be seen from outside."
)
NEEDS_WEIGHTS = "not measured: needs weights"
RESULT = "ask.json"
ENDPOINT = ("key_variable", "timeout", "tries", "pause", "max_tokens")


@dataclass(frozen=True)
class AskResult:
    """What was found. `folder` holds ask.json, and answers.jsonl with everything that was said."""

    folder: Path
    model: str
    control: Control
    cells: tuple[Cell, ...]
    not_measured: Mapping[str, str]
    level: float
    asked: Mapping[str, Any]
    note: str = NOTE
    verdict: None = None


def ask(
    model: str | Asked,
    *,
    forget_data: Path | str,
    retain_data: Path | str | None = None,
    general_data: Path | str | None = None,
    holdout_data: Path | str | None = None,
    name: str = "",
    out: Path | str = "runs/ask",
    samples: int = 16,
    temperatures: Sequence[float] = (1.0,),
    limit: int = 100,
    level: float = 0.05,
    resamples: int = 10_000,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    **endpoint: Any,
) -> AskResult:
    """Ask a model that is reachable by text alone.

    Args:
        model: an OpenAI-compatible address (".../v1"), or a callable (messages, n, temperature) -> list of n texts.
        forget_data, retain_data, general_data, holdout_data: JSON lines; the questions in them are asked.
        name: of the model at the address; of a callable: what tells it from others, by default its own name.
        out: folder for what was said and found. The same call goes on with a folder that a stopped one has left.
        samples: n, answers to each question about the forgotten and the control at each temperature; 0: greedy alone.
        temperatures: of the samples, each > 0.
        limit: most questions of a role, of all units while it can.
        level: chance of each bound to be wrong.
        resamples, seed: of the bounds; the seed also of invented names.
        columns: our field -> the files'.
        endpoint: key_variable, timeout, tries, pause, max_tokens (see `Endpoint`); for an address alone.
    Raises:
        BadInput: files or settings that cannot be used, an address that refuses, a folder of another model.
        CannotFinish: no answer after all tries, or one that is none. The same call goes on.
    """
    progress = progress or Progress()
    given = {"forget": forget_data, "retain": retain_data, "general": general_data, "holdout": holdout_data}
    plan, who, asked_of = _checked(
        model, name, endpoint, samples=samples, temperatures=tuple(temperatures), limit=limit, level=level,
        resamples=resamples, seed=seed,
    )  # fmt: skip
    data = _read({role: Path(path) for role, path in given.items() if path is not None}, columns)
    control, items = questions(data, plan)
    sampled = items_sampled(items, control)
    total = len({item.prompt for item in items}) + plan.samples * len(plan.temperatures) * len(
        {item.prompt for item in sampled}
    )
    progress.say(f"{total} answers of {who['model']}: {control.sentence}")
    progress.start()
    done = [0]

    def arrived(count: int) -> None:
        done[0] += count
        progress.step(min(done[0], total), total, "answers")

    folder = Path(out)
    with answers_of(who, asked_of, folder, arrived=arrived) as answers:
        done[0] = _known(answers, items, sampled, plan)
        cells = (*greedy_cells(items, answers, control, plan), *sampled_cells(sampled, answers, control, plan))
        hashes = {role: sha256_file(file.path) for role, file in data.items()}
        found = AskResult(
            folder=folder,
            model=who["model"],
            control=control,
            cells=cells,
            not_measured=not_measured(),
            level=plan.level,
            asked={"files": hashes, "plan": {**vars(plan), "temperatures": list(plan.temperatures)}},
        )
        write_json(folder / RESULT, as_data(found))
    return found


def as_data(found: AskResult) -> dict[str, Any]:
    """The result as an object of ask.json."""
    return {
        "format": 1,
        "verdict": None,
        "note": found.note,
        "model": found.model,
        "control": vars(found.control),
        "level": found.level,
        "cells": [vars(cell) for cell in found.cells],
        "not_measured": dict(found.not_measured),
        "asked": {
            **found.asked,
            "plan": {**found.asked["plan"], "temperatures": list(found.asked["plan"]["temperatures"])},
        },
    }


# --- what is asked


def _checked(
    model: str | Asked, name: str, endpoint: Mapping[str, Any], **settings: Any
) -> tuple[Plan, dict[str, Any], Asked]:
    """The plan, who is asked, and how. Raises BadInput with all that is wrong."""
    with gathering() as broken:
        plan = Plan(**settings)
        if isinstance(model, str):
            for key in endpoint.keys() - ENDPOINT:
                raise UnknownName(key, ENDPOINT, what="a setting of ask")
            reached: Asked = Endpoint(url=model, model=name, **endpoint)
        else:
            require(callable(model), f"{model!r} is no model to ask. Give an address (.../v1) or a callable")
            require(not endpoint, f"a callable takes no {', '.join(endpoint)}: these are for an address")
            reached = model
    if broken:
        raise BadInput(broken)
    if isinstance(reached, Endpoint):
        return plan, {"endpoint": reached.address, "model": name, "max_tokens": reached.max_tokens}, reached
    own = name or getattr(reached, "__qualname__", type(reached).__qualname__)
    return plan, {"endpoint": "a callable", "model": own, "max_tokens": None}, reached


def _read(paths: Mapping[str, Path], columns: Mapping[str, str] | None) -> dict[str, DataFile]:
    """All files. Raises BadInput with the faults of all of them."""
    data: dict[str, DataFile] = {}
    problems: list[str] = []
    for role, path in paths.items():
        try:
            data[role] = read_records(path, role=role, columns=columns)
        except BadInput as error:
            problems += error.problems
    if not problems and not data["forget"].questions:
        problems.append(f"forget set {data['forget'].path}: no questions. Without weights only questions can be asked")
    if {"forget", "holdout"} <= data.keys() and (shared := shared_units(data["forget"], data["holdout"])):
        problems.append(shared)
    if problems:
        raise BadInput(problems)
    return data


def _known(answers: Answers, items: Sequence[Item], sampled: Sequence[Item], plan: Plan) -> int:
    """Answers that an earlier run has left."""
    greedy = sum(min(answers.have(prompt, 0.0), 1) for prompt in {item.prompt for item in items})
    prompts = {item.prompt for item in sampled}
    return greedy + sum(
        min(answers.have(prompt, value), plan.samples) for prompt in prompts for value in plan.temperatures
    )


def not_measured() -> dict[str, str]:
    """Every condition and every probe of an audit that a model without its weights cannot be put to."""
    found = {
        f"{card.kind} {card.name}": NEEDS_WEIGHTS
        for card in cards()
        if card.kind in ("condition", "probe") and card.name not in ("as_is", "knowledge", "utility")
    }
    return {
        **found,
        "probe knowledge": f"{NEEDS_WEIGHTS} (exact tokens and probabilities; answers in words are asked above)",
        "probe sampling": f"{NEEDS_WEIGHTS} (draws that can be made again; sampled answers in words are asked above)",
        "probe utility": f"{NEEDS_WEIGHTS} (exact tokens and perplexity; answers in words are asked above)",
    }
