"""A recipe: a chain of verbs in one run folder, as YAML or as dataclasses.

    out: runs/mine
    steps:
      - forget: {model: m, forget_data: f.jsonl, retain_data: r.jsonl, method: {name: npo, beta: 0.1}}
      - quantize: {method: rtn}      # model: the folder that the step before made
      - audit: {protocol: quick-1}   # model: what forgot; shipped: what was quantized from it; data: the record's

With `requests:` the steps are carried out for each deletion request in turn: see `recipes.queue`.

Paths are those of the command line: relative to the folder it is called in. A step that is done is skipped, one that
was stopped is continued, so running the same recipe again is always safe. Everything that can be checked is checked
before the first step begins.

Source: this project.  Checked against: round trips, one refused recipe for each fault, a chain stopped and continued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from letheon.errors import BadInput, nearest
from letheon.methods import describe
from letheon.recipes import queue, verbs
from letheon.runs.progress import Progress
from letheon.settings import plain

_KEYS = ("out", "steps", "requests")
_MODELS = ("model", "original", "reference", "shipped")
_RECORDS = ("data", "without", "forget_data", "retain_data", "holdout_data", "general_data")


@dataclass(frozen=True)
class Step:
    """One verb with its settings, as a person wrote them."""

    verb: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Steps that share a run folder."""

    steps: tuple[Step, ...]
    out: Path
    requests: tuple[Any, ...] | None = None
    """A queue: the forget set of each request in turn, as a path or as settings by verb. None: the steps, once."""


@dataclass(frozen=True)
class RunResult:
    """What a recipe left: its run folder, and what each step returned."""

    folder: Path
    results: dict[str, Any]
    """Verb -> result of its step, in the order of the recipe; of a queue, those of its last request."""
    requests: tuple[RunResult, ...] = ()
    """Of a queue: what each request left."""

    @property
    def verdict(self) -> Any:
        """The verdict of the audit; None without one."""
        return getattr(self.results.get("audit"), "verdict", None)


# --- reading and writing


