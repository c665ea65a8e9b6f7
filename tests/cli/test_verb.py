"""Options are the settings of a verb: each way of giving one reaches the verb, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from letheon.cli.verb import flag, layered
from letheon.methods import KINDS
from letheon.recipes import verbs

Letheon = Callable[..., Any]
NEEDED = {"train": {"data": "d.jsonl"}, "forget": {"forget_data": "f.jsonl"}, "quantize": {}, "audit": {}}


@dataclasses.dataclass(frozen=True)
class Made:
    """What a verb returns, as far as the command line looks."""

    folder: Path
    steps: int = 3
    reason: str = "done"
    fallen_back: ClassVar[tuple[str, ...]] = ()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The verbs are not run; what they were told is kept."""
    kept: list[tuple[str, dict[str, Any]]] = []

    def function(verb: str) -> Callable[..., Any]:
        def call(model: Any, *, progress: Any, **settings: Any) -> Made:
            kept.append((verb, {"model": model, **settings}))
            progress.say("working")
            return Made(Path("runs/x/1-made"))

        return call

    monkeypatch.setattr(verbs, "function", function)
    return kept


# --- what is derived


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_the_settings_read_from_the_file_are_those_of_the_class(verb: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(verbs.settings_class(verb))}
    assert [setting.name for setting in verbs.settings(verb)] == list(fields)
    for setting in verbs.settings(verb):
        field = fields[setting.name]
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        assert verbs.is_required(setting) is not has_default
        if isinstance(field.default, str | int | float | tuple | Path):
            assert str(verbs.default(setting)) == str(field.default)


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_setting_that_takes_a_method_says_of_which_kind(verb: str) -> None:
    anything = [setting.name for setting in verbs.settings(verb) if setting.annotation == "Any"]
    assert set(verbs.kinds(verb)) == set(anything)
    assert set(verbs.kinds(verb).values()) <= set(KINDS)


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_setting_has_an_option_with_its_description_and_default(letheon: Letheon, verb: str) -> None:
    page = " ".join(letheon(verb, "--help-all").out.split()) + " ".join(letheon(verb, "--help").out.split())
    for setting in verbs.settings(verb):
        rows = setting.inner or (setting,)
        for row in rows:
            option = f"{flag(setting.name)}.{row.name.replace('_', '-')}" if setting.inner else flag(row.name)
            assert "MODEL" in page if row.name == "model" else f"{option} " in page
            assert " ".join(verbs.description(row).split()) in page
            value = verbs.default(row)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                assert f"[{value}]" in page


def test_data_options_are_spelled_without_data() -> None:
    audit = [flag(setting.name) for setting in verbs.settings("audit")]
    assert {"--original", "--forget", "--retain", "--holdout", "--general", "--reference", "--shipped"} <= set(audit)
    assert {"--data", "--without"} <= {flag(setting.name) for setting in verbs.settings("train")}


# --- one grammar


