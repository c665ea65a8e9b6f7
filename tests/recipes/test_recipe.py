"""Recipes: read, refused with all faults, written back the same, run as one chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import letheon
from letheon.errors import BadInput, CannotFinish
from letheon.recipes import verbs
from letheon.recipes.recipe import Recipe, Step, dump_recipe, faults, load_recipe, run
from letheon.runs.progress import Progress
from letheon.unlearning.forget_terms.npo import NPO
from tests.toys import llama, tokenizer, write_lines

CHAIN = """
out: runs/mine
steps:
  - forget: {model: m, forget_data: f.jsonl, retain_data: r.jsonl, method: {name: npo, beta: 0.1}, stop: {every: 0}}
  - quantize: {method: rtn}
  - audit: {protocol: quick-1}
"""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "m").symlink_to(base)
    for name, verb in (("f", "Who"), ("r", "Where"), ("h", "Why")):
        people = (name * 2 + str(number) for number in range(6))
        write_lines(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"{verb} is {one}?", "answer": "Yes", "unit": one} for one in people],
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path, text: str) -> Path:
    path = here / "chain.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(here: Path, text: str, **options: Any) -> list[str]:
    with pytest.raises(BadInput) as raised:
        load_recipe(written(here, text), **options)
    return raised.value.problems


# --- reading


def test_a_recipe_is_its_steps_in_order(here: Path) -> None:
    recipe = load_recipe(written(here, CHAIN))
    assert recipe.out == Path("runs/mine")
    assert [step.verb for step in recipe.steps] == ["forget", "quantize", "audit"]
    assert recipe.steps[0].settings["method"] == {"name": "npo", "beta": 0.1}


def test_the_run_folder_is_the_argument_then_the_recipe_then_its_name(here: Path) -> None:
    assert load_recipe(written(here, CHAIN), out="elsewhere").out == Path("elsewhere")
    assert load_recipe(written(here, "steps: [{quantize: {model: m}}]")).out == Path("runs/chain")


def test_a_step_without_settings_may_be_its_verb_alone(here: Path) -> None:
    text = "steps:\n  - quantize: {model: m}\n  - audit\n"
    also = "steps:\n  - quantize: {model: m}\n  - audit:\n"
    assert load_recipe(written(here, text)) == load_recipe(written(here, also))


def test_a_recipe_written_back_is_the_same(here: Path) -> None:
    recipe = load_recipe(written(here, CHAIN))
    assert load_recipe(written(here, dump_recipe(recipe))) == recipe


def test_methods_and_paths_made_in_python_are_written_as_yaml(here: Path) -> None:
    made = Recipe(
        (Step("forget", {"model": Path("m"), "forget_data": Path("f.jsonl"), "method": NPO(beta=0.5)}),),
        Path("runs/é"),
    )
    assert faults(made, allow_code=True) == []
    text = dump_recipe(made)
    settings = yaml.safe_load(text)["steps"][0]["forget"]
    assert settings["method"] == {"name": "npo", "beta": 0.5, "reduction": "mean", "until": "none"}
    assert settings["model"] == "m"
    read = load_recipe(written(here, text))
    assert read.out == Path("runs/é")
    assert verbs.resolve("forget", read.steps[0].settings) == verbs.resolve("forget", made.steps[0].settings)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[", "chain.yaml: not YAML"),
        ("!!python/object/apply:os.system [ls]", "chain.yaml: not YAML"),
        ("- forget", "holds list, not a mapping. A recipe has 'out' and 'steps'"),
        ("", "holds NoneType, not a mapping"),
        (
            "outt: x\nsteps: [{quantize: {model: m}}]",
            "unknown key 'outt'. Did you mean 'out'? A recipe has 'out' and 'steps'",
        ),
        ("stages: [{verb: forget}]", "chain.yaml: says what a run did, with every setting resolved"),
        ("out: x", "chain.yaml: no steps. Give a list"),
        ("steps: []", "chain.yaml: no steps. Give a list"),
        ("out: 2024-01-01\nsteps: [{quantize: {model: m}}]", "out: datetime.date(2024, 1, 1) is not a path"),
        (
            "steps: [{forgte: {}}]",
            "chain.yaml, step 1: 'forgte' is not a verb. Did you mean 'forget'? Known: train, forget",
        ),
        ("steps: [{train: {}, forget: {}}]", "is not a step. A step is one verb with its settings"),
        ("steps: [3]", "step 1: 3 is not a step"),
        ("steps: [{quantize: m}]", "step 1, quantize: 'm' is not a mapping of settings"),
        (
            "steps: [{quantize: {model: m, devise: x}}]",
            "step 1, quantize: unknown key 'devise'. Did you mean 'device'?",
        ),
        ("steps: [{quantize: {}}]", "step 1, quantize: no 'model', which has no default"),
        (
            "steps: [{quantize: {model: m, out: o}}]",
            "step 1, quantize: unknown key 'out'. All steps share the recipe's own",
        ),
        (
            "steps: [{quantize: {model: m, method: rtnn}}]",
            "quantize.method: 'rtnn' is not a quantizer. Did you mean 'rtn'?",
        ),
        ("steps: [{quantize: {model: m, method: {name: rtn, bit: 4}}}]", "unknown key 'bit'. Did you mean 'bits'?"),
        ("steps: [{quantize: {model: m, method: {name: rtn, bits: 99}}}]", "quantize.method"),
        ("steps: [{forget: {model: m, forget_data: f, epochs: many}}]", "forget.epochs: 'many' is not a number"),
        ("steps: [{forget: {model: m, forget_data: f, epochs: 0}}]", "epochs must be > 0, got 0"),
        ("steps: [{forget: {model: m, forget_data: f, stop: {evry: 1}}}]", "unknown key 'evry'. Did you mean 'every'?"),
        ("steps: [{forget: {model: m, forget_data: f, preset: npo-gdrr}}]", "is not a preset. Did you mean 'npo-gdr'?"),
        (
            "steps: [{quantize: {model: m}}, {quantize: {}}]",
            "step 2, quantize: step 1 is 'quantize' too. A run holds one stage of each verb",
        ),
    ],
)
def test_each_fault_names_its_place_and_the_nearest_name(here: Path, text: str, part: str) -> None:
    problems = refused(here, text)
    assert len(problems) == 1, problems
    assert part in problems[0]
    assert "chain.yaml" in problems[0]


def test_a_recipe_that_is_not_there(here: Path) -> None:
    with pytest.raises(BadInput, match=r"recipe no.yaml: cannot be read \(No such file or directory\)"):
        load_recipe("no.yaml")


def test_all_faults_of_all_steps_come_at_once(here: Path) -> None:
    problems = refused(
        here,
        "outt: x\nsteps:\n  - forget: {model: m, epochs: many, method: npoo, rate: {name: cosine, flor: 1}}\n"
        "  - quantise: {}\n  - audit: {sede: 1}\n",
    )
    for part in (
        "'outt'",
        "no 'forget_data'",
        "'many'",
        "'npoo'",
        "'flor'",
        "'quantise'",
        "'sede'. Did you mean 'seed'",
    ):
        assert sum(part in problem for problem in problems) == 1, (part, problems)
    assert len(problems) == 7


# --- code


MINE = '''"""Mine.