def load_recipe(path: Path | str, *, out: Path | str | None = None, allow_code: bool = False) -> Recipe:
    """Read a recipe and check all that can be checked without its files.

    Args:
        path: a YAML file.
        out: the run folder; by default what the recipe says, else runs/ and the recipe's name.
        allow_code: whether methods may be given as files of Python, which are run.
    Raises:
        BadInput: with every unknown key, wrong value, unknown method and missing setting of every step.
    """
    path = Path(path)
    raw = _read(path)
    problems = [
        f"{path}: unknown key {key!r}.{nearest(str(key), _KEYS)} A recipe has 'out' and 'steps', and a queue of "
        "deletions 'requests'"
        for key in raw
        if key not in _KEYS
    ]
    given_out = raw.get("out", str(Path("runs") / path.stem))
    if not isinstance(given_out, str):
        problems.append(f"{path}: out: {given_out!r} is not a path")
    steps: list[Step] = []
    listed = raw.get("steps")
    if not isinstance(listed, list) or not listed:
        problems.append(
            f"{path}: no steps. Give a list, such as\nsteps:\n  - forget: {{model: m, forget_data: f.jsonl}}"
        )
        listed = []
    for number, entry in enumerate(listed, start=1):
        try:
            steps.append(_step(entry, f"{path}, step {number}"))
        except BadInput as error:
            problems += error.problems
    requests = raw.get("requests", [])
    recipe = Recipe(tuple(steps), Path(out or str(given_out)))
    if not isinstance(requests, list):
        problems.append(f"{path}: requests: {requests!r} is not a list of forget sets")
        recipe = queue.any_one(recipe)
    elif "requests" in raw:
        recipe = replace(recipe, requests=tuple(requests))
    problems += faults(recipe, allow_code=allow_code, where=f"{path}, ")
    if problems:
        raise BadInput(problems)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML; `load_recipe` of it is the same recipe."""
    steps = [{step.verb: _plain(step)} for step in recipe.steps]
    queued: dict[str, Any] = {}
    if recipe.requests is not None:
        own = [queue.own_settings(entry, "request") for entry in recipe.requests]
        queued["requests"] = [{verb: _plain(Step(verb, given)) for verb, given in one.items()} for one in own]
    return yaml.safe_dump({"out": str(recipe.out), **queued, "steps": steps}, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"recipe {path}: cannot be read ({error.strerror}). Give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"recipe {path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise BadInput(f"recipe {path}: holds {type(raw).__name__}, not a mapping. A recipe has 'out' and 'steps'")
    if "stages" in raw:
        raise BadInput(
            f"recipe {path}: says what a run did, with every setting resolved. A recipe has 'out' and 'steps'; "
            "a run is continued by the command that began it"
        )
    return raw


def _step(entry: Any, where: str) -> Step:
    """A step from `verb`, or from a mapping of one verb to its settings."""
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise BadInput(
            f"{where}: {entry!r} is not a step. A step is one verb with its settings: {', '.join(verbs.VERBS)}"
        )
    ((verb, settings),) = entry.items()
    if verb not in verbs.VERBS:
        known = ", ".join(verbs.VERBS)
        raise BadInput(f"{where}: {verb!r} is not a verb.{nearest(str(verb), verbs.VERBS)} Known: {known}")
    if settings is not None and not isinstance(settings, dict):
        raise BadInput(f"{where}, {verb}: {settings!r} is not a mapping of settings")
    return Step(verb, {str(key): value for key, value in (settings or {}).items()})


def _plain(step: Step) -> dict[str, Any]:
    kinds = verbs.kinds(step.verb)
    return {
        name: describe(value) if name in kinds and not isinstance(value, str | Mapping) else plain(value)
        for name, value in step.settings.items()
    }


# --- checking


def faults(recipe: Recipe, *, allow_code: bool, where: str = "") -> list[str]:
    """Every fault of a recipe's settings, in words."""
    if recipe.requests is None:
        return _faults_of_chain(recipe, allow_code=allow_code, where=where)
    if problems := queue.faults(recipe, where):
        return [*problems, *_faults_of_chain(queue.any_one(recipe), allow_code=allow_code, where=where)]
    of_each = [_faults_of_chain(chain, allow_code=allow_code) for chain in queue.expand(recipe)]
    # What is wrong in all of them is wrong in the steps that they share.
    shared = [problem for problem in of_each[0] if all(problem in others for others in of_each)]
    own = [
        f"{where}request {number}, {problem}"
        for number, problems in enumerate(of_each, start=1)
        for problem in problems
        if problem not in shared
    ]
    return [*(f"{where}{problem}" for problem in shared), *own]


def _faults_of_chain(recipe: Recipe, *, allow_code: bool, where: str = "") -> list[str]:
    problems: list[str] = []
    seen: dict[str, int] = {}
    made = False  # whether an earlier step makes the model of this one
    for number, step in enumerate(recipe.steps, start=1):
        place = f"{where}step {number}, {step.verb}"
        if step.verb in seen:
            problems.append(
                f"{place}: step {seen[step.verb]} is {step.verb!r} too. A run holds one stage of each verb; "
                "give this one a recipe, and an out, of its own"
            )
        seen.setdefault(step.verb, number)
        values = dict(step.settings)
        if values.pop("out", None) is not None:
            problems.append(f"{place}: unknown key 'out'. All steps share the recipe's own 'out'")
        if made:
            values.setdefault("model", "the step before")
        made = made or step.verb not in verbs.MAKE_NO_MODEL
        if not allow_code:
            problems += [f"{place}.{problem}" for problem in verbs.own_code(step.verb, values)]
            values = {name: value for name, value in values.items() if not verbs.own_code(step.verb, {name: value})}
        try:
            verbs.resolve(step.verb, values, where=place)
        except BadInput as error:
            problems += error.problems
    return problems