def test_a_verb_is_told_what_was_given_and_nothing_else(letheon: Letheon, calls: list[Any]) -> None:
    assert letheon("forget", "m", "--forget", "f.jsonl").code == 0
    assert calls == [("forget", {"model": "m", "forget_data": "f.jsonl"})]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--learning-rate", "1e-4"], {"learning_rate": "1e-4"}),
        (["--learning-rate=1e-4"], {"learning_rate": "1e-4"}),
        (["--method", "npo", "--method.beta", "0.1"], {"method": {"name": "npo", "beta": "0.1"}}),
        (["--method.beta=0.1", "--method", "npo"], {"method": {"name": "npo", "beta": "0.1"}}),
        (["--method.beta", "0.1"], {"method": {"name": "npo", "beta": "0.1"}}),
        (["--method.beta", "-0.1"], {"method": {"name": "npo", "beta": "-0.1"}}),
        (["--method", "./mine.py", "--method.floor", "-2"], {"method": {"name": "./mine.py", "floor": "-2"}}),
        (["--retain-term.denominator", "token"], {"retain_term": {"name": "gdr", "denominator": "token"}}),
        (["--stop.every", "5", "--stop.forget-accuracy", "0.2"], {"stop": {"every": "5", "forget_accuracy": "0.2"}}),
        (["--columns", "answer=reply", "--columns", "prompt=q=1"], {"columns": {"answer": "reply", "prompt": "q=1"}}),
        (["--betas", "0.9,0.95"], {"betas": ["0.9", "0.95"]}),
        (["--allow-changed-machine"], {"allow_changed_machine": True}),
        (["--no-allow-changed-machine"], {"allow_changed_machine": False}),
        (["--pairing", "cycle"], {"pairing": "cycle"}),
        (["--method", "npo", "--method", "gradient_ascent"], {"method": "gradient_ascent"}),
    ],
)
def test_each_spelling_of_an_option(letheon: Letheon, calls: list[Any], given: list[str], told: dict[str, Any]) -> None:
    for words in ([*given, "m", "--forget", "f.jsonl"], ["m", "--forget", "f.jsonl", *given]):
        calls.clear()
        ended = letheon("forget", *words)
        assert ended.code == 0, ended.err
        assert calls == [("forget", {"model": "m", "forget_data": "f.jsonl", **told})]


def test_what_follows_two_dashes_is_no_option(letheon: Letheon, calls: list[Any]) -> None:
    assert letheon("forget", "--forget", "f.jsonl", "--", "--method.beta").code == 0
    assert calls[0][1] == {"model": "--method.beta", "forget_data": "f.jsonl"}


def test_a_value_may_look_like_an_option(letheon: Letheon, calls: list[Any]) -> None:
    assert letheon("forget", "m", "--forget", "f.jsonl", "--template", "--forget.x {prompt}").code == 0
    assert calls[0][1]["template"] == "--forget.x {prompt}"


def test_the_settings_of_a_quantizer_need_no_prefix(letheon: Letheon, calls: list[Any]) -> None:
    assert letheon("quantize", "m", "--bits", "3", "--method.group", "32").code == 0
    assert calls == [("quantize", {"model": "m", "method": {"name": "rtn", "bits": "3", "group": "32"}})]
    resolved = verbs.resolve("quantize", calls[0][1])
    assert (resolved["method"]["bits"], resolved["method"]["group"]) == (3, 32)


# --- layers


def test_the_command_line_wins_over_the_file(letheon: Letheon, calls: list[Any], here: Path) -> None:
    file = here / "run.yaml"
    file.write_text(
        "model: m\nforget_data: f.jsonl\nepochs: 2\nseed: 3\ncolumns: {answer: reply}\n"
        "method: {name: npo, beta: 0.5, reduction: sum}\nstop: {every: 4, items: 9}\n"
    )
    assert letheon("forget", "--config", file).code == 0
    assert calls.pop()[1] == yaml.safe_load(file.read_text())
    words = ["--config", file, "--seed", "4", "--method.beta", "2", "--stop.every", "8", "--columns", "prompt=q", "m2"]
    assert letheon("forget", *words).code == 0
    assert calls.pop()[1] == {
        "model": "m2",
        "forget_data": "f.jsonl",
        "epochs": 2,
        "seed": "4",
        "columns": {"answer": "reply", "prompt": "q"},
        "method": {"name": "npo", "beta": "2", "reduction": "sum"},
        "stop": {"every": "8", "items": 9},
    }


def test_naming_a_method_starts_from_its_defaults(here: Path) -> None:
    (here / "c.yaml").write_text("method: {name: npo, beta: 0.5, reduction: sum}\n")
    values = layered("forget", {"method": "npo"}, [("method", "beta", "3")], config="c.yaml")
    assert values["method"] == {"name": "npo", "beta": "3"}