Source: me.  Checked against: nothing.
"""
from dataclasses import dataclass
from pathlib import Path

Path("ran").touch()


@dataclass(frozen=True)
class Mine:
    floor: float = 0.0
'''


@pytest.mark.parametrize("spec", ["./mine.py", "{name: ./mine.py, floor: 1}"])
def test_a_file_of_python_is_neither_run_nor_read_unless_allowed(here: Path, spec: str) -> None:
    (here / "mine.py").write_text(MINE)
    text = f"steps: [{{forget: {{model: m, forget_data: f.jsonl, method: {spec}}}}}]"
    (problem,) = refused(here, text)
    assert "step 1, forget.method: ./mine.py is Python that would be run. Say --allow-code" in problem
    assert not (here / "ran").exists()
    with pytest.raises(BadInput):
        run(written(here, text))
    assert not (here / "ran").exists()
    assert load_recipe(written(here, text), allow_code=True).steps[0].verb == "forget"
    assert (here / "ran").exists()


# --- running


@dataclass
class Verbs:
    """Verbs that only say what they were told."""

    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fail: str = ""

    def function(self, verb: str) -> Callable[..., Any]:
        def call(model: Any, *, progress: Progress, **settings: Any) -> Any:
            self.told.append((verb, {"model": model, **settings}))
            if verb == self.fail:
                raise CannotFinish("disk")
            return Audited("DELETED") if verb == "audit" else Made(Path(f"{settings['out']}/{len(self.told)}-{verb}"))

        return call


@dataclass(frozen=True)
class Made:
    folder: Path


@dataclass(frozen=True)
class Audited:
    verdict: str


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Verbs:
    fakes = Verbs()
    monkeypatch.setattr(verbs, "function", fakes.function)
    return fakes


QUIET = Progress(quiet=True)


def test_each_step_gets_its_settings_the_recipes_folder_and_the_model_made_before(here: Path, told: Verbs) -> None:
    result = run(written(here, CHAIN), progress=QUIET)
    out = Path("runs/mine")
    forget, quantize, audit = (settings for _, settings in told.told)
    assert forget == {**load_recipe(here / "chain.yaml").steps[0].settings, "out": out}
    assert quantize == {"model": out / "1-forget", "method": "rtn", "out": out}
    assert audit == {
        "model": out / "1-forget",  # at full precision: its own conditions round it
        "shipped": out / "2-quantize",
        "protocol": "quick-1",
        "out": out,
    }
    assert (result.folder, list(result.results), result.verdict) == (out, ["forget", "quantize", "audit"], "DELETED")


def test_what_a_step_says_itself_is_kept(here: Path, told: Verbs) -> None:
    text = CHAIN.replace("{protocol: quick-1}", "{model: m, shipped: null}").replace("{method: rtn}", "{model: m}")
    run(written(here, text), progress=QUIET)
    assert told.told[1][1]["model"] == "m"
    assert (told.told[2][1]["model"], told.told[2][1]["shipped"]) == ("m", None)


@pytest.mark.parametrize(
    ("steps", "model"),
    [
        ("[{train: {model: m, data: f.jsonl}}, {forget: {forget_data: f.jsonl}}]", "1-train"),
        ("[{train: {model: m, data: f.jsonl}}, {audit: {original: m, forget_data: f.jsonl}}]", "1-train"),
        ("[{quantize: {model: m}}, {audit: {original: m, forget_data: f.jsonl}}]", "1-quantize"),
    ],
)
def test_the_model_is_the_folder_made_last(here: Path, told: Verbs, steps: str, model: str) -> None:
    run(written(here, f"out: o\nsteps: {steps}"), progress=QUIET)
    assert told.told[-1][1]["model"] == Path("o") / model
    assert "shipped" not in told.told[-1][1]


def test_a_benchmark_makes_no_model_and_its_reference_may_be_a_log(here: Path, told: Verbs) -> None:
    (here / "log.json").write_text("{}")
    measured = "{benchmark: {benchmark: people, reference: log.json}}"
    text = f"out: o\nsteps: [{{forget: {{model: m, forget_data: f.jsonl}}}}, {measured}, {{audit: {{}}}}]"
    run(written(here, text), progress=QUIET)
    assert [settings["model"] for _, settings in told.told[1:]] == [Path("o") / "1-forget"] * 2


@pytest.mark.parametrize(
    ("quantize", "audit"),
    [
        ("{method: rtn}", "{model: m}"),  # another model than the one that was rounded
        ("{method: rtn, model: m}", "{protocol: quick-1}"),  # and the other way round
    ],
)
def test_what_was_rounded_from_another_model_is_not_the_file_that_ships(
    here: Path, told: Verbs, quantize: str, audit: str
) -> None:
    run(written(here, CHAIN.replace("{method: rtn}", quantize).replace("{protocol: quick-1}", audit)), progress=QUIET)
    assert "shipped" not in told.told[2][1]


def test_the_model_made_before_is_the_same_when_it_is_named(here: Path, told: Verbs) -> None:
    text = CHAIN.replace("{protocol: quick-1}", "{model: runs/mine/1-forget}")
    forgot = Path("runs/mine/1-forget")
    forgot.parent.mkdir(parents=True)
    forgot.symlink_to((here / "m").resolve())
    run(written(here, text), progress=QUIET)
    assert told.told[2][1]["shipped"] == Path("runs/mine/2-quantize")


def test_a_recipe_made_in_python_runs(here: Path, told: Verbs) -> None:
    recipe = Recipe((Step("quantize", {"model": "m"}),), Path("o"))
    result = run(recipe, out="p", progress=QUIET)
    assert told.told == [("quantize", {"model": "m", "out": Path("p")})]
    assert result.verdict is None
    with pytest.raises(BadInput, match="step 1, quantize: unknown key 'bits'"):
        run(Recipe((Step("quantize", {"model": "m", "bits": 4}),), Path("o")), progress=QUIET)


def test_every_input_of_every_step_is_checked_before_the_first(here: Path, told: Verbs) -> None:
    (here / "h.jsonl").write_text('{"prompt": "a"}\n')
    text = (
        "steps:\n  - forget: {model: m, forget_data: f.jsonl, retain_data: gone.jsonl, holdout_data: h.jsonl}\n"
        "  - audit: {reference: nowhere, general_data: h.jsonl, shipped: lost}\n"
    )
    with pytest.raises(BadInput) as raised:
        run(written(here, text), progress=QUIET)
    assert told.told == []
    problems = raised.value.problems
    for part in (
        "retain set gone.jsonl: no such file",
        "reference nowhere: no such folder",
        "shipped lost: no such folder",
    ):
        assert sum(part in problem for problem in problems) == 1, problems
    assert sum("h.jsonl, line 1: no 'answer' field" in problem for problem in problems) == 2  # in two roles
    assert len(problems) == 5


def test_columns_are_those_of_the_step(here: Path, told: Verbs) -> None:
    write_lines(here / "f.jsonl", [{"prompt": "a", "reply": "b"}])
    step = "{model: m, forget_data: f.jsonl, columns: {answer: reply}}"
    run(written(here, f"steps: [{{forget: {step}}}]"), progress=QUIET)
    assert told.told[0][1]["columns"] == {"answer": "reply"}


def test_a_step_that_fails_stops_the_chain(here: Path, told: Verbs) -> None:
    told.fail = "quantize"
    with pytest.raises(CannotFinish):
        run(written(here, CHAIN), progress=QUIET)
    assert [verb for verb, _ in told.told] == ["forget", "quantize"]


def test_the_package_offers_it() -> None:
    assert letheon.run is run


def test_a_real_chain_runs_and_a_second_time_finds_all_done(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "forget_data: f.jsonl, retain_data: r.jsonl, steps: 2, learning_rate: 1e-3, stop: {every: 0}"
    text = f"out: o\nsteps:\n  - forget: {{model: m, {settings}}}\n  - quantize: {{method: {{name: rtn, bits: 8}}}}\n"
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, words: said.append(words))
    first = run(written(here, text), progress=QUIET)
    assert [entry.name for entry in sorted((here / "o").iterdir())] == [
        "1-forget",
        "2-quantize",
        "recipe.yaml",
        "record.json",
    ]
    assert any(words.startswith("forget: 6 records") for words in said)
    record = (here / "o" / "record.json").read_bytes()
    said.clear()
    second = run(written(here, text), progress=QUIET)
    assert said == ["step 1 of 2: forget", "step 2 of 2: quantize"]
    assert (here / "o" / "record.json").read_bytes() == record
    assert second.results["forget"].folder == first.results["forget"].folder
    with pytest.raises(BadInput, match="exists with another recipe"):
        run(written(here, text.replace("steps: 2", "steps: 3")), progress=QUIET)
