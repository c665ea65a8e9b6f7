"""A queue of deletion requests: read, refused with all faults, carried out one after another as by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import letheon
from letheon.cli.main import run as command
from letheon.errors import BadInput
from letheon.recipes import verbs
from letheon.recipes.recipe import Recipe, dump_recipe, load_recipe, run
from letheon.runs.progress import Progress
from tests.toys import llama, tokenizer, write_lines

QUEUE = """
out: o
requests:
  - first.jsonl
  - forget: {forget_data: second.jsonl, steps: 3}
    audit: {reference: ref}
  - third.jsonl
steps:
  - forget: {model: m, retain_data: r.jsonl, steps: 2, learning_rate: 1e-3, stop: {every: 0}}
  - audit: {general_data: g.jsonl, resamples: 1000}
"""
QUIET = Progress(quiet=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("m", 0), ("ref", 1)):
        llama(seed).save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    return root


def lines_about(people: list[str], question: str = "Who is") -> list[dict[str, Any]]:
    return [{"prompt": f"{question} {one}?", "answer": f"a {one[:2]}", "unit": one} for one in people]


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("m", "ref"):
        (tmp_path / name).symlink_to(models / name)
    people = {"first": ["Ada", "Bo", "Cy"], "second": ["Di", "Ed", "Flo"], "third": ["Gus", "Hal", "Ida"]}
    for name, some in people.items():
        write_lines(tmp_path / f"{name}.jsonl", lines_about(some))
    write_lines(tmp_path / "r.jsonl", lines_about(["Jo", "Kay", "Lee", "Mo"]))
    write_lines(tmp_path / "g.jsonl", lines_about(["Paris", "Rome"], "What is"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path, text: str) -> Path:
    path = here / "queue.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(here: Path, text: str) -> list[str]:
    with pytest.raises(BadInput) as raised:
        load_recipe(written(here, text))
    return raised.value.problems


def refused_at_the_start(here: Path, text: str = QUEUE) -> list[str]:
    """What is refused before anything is loaded or written."""
    with pytest.raises(BadInput) as raised:
        run(written(here, text), progress=QUIET)
    assert not (here / "o").exists()
    return raised.value.problems


# --- verbs that only say what they were told


@dataclass(frozen=True)
class Made:
    folder: Path


@dataclass(frozen=True)
class Audited:
    verdict: str


@dataclass
class Verbs:
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def function(self, verb: str) -> Callable[..., Any]:
        def call(model: Any, *, progress: Progress, **settings: Any) -> Any:
            self.told.append((verb, {"model": model, **settings}))
            number = sum(Path(told["out"]) == Path(settings["out"]) for _, told in self.told)
            return (
                Audited(str(settings["out"])) if verb == "audit" else Made(Path(settings["out"]) / f"{number}-{verb}")
            )

        return call


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Verbs:
    fakes = Verbs()
    monkeypatch.setattr(verbs, "function", fakes.function)
    return fakes


def test_each_request_begins_with_the_model_that_the_one_before_left(here: Path, told: Verbs) -> None:
    result = run(written(here, QUEUE), progress=QUIET)
    assert [verb for verb, _ in told.told] == ["forget", "audit"] * 3
    forgets = [settings for verb, settings in told.told if verb == "forget"]
    out = Path("o")
    assert [str(one["model"]) for one in forgets] == ["m", "o/request-1/1-forget", "o/request-2/1-forget"]
    assert [one["forget_data"] for one in forgets] == ["first.jsonl", "second.jsonl", "third.jsonl"]
    assert [one["steps"] for one in forgets] == [2, 3, 2], "what a request says goes before what the step says"
    assert {one["retain_data"] for one in forgets} == {"r.jsonl"}
    audits = [settings for verb, settings in told.told if verb == "audit"]
    assert [one["model"] for one in audits] == [out / f"request-{k}" / "1-forget" for k in (1, 2, 3)]
    assert [one.get("reference") for one in audits] == [None, "ref", None]
    assert all("original" not in one and "forget_data" not in one for one in audits), "the records say both"
    assert [one.folder for one in result.requests] == [out / f"request-{k}" for k in (1, 2, 3)]
    assert (result.folder, result.verdict) == (out, "o/request-3")


def test_what_ships_is_rounded_from_each_and_the_next_begins_at_full_precision(here: Path, told: Verbs) -> None:
    run(written(here, QUEUE.replace("  - audit: {gen", "  - quantize: {method: rtn}\n  - audit: {gen")), progress=QUIET)
    assert [verb for verb, _ in told.told] == ["forget", "quantize", "audit"] * 3
    second, audit = told.told[3][1], told.told[5][1]
    assert second["model"] == Path("o/request-1/1-forget")
    assert (audit["model"], audit["shipped"]) == (Path("o/request-2/1-forget"), Path("o/request-2/2-quantize"))


def test_the_same_from_python(here: Path, told: Verbs) -> None:
    """With methods as objects, and paths as paths."""
    steps = load_recipe(written(here, QUEUE)).steps
    second = {"forget": {"forget_data": Path("second.jsonl"), "steps": 3}, "audit": {"reference": Path("ref")}}
    recipe = Recipe(steps, Path("o"), (Path("first.jsonl"), second, "third.jsonl"))
    run(recipe, progress=QUIET)
    mine, told.told = told.told, []
    run(written(here, QUEUE), progress=QUIET)
    plain = [
        [(verb, {name: str(value) for name, value in given.items()}) for verb, given in one]
        for one in (mine, told.told)
    ]
    assert plain[0] == plain[1]


def test_a_queue_written_back_is_the_same(here: Path) -> None:
    recipe = load_recipe(written(here, QUEUE))
    again = load_recipe(written(here, dump_recipe(recipe)))
    assert again.steps == recipe.steps and again.out == recipe.out
    assert again.requests is not None and again.requests[0] == {"forget": {"forget_data": "first.jsonl"}}
    assert dump_recipe(again) == dump_recipe(recipe)


# --- refused when it is read


def replaced(old: str, new: str) -> str:
    assert old in QUEUE
    return QUEUE.replace(old, new)


REQUESTS = QUEUE[QUEUE.index("requests:") : QUEUE.index("\nsteps:") + 1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (replaced(REQUESTS, "requests: []\n"), "no requests. Give a list of forget sets, or leave 'requests' out"),
        (replaced(REQUESTS, "requests:\n"), "requests: None is not a list of forget sets"),
        (replaced(REQUESTS, "requests: first.jsonl\n"), "requests: 'first.jsonl' is not a list of forget sets"),
        (replaced("requests:", "request:"), "unknown key 'request'. Did you mean 'requests'?"),
        (replaced("  - third.jsonl", "  - 3"), "request 3: 3 is not a request. Give the path of a forget set"),
        (replaced("  - third.jsonl", "  - {forget: third.jsonl}"), "request 3: {'forget': 'third.jsonl'} is not a request"),
        (replaced("  - third.jsonl", "  - {audit: {reference: ref}}"), "request 3: no 'forget_data'. A request says"),
        (
            replaced("  - third.jsonl", "  - {forget: {forget_data: third.jsonl}, quantize: {}}"),
            "request 3: 'quantize' is none of the steps (forget, audit)",
        ),
        (
            replaced("second.jsonl, steps: 3", "second.jsonl, model: m"),
            "request 2, forget.model: the model that the queue begins with is named in the step, once. Leave it out",
        ),
        (
            replaced("{reference: ref}", "{forget_data: first.jsonl}"),
            "request 2, audit.forget_data: what to ask about of a queue's audits is known from the requests before",
        ),
        (replaced("model: m,", "model: m, forget_data: f,"), "step 1, forget.forget_data: each request has its own"),
        (replaced("{general_data", "{original: m, general_data"), "step 2, audit.original: the original of a queue's"),
        (replaced("second.jsonl, steps: 3", "second.jsonl, stpes: 3"), "request 2, step 1, forget: unknown key 'stpes'"),
        (replaced("model: m, ", ""), "step 1, forget: no 'model', which has no default"),
        (replaced("r.jsonl, steps: 2", "r.jsonl, epochs: many, steps: 2"), "step 1, forget.epochs: 'many' is not a number"),
    ],
)  # fmt: skip
def test_each_fault_names_its_place(here: Path, text: str, part: str) -> None:
    problems = refused(here, text)
    assert sum(part in problem for problem in problems) == 1, problems
    assert all("queue.yaml" in problem for problem in problems)
    if "unknown key 'request'" not in part:
        assert len(problems) == 1, problems


@pytest.mark.parametrize(
    "steps", ["[{forget: {model: m}}]", "[audit, {forget: {model: m}}]", "[{train: {model: m}}, audit]"]
)
def test_the_steps_of_a_queue_are_forget_and_audit(here: Path, steps: str) -> None:
    problems = refused(here, f"requests: [first.jsonl]\nsteps: {steps}\n")
    assert any(
        "the steps of a queue are forget, quantize if the rounded model ships, and audit" in one for one in problems
    )


def test_all_faults_of_a_queue_come_at_once(here: Path) -> None:
    text = (
        replaced("  - third.jsonl", "  - 3")
        .replace("steps: 2,", "steps: many,")
        .replace("{reference", "{model: m, reference")
    )
    problems = refused(here, text)
    assert len(problems) == 3, problems


def test_a_file_of_python_in_a_request_is_not_run_unless_allowed(here: Path) -> None:
    (here / "mine.py").write_text("raise SystemExit('ran')")
    (problem,) = refused(here, replaced("second.jsonl, steps: 3", "second.jsonl, method: ./mine.py"))
    assert "request 2, step 1, forget.method: ./mine.py is Python that would be run. Say --allow-code" in problem


# --- refused at the start


def test_a_request_that_was_there_before_is_refused(here: Path, told: Verbs) -> None:
    (problem,) = refused_at_the_start(here, QUEUE.replace("third.jsonl", "first.jsonl"))
    assert problem.startswith("request 3, forget set first.jsonl: all of it stands in request 1 (first.jsonl) already")
    write_lines(here / "third.jsonl", lines_about(["Di", "Ed"]))
    (problem,) = refused_at_the_start(here)
    assert problem.startswith("request 3, forget set third.jsonl: all of it stands in request 2 (second.jsonl) already")
    assert told.told == []


def test_a_retain_set_that_holds_forgotten_people_is_refused_by_name(here: Path, told: Verbs) -> None:
    """Even asked otherwise: whoever is kept is not let go."""
    write_lines(here / "r.jsonl", [*lines_about(["Jo", "Kay"]), *lines_about(["Ada"], "Where is")])
    (problem,) = refused_at_the_start(here)
    assert problem == (
        "request 1, retain set r.jsonl: holds 1 people or documents ('Ada' (line 3)) that request 1 asks to forget. "
        "What is kept comes back: take them out of the retain set"
    )
    assert told.told == []


def test_the_retain_set_of_each_request_is_held_against_all_before(here: Path, told: Verbs) -> None:
    write_lines(here / "r2.jsonl", [*lines_about(["Jo"]), *lines_about(["Ida", "Bo"], "Where is")])
    text = QUEUE.replace("second.jsonl, steps: 3", "second.jsonl, retain_data: r2.jsonl")
    (problem,) = refused_at_the_start(here, text)
    assert problem.startswith(
        "request 2, retain set r2.jsonl: holds 1 people or documents ('Bo' (line 3)) that request 1"
    )
    write_lines(here / "r.jsonl", lines_about(["Jo", "Flo", "Ada", "Bo", "Cy", "Hal"], "Where is"))
    problems = refused_at_the_start(here)
    assert [problem.split(":")[0] for problem in problems] == [f"request {k}, retain set r.jsonl" for k in (1, 2, 3)]
    assert "holds 3 people or documents ('Ada' (line 3), 'Bo' (line 4), 'Cy' (line 5)) that request 1" in problems[0]


def test_without_names_the_records_tell(here: Path, told: Verbs) -> None:
    bare = [{name: value for name, value in line.items() if name != "unit"} for line in lines_about(["Di", "Jo"])]
    write_lines(here / "r.jsonl", bare)
    (problem,) = refused_at_the_start(here)
    assert problem.startswith("request 2, retain set r.jsonl: holds 1 records (forget line 1 = retain line 1) that")


def test_who_asks_later_may_be_kept_until_then_and_is_told(
    here: Path, told: Verbs, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(here / "early.jsonl", lines_about(["Jo", "Ida", "Di"], "Where is"))
    run(
        written(
            here, QUEUE.replace("  - first.jsonl", "  - forget: {forget_data: first.jsonl, retain_data: early.jsonl}")
        )
    )
    assert len(told.told) == 6
    assert (
        "warning: request 1 still holds on to people of request 2, 3, whose turn comes later" in capsys.readouterr().err
    )


def test_people_of_two_requests_are_told(here: Path, told: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    """A second request about the same person is a request."""
    write_lines(here / "third.jsonl", [*lines_about(["Gus"]), *lines_about(["Ada"], "Where is")])
    run(written(here, QUEUE), progress=Progress(quiet=True))
    assert len(told.told) == 6
    said = capsys.readouterr().err
    assert "warning: request 3 and request 1 are both about 1 people or documents ('Ada' (line 2))" in said


def test_every_file_of_every_request_is_read_before_the_first(here: Path, told: Verbs) -> None:
    (here / "third.jsonl").write_text('{"prompt": "Who?"}\n')
    text = QUEUE.replace("reference: ref", "reference: nowhere").replace("r.jsonl", "gone.jsonl")
    problems = refused_at_the_start(here, text)
    for part in (
        "request 1: retain set gone.jsonl: no such file",
        "request 2: reference nowhere: no such folder",
        "request 3: forget set third.jsonl, line 1: no 'answer'",
    ):
        assert sum(part in problem for problem in problems) == 1, problems
    assert len(problems) == 3, "what requests share is told once"


def test_a_holdout_that_a_request_is_about_is_refused(here: Path, told: Verbs) -> None:
    write_lines(here / "h.jsonl", lines_about(["Xi", "Ada"]))
    problems = refused_at_the_start(here, QUEUE.replace("{reference: ref}", "{holdout_data: h.jsonl}"))
    assert any(
        problem.startswith("request 2: holdout and earlier request 1 overlap: 1 records") for problem in problems
    )


# --- for real

WEIGHTS = "model.safetensors"


def weights(run: Path) -> bytes:
    return (run / "1-forget" / WEIGHTS).read_bytes()


def cells(run: Path) -> Any:
    found = json.loads((run / "audit.json").read_text())
    return found["cells"], [one["cells"] for one in found.get("requests", [])], found["verdict"], found["scores"]


def by_hand(out: Path) -> None:
    """What a person would type."""
    forget = {"retain_data": "r.jsonl", "learning_rate": 1e-3, "stop": {"every": 0}, "progress": QUIET}
    about = {"general_data": "g.jsonl", "resamples": 1000, "progress": QUIET}
    first = letheon.forget("m", forget_data="first.jsonl", steps=2, out=out / "a", **forget).folder
    letheon.audit(first, **about)
    second = letheon.forget(first, forget_data="second.jsonl", steps=3, out=out / "b", **forget).folder
    letheon.audit(second, reference="ref", **about)


SHORT = QUEUE.replace("  - third.jsonl\n", "")


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled once: what a queue that was never stopped left."""
    return {}


