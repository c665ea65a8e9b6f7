"""A queue of deletion requests: one recipe, carried out for each of them in turn, and audited after each.

    requests:
      - first.jsonl                                   # short for {forget: {forget_data: first.jsonl}}
      - forget: {forget_data: second.jsonl}           # what a request says of a step goes before what the step says
        audit: {reference: without-both}
    steps:
      - forget: {model: m, retain_data: r.jsonl, holdout_data: h.jsonl}
      - audit: {general_data: g.jsonl}

Request k becomes an ordinary chain in OUT/request-k, whose forget step begins with the model that request k-1 left. Its
audit finds the requests before it, and the original, in the records (see `audits.known`): so what was forgotten must
stay forgotten, and utility is lost against the first model and adds up. A request that comes later is one line more,
and the same command.

Source: this project.  Checked against: the verbs called by hand, bit for bit; a kill at every step; one refused queue
for each fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.errors import BadInput

if TYPE_CHECKING:
    from letheon.data.records import DataFile
    from letheon.recipes.recipe import Recipe

Own = Mapping[str, Mapping[str, Any]]
"""Verb -> what a request says of it."""

SHAPES = (("forget", "audit"), ("forget", "quantize", "audit"))
_KEPT = {
    "forget": {"model": "the model that the queue begins with is named in the step, once"},
    "quantize": {"model": "what is rounded is the model that the request left"},
    "audit": {
        name: f"{what} of a queue's audits is known from the requests before"
        for name, what in (
            ("model", "the model"),
            ("original", "the original"),
            ("forget_data", "what to ask about"),
            ("earlier_data", "what to ask about"),
        )
    },
}
"""Verb -> setting that the queue itself fills -> why."""
_ALSO_ASKED = ("retain_data", "holdout_data", "template", "columns")
"""Settings of a run of forget that its audit reads from the record."""
_SHOWN = 3
"""Names in one fault."""


def folder_name(number: int) -> str:
    """The run folder of a request, in the queue's: a number, since a name might be somebody's."""
    return f"request-{number}"


def own_settings(entry: Any, where: str) -> Own:
    """What one entry of `requests` says, verb by verb. Raises BadInput: it is neither a path nor a mapping."""
    if isinstance(entry, str | Path):
        return {"forget": {"forget_data": str(entry)}}
    if not isinstance(entry, Mapping) or not all(isinstance(value, Mapping) for value in entry.values()):
        raise BadInput(
            f"{where}: {entry!r} is not a request. Give the path of a forget set, or settings by verb, such as "
            "{forget: {forget_data: f.jsonl}, audit: {reference: r}}"
        )
    return {str(verb): {str(name): value for name, value in given.items()} for verb, given in entry.items()}


# --- checking


def faults(recipe: Recipe, where: str = "") -> list[str]:
    """What is wrong with a queue besides its settings."""
    requests = recipe.requests or ()
    if not requests:
        return [f"{where}no requests. Give a list of forget sets, or leave 'requests' out"]
    shape = tuple(step.verb for step in recipe.steps)
    problems: list[str] = []
    if shape not in SHAPES:
        problems.append(
            f"{where}the steps of a queue are forget, quantize if the rounded model ships, and audit, in this order; "
            f"here they are: {', '.join(shape) or 'none'}"
        )
    for number, step in enumerate(recipe.steps, start=1):
        given = {"forget_data": step.settings.get("forget_data")} if step.verb == "forget" else step.settings
        kept = {"forget_data": "each request has its own"} if step.verb == "forget" else _KEPT.get(step.verb, {})
        problems += _not_here(given, kept, f"{where}step {number}, {step.verb}")
    for number, entry in enumerate(requests, start=1):
        place = f"{where}request {number}"
        try:
            own = own_settings(entry, place)
        except BadInput as error:
            problems += error.problems
            continue
        problems += [
            f"{place}: {verb!r} is none of the steps ({', '.join(shape)})" for verb in own if verb not in shape
        ]
        for verb, given in own.items():
            problems += _not_here(given, _KEPT.get(verb, {}), f"{place}, {verb}")
        if own.get("forget", {}).get("forget_data") is None:
            problems.append(f"{place}: no 'forget_data'. A request says what is to be forgotten")
    return problems


def _not_here(given: Mapping[str, Any], kept: Mapping[str, str], place: str) -> list[str]:
    return [f"{place}.{name}: {why}. Leave it out" for name, why in kept.items() if given.get(name) is not None]


def expand(recipe: Recipe) -> list[Recipe]:
    """One ordinary chain a request, each beginning with the model that the one before it leaves."""
    chains: list[Recipe] = []
    model = next((step.settings.get("model") for step in recipe.steps if step.verb == "forget"), None)
    for number, entry in enumerate(recipe.requests or (), start=1):
        own = own_settings(entry, f"request {number}")
        steps = [replace(step, settings={**step.settings, **own.get(step.verb, {})}) for step in recipe.steps]
        if model is not None:
            steps[0] = replace(steps[0], settings={**steps[0].settings, "model": model})
        out = recipe.out / folder_name(number)
        chains.append(replace(recipe, steps=tuple(steps), out=out, requests=None))
        model = out / "1-forget"
    return chains


def any_one(recipe: Recipe) -> Recipe:
    """The steps as a chain of their own, for faults that no request has a part in."""
    steps = [
        replace(step, settings={"forget_data": "that of the request", **step.settings})
        if step.verb == "forget"
        else step
        for step in recipe.steps
    ]
    return replace(recipe, steps=tuple(steps), requests=None)


@dataclass(frozen=True)
class _Read:
    """The sets of one request."""

    number: int
    forget: DataFile
    retain: DataFile | None


def check(recipe: Recipe) -> list[str]:
    """Read everything that the requests name, before anything is loaded.

    Returns:
        What is worth knowing, a line each.
    Raises:
        BadInput: with all faults of all requests, among them people who are to be kept and forgotten.
    """
    from letheon.audits.audit import check_request as check_audit
    from letheon.unlearning.forget import check_request as check_forget

    chains = expand(recipe)
    problems: list[str] = []
    read: list[_Read] = []
    before: list[Any] = []
    # The model that the request before leaves is not there yet; it has the original's shape and tokenizer.
    original = chains[0].steps[0].settings["model"]
    for number, chain in enumerate(chains, start=1):
        asked = {**chain.steps[0].settings, "model": original, "out": chain.out}
        shared = {name: asked[name] for name in _ALSO_ASKED if name in asked}
        sets = {"forget_data": asked["forget_data"], "earlier_data": list(before), "original": original}
        before.append(asked["forget_data"])
        faults: list[str] = []
        try:
            request = check_forget(asked)
            read.append(_Read(number, request.forget, request.retain))
        except BadInput as error:
            faults += error.problems
        try:
            check_audit({**shared, **chain.steps[-1].settings, **sets, "model": original, "out": chain.out})
        except BadInput as error:
            faults += [problem for problem in error.problems if not problem.startswith("original ")]  # it is MODEL
        problems += [f"request {number}: {problem}" for problem in faults]
    problems += [*_again(read), *_kept_and_forgotten(read)]
    if problems:
        raise BadInput(_each_once(problems))
    return [*_shared_people(read), *_forgotten_later(read)]


def _each_once(problems: Sequence[str]) -> list[str]:
    """A fault that several requests share is told of the first."""
    said: dict[str, str] = {}
    for problem in problems:
        said.setdefault(re.sub(r"^request \d+", "", problem), problem)
    return list(said.values())


def _again(read: Sequence[_Read]) -> list[str]:
    """Requests that ask for what an earlier one asked for, and for no more."""
    contents = [{record.content for record in one.forget.records} for one in read]
    problems: list[str] = []
    for at, one in enumerate(read):
        twin = next((other for other, there in zip(read[:at], contents, strict=False) if contents[at] <= there), None)
        if twin is not None:
            problems.append(
                f"request {one.number}, forget set {one.forget.path}: all of it stands in request {twin.number} "
                f"({twin.forget.path}) already. Take the request out"
            )
    return problems


def _kept_and_forgotten(read: Sequence[_Read]) -> list[str]:
    """Retain sets that hold on to what an earlier request, or their own, asks to forget."""
    from letheon.data.overlap import overlap

    problems: list[str] = []
    kept_before: Path | None = None
    for at, one in enumerate(read):
        if one.retain is None:
            kept_before = None
            continue
        # The same file was compared with the requests before when their turn was.
        asked = read[at : at + 1] if one.retain.path == kept_before else read[: at + 1]
        kept_before = one.retain.path
        for other in asked:
            place = f"request {one.number}, retain set {one.retain.path}"
            remedy = "What is kept comes back: take them out of the retain set"
            if people := _people_in_both(other.forget, one.retain):
                problems.append(
                    f"{place}: holds {len(people)} people or documents ({_named(people)}) that request {other.number} "
                    f"asks to forget. {remedy}"
                )
            elif shared := overlap(other.forget, one.retain):
                problems.append(
                    f"{place}: holds {shared.count} records ({'; '.join(shared.examples)}) that request {other.number} "
                    f"asks to forget. {remedy}"
                )
    return problems


def _forgotten_later(read: Sequence[_Read]) -> list[str]:
    """A retain set may well hold on to somebody who asks to be forgotten later."""
    told: list[str] = []
    for at, one in enumerate(read):
        later = [
            str(other.number)
            for other in read[at + 1 :]
            if one.retain is not None and _people_in_both(other.forget, one.retain)
        ]
        if later:
            told.append(
                f"request {one.number} still holds on to people of request {', '.join(later)}, whose turn comes later. "
                "A retain set without them lets them go more easily"
            )
    return told


def _shared_people(read: Sequence[_Read]) -> list[str]:
    """Requests about the same people, which may be meant."""
    return [
        f"request {one.number} and request {other.number} are both about {len(people)} people or documents "
        f"({_named(people)})"
        for at, one in enumerate(read)
        for other in read[:at]
        if (people := _people_in_both(other.forget, one.forget))
    ]


def _people_in_both(first: DataFile, second: DataFile) -> list[tuple[str, int]]:
    """(unit, line in the second set) of the units that both name; none where units are only line numbers."""
    if first.unit_is_line or second.unit_is_line:
        return []
    known = set(first.units)
    lines: dict[str, int] = {}
    for record in second.records:
        if record.unit in known:
            lines.setdefault(record.unit, record.line)
    return list(lines.items())


def _named(people: Iterable[tuple[str, int]]) -> str:
    """`'Ann' (line 3), 'Bo' (line 9) and 4 more`. For a terminal alone: a record must not hold anybody's name."""
    listed = [f"{unit!r} (line {line})" for unit, line in people]
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
