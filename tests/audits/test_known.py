"""What the records of several runs of forget say of a model: made-up runs, no model is opened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.known import known_of
from letheon.runs.folder import replacing_folder, sha256_file, sha256_folder
from letheon.runs.record import RunFolder


def model_in(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    return folder


def data_in(path: Path) -> Path:
    path.write_text(f'{{"text": "{path.stem}"}}\n')
    return path


def stage(run: Path, verb: str, inputs: Mapping[str, Path], notes: Mapping[str, Any] | None = None) -> Path:
    """A stage that is done, with a model of its own."""
    settings: dict[str, Any] = {"template": "plain", "columns": {}}
    with RunFolder.open(run).stage(verb, settings, inputs, verb) as entered:
        assert entered.folder is not None
        with replacing_folder(entered.folder) as folder:
            (folder / "config.json").write_text(f"{run.name} {verb}")
        for name, value in (notes or {}).items():
            entered.note(name, value)
        return entered.folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Three requests; the second model was rounded before the third."""
    model = model_in(tmp_path / "m", "m")
    retain = data_in(tmp_path / "r.jsonl")
    for number in (1, 2, 3):
        inputs = {"model": model, "forget_data": data_in(tmp_path / f"f{number}.jsonl"), "retain_data": retain}
        model = stage(tmp_path / f"run-{number}", "forget", inputs, {"gate_units": [f"unit {number}"]})
        if number == 2:
            model = stage(tmp_path / "run-2", "quantize", {"model": model})
    return tmp_path


def last(here: Path) -> Path:
    return here / "run-3" / "1-forget"


def test_a_chain_leads_back_to_the_first_model(here: Path) -> None:
    found = known_of(last(here))
    assert found.run == here / "run-3" and found.stage == last(here)
    assert found.values["original"] == here / "m"
    assert found.values["forget_data"] == here / "f3.jsonl"
    assert found.recorded["original"] == sha256_folder(here / "m")
    assert [(one.stage, one.path, one.sha256) for one in found.earlier] == [
        (here / f"run-{k}" / "1-forget", here / f"f{k}.jsonl", sha256_file(here / f"f{k}.jsonl")) for k in (1, 2)
    ]
    assert found.gate_units == {"unit 1", "unit 2", "unit 3"} and found.broken == ()
    assert found.faults({name: found.values.get(name) for name in ("original", "forget_data", "retain_data")}) == []
    assert found.faults_of_earlier() == []


def test_the_rounded_model_between_belongs_to_the_second(here: Path) -> None:
    found = known_of(here / "run-2" / "2-quantize")
    assert found.stage == here / "run-2" / "1-forget" and found.values["original"] == here / "m"
    assert [one.path for one in found.earlier] == [here / "f1.jsonl"]


def test_one_run_of_forget_has_nothing_before_it(here: Path) -> None:
    found = known_of(here / "run-1" / "1-forget")
    assert found.earlier == () and found.values["original"] == here / "m"


def test_a_trained_model_is_where_a_chain_ends(here: Path) -> None:
    trained = stage(here / "trained", "train", {"model": last(here)})
    inputs = {"model": trained, "forget_data": data_in(here / "f4.jsonl")}
    found = known_of(stage(here / "run-4", "forget", inputs))
    assert found.values["original"] == trained and found.earlier == ()


def test_a_rounded_original_is_an_original(here: Path) -> None:
    rounded = stage(here / "rounded", "quantize", {"model": here / "m"})
    found = known_of(stage(here / "run-5", "forget", {"model": rounded, "forget_data": here / "f1.jsonl"}))
    assert found.values["original"] == rounded and found.earlier == () and found.broken == ()
    (rounded / "config.json").write_text("changed")
    found = known_of(here / "run-5" / "1-forget")
    assert found.broken == () and len(found.faults({"original": rounded})) == 1


@pytest.mark.parametrize(
    ("again", "left"), [("f1.jsonl", ["f2.jsonl", "f3.jsonl"]), ("f3.jsonl", ["f1.jsonl", "f2.jsonl"])]
)
def test_the_same_content_counts_once(again: str, left: list[str], here: Path) -> None:
    copy = Path(shutil.copy(here / again, here / "copy.jsonl"))
    found = known_of(stage(here / "run-4", "forget", {"model": last(here), "forget_data": copy}))
    assert [one.path.name for one in found.earlier] == left


def test_an_earlier_set_that_changed_or_is_gone_is_a_fault(here: Path) -> None:
    (here / "f1.jsonl").write_text("changed")
    (here / "f2.jsonl").unlink()
    changed, gone = known_of(last(here)).faults_of_earlier()
    assert changed.startswith(
        f"earlier forget set {here / 'f1.jsonl'}: is not the one that {here / 'run-1' / '1-forget'}"
    )
    assert gone.startswith(
        f"earlier forget set {here / 'f2.jsonl'}: is not there any more; {here / 'run-2' / '1-forget'}"
    )
    assert all(problem.endswith("name what to ask about with --earlier A,B") for problem in (changed, gone))


@pytest.mark.parametrize("name", ["run-1/1-forget", "run-2/1-forget", "run-2/2-quantize"])
def test_a_changed_model_between_breaks_the_chain(name: str, here: Path) -> None:
    (here / name / "config.json").write_text("another model")
    (problem,) = known_of(last(here)).faults_of_earlier()
    assert problem.startswith(f"{here / name}: is not the model that")
    assert known_of(here / "run-1" / "1-forget").broken == (), "a run that came before has nothing to do with it"


def test_models_between_may_be_gone_but_not_their_records(here: Path) -> None:
    for name in ("run-1/1-forget", "run-2/1-forget", "run-2/2-quantize"):
        shutil.rmtree(here / name)
    assert len(known_of(last(here)).earlier) == 2
    shutil.rmtree(here / "run-1")
    assert known_of(last(here)).values["original"] == here / "run-1" / "1-forget", "which is not there, and refused"


def test_what_is_left_out_is_told(here: Path) -> None:
    found = known_of(last(here))
    files = [here / f"f{k}.jsonl" for k in (1, 2, 3)]
    assert found.caveats({}, files) == []
    assert found.caveats({}, files[1:]) == ["1 earlier request of the same model not asked about"]
    assert found.caveats({}, []) == ["2 earlier requests of the same model not asked about"]