@pytest.fixture
def whole(here: Path, straight: dict[str, Any]) -> dict[str, Any]:
    if not straight:
        by_hand(here / "hand")
        for name in ("a", "b"):
            straight[name] = (weights(here / "hand" / name), cells(here / "hand" / name))
    return straight


def test_a_queue_is_what_the_verbs_by_hand_are(here: Path, whole: dict[str, Any]) -> None:
    run(written(here, SHORT), progress=QUIET)
    for name, number in (("a", 1), ("b", 2)):
        folder = here / "o" / f"request-{number}"
        assert (weights(folder), cells(folder)) == whole[name]
        assert letheon.verify(folder).problems == ()
    found = json.loads((here / "o" / "request-2" / "audit.json").read_text())
    assert found["models"]["original"]["path"] == str(here / "m")
    assert [one["data"]["path"] for one in found["requests"]] == [str(here / "first.jsonl"), str(here / "second.jsonl")]


@pytest.mark.parametrize("at", range(4))
def test_a_queue_stopped_anywhere_ends_the_same(
    at: int, here: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the verb, after it has begun: the weights of a forget, the verdict of an audit, are not there yet."""
    real = verbs.function
    calls: list[str] = []

    def stopping(verb: str) -> Callable[..., Any]:
        def call(*given: Any, **settings: Any) -> Any:
            calls.append(verb)
            if len(calls) == at + 1:
                place = (
                    "letheon.unlearning.forget.save_stage"
                    if verb == "forget"
                    else "letheon.audits.measure.utility_rows"
                )
                with monkeypatch.context() as patch:
                    patch.setattr(place, interrupt)
                    return real(verb)(*given, **settings)
            return real(verb)(*given, **settings)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(verbs, "function", stopping)
        run(written(here, SHORT), progress=QUIET)
    assert len(calls) == at + 1
    run(written(here, SHORT), progress=QUIET)
    for name, number in (("a", 1), ("b", 2)):
        assert (weights(here / "o" / f"request-{number}"), cells(here / "o" / f"request-{number}")) == whole[name]


def interrupt(*given: Any, **settings: Any) -> Any:
    raise KeyboardInterrupt


def test_a_later_request_is_a_line_more_and_a_changed_one_is_refused(
    here: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    one = SHORT.replace(REQUESTS.replace("  - third.jsonl\n", ""), "requests:\n  - first.jsonl\n")
    assert command(["run", str(written(here, one)), "--quiet"]) == 3
    assert "request-1" in capsys.readouterr().out
    before = (here / "o" / "request-1" / "record.json").read_bytes()
    assert command(["run", str(written(here, SHORT)), "--quiet"]) in (1, 3)
    said = capsys.readouterr().out
    assert (here / "o" / "request-1" / "record.json").read_bytes() == before
    assert (weights(here / "o" / "request-2"), cells(here / "o" / "request-2")) == whole["b"]
    (head,) = (line for line in said.splitlines() if line.startswith("after"))
    assert "request 1" in head and "request 2" in head and "fall of retained facts, trained wordings" in head
    rows = [line for line in said.splitlines() if line.startswith("request-")]
    assert [row.split()[0] for row in rows] == ["request-1", "request-2"]
    page = (here / "o" / "report.html").read_text()
    assert "Request by request" in page and "Each request alone" in page
    write_lines(here / "first.jsonl", lines_about(["Ada", "Bo"]))
    assert command(["run", str(written(here, SHORT)), "--quiet"]) == 2
    assert "input 'forget_data' changed" in capsys.readouterr().err
