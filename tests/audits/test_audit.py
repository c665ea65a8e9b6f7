"""What is refused before anything is loaded, what the forget run already knows, and what a finished audit leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from letheon.audits import audit as module
from letheon.audits import measure, tables
from letheon.audits.attacked import rows_of
from letheon.audits.audit import AuditResult, audit, check_request
from letheon.audits.conditions.as_is import AsIs
from letheon.audits.conditions.logit_lens import LogitLens
from letheon.audits.conditions.relearn import Relearn
from letheon.audits.request import Request
from letheon.audits.verify import verify
from letheon.data.records import hashed_unit
from letheon.errors import BadInput
from letheon.models import inspect_model, load_tokenizer
from letheon.runs.folder import sha256_file, sha256_folder
from letheon.runs.ledger import load_record
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from tests.audits.conftest import QUICKLY, QUIET
from tests.audits.mini import Mini, twin
from tests.toys import chat_tokenizer, write_lines

ROLES = ("forget", "retain", "holdout", "general")


def refused(settings: Mapping[str, Any]) -> list[str]:
    with pytest.raises(BadInput) as caught:
        check_request(settings)
    return caught.value.problems


def request(mini: Mini, **changes: Any) -> Request:
    """Of a model that is not its own original, so that there is nothing to warn of."""
    return check_request({"model": mini.base, "reference": mini.reference, **mini.inputs, **changes})


def never(*given: Any, **settings: Any) -> Any:
    raise AssertionError("a model was loaded")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no model may be loaded."""
    monkeypatch.setattr(measure, "load_model", never)
    monkeypatch.setattr(tables, "load_any", never)


# --- faults


def test_every_fault_of_every_input_is_told_at_once(mini: Mini, tmp_path: Path) -> None:
    told = refused(
        {
            "model": tmp_path / "no model",
            "original": tmp_path / "no original",
            "shipped": tmp_path,
            "forget_data": write_lines(tmp_path / "f.jsonl", [{"prompt": "Who?"}, {"prompt": "Who?", "answer": ""}]),
            "retain_data": tmp_path / "r.jsonl",
            "protocol": "quick1",
            "device": "tpu",
            "seed": -1,
            "resamples": 999,
        }
    )
    expected = [
        "MODEL", "original", "shipped", "line 1", "line 2", "r.jsonl", "quick-1", "device 'tpu'", "seed must be 0",
    ]  # fmt: skip
    assert len(told) == len(expected)
    assert [said in problem for said, problem in zip(expected, told, strict=True)] == [True] * len(expected)
    assert refused({"model": mini.target, **mini.inputs, "resamples": 999}) == [
        "resamples must be at least 1000, got 999"
    ]


def test_what_no_record_says_must_be_given(mini: Mini) -> None:
    given = mini.inputs
    (told,) = refused({"model": mini.target})
    assert told.endswith("was not made by a run of letheon forget, so --original DIR and --forget FILE must be given")
    for name, option in (("original", "--original DIR"), ("forget_data", "--forget FILE")):
        (told,) = refused({"model": mini.target, **{key: path for key, path in given.items() if key != name}})
        assert told.endswith(f"so {option} must be given")


def test_an_unknown_setting_is_refused_with_the_nearest(mini: Mini) -> None:
    (told,) = refused({"model": mini.target, "orignal": mini.target, **mini.inputs})
    assert "unknown key 'orignal'. Did you mean 'original'?" in told


def test_a_holdout_that_was_trained_on_is_refused_by_every_set_it_overlaps(mini: Mini, tmp_path: Path) -> None:
    lines = [json.loads(mini.files[role].read_text().splitlines()[0]) for role in ("holdout", "forget", "retain")]
    shared = write_lines(tmp_path / "shared.jsonl", lines)
    forget, retain = refused({"model": mini.target, **mini.inputs, "holdout_data": shared})
    assert "holdout and forget overlap: 1" in forget and "holdout and retain overlap: 1" in retain
    assert all("must never have been trained on" in problem for problem in (forget, retain))


