"""Ask a model the questions of a published benchmark, with that benchmark's own definitions.

Writes benchmark.json (every figure, and the number of every item that it is made of) and items.jsonl (raw prompts and
answers; may be purged) into a run folder. What was measured is kept set by set, so a run that was stopped goes on.

Source: this project.  Checked against: figures made again from benchmark.json; a killed run; one test for each fault.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from letheon.audits.itemized import Figure, Measured, Resampling, Table, Tables
from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder
from letheon.errors import BadInput, CannotFinish, NotMeasured, require
from letheon.methods import build, build_draft, describe, name_of
from letheon.models import ModelFolder, load_tokenizer, pick_device
from letheon.quantization.reading import inspect_any, load_any
from letheon.runs.folder import sha256_file, sha256_folder, write_json, write_text
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, Stage, made_by
from letheon.settings import draft, plain
from letheon.training.losses import Body
from letheon.training.prepare import collect, environment

SCHEMA = "letheon.benchmark/1"
LOG_NAME = "benchmark.json"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of `letheon benchmark`."""

    model: Path
    """The model folder that is asked, dense or of any low-bit format that is read."""
    benchmark: Any
    """Which benchmark, a method of kind `benchmark`. Its data are your own copy, by path."""
    reference: Path | None = None
    """A model that never saw the forget set, or the benchmark.json (or run folder) of this benchmark on it. Where a
    number needs it and it is not given, that number is not measured. Of lm_eval's tasks: the original."""
    out: Path | None = None
    """The run folder; null: runs/MODEL-BENCHMARK."""
    seed: int = 0
    """Of the resampling."""
    resamples: int = 10_000
    """Resamples of an interval, at least 1,000."""
    device: str = "auto"
    """auto, cpu, cuda."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
        require(self.resamples >= 1000, f"resamples must be at least 1000, got {self.resamples}")


@dataclass(frozen=True)
class BenchmarkResult:
    """Where the log is, and every figure."""

    run: Path
    log_path: Path
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Request:
    """A checked benchmark: nothing loaded yet."""

    wanted: BenchmarkSettings
    method: Any
    folder: ModelFolder
    reference: ModelFolder | Mapping[str, Any] | None
    """A model to be asked, or the log of one that was."""
    rows: Mapping[str, Any]
    """Set -> its rows, as the benchmark reads them."""
    device: str
    run: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Everything that will be asked, as tokens."""

    encoder: Encoder
    posed: Mapping[str, Any]
    reference: Tables | None
    """From a log; None where a model is asked, or nothing."""