def test_a_preset_lies_below_what_is_given_beside_it_and_above_the_file(here: Path) -> None:
    (here / "c.yaml").write_text("method: gradient_ascent\nretain_term: klr\nlearning_rate: 1\nseed: 5\n")
    values = layered("forget", {"preset": "npo-gdr", "batch_size": "8"}, [("method", "beta", "9")], config="c.yaml")
    assert values["method"] == {"name": "npo", "beta": "9", "reduction": "sum"}
    assert values["retain_term"] == {"name": "gdr", "denominator": "token"}
    assert (values["batch_size"], values["learning_rate"], values["seed"]) == ("8", 1e-5, 5)
    assert "preset" not in values
    (here / "p.yaml").write_text("preset: npo-gdr\nretain_term: klr\n")
    assert layered("forget", {}, config="p.yaml")["retain_term"] == "klr"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "--config c.yaml: not YAML"),
        ("!!python/object/apply:os.system [ls]", "--config c.yaml: not YAML"),
        ("- a", "--config c.yaml: holds list, not settings. See letheon forget --print-config"),
        ("method: ./mine.py", "--config c.yaml: method: ./mine.py is Python that would be run. Say --allow-code"),
        ("retain_term: {name: x/mine.py}", "retain_term: x/mine.py is Python that would be run"),
        ("lerning_rate: 1", "- unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
    ],
)
def test_a_faulty_config_file_is_refused(letheon: Letheon, here: Path, text: str, message: str) -> None:
    (here / "c.yaml").write_text(text)
    ended = letheon("forget", "m", "--forget", "f.jsonl", "--config", "c.yaml")
    assert ended.code == 2
    assert message in ended.err


def test_a_config_file_that_is_not_there(letheon: Letheon, here: Path) -> None:
    ended = letheon("forget", "m", "--config", "no.yaml")
    assert (ended.code, ended.err) == (
        2,
        "letheon forget: --config no.yaml: cannot be read (No such file or directory)\n",
    )


# --- --print-config, --dry-run, --json, --quiet


def test_print_config_says_everything_and_runs_nothing(letheon: Letheon, calls: list[Any]) -> None:
    ended = letheon("forget", "m", "--forget", "f.jsonl", "--method.beta", "0.1", "--print-config")
    assert ended.code == 0
    printed = yaml.safe_load(ended.out)
    assert list(printed) == [setting.name for setting in verbs.settings("forget")]
    assert printed["method"] == {"name": "npo", "beta": 0.1, "reduction": "mean", "until": "none"}
    assert printed["stop"]["every"] == 10
    assert (printed["learning_rate"], printed["steps"], printed["out"]) == (1e-5, None, "runs/forget")
    assert calls == []


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ["m", "--data", "d.jsonl", "--betas", "0.8,0.9", "--rate", "cosine", "--rate.floor", "0.1"]),
        ("forget", ["m", "--forget", "f.jsonl", "--preset", "ga-klr", "--stop.every", "0", "--clip", "null"]),
        (
            "forget",
            ["m", "--forget", "f.jsonl", "--columns", "answer=reply", "--allow-changed-machine", "--steps", "7"],
        ),
        ("quantize", ["m", "--bits", "8", "--group", "64"]),
        ("audit", ["m", "--original", "o", "--forget", "f.jsonl", "--resamples", "2000"]),
    ],
)
def test_print_config_round_trips_through_config(letheon: Letheon, here: Path, verb: str, words: list[str]) -> None:
    first = letheon(verb, *words, "--print-config")
    assert first.code == 0, first.err
    (here / "again.yaml").write_text(first.out)
    second = letheon(verb, "--config", "again.yaml", "--print-config")
    assert (second.code, second.out) == (0, first.out)