def told_of(found: Request) -> list[str]:
    """Its warnings, but for the one that eight people always get."""
    few = [warning for warning in found.warnings if "8 units, fewer than 20" in warning]
    assert len(few) == 1
    return [warning for warning in found.warnings if warning not in few]


def test_a_retain_set_that_overlaps_is_told_and_may_go_on(mini: Mini, tmp_path: Path) -> None:
    lines = [mini.files[role].read_text().splitlines()[0] for role in ("forget", "retain")]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(lines) + "\n")
    (warning,) = told_of(request(mini, retain_data=mixed))
    assert warning.startswith("forget and retain overlap: 1")
    assert told_of(request(mini)) == []


def test_lines_without_a_unit_are_told(mini: Mini, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in mini.files["forget"].read_text().splitlines()]
    bare = write_lines(tmp_path / "f.jsonl", ({k: v for k, v in line.items() if k != "unit"} for line in lines))
    (warning,) = request(mini, forget_data=bare).warnings
    assert "each line counts as its own unit" in warning


def test_what_is_to_be_forgotten_is_no_general_knowledge(mini: Mini, tmp_path: Path) -> None:
    line = json.loads(mini.files["forget"].read_text().splitlines()[0])
    general = write_lines(tmp_path / "g.jsonl", [{"prompt": "What is it?", "answer": "A ship"}, line])
    (told,) = refused({"model": mini.base, **mini.inputs, "general_data": general})
    assert told.startswith("general and forget overlap: 1 records") and "take these records out of the general" in told


def test_general_knowledge_that_was_retained_is_told_and_said_in_the_scope(mini: Mini, tmp_path: Path) -> None:
    found = request(mini, general_data=mini.files["retain"])
    count = len(mini.data("retain").records)
    (warning,) = told_of(found)
    assert warning.startswith(f"general and retain overlap: {count} records are equal")
    assert found.caveats == (f"{count} of {count} records of general knowledge stand in the retain set",)


def test_what_is_missing_for_a_deletion_is_told_at_the_start(mini: Mini) -> None:
    (told,) = told_of(request(mini, general_data=None, holdout_data=None))
    assert told.startswith("without --holdout FILE and --general FILE not all") and told.endswith("cannot be DELETED")


# --- models that are one model