def benchmark(model: Path | str, *, progress: Progress | None = None, **settings: Any) -> BenchmarkResult:
    """Measure `model` by a published benchmark.

    Args:
        model: a model folder.
        progress: where lines for a person go; by default standard error.
        settings: the fields of `BenchmarkSettings`, such as benchmark={"name": "tofu", "data": "tofu"}.
    Raises:
        BadInput: with all faults of all inputs, before anything is loaded.
        CannotFinish: the model's log-probabilities or logits are no numbers.
    """
    progress = progress or Progress()
    request = check_request({"model": model, **settings})
    kept = {
        "benchmark": _as_kept(request.method),
        "seed": request.wanted.seed,
        "resamples": request.wanted.resamples,
    }
    inputs: dict[str, Path | None] = {"model": request.wanted.model, "reference": request.wanted.reference}
    inputs |= {f"data_{name}": file for name, file in _files(request.rows).items()}
    own = name_of(request.method)
    inputs["benchmark_code"] = Path(own) if own.endswith(".py") else None
    run = RunFolder.open(request.run, environment=environment(request.device), allow_changed_machine=True)
    is_done = any(entry.verb == "benchmark" and entry.status == "done" for entry in run.record().stages)
    prepared = None if is_done else prepare(request)
    for warning in request.warnings:
        progress.warn(warning)
    with run.stage("benchmark", kept, inputs, None) as stage:
        if not stage.is_done:
            for warning in request.warnings:
                stage.warn(warning)
            found, said = _measure(request, prepared or prepare(request), kept, stage, progress)
            write_text(run.path / LOG_NAME, _json(found))
            write_text(run.path / "items.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in said))
            stage.produced(run.path / LOG_NAME)
            stage.produced(run.path / "items.jsonl", may_be_purged=True)
    found = read_log(run.path / LOG_NAME)
    return BenchmarkResult(run.path, run.path / LOG_NAME, tuple(Figure(**figure) for figure in found["figures"]))


# --- checking


def check_request(values: Mapping[str, Any]) -> Request:
    """Settings filled, every folder and file read. Raises BadInput with all faults."""
    drafted = draft(BenchmarkSettings, values, where="benchmark")
    wanted = drafted.made
    has_model = "model" not in drafted.faulty

    def method() -> tuple[Any, Mapping[str, Any]]:
        if wanted.benchmark is None:
            return None, {}
        made = build_draft("benchmark", wanted.benchmark, where="benchmark").checked()
        return made, made.read()

    folder, reference, chosen, device, _ = collect(
        lambda: inspect_any(wanted.model) if has_model else None,
        lambda: _reference(wanted.reference),
        method,
        lambda: pick_device(wanted.device),
        drafted.checked,
    )
    made, rows = chosen
    warnings = []
    if isinstance(reference, ModelFolder) and sha256_folder(reference.path) == sha256_folder(folder.path):
        warnings.append(f"reference {reference.path} has the weights of MODEL: it is compared with itself")
    run = wanted.out or Path("runs") / f"{_name(wanted.model)}-{Path(name_of(made)).stem}"
    return Request(wanted, made, folder, reference, rows, device, run, tuple(warnings))


def _name(model: Path) -> str:
    """The model's folder; of one that a run made, the run's name before it."""
    path = model.resolve()
    return f"{path.parent.name}-{path.name}" if made_by(path) else path.name


def _reference(path: Path | None) -> ModelFolder | Mapping[str, Any] | None:
    """A model folder, or the log of a benchmark."""
    if path is None:
        return None
    log = path / LOG_NAME if path.is_dir() else path
    if log.is_file():
        return read_log(log)
    return inspect_any(path, role="reference")


def read_log(path: Path) -> dict[str, Any]:
    """A benchmark.json whose figures are those of its tables.

    Raises BadInput: not a log of this version, damaged, or with figures that its tables do not give.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        is_log = isinstance(found, dict) and found.get("schema") == SCHEMA
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as the log of a benchmark ({error})") from error
    if not is_log:
        raise BadInput(
            f"{path}: is no log of a benchmark ({SCHEMA}). Give a benchmark.json that letheon benchmark wrote"
        )
    try:
        again = [plain(figure) for figure in recomputed(found)]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: is damaged ({type(error).__name__}: {error}). Run the benchmark again") from error
    if again != found["figures"]:
        raise BadInput(f"{path}: its figures are not those of its own items, so one of them was changed. Run it again")
    return dict(found)


def recomputed(log: Mapping[str, Any]) -> list[Figure]:
    """Every figure again, from a log's tables alone."""
    method = build("benchmark", log["settings"]["benchmark"])
    reference = None if log["reference_tables"] is None else _tables(log["reference_tables"])
    how = Resampling(seed=log["settings"]["seed"], resamples=log["settings"]["resamples"])
    figures: list[Figure] = method.figures(_tables(log["tables"]), reference, how)
    return figures


def prepare(request: Request) -> Prepared:
    """Everything that will be asked, as tokens. Raises BadInput: what cannot be encoded, a reference that was asked
    something else.
    """
    encoder = Encoder(load_tokenizer(request.folder.path), max_length=request.folder.window)
    posed, _ = collect(lambda: request.method.pose(request.rows, encoder), lambda: _check_vocabulary(encoder, request))
    if not isinstance(request.reference, Mapping):
        return Prepared(encoder, posed, None)
    _check_log(request.reference, request, posed)
    return Prepared(encoder, posed, _tables(request.reference["tables"]))


def _check_vocabulary(encoder: Encoder, request: Request) -> None:
    """Both models are asked the same tokens, so these must mean the same to both."""
    other = request.reference
    if isinstance(other, ModelFolder) and load_tokenizer(other.path).get_vocab() != encoder.tokenizer.get_vocab():
        raise BadInput(
            f"reference {other.path}: its tokenizer has another vocabulary than that of MODEL {request.folder.path}. "
            "Give a reference of the same family"
        )


def _check_log(log: Mapping[str, Any], request: Request, posed: Mapping[str, Any]) -> None:
    """The log must be of the same benchmark, the same split, the same items and the same tokens."""
    where, mine = f"reference {request.wanted.reference}", _as_kept(request.method)
    theirs = log["settings"]["benchmark"]
    if theirs["name"] != mine["name"]:
        raise BadInput(f"{where}: is a log of {theirs['name']}, not of {mine['name']}")
    of_figures = getattr(request.method, "of_figures", ())
    problems = [
        f"{where}: was made with {name} {theirs.get(name)!r}, and now it is {value!r}. Give a log of the same settings"
        for name, value in mine.items()
        if theirs.get(name) != value and name not in of_figures
    ]
    for name in request.method.for_reference(list(posed)):
        table = log["tables"].get(name)
        if table is None:
            problems.append(f"{where}: holds no items of {name}. Give a whole log of the same benchmark")
        elif len(table["items"]) != len(posed[name].items):
            problems.append(
                f"{where}: holds {len(table['items'])} items of {name}, and MODEL is asked {len(posed[name].items)}. "
                "Give a log of the same split and limit"
            )
        elif log["asked"][name] != _fingerprint(posed[name]):
            problems.append(
                f"{where}: was asked other tokens for {name} (another split, tokenizer, chat template or copy of the "
                "data). Give its model folder instead, or run it again with the same data"
            )
    if problems:
        raise BadInput(problems)


def _fingerprint(posed: Any) -> str:
    """Hash of the items' names and of every token that is asked."""
    parts = [posed.items, [[list(ids), border] for ids, border in posed.tokens()]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# --- measuring


def _measure(
    request: Request, prepared: Prepared, kept: Mapping[str, Any], stage: Stage, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The log as a dictionary, and the raw items."""
    posed, method = prepared.posed, request.method
    asks: list[tuple[str, ModelFolder, list[str]]] = [("model", request.folder, list(posed))]
    if isinstance(request.reference, ModelFolder):
        asks.append(("reference", request.reference, method.for_reference(list(posed))))
    total, count = sum(len(names) for _, _, names in asks), 0

    def advance(role: str, name: str) -> None:
        nonlocal count
        count += 1
        progress.step(count, total, f"{role}: {name}")

    progress.say(f"benchmark: {request.wanted.model}, {name_of(method)}")
    progress.start()
    found = {role: _ask(request, prepared, role, folder, names, stage, advance) for role, folder, names in asks}
    tables = {name: one.table for name, one in found["model"].items()}
    reference = prepared.reference
    if "reference" in found:
        reference = {name: one.table for name, one in found["reference"].items()}
    if reference is not None:
        reference = {name: reference[name] for name in method.for_reference(list(posed))}
    how = Resampling(seed=request.wanted.seed, resamples=request.wanted.resamples)
    figures = method.figures(tables, reference, how)
    log = {
        "schema": SCHEMA,
        "settings": dict(kept),
        "model": {"path": str(request.folder.path), "sha256": sha256_folder(request.folder.path)},
        "reference": _said_of(request),
        "data": {name: {"path": str(file), "sha256": sha256_file(file)} for name, file in _files(request.rows).items()},
        "asked": {name: _fingerprint(one) for name, one in posed.items()},
        "figures": [plain(figure) for figure in figures],
        "tables": {name: plain(table) for name, table in tables.items()},
        "reference_tables": None if reference is None else {name: plain(table) for name, table in reference.items()},
    }
    said = [{"model": role, **line} for role, sets in found.items() for one in sets.values() for line in one.said]
    return log, said


def _ask(
    request: Request,
    prepared: Prepared,
    role: str,
    folder: ModelFolder,
    names: Sequence[str],
    stage: Stage,
    advance: Callable[[str, str], None],
) -> dict[str, Measured]:
    """Every set of one model; what an earlier start has measured is read."""
    files = {name: stage.work / f"{role}-{name}.json" for name in names}
    missing = [name for name in names if not files[name].is_file()]
    if missing:
        model = load_any(folder.path, device=request.device)
        scorer = Scorer(model, Body(model), prepared.encoder, request.device)
        for name in missing:
            try:
                measured = request.method.measure(prepared.posed[name], scorer)
            except NotMeasured as reason:
                raise CannotFinish(f"{role} {folder.path}, {name}: {reason}") from reason
            write_json(files[name], plain(Measured(measured.table.rounded(), measured.said)))
            stage.keep_time()
            advance(role, name)
    done: dict[str, Measured] = {}
    for name, file in files.items():
        read = json.loads(file.read_text(encoding="utf-8"))
        done[name] = Measured(Table.of(read["table"]), tuple(read["said"]))
    return done


# --- writing


def _as_kept(method: Any) -> dict[str, Any]:
    """The benchmark and its settings without paths: what a figure is made from does not depend on a place."""
    paths = {field.name for field in fields(method) if "Path" in str(field.type)}
    return {name: value for name, value in describe(method).items() if name not in paths}


def _files(rows: Mapping[str, Any]) -> dict[str, Path]:
    return {name: file.path for name, file in rows.items() if file.path is not None}


def _said_of(request: Request) -> dict[str, str] | None:
    if request.reference is None:
        return None
    if isinstance(request.reference, ModelFolder):
        return {"path": str(request.reference.path), "sha256": sha256_folder(request.reference.path)}
    return {"path": str(request.wanted.reference), "sha256": request.reference["model"]["sha256"], "kind": "log"}


def _tables(given: Mapping[str, Any]) -> dict[str, Table]:
    return {name: Table.of(table) for name, table in given.items()}


def _json(found: Mapping[str, Any]) -> str:
    """One line a section, and a line a figure or a set."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def section(value: Any) -> str:
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(map(line, value)) + "\n ]"
        if isinstance(value, dict) and value:
            return "{\n  " + ",\n  ".join(f"{line(key)}: {line(one)}" for key, one in value.items()) + "\n }"
        return line(value)

    return "{\n " + ",\n ".join(f"{line(name)}: {section(value)}" for name, value in found.items()) + "\n}\n"