def test_print_config_lists_all_faults(letheon: Letheon, here: Path) -> None:
    words = ["--epochs", "many", "--method", "npoo", "--scope.x", "1", "--stop.evry", "3", "--seed", "1.5"]
    ended = letheon("forget", "m", "--forget", "f.jsonl", *words, "--print-config")
    assert ended.code == 2
    for part in (
        "- epochs: 'many' is not a number",
        "- seed: '1.5' is not a whole number",
        "- method: 'npoo' is not a forget term. Did you mean 'npo'?",
        "- scope all: unknown key 'x'",
        "unknown key 'evry'. Did you mean 'every'?",
    ):
        assert part in ended.err


def test_a_method_by_path_works_from_the_command_line(letheon: Letheon, here: Path) -> None:
    (here / "mine.py").write_text(
        '"""Mine.\n\nSource: me.  Checked against: nothing.\n"""\nfrom dataclasses import dataclass\n\n'
        "@dataclass(frozen=True)\nclass Mine:\n    floor: float = 0.0\n"
    )
    words = ["forget", "m", "--forget", "f.jsonl", "--method", "./mine.py", "--method.floor", "-2.5", "--print-config"]
    ended = letheon(*words)
    assert ended.code == 0, ended.err
    assert yaml.safe_load(ended.out)["method"] == {"name": str(here / "mine.py"), "floor": -2.5}
    (here / "again.yaml").write_text(ended.out)
    assert letheon("forget", "--config", "again.yaml", "--print-config").code == 2
    again = letheon("forget", "--config", "again.yaml", "--print-config", "--allow-code")
    assert (again.code, again.out) == (0, ended.out)
    assert letheon("methods", "./mine.py", "--kind", "forget_term").out.startswith("mine, a forget term")


def test_dry_run_asks_for_the_estimate_alone(
    letheon: Letheon, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def dry_run(verb: str, settings: dict[str, Any]) -> dict[str, int]:
        asked.append((verb, settings))
        return {"memory_gb": 1}

    made = types.ModuleType("letheon.recipes.dryrun")
    vars(made)["dry_run"] = dry_run
    monkeypatch.setitem(sys.modules, "letheon.recipes.dryrun", made)
    ended = letheon("forget", "m", "--forget", "f.jsonl", "--dry-run", "--json")
    assert (ended.code, calls) == (0, [])
    assert asked == [("forget", {"model": "m", "forget_data": "f.jsonl"})]
    assert json.loads(ended.out) == {"command": "forget", "memory_gb": 1, "exit_code": 0}


def test_a_verb_ends_with_its_folder_and_the_next_command(letheon: Letheon, calls: list[Any]) -> None:
    ended = letheon("forget", "m", "--forget", "f.jsonl")
    assert ended.out == "stopped after 3 steps, done: runs/x/1-made\nnext: letheon audit runs/x/1-made\n"
    assert ended.err == "working\n"
    ended = letheon("train", "m", "--data", "d.jsonl")
    assert ended.out.endswith("next: letheon forget runs/x/1-made --forget forget.jsonl --retain retain.jsonl\n")
    ended = letheon("train", "m", "--data", "d.jsonl", "--without", "f.jsonl")
    assert ended.out.endswith("next: letheon audit FORGOTTEN_MODEL --reference runs/x/1-made\n")
    assert letheon("quantize", "m").out.endswith("next: letheon audit m --shipped runs/x/1-made\n")


def test_json_goes_to_standard_output_and_words_to_the_other(letheon: Letheon, calls: list[Any]) -> None:
    ended = letheon("forget", "m", "--forget", "f.jsonl", "--json")
    said = {"command": "forget", "folder": "runs/x/1-made", "steps": 3, "reason": "done", "exit_code": 0}
    assert json.loads(ended.out) == said
    assert ended.err.startswith("working\n")
    assert "next: letheon audit" in ended.err


def test_quiet_leaves_the_result_alone(letheon: Letheon, calls: list[Any]) -> None:
    ended = letheon("forget", "m", "--forget", "f.jsonl", "--quiet")
    assert ended.err == ""
    assert "runs/x/1-made" in ended.out