def check_inputs(recipe: Recipe) -> list[str]:
    """Read every file and inspect every model that the steps name; what is worth knowing before they begin.

    Raises:
        BadInput: with all faults.
    """
    if recipe.requests is not None:
        return queue.check(recipe)
    checks = [check for step in recipe.steps for check in _checks(step)]
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))  # two steps may share a faulty file
    return []


def _checks(step: Step) -> Iterable[Callable[[], Any]]:
    from letheon.data.records import read_records
    from letheon.models import inspect_model
    from letheon.quantization.reading import inspect_any

    given = {name: value for name, value in step.settings.items() if value is not None}
    columns = given.get("columns")
    # The reference of a benchmark may be a log, which the benchmark itself reads.
    models = ("model",) if step.verb == "benchmark" else _MODELS
    for name in (name for name in models if name in given):
        role = "MODEL" if name == "model" else name
        look = inspect_any if name == "shipped" else inspect_model
        yield lambda path=given[name], role=role, look=look: look(Path(path), role=role)  # type: ignore[misc]
    for name in (name for name in _RECORDS if name in given):
        role = name.removesuffix("_data")
        yield lambda path=given[name], role=role: read_records(Path(path), role=role, columns=columns)  # type: ignore[misc]


# --- running


def run(
    recipe: Recipe | Path | str,
    *,
    out: Path | str | None = None,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Run every step of a recipe, for each request where it is a queue of them; what is done already is skipped.

    Args:
        recipe: a YAML file, or a Recipe.
        out: the run folder, instead of the recipe's.
        allow_code: whether a YAML file may name methods that are files of Python.
        progress: where lines for a person go; by default standard error.
    Raises:
        BadInput: with all faults of all steps, before the first begins.  CannotFinish: from a step.
    """
    if isinstance(recipe, Recipe):
        chain = replace(recipe, out=Path(out or recipe.out))
        problems = faults(chain, allow_code=True)
        if problems:
            raise BadInput(problems)
    else:
        chain = load_recipe(recipe, out=out, allow_code=allow_code)
    progress = progress or Progress()
    for worth_knowing in check_inputs(chain):
        progress.warn(worth_knowing)
    if chain.requests is None:
        return _run_chain(chain, progress)
    done: list[RunResult] = []
    chains = queue.expand(chain)
    for number, one in enumerate(chains, start=1):
        progress.say(f"request {number} of {len(chains)}")
        done.append(_run_chain(one, progress))
    return RunResult(chain.out, done[-1].results, tuple(done))


def _run_chain(chain: Recipe, progress: Progress) -> RunResult:
    """Every step in the recipe's run folder."""
    results: dict[str, Any] = {}
    rounded: Path | None = None  # what was quantized
    for number, step in enumerate(chain.steps, start=1):
        progress.say(f"step {number} of {len(chain.steps)}: {step.verb}")
        values = {**_from_before(step, results, rounded=rounded), **step.settings, "out": chain.out}
        model = values.pop("model")
        results[step.verb] = verbs.function(step.verb)(model, progress=progress, **values)
        rounded = Path(model) if step.verb == "quantize" else rounded
    return RunResult(chain.out, results)


def _from_before(step: Step, results: Mapping[str, Any], *, rounded: Path | None) -> dict[str, Any]:
    """The model that a step works on when it names none: the folder made last.

    An audit is of the model that forgot, at full precision; what was quantized from it is the file that ships. So an
    audit of another model than this one, or than the `rounded` one, gets no such file.
    """
    folders = {name: result.folder for name, result in results.items() if name not in verbs.MAKE_NO_MODEL}
    full = [folder for name, folder in folders.items() if name != "quantize"]
    if step.verb == "audit" and full and rounded is not None:
        same = {Path(path).resolve() for path in (step.settings.get("model", full[-1]), full[-1], rounded)}
        return {"model": full[-1], **({"shipped": folders["quantize"]} if len(same) == 1 else {})}
    return {"model": list(folders.values())[-1]} if folders else {}
