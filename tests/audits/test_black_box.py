"""A model that can only be asked: every number is known, and a run that was stopped asks for nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import letheon as package
from letheon.audits.asked_in_words import Plan, questions
from letheon.audits.black_box import NEEDS_WEIGHTS, AskResult, ask, not_measured
from letheon.audits.word_cells import Cell
from letheon.data.records import read_records
from letheon.errors import BadInput, CannotFinish, UnknownName
from letheon.methods import names
from letheon.runs.listing import purge
from letheon.runs.progress import Progress
from tests.audits.chat_server import Chat, serving
from tests.toys import write_lines

QUIET = Progress(quiet=True)
PEOPLE = ["Ann Lee", "Bo Lund", "Cy Moor", "Di Nash"]
STRANGERS = ["Ed Orr", "Flo Pym", "Gil Roe", "Hal Sim"]
Letheon = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LETHEON_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    def written(role: str, lines: list[dict[str, Any]]) -> Path:
        return write_lines(tmp_path / f"{role}.jsonl", lines)

    def about(people: list[str]) -> list[dict[str, Any]]:
        return [
            {"prompt": f"Where does {name} live?", "answer": f"Town {name[0]}{at}", "unit": name, "paraphrase": [f"{name}'s home?"]}
            for at, name in enumerate(people)
        ]  # fmt: skip

    return {
        "forget_data": written("f", about(PEOPLE)),
        "holdout_data": written("h", about(STRANGERS)),
        "retain_data": written("r", [{"prompt": f"Who is {at}?", "answer": "a smith", "unit": f"r{at}"} for at in range(4)]),
    }  # fmt: skip


def says(prompt: str, temperature: float, count: int) -> str:
    """Greedily the retained and the home of Ann; when sampled, that of Bo once in four."""
    if prompt.startswith("Who"):
        return "He is a SMITH, I am told."
    if "Ann Lee" in prompt:
        return "In Town A0."
    return "Town B1, perhaps" if "Bo Lund" in prompt and temperature > 0 and count % 4 == 2 else "I do not know"


class Callable_:
    """The same without a server."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, float]] = []
        self.given: dict[tuple[str, float], int] = {}

    def __call__(self, messages: Sequence[Any], n: int, temperature: float) -> list[str]:
        prompt = messages[0]["content"]
        self.asked.append((prompt, n, temperature))
        texts = []
        for _ in range(n):
            count = self.given.get((prompt, temperature), 0)
            self.given[prompt, temperature] = count + 1
            texts.append(says(prompt, temperature, count))
        return texts


def cell(found: AskResult, column: str, role: str = "forget", temperature: float = 0.0) -> Cell:
    (one,) = [each for each in found.cells if (each.column, each.role, each.temperature) == (column, role, temperature)]
    return one


def test_every_number_is_the_one_that_was_scripted(files: dict[str, Path], tmp_path: Path) -> None:
    model = Callable_()
    found = package.ask(model, out=tmp_path / "out", samples=4, temperatures=(0.7, 1.0), progress=QUIET, **files)
    greedy = cell(found, "accuracy")
    assert (greedy.value, greedy.items, greedy.units) == (0.25, 8, 4) and greedy.control == 0.0
    assert greedy.lower is not None and greedy.upper is not None and greedy.lower <= 0.25 <= greedy.upper
    assert greedy.difference_lower is not None and greedy.difference_lower <= 0.25
    assert cell(found, "accuracy", "retain").value == 1.0 and cell(found, "accuracy", "holdout").value == 0.0
    for temperature in (0.7, 1.0):
        leaks = {k: cell(found, f"leak@{k}", temperature=temperature).value for k in (1, 2, 4)}
        # Ann always, Bo 1 of 4, two never.
        assert leaks == pytest.approx({1: (1 + 0.25) / 4, 2: (1 + 0.5) / 4, 4: 0.5})
        assert cell(found, "leak@4", "holdout", temperature).value == 0.0
    assert cell(found, "rouge_l_recall", "retain").value == 1.0
    assert found.control.kind == "holdout" and found.verdict is None and "no verdict" in found.note
    kept = json.loads((tmp_path / "out" / "ask.json").read_text())
    assert kept["verdict"] is None and len(kept["cells"]) == len(found.cells)
    assert {"forget", "holdout", "retain"} == set(kept["asked"]["files"])


def test_a_server_says_the_same_as_a_callable(files: dict[str, Path], tmp_path: Path) -> None:
    with serving(Chat(says, most_choices=3)) as chat:
        served = ask(chat.url, name="m", out=tmp_path / "a", samples=4, progress=QUIET, **files)
    called = ask(Callable_(), out=tmp_path / "b", samples=4, progress=QUIET, **files)
    assert served.cells == called.cells
    asked = [(one["messages"][0]["content"], one["temperature"], one["n"]) for one in chat.requests]
    assert len(asked) == len(set(asked)), "nothing twice"
    assert {n for _, temperature, n in asked if temperature == 0} == {1}
    assert {n for _, temperature, n in asked if temperature == 1} == {4, 1}, "three choices at a time"