@pytest.mark.parametrize("role", ["model", "original", "shipped"])
def test_a_reference_that_is_another_of_the_models_is_refused(
    role: str, mini: Mini, tmp_path: Path, no_model: None
) -> None:
    """Every difference would be 0. By content: a copy, whatever it and its card are called."""
    copy = Path(shutil.copytree(mini.reference, tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    given = {"model": mini.base, "reference": mini.reference, **mini.inputs, role: copy}
    (told,) = refused(given)
    said = "MODEL" if role == "model" else role
    assert told.startswith(f"reference {mini.reference}: has the weights of {said} {copy}")
    assert "--without forget.jsonl" in told and "leave --reference out" in told


def test_an_original_that_is_the_model_is_told(mini: Mini, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mini.target, tmp_path / "copy"))
    (told,) = told_of(request(mini, model=copy))
    assert told.startswith(f"MODEL {copy} and original {mini.target} have the same weights: nothing was unlearned")


# --- models that do not speak the same tokens


def with_tokenizer(source: Path, target: Path, tokenizer: Any) -> Path:
    shutil.copytree(source, target)
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.parametrize("role", ["reference", "original", "shipped"])
def test_another_vocabulary_is_refused_before_the_stage_begins(
    role: str, mini: Mini, tmp_path: Path, no_model: None
) -> None:
    other = with_tokenizer(mini.base, tmp_path / "other", chat_tokenizer())
    given = {**mini.inputs, "reference": mini.reference, role: other}
    with pytest.raises(BadInput, match=rf"{role} .*other: its tokenizer has another vocabulary than that of MODEL"):
        audit(mini.target, out=tmp_path / "run", **given, **QUICKLY)
    assert RunFolder.open(tmp_path / "run").record().stages == []


def test_the_same_vocabulary_in_another_file_is_the_same(mini: Mini, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(mini.reference)
    other = with_tokenizer(mini.reference, tmp_path / "other", tokenizer)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(json.dumps(json.loads(text)))
    assert sha256_file(other / "tokenizer.json") != sha256_file(mini.target / "tokenizer.json")
    module.prepare(request(mini, reference=other))


# --- what the record of the forget run says


def test_the_forget_run_fills_in_what_is_not_given(forgotten: Path, mini: Mini) -> None:
    found = check_request({"model": forgotten / "1-forget", "reference": mini.reference})
    entry = RunFolder.open(forgotten).record().stages[0]
    assert {role: file.path for role, file in found.data.items()} == {
        role: mini.files[role] for role in ("forget", "retain", "holdout")
    }
    assert found.folders["original"].path == mini.target and found.folders["shipped"].path == forgotten / "2-quantize"
    assert found.run == forgotten and found.wanted.template == entry.settings["template"]
    assert {hashed_unit(unit) for unit in found.gate_units} == set(entry.notes["gate_units"])
    assert len(found.gate_units) == 5
    used, missing = told_of(found)
    assert used == "5 holdout units were used by the gate; the audit asks about the other 5"
    assert (
        missing == "without --general FILE not all that is required can be measured, so the verdict cannot be DELETED"
    )
    assert found.caveats == ()
    _, plan = module.prepare(found)
    for name in ("holdout_questions", "holdout_held_out", "holdout_texts"):
        assert len(plan.sets[name]) and not found.gate_units & set(plan.sets[name].units)


def test_what_is_given_goes_before_what_the_record_says(forgotten: Path, mini: Mini, tmp_path: Path) -> None:
    own = write_lines(tmp_path / "f.jsonl", [{"prompt": "Who?", "answer": "Bru", "unit": "a"}])
    found = check_request(
        {"model": forgotten / "1-forget", "original": mini.base, "forget_data": own, "template": "plain"}
    )
    assert (found.folders["original"].path, found.data["forget"].path) == (mini.base, own)
    assert found.wanted.template == "plain" and found.data["retain"].path == mini.files["retain"]
    elsewhere = check_request({"model": forgotten / "1-forget", "out": tmp_path / "run"})
    assert elsewhere.run == tmp_path / "run"
    assert elsewhere.folders["shipped"].path == forgotten / "2-quantize"  # it ships wherever the audit goes


CHANGED = {
    "forget_data": ("forget set", "--forget FILE", "the forget set is not the one the run forgot"),
    "retain_data": ("retain set", "--retain FILE", "the retain set is not the one the run kept"),
    "holdout_data": ("holdout set", "--holdout FILE", "the holdout set is not the one the run was given"),
    "model": ("original", "--original DIR", "the original is not the model that the run of forget began with"),
}


@pytest.fixture
def elsewhere(copied: Path, mini: Mini, tmp_path: Path) -> dict[str, Path]:
    """Inputs of the copied run that a test may change, by their names in its record."""
    places = {
        "model": Path(shutil.copytree(mini.target, tmp_path / "original")),
        **{f"{role}_data": Path(shutil.copy(mini.files[role], tmp_path)) for role in ("forget", "retain", "holdout")},
    }
    record = load_record(copied)
    for name, path in places.items():
        given = record.stages[0].inputs[name]
        assert given is not None
        given["path"] = str(path)
    record.save(copied)
    return places


def change(path: Path) -> None:
    """A line less, or a weight more."""
    if path.is_dir():
        shutil.copytree(twin(path, path.parent / "twin"), path, dirs_exist_ok=True)
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("name", CHANGED)
def test_what_has_changed_since_the_run_is_refused_by_name(name: str, copied: Path, elsewhere: dict[str, Path]) -> None:
    what, option, _ = CHANGED[name]
    for model in ("1-forget", "2-quantize"):
        check_request({"model": copied / model})
    change(elsewhere[name])
    for model in ("1-forget", "2-quantize"):
        (told,) = refused({"model": copied / model})
        assert told.startswith(f"{what} {elsewhere[name]}: is not the one that {copied / '1-forget'} was made with")
        assert f"Restore it, or name what to ask about with {option}" in told


@pytest.mark.parametrize("name", CHANGED)
def test_another_input_than_the_runs_is_told_and_said_in_the_scope(
    name: str, copied: Path, elsewhere: dict[str, Path]
) -> None:
    """Half of a request, audited, must not look like the whole of it."""
    setting, caveat = "original" if name == "model" else name, CHANGED[name][2]
    same = check_request({"model": copied / "1-forget", setting: elsewhere[name]})
    assert same.caveats == () and not any(caveat in warning for warning in same.warnings)
    change(elsewhere[name])
    other = check_request({"model": copied / "1-forget", setting: elsewhere[name]})
    assert other.caveats == (caveat,) and f"{caveat}; the scope says so" in other.warnings


def test_the_scope_of_an_audit_names_what_was_not_asked(
    copied: Path, mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of the request, and a text longer than the window; told even to who wants to see no progress."""
    lines = [json.loads(line) for line in mini.files["forget"].read_text().splitlines()[:-1]]
    long = {"text": "and so it went on, " * 200, "unit": lines[0]["unit"]}
    part = write_lines(tmp_path / "f.jsonl", [*lines, long])
    result = audit(
        copied / "1-forget", forget_data=part, resamples=1000, out=tmp_path / "a", progress=Progress(quiet=True)
    )
    caveats = [
        "the forget set is not the one the run forgot",
        f"of 1 long texts to be forgotten only the first {inspect_model(mini.target).window} tokens were asked",
    ]
    assert result.audit["caveats"] == caveats and f"; {'; '.join(caveats)}. Nothing is said" in result.verdict.scope
    assert verify(result.run).problems == ()
    told = capsys.readouterr().err
    assert "warning: the forget set is not the one the run forgot" in told
    assert "warning: forget texts set: 1 of " in told and "without --general FILE" in told


def test_a_rounded_model_is_about_the_request_of_the_one_it_was_made_from(forgotten: Path, mini: Mini) -> None:
    found = check_request({"model": forgotten / "2-quantize"})
    assert found.folders["original"].path == mini.target and found.data["forget"].path == mini.files["forget"]
    assert "shipped" not in found.folders and found.run == forgotten and len(found.gate_units) == 5


def test_a_run_may_be_moved(copied: Path, mini: Mini) -> None:
    found = check_request({"model": copied / "1-forget"})
    assert found.folders["shipped"].path == copied / "2-quantize" and found.folders["original"].path == mini.target


def test_a_copy_of_the_folder_still_knows_whom_the_gate_has_seen(forgotten: Path, mini: Mini, tmp_path: Path) -> None:
    copy = tmp_path
    for name in ("1-forget", "2-quantize"):  # the rounded one carries it over
        copy = shutil.copytree(forgotten / name, tmp_path / f"my-{name}")
        found = check_request({"model": copy, **mini.inputs})
        assert len(found.gate_units) == 5
        assert "5 holdout units were used by the gate; the audit asks about the other 5" in found.warnings
    lines = [json.loads(line) for line in mini.files["holdout"].read_text().splitlines()]
    renamed = write_lines(tmp_path / "h.jsonl", [{**line, "unit": f"other {line['unit']}"} for line in lines])
    told = check_request({"model": copy, **mini.inputs, "holdout_data": renamed})
    assert any("the gate used 5 holdout units, and none of that name is in this" in text for text in told.warnings)
    (copy / "letheon.json").write_text("{")
    with pytest.raises(BadInput, match=r"letheon\.json is damaged"):
        check_request({"model": copy, **mini.inputs})


def test_a_trained_model_has_no_request(mini: Mini) -> None:
    """The target was made by a run too, but not by one of forget."""
    found = request(mini, model=mini.target)
    assert found.run == mini.target.parent and found.gate_units == frozenset()


def test_a_model_of_no_run_gets_a_run_of_its_own_name(mini: Mini) -> None:
    assert check_request({"model": mini.base, **mini.inputs}).run == Path("runs") / "base-audit"


# --- what is written


def asked_ids(found: dict[str, Any]) -> set[str]:
    return {name for entry in found["asked"] for name in entry["items"]}


def test_audit_json_names_its_evidence(audited: AuditResult, mini: Mini) -> None:
    found = audited.audit
    assert found == json.loads(audited.audit_path.read_text()) and found["schema"] == "letheon.audit/1"
    models = {"subject": mini.target, "original": mini.target, "reference": mini.reference}
    assert found["models"] == {
        role: {"path": str(folder), "sha256": sha256_folder(folder)} for role, folder in models.items()
    }
    for role in ROLES:
        assert found["data"][role]["sha256"] == sha256_file(mini.files[role])
        assert found["data"][role]["records"] == len(mini.data(role).records)
    assert found["control"]["kind"] == "reference" and found["control"]["is_paired"] is True
    assert found["settings"]["resamples"] == 1000 and "with 1000 resamples" in found["verdict"]["scope"]
    required = [cell for cell in found["cells"] if cell["required"]]
    assert len(required) == found["protocol"]["m"] == 6 * 3 + 2 * 2
    assert len(found["cells"]) == 6 * 12 and all(cell["status"] == "measured" for cell in required)
    assert [entry["judgement"] for entry in found["utility"]] == ["kept"] * 3


def test_what_is_to_be_erased_stands_in_items_alone(audited: AuditResult, mini: Mini) -> None:
    for name in ("audit.json", "verdict.json", "record.json", "recipe.yaml"):
        text = (audited.run / name).read_text()
        assert not [unit for role in ("forget", "retain", "holdout") for unit in mini.data(role).units if unit in text]
    lines = [json.loads(line) for line in (audited.run / "items.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} <= asked_ids(audited.audit), "each sample can be found in the scores"
    assert {(line["role"], line["condition"]) for line in lines} == {
        ("original", "as_is"), ("subject", "as_is"), ("subject", "int4_row")
    }  # fmt: skip
    said = {(line["condition"], line["prompt"]): line["given"] for line in lines if line["role"] == "subject"}
    known = {record.prompt: record.answer for record in mini.data("forget").questions}
    assert all(said["as_is", prompt] == answer for prompt, answer in known.items() if ("as_is", prompt) in said)


@pytest.mark.slow
def test_ids_are_of_one_run_and_scores_of_all(audited: AuditResult, mini: Mini, tmp_path: Path) -> None:
    """The same audit in another folder: same numbers and verdict, and ids that cannot be joined."""
    again = audit(mini.target, reference=mini.reference, out=tmp_path / "run", **mini.inputs, **QUICKLY)
    for name in ("cells", "utility", "verdict", "scores", "privleak", "conditions"):
        assert again.audit[name] == audited.audit[name]
    assert not asked_ids(again.audit) & asked_ids(audited.audit)


def test_privleak_is_muses_number(audited: AuditResult) -> None:
    cell = next(
        cell for cell in audited.audit["cells"] if (cell["condition"], cell["column"]) == ("as_is", "membership_texts")
    )
    mine, theirs = 1 - cell["value"], 1 - cell["control"]
    assert audited.audit["privleak"]["value"] == pytest.approx(100 * (mine - theirs) / theirs)


def test_rows_of_an_attack_say_which_one_and_how_far() -> None:
    rows = rows_of("relearn", Relearn(steps=(20, 5)))
    said = {name: measure._said_of(condition) for name, condition in rows.items()}
    for name, steps in (("relearn_5", 5), ("relearn_20", 20)):
        assert {key: said[name].get(key) for key in ("attack", "along", "value")} == {
            "attack": "relearn", "along": "steps", "value": steps,
        }  # fmt: skip
    assert json.loads(json.dumps(said)) == said
    lens = measure._said_of(LogitLens())
    assert lens["attack"] == "logit_lens" and not {"along", "value"} & set(lens)
    assert set(measure._said_of(AsIs())) == {"provenance"}


# --- again


def test_a_finished_audit_is_read_and_not_made_again(
    audited: AuditResult, mini: Mini, no_model: None, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(audited.run, tmp_path / "run"))
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    (run / "verdict.json").unlink()
    again = audit(mini.target, reference=mini.reference, out=run, **mini.inputs, **QUICKLY)
    assert (again.verdict, again.audit) == (audited.verdict, audited.audit)
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"resamples": 2000}, "resamples: 1000 -> 2000"),
        ({"reference": None}, "input 'reference' changed"),
    ],
)
def test_a_finished_audit_is_not_mixed_with_another(
    change: dict[str, Any], said: str, audited: AuditResult, mini: Mini, no_model: None
) -> None:
    with pytest.raises(BadInput, match=said):
        audit(
            mini.target, out=audited.run, **{"reference": mini.reference, **mini.inputs, **QUICKLY, **change}
        )  # fmt: skip


def test_a_finished_audit_that_was_altered_is_refused(audited: AuditResult, mini: Mini, tmp_path: Path) -> None:
    run = Path(shutil.copytree(audited.run, tmp_path / "run"))
    (run / "audit.json").write_text((run / "audit.json").read_text().replace("NOT DELETED", "DELETED"))
    with pytest.raises(BadInput, match=r"audit\.json was altered"):
        audit(mini.target, reference=mini.reference, out=run, **mini.inputs, **QUICKLY)


def test_a_stopped_audit_says_nothing_and_ends_as_if_it_had_not_been_stopped(
    audited: AuditResult, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measure, "utility_rows", stop)
        audit(mini.target, reference=mini.reference, out=tmp_path / "run", **mini.inputs, **QUICKLY)
    assert not [name for name in ("audit.json", "verdict.json", "items.jsonl") if (tmp_path / "run" / name).exists()]
    ended = audit(mini.target, reference=mini.reference, out=tmp_path / "run", **mini.inputs, **QUICKLY)
    assert ended.audit["cells"] == audited.audit["cells"] and ended.verdict == audited.verdict


def test_a_forgotten_model_is_judged_with_the_folder_that_ships(copied: Path, mini: Mini) -> None:
    found = audit(copied / "1-forget", reference=mini.reference, general_data=mini.files["general"], **QUICKLY)
    assert found.run == copied
    by = {(cell["condition"], cell["column"]): cell for cell in found.audit["cells"]}
    assert len([cell for cell in by.values() if cell["required"]]) == found.audit["protocol"]["m"] == 27
    for column in ("forget_accuracy", "forget_accuracy_held_out", "forget_probability", "verbatim"):
        assert by["shipped", column]["value"] == by["int4_row", column]["value"], "the same rounding, by two ways"
        assert by["shipped", column]["control"] == by["as_is", column]["control"], "the retrained model as it is"
    assert by["as_is", "membership_questions"]["n_units"] == 8 + 5, "units that the gate has seen are not asked"
    figures = found.audit["conditions"]
    assert figures["int4_row"]["code_match"] > figures["int8"]["code_match"] > 0, "the finer grid shows more of it"
    assert figures["as_is"]["code_match"] is None and 0 < figures["int4_row"]["shift_in_steps"] < 1


def test_one_wrong_setting_hides_no_other_fault(mini: Mini, tmp_path: Path) -> None:
    given = {**mini.inputs, "forget_data": tmp_path / "no.jsonl", "original": tmp_path / "no"}
    with pytest.raises(BadInput) as caught:
        audit(mini.target, **given, seed="x", resamples="many", protocol="quick-9", also="relern", progress=QUIET)
    said = "\n".join(caught.value.problems)
    for part in (
        "audit.seed: 'x'",
        "audit.resamples: 'many'",
        "'quick-9'",
        "'relern'",
        "no.jsonl: no such file",
        "no: no such",
    ):
        assert part in said, said


def test_a_field_that_is_nearly_known_is_told(mini: Mini, tmp_path: Path) -> None:
    text = mini.files["forget"].read_text(encoding="utf-8").replace('"unit"', '"unti"')
    odd = tmp_path / "odd.jsonl"
    odd.write_text(text, encoding="utf-8")
    request = check_request({"model": mini.target, "reference": mini.reference, **mini.inputs, "forget_data": odd})
    assert any("unti" in warning and "unit" in warning for warning in request.warnings)