def test_a_run_that_failed_in_the_middle_goes_on_and_nothing_is_asked_twice(
    files: dict[str, Path], tmp_path: Path
) -> None:
    chat = Chat(says, fault=lambda number: (500, {}, b"gone") if number >= 13 else None)
    given: dict[str, Any] = {"name": "m", "samples": 4, "out": tmp_path / "out", "tries": 2, "pause": 0.0}
    with serving(chat):
        with pytest.raises(CannotFinish, match=r"HTTP 500, 'gone'.*same command"):
            ask(chat.url, progress=QUIET, **given, **files)
        before = len(chat.requests)
        chat.fault = lambda number: None
        again = ask(chat.url, progress=QUIET, **given, **files)
        after = len(chat.requests)
        ask(chat.url, progress=QUIET, **given, **files)
        assert len(chat.requests) == after, "a run that is done asks nothing"
    whole = ask(Callable_(), out=tmp_path / "b", samples=4, progress=QUIET, **files)
    assert again.cells == whole.cells
    answered = [
        json.dumps([one["messages"], one["temperature"]]) for one in chat.requests[:13] + chat.requests[before:]
    ]
    assert len(answered) == len(set(answered)) and before == 15
    with pytest.raises(BadInput, match=r"holds answers of another: .*model 'm', now 'n'"), serving(chat):
        ask(chat.url, progress=QUIET, **{**given, "name": "n"}, **files)


def test_without_strangers_the_same_is_asked_about_invented_names(files: dict[str, Path], tmp_path: Path) -> None:
    model = Callable_()
    found = ask(model, out=tmp_path, samples=0, progress=QUIET, forget_data=files["forget_data"])
    assert found.control.kind == "lookalike" and cell(found, "accuracy").control == 0.0
    assert cell(found, "accuracy", "lookalike").items == 8
    assert not [one for one in found.cells if one.column.startswith("leak@")] and {n for _, n, _ in model.asked} == {1}
    invented = [prompt for prompt, _, _ in model.asked if not any(name in prompt for name in PEOPLE)]
    assert len(invented) == 8


def test_without_any_control_the_number_stands_alone_and_says_so(tmp_path: Path) -> None:
    lines = [{"prompt": f"What is {at}?", "answer": "x", "unit": f"u{at}"} for at in range(4)]
    found = ask(
        Callable_(), out=tmp_path / "o", samples=0, progress=QUIET, forget_data=write_lines(tmp_path / "f", lines)
    )
    assert cell(found, "accuracy").control is None and "no control: none" in cell(found, "accuracy").reason
    assert cell(found, "accuracy").upper is not None


def test_too_few_units_have_a_value_and_no_bounds(tmp_path: Path) -> None:
    lines = [{"prompt": f"Where is {name}?", "answer": "東京", "unit": name} for name in PEOPLE[:2]]
    found = ask(
        Callable_(), out=tmp_path / "o", samples=2, progress=QUIET, forget_data=write_lines(tmp_path / "f", lines)
    )
    assert cell(found, "accuracy").value is not None and cell(found, "accuracy").lower is None
    assert "no bounds: " in cell(found, "accuracy").reason
    assert cell(found, "rouge_l_recall").value is None and "letters a-z" in cell(found, "rouge_l_recall").reason


def test_limits_keep_every_unit_and_wordings_are_asked(files: dict[str, Path]) -> None:
    data = {"forget": read_records(files["forget_data"], role="forget")}
    plan = Plan(samples=0, temperatures=(), limit=4, level=0.05, resamples=1000, seed=0)
    _, items = questions(data, plan)
    forgotten = [item for item in items if item.role == "forget"]
    assert sorted(item.unit for item in forgotten) == PEOPLE
    assert len([item for item in items if item.role == "lookalike"]) == 4


def test_whatever_needs_weights_is_listed() -> None:
    listed = not_measured()
    for kind in ("condition", "probe"):
        assert {f"{kind} {name}" for name in names(kind)} - {"condition as_is"} == {
            one for one in listed if one.startswith(kind)
        }
    assert all(reason.startswith(NEEDS_WEIGHTS) for reason in listed.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": -1}, "samples >= 0, got -1"),
        ({"temperatures": (1.0, 1.0)}, "different temperatures > 0"),
        ({"temperatures": (0.0,)}, "different temperatures > 0"),
        ({"limit": 0}, "limit >= 1, got 0"),
        ({"level": 0.5}, r"a level in \(0, 0.5\)"),
        ({"resamples": 10}, "resamples >= 1000"),
        ({"timeout": 3.0}, "a callable takes no timeout"),
        ({"seed": -1, "limit": 0}, "2 faults"),
    ],
)
def test_settings_that_cannot_be(
    settings: dict[str, Any], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        ask(Callable_(), out=tmp_path / "out", progress=QUIET, **files, **settings)
    with pytest.raises(UnknownName, match="Did you mean 'timeout'"):
        ask("http://localhost:1/v1", name="m", forget_data=files["forget_data"], timeot=3.0)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_asked(files: dict[str, Path], tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "t.jsonl", [{"text": "words"}])
    with pytest.raises(BadInput, match=r"forget set .*t.jsonl: no questions. Without weights only questions"):
        ask(Callable_(), forget_data=texts, progress=QUIET)
    with pytest.raises(BadInput, match="2 faults"):
        ask(Callable_(), forget_data=tmp_path / "no", retain_data=tmp_path / "none", progress=QUIET)


def test_what_was_said_can_be_purged_and_the_figures_stay(files: dict[str, Path], tmp_path: Path) -> None:
    package.ask(Callable_(), out=tmp_path / "out", samples=2, progress=QUIET, **files)
    texts = [json.loads(line)["prompt"] for line in files["forget_data"].read_text().splitlines()]
    assert any(texts[0] in path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file())
    assert [path.name for path in purge(tmp_path / "out")] == ["answers.jsonl"]
    left = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert "ask.json" in left and not any(text in held for text in texts for held in left.values())
